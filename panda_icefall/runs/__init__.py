"""What a user does: launch a recipe, bound it, log its memory, check its contract."""

from panda_icefall.runs.errors import (
    BoundReached,
    MismatchError,
    NothingTrainedError,
    NotRoutedError,
    UsageError,
)
from panda_icefall.runs.launch import run_recipe
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.panda_arguments import split_panda_arguments

__all__ = [
    "BoundReached",
    "MismatchError",
    "NotRoutedError",
    "NothingTrainedError",
    "PandaOptions",
    "UsageError",
    "run_recipe",
    "split_panda_arguments",
]
