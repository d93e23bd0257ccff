"""The ``panda-icefall`` command, also as ``python -m panda_icefall``: first of all, torch."""

import sys

__all__ = ["main"]

EXIT_NO_TORCH = 2


def main() -> None:
    """Run the command, or say in one line that torch is missing or broken."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library that it loads
        what = (
            "is not installed"
            if isinstance(error, ModuleNotFoundError) and error.name == "torch"
            else f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        )
        print(
            f"panda-icefall: torch {what} (Python {sys.version.split()[0]} at {sys.executable}); "
            "install the torch for your GPU or CPU first (https://pytorch.org/get-started), then "
            "the k2 that was built for it, then run `panda-icefall doctor`",
            file=sys.stderr,
        )
        sys.exit(EXIT_NO_TORCH)
    from panda_icefall import cli

    cli.main()


if __name__ == "__main__":
    main()
