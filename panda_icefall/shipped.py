"""Where ``egs/`` and ``patches/`` lie: inside an installed package, or beside it in a checkout."""

import difflib
from pathlib import Path

__all__ = ["config_names", "find_config", "shipped_folder"]

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "_files"  # scripts/build_with_files.py puts them there


def shipped_folder(name: str) -> Path:
    """The folder ``egs`` or ``patches``."""
    installed = _INSTALLED / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def config_names() -> list[str]:
    """The bounded configurations, ``CORPUS/RECIPE/FORM`` each."""
    return sorted(_configs())


def find_config(name: str, form: str) -> Path:
    """The file of a bounded configuration.

    Args:
      name: ``CORPUS/RECIPE/FORM``, or ``CORPUS/RECIPE``.
      form: The FORM of one that is named without.

    Raises:
      ValueError: There is none; the message names those that are.
    """
    configs = _configs()
    for wanted in (name, f"{name}/{form}"):
        if wanted in configs:
            return configs[wanted]
    close = difflib.get_close_matches(f"{name}/{form}", configs, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(
        f"got {name}, expected a YAML file or one of {', '.join(sorted(configs))}; {hint}"
        "see `panda-icefall bounded --list`"
    )


def _configs() -> dict[str, Path]:
    paths = shipped_folder("egs").glob("*/ASR/*/*.yaml")
    return {f"{p.parts[-4]}/{p.parts[-2]}/{p.stem}": p for p in paths}
