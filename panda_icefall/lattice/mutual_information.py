"""The recursion under k2's name, and the rule by which k2's own or the exact one runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.engine_choice import check_recursion, is_triton_chosen
from panda_icefall.lattice.recursion import Scores, exact_recursion, unchecked_exact_recursion
from panda_icefall.lattice.validation import check_recursion_inputs, widened


@opaque
def mutual_information_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> Scores:
    """Log-probability of all paths through a transducer lattice, differentiable in its arcs.

    k2's function of this name or ``exact_recursion``, by the rule of ``is_k2_chosen``.

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
    ``exact_recursion`` for the own ones.
    """
    if px.dtype == py.dtype:
        px, py = widened(px), widened(py)
    check_recursion_inputs(px, py, boundary)
    return unchecked_recursion(px, py, boundary, return_grad)


@opaque
def joint_mutual_information_recursion(
    px: Sequence[Tensor], py: Sequence[Tensor], boundary: Tensor | None = None
) -> Tensor:
    """The score of arcs that are sums of terms, told by term, as k2's function of this name.

    Term n gets the log-prob that it is expected to give a path, ``sum(occupation * term)``. The
    first term gets the rest of the score as well: put the main one first.

    Args:
      px: terms of the symbol arcs, as ``px`` of ``mutual_information_recursion`` each.
      py: the terms of the blank arcs, as many, as ``py`` there.
      boundary: as there.

    Returns:
      ``[N, B]`` for N terms, in nats; its sum over N is ``mutual_information_recursion`` of the
      summed arcs, with the same gradients. Term n alone has the gradient of ``px[n]`` and ``py[n]``
      with the occupations held fixed.

    Raises:
      ValueError: if there are no terms, or one has another shape, or a boundary row does not fit.
      TypeError: if a dtype does not fit.

    Runs ``exact_recursion`` on every device: where no path is left, k2's occupations are arbitrary.
    """
    _check_terms("px", px, len(px))
    _check_terms("py", py, len(px))
    px_terms, py_terms = widened(torch.stack(tuple(px))), widened(torch.stack(tuple(py)))
    with torch.no_grad():
        result = exact_recursion(px_terms.sum(0), py_terms.sum(0), boundary, return_grad=True)
    assert isinstance(result, tuple)
    scores, (px_grad, py_grad) = result
    shares = _expected(px_terms, px_grad) + _expected(py_terms, py_grad)  # [N, B]
    rest = scores - shares.detach().sum(dim=0)
    return torch.cat((shares[:1] + rest, shares[1:]))


def _check_terms(name: str, terms: Sequence[Tensor], expected: int) -> None:
    if len(terms) == 0 or len(terms) != expected:
        raise ValueError(f"{name}: got {len(terms)} terms, expected {expected or 'one or more'}")
    shape, dtype = terms[0].shape, terms[0].dtype
    for n, term in enumerate(terms):
        if term.shape != shape:
            raise ValueError(
                f"{name}[{n}]: got shape {tuple(term.shape)}, expected that of {name}[0], "
                f"{tuple(shape)}"
            )
        if term.dtype != dtype:
            raise TypeError(f"{name}[{n}]: got {term.dtype}, expected that of {name}[0], {dtype}")


def _expected(terms: Tensor, occupation: Tensor) -> Tensor:
    """Sums ``[N, B]`` of terms ``[N, B, ...]`` over the arcs that a path takes."""
    # Other arcs may be -inf.
    return (terms.masked_fill(occupation == 0, 0) * occupation).sum(dim=(2, 3))


def unchecked_recursion(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None,
    return_grad: bool,
    engine: str = "auto",
    recursion: str = "auto",
) -> Scores:
    """``mutual_information_recursion`` of float32 or float64 arguments that were checked.

    Args:
      engine: of ``exact_recursion``.
      recursion: as in ``is_k2_chosen``.

    No device sync, but for the one that k2 has where there is a boundary.
    """
    if not is_k2_chosen(recursion, engine, px.device):
        return unchecked_exact_recursion(px, py, boundary, return_grad, engine)
    import k2

    return k2.mutual_information_recursion(px, py, boundary, return_grad)


def is_k2_chosen(recursion: str, engine: str, device: torch.device) -> bool:
    """Whether k2's recursion runs on arcs of a device, rather than the exact one.

    k2's computes in the arcs' dtype: at scores of 3000 nats its float32 occupations are off by
    1e-5. The exact one computes in float64, so that its occupations have the rounding of their own
    dtype. On a CPU it takes some hundred small steps, on CUDA a launch each way where Triton runs,
    and some thousand where not.

    Args:
      recursion: "k2", "exact", or "auto": k2's on CUDA where Triton does not run and k2 has CUDA,
        the exact one everywhere else.
      engine: of ``exact_recursion``.
      device: where the arcs lie.

    Raises:
      ValueError: there is no such recursion, or k2's cannot work on this device.
      MissingEngineError: k2's is asked for and k2 is not installed.
    """
    check_recursion(recursion)
    if recursion == "exact":
        return False
    if recursion == "auto":
        is_slow = device.type == "cuda" and not is_triton_chosen(engine, device)
        return is_slow and has_k2_recursion(device)
    if not has_k2_recursion(device):
        raise ValueError(
            f"recursion: got 'k2' for arcs on {device}, where the installed k2 has none; give "
            "'auto' or 'exact'"
        )
    return True


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
