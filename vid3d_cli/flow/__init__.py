"""Optical flow: the methods, ready-made files in and out, and the colours that show it."""
