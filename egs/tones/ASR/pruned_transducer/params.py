"""Parameters of a run: command-line values and what training keeps beside them."""

from __future__ import annotations

import argparse
from typing import Any


class AttributeDict(dict[str, Any]):
    """A dict whose items can be read and set as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"params: got no {name!r}, expected one of {list(self)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def str2bool(value: str) -> bool:
    """1/0, true/false, yes/no of the command line to a bool."""
    if value.lower() in ("1", "true", "t", "yes", "y"):
        return True
    if value.lower() in ("0", "false", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"got {value!r}, expected 0 or 1")
