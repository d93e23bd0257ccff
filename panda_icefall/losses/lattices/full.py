"""The full lattice: from the log-probs of its arcs to the loss."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.mutual_information import (
    unchecked_recursion,
)
from panda_icefall.lattice.validation import check_recursion_inputs, widened
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.sites import FullSites
from panda_icefall.losses.spec import LatticeOptions, check_options

__all__ = [
    "Loss",
    "close_symbol_arcs",
    "loss_of_arcs",
    "loss_of_full_sites",
    "score",
    "symbol_arcs",
]

NEG_INF = float("-inf")
DEFAULT = LossOptions()

Loss = Tensor | tuple[Tensor, tuple[Tensor, Tensor]]


@overload
def score(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    return_grad: Literal[False] = False,
) -> Tensor: ...


@overload
def score(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    return_grad: bool,
) -> Loss: ...


@opaque
def score(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    return_grad: bool = False,
) -> Loss:
    """The transducer loss of a lattice: delay penalty, recursion, sign, reduction.

    Args:
      px: ``[B, S, T+1]`` (regular) or ``[B, S, T]`` (modified, constrained), nats.
      py: ``[B, S+1, T]``, nats.
      boundary, rnnt_type, delay_penalty, reduction: as in ``LatticeOptions``; the penalty is
        computed in the dtype of ``px``.
      return_grad: also return the occupations of the arcs.

    Returns:
      The loss in nats, ``[B]`` or a scalar; with ``return_grad`` ``(loss, (px_grad, py_grad))``,
      where the gradients are those of the summed negated loss.

    Raises:
      ValueError: if an option is unknown or a shape does not fit.
      TypeError: if a dtype does not fit.
    """
    check_options(rnnt_type, reduction)
    options = LatticeOptions(boundary, rnnt_type, delay_penalty, reduction)
    expected = py.shape[2] + options.is_regular
    if px.shape[2] != expected:
        raise ValueError(
            f"px: got {px.shape[2]} frames for rnnt_type={rnnt_type!r} and py of shape "
            f"{tuple(py.shape)}, expected {expected}"
        )
    return loss_of_arcs(px, py, options, return_grad, is_checked=False)


@overload
def loss_of_arcs(
    px: Tensor, py: Tensor, options: LatticeOptions, *, tiles: LossOptions = ..., is_checked: bool
) -> Tensor: ...


@overload
def loss_of_arcs(
    px: Tensor,
    py: Tensor,
    options: LatticeOptions,
    return_grad: bool,
    *,
    tiles: LossOptions = ...,
    is_checked: bool,
) -> Loss: ...


def loss_of_arcs(
    px: Tensor,
    py: Tensor,
    options: LatticeOptions,
    return_grad: bool = False,
    *,
    tiles: LossOptions = DEFAULT,
    is_checked: bool,
) -> Loss:
    """``score`` without its checks of options and frames.

    Args:
      px, py, return_grad: as in ``score``.
      options: what ``score`` takes by name.
      tiles: which recursion runs, in which engine.
      is_checked: whether the boundary and the arcs were checked; else the recursion checks them.
    """
    if options.delay_penalty > 0.0:
        earliness = options.earliness(px, px.shape[2], py.shape[2])
        px = px + earliness.unsqueeze(1) * options.delay_penalty
    boundary, chosen = options.boundary, (tiles.engine, tiles.recursion)
    if not is_checked:
        if px.dtype == py.dtype:
            px, py = widened(px), widened(py)
        check_recursion_inputs(px, py, boundary)
    result = unchecked_recursion(px, py, boundary, return_grad, *chosen)
    scores, grads = result if isinstance(result, tuple) else (result, None)
    loss = options.loss_of(scores)
    return loss if grads is None else (loss, grads)


def loss_of_full_sites(
    target_logp: Tensor, blank_logp: Tensor, sites: FullSites, tiles: LossOptions = DEFAULT
) -> Tensor:
    """The transducer loss from two log-probs per site of the full lattice.

    Args:
      target_logp: ``[N]`` log-prob of the next symbol, nats; not used at the last state.
      blank_logp: ``[N]`` log-prob of the termination symbol, nats.
      tiles: as in ``loss_of_arcs``.

    Returns:
      The loss in nats, ``[B]`` or a scalar, in the dtype of the log-probs. The recursion is run in
      float64: paths are hundreds of arcs long.
    """
    spec, dtype = sites.spec, target_logp.dtype
    grids = (spec.emitted(target_logp).double(), blank_logp.double())
    px, py = (sites.spread(values, NEG_INF).transpose(1, 2) for values in grids)
    px = symbol_arcs(px[:, :-1], py, spec)
    return loss_of_arcs(px, py, spec, tiles=tiles, is_checked=True).to(dtype)


def symbol_arcs(px: Tensor, py: Tensor, options: LatticeOptions) -> Tensor:
    """The symbol arcs of a lattice of any ``rnnt_type`` from those of its T frames, ``[B, S, T]``.

    Returns:
      The ``px`` of ``score``.
    """
    if options.is_regular:
        px = torch.cat((px, px.new_full((*px.shape[:2], 1), NEG_INF)), dim=2)
    return close_symbol_arcs(px, py, options)


def close_symbol_arcs(px: Tensor, py: Tensor, options: LatticeOptions) -> Tensor:
    """Apply what ``rnnt_type`` asks of the symbol arcs.

    Regular: none after the last frame of an utterance, so ``px[b, :, t_end]`` becomes -inf (what
    lies beyond is not read by the recursion). Constrained: a symbol is followed by the blank of
    the next state on the same frame. Modified with a final blank: none on the last frame.
    """
    if options.rnnt_type == "constrained":
        return px + py[:, 1:]
    if options.is_regular and options.boundary is not None:
        frame = torch.arange(px.shape[2], device=px.device)
        return px.masked_fill(frame == options.boundary[:, 3].reshape(-1, 1, 1), NEG_INF)
    if options.rnnt_type == "modified" and options.is_final_blank:
        closed = options.last_frame(px.shape[2], px.device)
        return px.masked_fill(closed.unsqueeze(1), NEG_INF)
    return px
