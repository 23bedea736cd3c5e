"""Entry point of `vid3d` and `python -m vid3d_cli`; an interrupt during imports prints no traceback."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
