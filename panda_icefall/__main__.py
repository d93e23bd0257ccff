"""The ``panda-icefall`` command, also as ``python -m panda_icefall``."""

from panda_icefall.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
