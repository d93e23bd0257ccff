"""The simple and the smoothed loss from the inputs of their projections: no `[B, T, C]` exists."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.lattice_terms import (
    NEG_INF,
    Loss,
    check_lattice_inputs,
    close_symbol_arcs,
    score,
)
from panda_icefall.losses.simple_tiled.arcs import smoothed_arcs
from panda_icefall.losses.simple_tiled.checks import check_projections
from panda_icefall.losses.simple_tiled.projection import Projection
from panda_icefall.normalizer import DEFAULT_WORKSPACE_BYTES
from panda_icefall.normalizer.autocast import no_autocast


def selected_rnnt_loss_simple(
    am_input: Tensor,
    am_weight: Tensor,
    am_bias: Tensor | None,
    lm_input: Tensor,
    lm_weight: Tensor,
    lm_bias: Tensor | None,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
    *,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Loss:
    """`k2.rnnt_loss_simple` of two linear layers: `selected_rnnt_loss_smoothed` with scales 0."""
    return selected_rnnt_loss_smoothed(
        am_input, am_weight, am_bias, lm_input, lm_weight, lm_bias, symbols, termination_symbol,
        boundary, rnnt_type, 0.0, 0.0, delay_penalty, reduction, return_grad,
        head_dtype=head_dtype, workspace_bytes=workspace_bytes,
    )  # fmt: skip


def selected_rnnt_loss_smoothed(
    am_input: Tensor,
    am_weight: Tensor,
    am_bias: Tensor | None,
    lm_input: Tensor,
    lm_weight: Tensor,
    lm_bias: Tensor | None,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
    *,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
) -> Loss:
    """The smoothed transducer loss of two linear layers that are never materialised.

    Equal to `k2.rnnt_loss_smoothed(lm=F.linear(lm_input, lm_weight, lm_bias),
    am=F.linear(am_input, am_weight, am_bias), ...)` without the `[B, S+1, C]` and `[B, T, C]`
    tensors, forward or backward. Frames behind the last `t_end` of their tile are not evaluated.

    Args:
      am_input: `[B, T, D_am]`, what the encoder's projection to classes reads.
      am_weight, am_bias: `[C, D_am]` and `[C]` or None.
      lm_input: `[B, S+1, D_lm]`, what the predictor's projection reads.
      lm_weight, lm_bias: `[C, D_lm]` and `[C]` or None.
      symbols, termination_symbol, boundary, rnnt_type, lm_only_scale, am_only_scale,
        delay_penalty, reduction, return_grad: as in `smoothed.rnnt_loss_smoothed`.
      head_dtype: dtype that inputs, weights and biases are rounded to first, as autocast does for
        a linear layer; the arithmetic after that is in float32, the projections' outputs are not
        rounded. None: all six tensors have one dtype, float32 or float64.
      workspace_bytes: upper bound of a tile's scratch, in bytes.

    Returns:
      The loss in nats, `[B]` for `none`, else a scalar; with `return_grad`
      `(loss, (px_grad, py_grad))` as k2. float64 for float64 inputs, else float32.
      Differentiable once, in all six tensors.

    Raises:
      ValueError: a shape, a device, an id, a boundary row, an option or the workspace.
      TypeError: a dtype.

    Note:
      Sums over classes and sites accumulate in the result's dtype. Saved for backward: the six
      tensors, what remains of the classes (`[B, S+1, T]` and smaller), and with `am_only_scale`
      the unigram `[C]`. Backward recomputes the projections. On CUDA three device syncs, and
      those of the recursion.

    Source:
      k2.rnnt_loss_smoothed; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training",
      section 3.
    """
    check_projections(
        (am_input, am_weight, am_bias), (lm_input, lm_weight, lm_bias), symbols, head_dtype
    )
    (B, T, _), (_, states, _), C = am_input.shape, lm_input.shape, am_weight.shape[0]
    check_lattice_inputs(
        symbols, None, termination_symbol, boundary, rnnt_type, reduction, num_classes=C, T=T
    )
    dtype = am_input.dtype if head_dtype is None else torch.float32
    am = Projection(am_input, am_weight, am_bias, head_dtype, dtype)
    lm = Projection(lm_input, lm_weight, lm_bias, head_dtype, dtype)
    t_ends = [T] * B if boundary is None else boundary[:, 3].tolist()
    with no_autocast(am_input.device):
        px, py = smoothed_arcs(
            am, lm, symbols, termination_symbol, t_ends, lm_only_scale, am_only_scale,
            workspace_bytes=workspace_bytes,
        )  # fmt: skip
        if rnnt_type == "regular":
            px = torch.cat((px, px.new_full((B, states - 1, 1), NEG_INF)), dim=2)
        px = close_symbol_arcs(px, py, boundary, rnnt_type)
        return score(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad)
