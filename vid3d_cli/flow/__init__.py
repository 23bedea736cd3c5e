"""Optical flow: methods, ready-made files in and out, colours."""

METHODS = ("dis", "dis-ultrafast", "dis-fast", "dis-medium", "farneback", "tvl1")
"""Names of the methods, here since the help must not import NumPy; `methods.FLOW_METHODS` has the functions."""
