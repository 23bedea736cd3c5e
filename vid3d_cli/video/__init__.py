"""Videos: from the names a user types to frames with their times. Only this folder uses PyAV."""

TIMEOUT_SECONDS = 120.0
"""A video fails when its decoder makes no progress for this many seconds."""
