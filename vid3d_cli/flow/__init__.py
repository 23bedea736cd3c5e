"""Optical flow: methods, ready-made files in and out, colours."""
