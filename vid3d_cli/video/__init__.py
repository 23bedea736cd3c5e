"""Videos: from the names a user types to frames with their times. Only this folder uses PyAV."""

TIMEOUT_SECONDS = 120.0
"""A video fails when its decoder makes no progress for this many seconds."""

MAX_PIXELS = 8192 * 8192
"""Largest frame: 8K video of any shape, 200 MB as RGB. Damaged headers may claim more; a decoder holds a dozen."""
