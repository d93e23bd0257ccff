"""What torch does on CUDA with half operands and a float32 result, done on a CPU.

Products of half values are exact in float32, and are added up there.
"""

import contextlib

import torch
from dispatch import without_modes
from torch.utils._python_dispatch import _get_current_dispatch_mode

from panda_icefall.normalizer import tensor_cores


def uncounted():
    """Without the dispatch mode that is on, if one is."""
    return without_modes() if _get_current_dispatch_mode() else contextlib.nullcontext()


def emulate(patch, addmm_widens=True):
    """Let half heads take half GEMMs on the CPU; gives ``(function, dtype, strides...)`` of each.

    Args:
      patch: pytest's monkeypatch.
      addmm_widens: False: half products cannot be added to a float32 tensor, as in the first
        torches whose ``mm`` has ``out_dtype``.
    """
    seen = []
    mm, addmm = torch.mm, torch.addmm

    def widening_mm(left, right, *, out_dtype=None, out=None):
        if out_dtype is None:
            return mm(left, right, out=out)
        note("mm", left, right)
        with uncounted():  # on CUDA it is one operation
            result = mm(left.to(out_dtype), right.to(out_dtype))
            return result if out is None else out.copy_(result)

    def widening_addmm(start, left, right, *, out_dtype=None, out=None):
        if out_dtype is None:
            return addmm(start, left, right, out=out)
        assert addmm_widens
        assert start.dtype == out_dtype
        note("addmm", left, right)
        with uncounted():
            return addmm(start, left.to(out_dtype), right.to(out_dtype), out=out)

    def note(name, left, right):
        assert left.dtype == right.dtype
        assert left.dtype in tensor_cores.HALVES
        seen.append((name, left.dtype, left.stride(), right.stride()))

    def is_half(tensor, rounded_to):
        return (tensor.dtype if rounded_to is None else rounded_to) in tensor_cores.HALVES

    patch.setattr(torch, "mm", widening_mm)
    patch.setattr(torch, "addmm", widening_addmm)
    patch.setattr(tensor_cores, "holds_half", is_half)
    patch.setattr(tensor_cores, "widening_gemms", lambda *given: (True, addmm_widens))
    return seen
