"""From two log-probs per site to the loss: the arcs `px`, `py`, and the score of the lattice."""

from __future__ import annotations

from typing import Literal, Union, overload

import torch
from torch import Tensor

from panda_icefall.lattice import mutual_information_recursion
from panda_icefall.losses.input_checks import check_lattice_inputs, check_options

__all__ = ["check_lattice_inputs", "close_symbol_arcs", "pruned_px_py", "score"]

NEG_INF = float("-inf")

Loss = Union[Tensor, tuple[Tensor, tuple[Tensor, Tensor]]]


def pruned_px_py(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None,
    rnnt_type: str,
) -> tuple[Tensor, Tensor]:
    """The arcs of the full lattice from the log-probs of the retained sites.

    Equal to k2's `get_rnnt_logprobs_pruned` on logits whose selected log-probs are these.

    Args:
      target_logp: `[B, T, s_range]` log-prob of the next symbol at each site, nats; what stands
        at `s == S`, where no symbol is left, is not used.
      blank_logp: `[B, T, s_range]` log-prob of the termination symbol, nats.
      ranges: int64 `[B, T, s_range]`, consecutive states in `[0, S]`.
      S: symbols in the padded batch.
      boundary: int64 `[B, 4]` or None.
      rnnt_type: `regular`, `modified` or `constrained`.

    Returns:
      `(px, py)`: `[B, S, T+1]` (regular) or `[B, S, T]`, and `[B, S+1, T]`; -inf at states that
      are not retained, and at the symbol arcs of frame `t_end` in the regular lattice.
      Differentiable in both log-probs; the finite values of sites outside the boundary have no
      influence on the score.

    Raises:
      ValueError: if a shape does not fit or `rnnt_type` is unknown.
    """
    check_options(rnnt_type, "none")
    for name, logp in (("target_logp", target_logp), ("blank_logp", blank_logp)):
        if logp.shape != ranges.shape:
            raise ValueError(
                f"{name}: got shape {tuple(logp.shape)}, expected that of ranges, "
                f"[B, T, s_range] = {list(ranges.shape)}"
            )
    T = ranges.shape[1]
    px_frames = T + 1 if rnnt_type == "regular" else T
    px = _spread(target_logp, ranges, S, px_frames)[:, :S]
    py = _spread(blank_logp, ranges, S, T)
    return close_symbol_arcs(px, py, boundary, rnnt_type), py


def close_symbol_arcs(px: Tensor, py: Tensor, boundary: Tensor | None, rnnt_type: str) -> Tensor:
    """Apply what `rnnt_type` asks of the symbol arcs.

    Regular: none after the last frame of an utterance, so `px[b, :, t_end]` becomes -inf (what
    lies beyond is not read by the recursion). Constrained: a symbol is followed by the blank of
    the next state on the same frame.
    """
    if rnnt_type == "constrained":
        return px + py[:, 1:]
    if rnnt_type == "regular" and boundary is not None:
        frame = torch.arange(px.shape[2], device=px.device)
        return px.masked_fill(frame == boundary[:, 3].reshape(-1, 1, 1), NEG_INF)
    return px


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
      px: `[B, S, T+1]` (regular) or `[B, S, T]` (modified, constrained), nats.
      py: `[B, S+1, T]`, nats.
      boundary: int64 `[B, 4]` or None.
      rnnt_type: `regular`, `modified` or `constrained`.
      delay_penalty: nats per frame of delay; each symbol arc gains
        `delay_penalty * ((frames - 1) / 2 - t)` with the `t_end` of its utterance, or T, as
        frames. 0 and below adds nothing, as in k2. Computed in the dtype of `px`.
      reduction: `none`, `mean` (over utterances) or `sum`.
      return_grad: also return the occupations of the arcs.

    Returns:
      The loss in nats, `[B]` or a scalar; with `return_grad` `(loss, (px_grad, py_grad))`, where
      the gradients are those of the summed negated loss.

    Raises:
      ValueError: if an option is unknown or a shape does not fit.
      TypeError: if a dtype does not fit.
    """
    check_options(rnnt_type, reduction)
    expected = py.shape[2] + 1 if rnnt_type == "regular" else py.shape[2]
    if px.shape[2] != expected:
        raise ValueError(
            f"px: got {px.shape[2]} frames for rnnt_type={rnnt_type!r} and py of shape "
            f"{tuple(py.shape)}, expected {expected}"
        )
    if delay_penalty > 0.0:
        px = px + _earliness(px, py.shape[2], boundary) * delay_penalty
    result = mutual_information_recursion(px, py, boundary, return_grad)
    scores, grads = result if isinstance(result, tuple) else (result, None)
    loss = -scores
    if reduction != "none":
        loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss if grads is None else (loss, grads)


def _spread(logp: Tensor, ranges: Tensor, S: int, frames: int) -> Tensor:
    """Put `[B, T, s_range]` at its states: `[B, S+1, frames]`, -inf elsewhere."""
    full = logp.new_full((logp.shape[0], frames, S + 1), NEG_INF)
    return full.scatter_(2, ranges, logp).transpose(1, 2)


def _earliness(px: Tensor, T: int, boundary: Tensor | None) -> Tensor:
    """Frames before the middle of the utterance, `[B or 1, 1, frames]`, in the dtype of `px`."""
    frame = torch.arange(px.shape[2], device=px.device, dtype=px.dtype)
    if boundary is None:
        return ((T - 1) / 2 - frame).reshape(1, 1, -1)
    middle = (boundary[:, 3].to(px.dtype) - 1) / 2
    return middle.reshape(-1, 1, 1) - frame
