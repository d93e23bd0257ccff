"""What operations create: a measure of memory that is the same on every machine."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


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
                self.elements = max(self.elements, value.numel())
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result
