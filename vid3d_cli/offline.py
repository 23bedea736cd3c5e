"""Variables of the environment that forbid the network."""

import os


def is_on(variable: str) -> bool:
    """Whether a variable, as VID3D_OFFLINE, is set to 1, on, yes or true."""
    return os.environ.get(variable, "").lower() in ("1", "on", "yes", "true")
