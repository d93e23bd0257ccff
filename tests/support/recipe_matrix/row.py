"""What one line of the matrix says: a recipe, its small sizes, and what makes it a variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

# The builders that icefall's train.py files have, under any of these names.
BUILDERS = ("get_transducer_model", "get_model", "get_surt_model")


# In `Row.params`: the entry is taken out.
ABSENT = object()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Call:
    """What an adaptation of the inputs may look at."""

    train: ModuleType
    params: Any
    is_training: bool


@dataclass(frozen=True)
class Adaptation:
    """What a recipe needs besides its own files before its model takes a batch.

    Attributes:
      note: shown in the table; empty for what changes nothing, such as other inputs.
      around: holds from before the import of the recipe until after its last batch.
      around_dense: holds in the passes without PANDA only.
      around_reference: holds in those of them whose losses are exact; None: there are no such.
      model: changes the built model.
      inputs: `(call, keyword arguments of forward) -> keyword arguments of forward`.
    """

    note: str = ""
    around: Callable[[], AbstractContextManager[Any]] = _nothing
    around_dense: Callable[[], AbstractContextManager[Any]] = _nothing
    around_reference: Callable[[], AbstractContextManager[Any]] | None = None
    model: Callable[[nn.Module], nn.Module] | None = None
    inputs: Callable[[Call, dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Row:
    """A recipe or a variant of it.

    Attributes:
      folder: recipe folder below `egs/`.
      sizes: small dimensions; an option of the recipe's parser where it has one, else an entry of
        its `get_params()` where that has one, else left out.
      train: module with the parser and the builder.
      variant: what differs from the recipe's defaults, in words; empty for them.
      options: of the recipe's own parser, beyond the sizes.
      params: set after parsing.
      call: keyword arguments of the model's `forward` beyond features, transcripts and scales.
      adaptations: in the order they apply.
      num_classes: vocabulary with blank.
      precision: the forward runs under autocast to it, unless it is float32.
      own_failure: regular expression of the error that the recipe raises without PANDA, at the
        pinned icefall commit or where a package is missing; looked for, never assumed.
    """

    folder: str
    sizes: Mapping[str, Any]
    train: str = "train"
    variant: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    adaptations: tuple[Adaptation, ...] = ()
    num_classes: int = 500
    precision: torch.dtype = torch.float32
    own_failure: str = ""

    @property
    def name(self) -> str:
        script = "" if self.train == "train" else f" {self.train}.py"
        return f"{self.folder}{script}" + (f": {self.variant}" if self.variant else "")

    @property
    def has_ctc_head(self) -> bool:
        """Whether the recipe is asked for torch's CTC loss."""
        return bool(self.options.get("use-ctc"))

    @property
    def has_reference(self) -> bool:
        """Whether the dense arm, at its precision, is not what both arms are compared with."""
        is_half = self.precision != torch.float32
        has_own = any(a.around_reference is not None for a in self.adaptations)
        return is_half or self.has_ctc_head or has_own

    @property
    def notes(self) -> str:
        return "; ".join(a.note for a in self.adaptations if a.note)

    def but(self, variant: str, **changes: Any) -> Row:
        """A variant: mappings and adaptations are added to, anything else is replaced."""
        for name in ("options", "params", "call"):
            changes[name] = {**getattr(self, name), **changes.get(name, {})}
        changes["adaptations"] = self.adaptations + tuple(changes.get("adaptations", ()))
        return replace(self, variant=variant, **changes)
