"""``selected_log_probs``: check, choose the engine, run the autograd node."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.engine_choice import row_kernels
from panda_icefall.normalizer import torch_rows
from panda_icefall.normalizer.checks import KnownSites, check_form, live_sites
from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.head import ClassRanges, RowLogits
from panda_icefall.normalizer.node import Call, SelectedLogProbs
from panda_icefall.normalizer.options import TileOptions
from panda_icefall.normalizer.program import RowProgram
from panda_icefall.normalizer.sharded import select_of_shard, with_local_shard


@opaque
def selected_log_probs(
    rows: Tensor | RowProgram,
    weight: Tensor | None,
    bias: Tensor | None,
    selected_ids: Tensor,
    *,
    selected_mask: Tensor | None = None,
    live: Tensor | None = None,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int | None = None,
    adjoint_tolerance: float | None = None,
    counters: TileCounters | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Exact log-probs of K chosen classes per site, and the normaliser over all classes.

    Equal to ``z = F.linear(rows, weight, bias); log_z = z.logsumexp(1);
    (z.gather(1, selected_ids) - log_z[:, None], log_z)`` without materialising the logits
    ``[N, C]``, forward or backward, nor the hidden rows ``[N, H]`` of a program.

    Args:
      rows: ``[N, H]`` floating point, or the program that computes them.
      weight, bias, head_dtype: as in ``RowLogits``. DTensors that are sharded on their classes,
        ``Shard(0)``, make a vocabulary-parallel head: every rank of that group gives the same rows
        and ids, and gets the same results; see ``panda_icefall.normalizer.sharded``.
      selected_ids: ``[N, K]`` int64 in ``[0, C)``, K >= 1. Duplicates in a row are legal.
      selected_mask: ``[N, K]`` bool; where False the log-prob is 0, its id is not read and no
        gradient flows. None: all are selected.
      live: ``[N]`` bool; sites where False are never evaluated: outputs and gradients are 0.
        None: all are.
      workspace_bytes, adjoint_tolerance, engine: as in ``TileOptions``.
      counters: totals to add to.

    Returns:
      ``selected_logp`` ``[N, K]`` and ``log_z`` ``[N]`` in nats, float64 for float64 inputs and
      float32 otherwise; differentiable once with respect to rows, weight and bias.

    Raises:
      ValueError: a shape, an id, the tolerance, the workspace or the engine is out of range.
      TypeError: a dtype is wrong.
      MissingEngineError: Triton is asked for and not installed.

    Note:
      Sums over sites accumulate in the output's dtype. Saved for backward: the program's inputs,
      ids and log_z. On CUDA forward syncs with the host once, for the checks and the number of
      live sites, and backward once, for the number of sites that matter; with a tolerance of 0 not
      at all. Equal inputs give bitwise
      equal results on a CPU, and on CUDA under ``torch.use_deterministic_algorithms`` (backward
      then syncs three times).
    """
    found = select(
        RowLogits(RowProgram.of(rows), weight, bias, head_dtype),
        selected_ids,
        selected_mask,
        live=live,
        options=TileOptions(workspace_bytes, adjoint_tolerance, engine),
        counters=counters,
    )
    return found.logp, found.log_z


class Selected(NamedTuple):
    """What ``select`` gives.

    Attributes:
      logp: ``[N, K]`` log-probs of the selected ids, nats.
      log_z: ``[N]`` normaliser, nats.
      logits: ``[N, m]``, those of the plain classes of ``read``, m of them.
      cost_share: ``[N]`` zeros where there is a ``clamp``, else empty. Each utterance's cost adds
        up those of its sites, so that their gradient is that of the cost.
    """

    logp: Tensor
    log_z: Tensor
    logits: Tensor
    cost_share: Tensor


def select(
    logits: RowLogits,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    live: Tensor | KnownSites | None,
    options: TileOptions,
    counters: TileCounters | None,
    read: ClassRanges | None = None,
    clamp: float | None = None,
    is_part: bool = False,
) -> Selected:
    """``selected_log_probs`` of arguments that are gathered already; same errors and notes.

    Args:
      ids, mask: its ``selected_ids`` and ``selected_mask``.
      live: its own, or sites that are known: then no value is checked, and forward does not sync.
      read: which classes are read, all of them for one gradient of weight and bias. None: all are
        normalised.
      clamp: the gradient of each cost with respect to the normalised logits is clipped to
        ``[-clamp, clamp]``, element by element, before it is multiplied by that of the cost;
        None: it is not.
      is_part: other processes have further classes; those here may all have probability 0.
    """
    logits = with_local_shard(logits)
    read = ClassRanges(range(logits.classes)) if read is None else read
    if logits.shard is not None:
        return select_of_shard(
            select, logits, ids, mask, live=live, options=options, counters=counters, read=read,
            clamp=clamp,
        )  # fmt: skip
    check_form(logits, ids, mask, None if isinstance(live, KnownSites) else live)
    kernels = row_kernels(options.engine, ids.device, torch_rows)
    if mask is not None:
        ids = torch.where(mask, ids, torch.full_like(ids, read.normalized.start))
    if isinstance(live, KnownSites):
        sites = live.index
    else:
        sites = live_sites(logits, ids, live, read.normalized)
    if read.normalized.start:
        ids = ids - read.normalized.start
    program, weight, bias = logits.rows, logits.weight, logits.bias
    counters = TileCounters() if counters is None else counters
    evaluated = program.sites if sites is None else sites.shape[0]
    counters.add(sites=program.sites, sites_evaluated=evaluated)
    call = Call(
        program.steps, len(program.tables), read, logits.head_dtype, logits.dtype,
        options, options.workspace_on(ids.device), counters, kernels, clamp, is_part,
    )  # fmt: skip
    head = call.head(weight, None)  # that of a plan, which asks for no bias
    for with_gradients in (False, True):  # refuses a workspace that is too small for either
        call.plan(program, head, evaluated, with_gradients)
    tables = [table.values for table in program.tables]
    selected_logp, log_z, plain_logits, cost_share = SelectedLogProbs.apply(
        call, program, sites, weight, bias, ids, *tables, *program.parameters
    )
    if mask is not None:
        selected_logp = selected_logp.masked_fill(~mask, 0.0)
    return Selected(selected_logp, log_z, plain_logits, cost_share)
