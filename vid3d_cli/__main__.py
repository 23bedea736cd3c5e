"""`python -m vid3d_cli` is `vid3d`."""

from .cli import main

main()
