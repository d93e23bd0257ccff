"""The smoothed transducer loss in tiles of classes: of two projections, or of their outputs.

With both scales 0 it is the simple loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.input_checks import check_logits
from panda_icefall.losses.lattice_terms import (
    NEG_INF,
    Loss,
    check_lattice_inputs,
    close_symbol_arcs,
    score,
)
from panda_icefall.losses.simple_tiled.arcs import smoothed_arcs
from panda_icefall.losses.simple_tiled.checks import check_projections, check_sources
from panda_icefall.losses.simple_tiled.logits import Logits
from panda_icefall.losses.simple_tiled.projection import Projection
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.normalizer import TileCounters, auto_workspace_bytes
from panda_icefall.normalizer.autocast import no_autocast


@opaque
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
    workspace_bytes: int | None = None,
    counters: TileCounters | None = None,
) -> Loss:
    """The smoothed transducer loss of two linear layers that are never materialised.

    Equal to `k2.rnnt_loss_smoothed(lm=F.linear(lm_input, lm_weight, lm_bias),
    am=F.linear(am_input, am_weight, am_bias), ...)` without the `[B, S+1, C]` and `[B, T, C]`
    tensors, forward or backward. Utterances of like length share a tile, and frames behind
    the last `t_end` of their tile are not evaluated.

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
      workspace_bytes: upper bound of a tile's scratch, in bytes. None: by the device, see
        `panda_icefall.normalizer.auto_workspace_bytes`.
      counters: adds up tiles and seconds of forward and backward, or None.

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
      the unigram `[C]`. Backward recomputes the projections. On CUDA three device syncs, a copy of
      B numbers to the device in each direction, and what the recursion does.

    Source:
      k2.rnnt_loss_smoothed; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training",
      section 3.
    """
    check_projections(
        (am_input, am_weight, am_bias), (lm_input, lm_weight, lm_bias), symbols, head_dtype
    )
    return _loss_of(
        Projection.of((am_input, am_weight, am_bias), head_dtype),
        Projection.of((lm_input, lm_weight, lm_bias), head_dtype),
        symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type,
        delay_penalty, reduction, return_grad, workspace_bytes, counters,
    )  # fmt: skip


@opaque
def tiled_rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
    *,
    workspace_bytes: int | None = None,
    counters: TileCounters | None = None,
) -> Loss:
    """The smoothed transducer loss of am and lm that exist, without a copy of either.

    Equal to `k2.rnnt_loss_smoothed` with the same arguments; no tensor of the size of am or lm is
    made but the gradient of each. For am and lm that are projections,
    `selected_rnnt_loss_smoothed` does without these too.

    Args:
      lm: `[B, S+1, C]` unnormalised log-probs of the predictor, float32 or float64.
      am: `[B, T, C]` unnormalised log-probs of the encoder, of the dtype of `lm`. Half ones are
        refused, as they would have to be copied: `smoothed.rnnt_loss_smoothed` takes them.
      symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type,
        delay_penalty, reduction, return_grad: as in `smoothed.rnnt_loss_smoothed`.
      workspace_bytes, counters: as in `selected_rnnt_loss_smoothed`.

    Returns:
      As `selected_rnnt_loss_smoothed`, in the dtype of am. Differentiable once, in am and lm.

    Raises:
      ValueError: a shape, a device, an id, a boundary row, an option or the workspace.
      TypeError: a dtype.

    Note:
      Saved for backward: am, lm, and what remains of the classes (`[B, S+1, T]` and smaller).
      Backward takes the exponentials again.

    Source:
      k2.rnnt_loss_smoothed.
    """
    check_logits(lm, am, symbols)
    return _loss_of(
        Logits.of((am,)), Logits.of((lm,)),
        symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type,
        delay_penalty, reduction, return_grad, workspace_bytes, counters,
    )  # fmt: skip


@opaque
def rnnt_loss_smoothed_of(
    lm: LogitSource,
    am: LogitSource,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
    *,
    workspace_bytes: int | None = None,
    counters: TileCounters | None = None,
) -> Loss:
    """The smoothed transducer loss of a projection and a tensor, or of two of either kind.

    Args:
      lm, am: `Projection` or `Logits` of `[B, S+1, C]` and `[B, T, C]`, whose arithmetic has one
        dtype; what two projections round their operands to may differ.
      symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type,
        delay_penalty, reduction, return_grad: as in `smoothed.rnnt_loss_smoothed`.
      workspace_bytes, counters: as in `selected_rnnt_loss_smoothed`.

    Returns:
      As `selected_rnnt_loss_smoothed`. Differentiable once, in the parts of both.

    Raises:
      ValueError: a shape, a device, an id, a boundary row, an option or the workspace.
      TypeError: a dtype.
    """
    check_sources(am, lm, symbols)
    return _loss_of(
        am, lm, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, rnnt_type,
        delay_penalty, reduction, return_grad, workspace_bytes, counters,
    )  # fmt: skip


def _loss_of(
    am: LogitSource,
    lm: LogitSource,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float,
    am_only_scale: float,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    return_grad: bool,
    workspace_bytes: int | None,
    counters: TileCounters | None,
) -> Loss:
    """The loss of any two sources whose shapes and dtypes fit."""
    B, T = symbols.shape[0], am.rows
    check_lattice_inputs(
        symbols, None, termination_symbol, boundary, rnnt_type, reduction,
        num_classes=am.classes, T=T,
    )  # fmt: skip
    if workspace_bytes is None:
        workspace_bytes = auto_workspace_bytes(am.device)
    t_ends = [T] * B if boundary is None else boundary[:, 3].tolist()
    with no_autocast(am.device):
        px, py = smoothed_arcs(
            am, lm, symbols, termination_symbol, t_ends, lm_only_scale, am_only_scale,
            workspace_bytes=workspace_bytes, counters=counters,
        )  # fmt: skip
        if rnnt_type == "regular":
            px = torch.cat((px, px.new_full((B, lm.rows - 1, 1), NEG_INF)), dim=2)
        px = close_symbol_arcs(px, py, boundary, rnnt_type)
        return score(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad)
