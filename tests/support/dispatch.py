"""What operations create and launch: measures that are the same on every machine."""

import importlib.util
import math
from collections import Counter

import pytest
import torch
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# torch 1.13 takes off one mode at a time; there is one.
without_modes = getattr(
    _python_dispatch,
    "_disable_current_modes",
    getattr(_python_dispatch, "_pop_mode_temporarily", None),
)


class LargestTensor(TorchDispatchMode):
    """The largest tensor with memory that any operation of the block returns.

    Args:
      ignored: a tensor that was there before; it and views from its begin do not count.

    Attributes:
      elements, bytes: of the largest tensors so far.
    """

    def __init__(self, ignored=None):
        super().__init__()
        self.elements = self.bytes = 0
        self._ignored = None if ignored is None else ignored.data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if not isinstance(value, torch.Tensor) or value.device.type == "meta":
                continue
            if self._ignored is None or value.data_ptr() != self._ignored:
                # An expanded dimension has no memory of its own.
                sizes = [n for n, step in zip(value.shape, value.stride()) if step or n == 0]
                self.elements = max(self.elements, math.prod(sizes))
                self.bytes = max(self.bytes, math.prod(sizes) * value.element_size())
        return result


class NewTensors(TorchDispatchMode):
    """Notes the new tensors, neither views nor arguments, of at least so many numbers.

    Attributes:
      shapes: theirs, in order.
    """

    def __init__(self, least):
        super().__init__()
        self.shapes = []
        self._least = least

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if all(returned.alias_info is None for returned in func._schema.returns):
            values = [v for v in tree_flatten(result)[0] if isinstance(v, torch.Tensor)]
            self.shapes += [v.shape for v in values if v.numel() >= self._least]
        return result


class Launches(TorchDispatchMode):
    """Counts what would be kernel launches on a GPU: operations that compute, and Triton kernels.

    Views, and tensors that are only allocated, launch nothing. Kernels in Triton's interpreter
    count one each.

    Attributes:
      counts: launches by the operation's name; Triton kernels are "triton".
    """

    NOT_LAUNCHED = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
    NOT_LAUNCHED += ("_unsafe_view", "lift_fresh", "detach", "resize_", "set_", "is_same_size")

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self._patch = pytest.MonkeyPatch()

    @property
    def total(self):
        return sum(self.counts.values())

    def __enter__(self):
        if importlib.util.find_spec("triton") is not None:
            from triton.runtime.interpreter import GridExecutor

            call = GridExecutor.__call__

            def counted(executor, *args, **kwargs):
                self.counts["triton"] += 1
                with without_modes():
                    return call(executor, *args, **kwargs)

            self._patch.setattr(GridExecutor, "__call__", counted)
        return super().__enter__()

    def __exit__(self, *raised):
        self._patch.undo()
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        returned = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        if not is_view and name not in self.NOT_LAUNCHED:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))
