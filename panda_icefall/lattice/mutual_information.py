"""The recursion under k2's name: k2's own function where it can run, else the one in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.recursion import Scores, unchecked_torch_recursion
from panda_icefall.lattice.validation import check_recursion_inputs, widened


@opaque
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> Scores:
    """Log-probability of all paths through a transducer lattice, differentiable in its arcs.

    k2's function of this name runs where k2 is importable and can work on the tensors' device;
    ``torch_recursion`` runs everywhere else.

    Args:
      px: symbol arcs, float32 or float64, ``[B, S, T+1]`` (regular) or ``[B, S, T]`` (modified,
        constrained), nats; -inf means no such arc. Both may be float16 or bfloat16: computed in
        float32, as are the scores and the occupations; the gradients are half again.
      py: blank arcs, ``[B, S+1, T]``, same dtype and device, nats.
      boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end``; ``[0, 0, S, T]`` if None.
      return_grad: also return the occupations of the arcs.

    Returns:
      The scores ``[B]`` in nats, or with ``return_grad`` ``(scores, (px_grad, py_grad))`` where the
      gradients are those of ``scores.sum()``, shaped as ``px`` and ``py``.

    Raises:
      ValueError: if a shape, a device or a boundary row does not fit; the row is named.
      TypeError: if the arcs are not floats of one dtype, or the boundary is not int64.

    One device sync if there is a boundary (k2 has a second one). Where an utterance has no path
    (score -inf) or holds a NaN, k2's occupations are arbitrary finite numbers; see
    ``torch_recursion`` for the own ones.
    """
    if px.dtype == py.dtype:
        px, py = widened(px), widened(py)
    check_recursion_inputs(px, py, boundary)
    return unchecked_recursion(px, py, boundary, return_grad)


def unchecked_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None, return_grad: bool
) -> Scores:
    """``mutual_information_recursion`` of float32 or float64 arguments that were checked.

    No device sync, but for the one that k2 has where there is a boundary.
    """
    if not has_k2_recursion(px.device):
        return unchecked_torch_recursion(px, py, boundary, return_grad)
    import k2

    return k2.mutual_information_recursion(px, py, boundary, return_grad)


def has_k2_recursion(device: torch.device) -> bool:
    """Whether k2 is importable and its recursion can work on tensors of this device."""
    try:
        import k2
    except ImportError:
        return False
    # Where there is no k2, our own functions may bear its name, this one among them.
    recursion = getattr(k2, "mutual_information_recursion", mutual_information_recursion)
    if recursion is mutual_information_recursion:
        return False
    return device.type == "cpu" or (device.type == "cuda" and getattr(k2, "with_cuda", False))
