"""Where the host waits for the device in a step: counted without a GPU, and where the calls are.

Every way for Python to learn a value of a tensor, or a size that depends on values, is a wait on a
GPU. So is a tensor made of Python numbers: its copy from pageable memory blocks until it is done.
What other libraries' compiled code does is not seen.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import panda_icefall

_PACKAGE = Path(panda_icefall.__file__).parent
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu")
SIZED_BY_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount")
COPIES_TO_DEVICE = ("lift_fresh",)
# They ask for the device first: these tensors stand for those of a GPU, where they read nothing.
READS_ON_A_CPU = {
    "routing/non_finite.py: is_finite",
    "routing/prune_ranges.py: _is_too_narrow",
}


@dataclass(frozen=True)
class Wait:
    """One wait of the host.

    Attributes:
      operation: what asks for it, ``tolist``.
      place: the innermost function of the package that is running, ``losses/sites.py: of``; ""
        where none is.
    """

    operation: str
    place: str


class Syncs(TorchDispatchMode):
    """Records the waits of the enclosed block.

    Attributes:
      waits: in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self._is_reading = False
        self._patches = contextlib.ExitStack()

    @property
    def operations(self) -> list[str]:
        """Of the waits, in their order."""
        return [wait.operation for wait in self.waits]

    def __enter__(self) -> Syncs:
        for name in READS:
            method = self._counted(name, getattr(Tensor, name))
            self._patches.enter_context(mock.patch.object(Tensor, name, method))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._is_reading:  # one way of reading is made of another
                return method(tensor, *args, **kwargs)
            self._note(name)
            self._is_reading = True
            try:
                return method(tensor, *args, **kwargs)
            finally:
                self._is_reading = False

        return read

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        is_by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_flatten(args[1])[0]
        )
        is_of_unknown_size = name == "repeat_interleave" and kwargs.get("output_size") is None
        is_told = name.startswith(SIZED_BY_VALUES) or name in COPIES_TO_DEVICE
        if (is_by_mask or is_of_unknown_size or is_told) and not self._is_reading:
            self._note(name)
        return func(*args, **kwargs)

    def _note(self, operation: str) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(_PACKAGE):
                place = f"{path.relative_to(_PACKAGE).as_posix()}: {frame.f_code.co_name}"
                if place not in READS_ON_A_CPU:
                    self.waits.append(Wait(operation, place))
                return
            frame = frame.f_back  # type: ignore[assignment]
        self.waits.append(Wait(operation, ""))
