"""``python -m panda_icefall``: the same as the ``panda-icefall`` command."""

from panda_icefall.cli import main

if __name__ == "__main__":
    main()
