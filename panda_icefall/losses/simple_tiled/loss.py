"""The smoothed transducer loss in tiles of classes: of am and lm, or of their projections.

With both scales 0 it is the simple loss.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.engine_choice import row_kernels
from panda_icefall.losses.lattice_checks import check_spec
from panda_icefall.losses.lattices.full import Loss, loss_of_arcs, symbol_arcs
from panda_icefall.losses.logit_checks import check_logits
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.simple_tiled import rows
from panda_icefall.losses.simple_tiled.logits import Logits
from panda_icefall.losses.simple_tiled.plan import (
    USEFUL_ROWS,
    USEFUL_ROWS_ON_DEVICE,
    SimpleTilePlan,
)
from panda_icefall.losses.simple_tiled.source import LogitSource, check_sources
from panda_icefall.losses.simple_tiled.terms import simple_terms
from panda_icefall.losses.smoothed import Scales, mixed_arcs
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import TileCounters, TileOptions
from panda_icefall.normalizer.autocast import no_autocast


@opaque
def tiled_rnnt_loss_smoothed(
    lm: Tensor | LogitSource,
    am: Tensor | LogitSource,
    spec: LatticeSpec,
    scales: Scales,
    options: LossOptions,
    *,
    return_grad: bool = False,
    counters: TileCounters | None = None,
) -> Loss:
    """The smoothed transducer loss of am and lm, tensors or projections, without a copy of either.

    Equal to ``k2.rnnt_loss_smoothed``. Of a projection the ``[B, S+1, C]`` or ``[B, T, C]`` tensor
    does not exist, forward or backward; of a tensor no other of its size is made but its gradient.
    Utterances of like length share a tile, and frames after the last ``t_end`` of their tile are
    not evaluated.

    Args:
      lm: ``[B, S+1, C]`` unnormalised log-probs of the predictor, float32 or float64. Half ones are
        refused, as they would have to be copied: ``smoothed.rnnt_loss_smoothed`` takes them.
      am: ``[B, T, C]`` unnormalised log-probs of the encoder. The arithmetic of both has one dtype;
        what two projections round their operands to may differ.
      spec: of the full lattice; checked here.
      scales: of the LM-only and the AM-only part.
      options: of the tiles, and which recursion runs; the adjoint tolerance does not matter here.
      return_grad: also return the occupations, for ``get_rnnt_prune_ranges``.
      counters: adds up tiles and seconds of forward and backward.

    Returns:
      The loss in nats, ``[B]`` for "none", else a scalar; with ``return_grad``
      ``(loss, (px_grad, py_grad))`` as k2. float64 for float64 arithmetic, else float32.
      Differentiable once, in the parts of both.

    Raises:
      ValueError: a shape, a device, an id, a boundary row, an option or the workspace.
      TypeError: a dtype.

    Note:
      Sums over classes and sites accumulate in the result's dtype. Saved for backward: the parts,
      what remains of the classes (``[B, S+1, T]`` and smaller), and with ``am_only`` the unigram
      ``[C]``. Backward computes the projections and the exponentials again. On CUDA two device
      syncs in forward, for all that is read of the lattice and for the smallest mass, none in
      backward; and what k2's recursion does. Half projections are multiplied in half precision,
      into float32, where torch and the GPU do so.

    Source:
      k2.rnnt_loss_smoothed; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training",
      section 3.
    """
    if isinstance(am, Tensor) and isinstance(lm, Tensor):
        check_logits(lm, am, spec.symbols)
        am, lm = Logits.of((am,)), Logits.of((lm,))
    else:
        am, lm = _source(am), _source(lm)
        check_sources(am, lm, spec.symbols)
    known = check_spec(spec, am.classes, am.rows)
    with no_autocast(am.device):
        t_ends = [t_end for *_, t_end in known.boundary]
        px, py = tiled_arcs(lm, am, spec, scales, options, counters, t_ends)
        px = symbol_arcs(px, py, spec)
        return loss_of_arcs(px, py, spec, return_grad, tiles=options, is_checked=True)


def tiled_arcs(
    lm: LogitSource,
    am: LogitSource,
    spec: LatticeSpec,
    scales: Scales,
    options: TileOptions,
    counters: TileCounters | None = None,
    t_ends: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Symbol arcs ``[B, S, T]`` and blank arcs ``[B, S+1, T]``, nats, in the dtype of arithmetic.

    Equal to what ``k2.get_rnnt_logprobs_smoothed`` gives at the frames of each utterance; the
    values after them are finite and mean nothing.

    Args:
      t_ends: those of the boundary, on the host; None: there is no boundary.

    Raises:
      ValueError: the workspace cannot hold one utterance with a single class.
    """
    symbols, boundary = spec.symbols, spec.boundary
    B, S = symbols.shape
    make_plan = functools.partial(
        SimpleTilePlan.make,
        states=lm.rows,
        classes=am.classes,
        widths=(am.width, lm.width),
        itemsize=torch.finfo(am.dtype).bits // 8,
        workspace_bytes=options.workspace_on(am.device),
        casts_weight=am.casts_weight or lm.casts_weight,
        copy_bytes=am.copy_bytes + lm.copy_bytes,
        rounds_gradient=am.rounds_gradient or lm.rounds_gradient,
        useful_rows=USEFUL_ROWS if am.device.type == "cpu" else USEFUL_ROWS_ON_DEVICE,
    )
    as_given = torch.arange(B, device=am.device)
    by_length = as_given
    if boundary is not None:  # sorted as by the plan, so that the host has nothing to copy there
        by_length = boundary[:, 3].sort(descending=True, stable=True).indices
    plan = make_plan([am.rows] * B if t_ends is None else t_ends)
    plan = replace(plan, order=by_length)
    if not plan.keeps_copies:
        am, lm = am.copying_by_tile(), lm.copying_by_tile()
    unigram_plan = None
    if scales.am_only != 0.0:
        unigram_plan = replace(make_plan([0] * B), order=as_given)
    ids = torch.cat((symbols, symbols.new_full((B, 1), spec.termination_symbol)), dim=1)
    kernels = row_kernels(options.engine, am.device, rows)
    terms = simple_terms(am, lm, ids, plan, unigram_plan, kernels, counters)
    unigram = None
    if terms.unigram_logp is not None and terms.unigram_log_mass is not None:
        px_unigram, py_unigram = terms.unigram_logp.unsqueeze(2).split((S, 1), dim=1)
        unigram = px_unigram, py_unigram, terms.unigram_log_mass.unsqueeze(1)
    # The maxima of am and lm cancel in each part.
    return mixed_arcs(
        scales,
        terms.am_selected,
        terms.lm_selected.diagonal(dim1=1, dim2=2)[:, :S].unsqueeze(2),
        terms.lm_selected[:, S].unsqueeze(2),
        terms.log_mass,
        terms.lm_log_mass.unsqueeze(2),
        unigram,
    )


def _source(logits: Tensor | LogitSource) -> LogitSource:
    return Logits.of((logits,)) if isinstance(logits, Tensor) else logits
