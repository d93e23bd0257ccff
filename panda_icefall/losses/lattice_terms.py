"""From two log-probs per site to the loss: over the band itself, or over the full lattice."""

from __future__ import annotations

from typing import Literal, Union, overload

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice import (
    banded_recursion,
    has_k2_recursion,
    mutual_information_recursion,
)
from panda_icefall.losses.input_checks import check_lattice_inputs, check_options

__all__ = ["check_lattice_inputs", "close_symbol_arcs", "pruned_px_py", "pruned_score", "score"]

NEG_INF = float("-inf")

Loss = Union[Tensor, tuple[Tensor, tuple[Tensor, Tensor]]]


@opaque
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
        px = px + _earliness(px, px.shape[2], py.shape[2], boundary).unsqueeze(1) * delay_penalty
    result = mutual_information_recursion(px, py, boundary, return_grad)
    scores, grads = result if isinstance(result, tuple) else (result, None)
    loss = _reduced(-scores, reduction)
    return loss if grads is None else (loss, grads)


@opaque
def pruned_score(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    engine: str = "auto",
) -> Tensor:
    """The transducer loss of the retained sites.

    Equal to `score` of `pruned_px_py`. Where k2 is installed it is just that, so that a routed
    loss has the rounding of the recipe's own one (at scores of 2000 nats k2's float32 occupations
    are 2e-5 off). Elsewhere it is `banded_recursion`, without the arcs of the full lattice and
    exact to the rounding of the result.

    Args:
      target_logp, blank_logp, ranges, S, boundary, rnnt_type: as in `pruned_px_py`.
      delay_penalty, reduction: as in `score`.
      engine: of `banded_recursion`.

    Returns:
      The loss in nats, `[B]` or a scalar.

    Raises:
      ValueError: if an option is unknown or a shape does not fit.
      TypeError: if a dtype does not fit.
    """
    if has_k2_recursion(target_logp.device):
        px, py = pruned_px_py(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
        return score(px, py, boundary, rnnt_type, delay_penalty, reduction)
    check_options(rnnt_type, reduction)
    if delay_penalty > 0.0:
        T = ranges.shape[1]
        earliness = _earliness(target_logp, T, T, boundary).unsqueeze(2)
        target_logp = target_logp + earliness * delay_penalty
    scores = banded_recursion(target_logp, blank_logp, ranges, S, boundary, rnnt_type, engine)
    return _reduced(-scores, reduction)


def _reduced(loss: Tensor, reduction: str | None) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _spread(logp: Tensor, ranges: Tensor, S: int, frames: int) -> Tensor:
    """Put `[B, T, s_range]` at its states: `[B, S+1, frames]`, -inf elsewhere."""
    full = logp.new_full((logp.shape[0], frames, S + 1), NEG_INF)
    return full.scatter_(2, ranges, logp).transpose(1, 2)


def _earliness(like: Tensor, frames: int, T: int, boundary: Tensor | None) -> Tensor:
    """Frames before the middle of the utterance, `[B or 1, frames]`, in the dtype of `like`."""
    frame = torch.arange(frames, device=like.device, dtype=like.dtype)
    if boundary is None:
        return ((T - 1) / 2 - frame).unsqueeze(0)
    return (boundary[:, 3:4].to(like.dtype) - 1) / 2 - frame
