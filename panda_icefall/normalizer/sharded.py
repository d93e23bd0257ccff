"""A head whose classes are sharded over a process group: each rank goes through its own in tiles.

The ranks have the same rows and the same ids. With ``logp_r`` and ``log_z_r`` of the classes that
rank r has,

    log_z    = logsumexp over r of log_z_r
    logp[id] = logp_r[id] + log_z_r - log_z,  from the rank that has the id

which takes an all-reduce (max) of one number per site and one (sum) of 1 + K, and one more number
for each class whose logit is given as it is. In backward the
gradients of what the rows are computed from are summed over the ranks; nothing is communicated for
a site.

Source: the vocabulary-parallel cross entropy of Megatron-LM (Shoeybi et al., arXiv:1909.08053).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.cuda_graphs import check_not_captured
from panda_icefall.first_order import first_order_only
from panda_icefall.normalizer.checks import KnownSites, check_form, live_sites
from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.head import ClassRanges, ClassShard, RowLogits
from panda_icefall.normalizer.program import RowProgram, RowTable
from panda_icefall.normalizer.torch_rows import finite_or_zero

__all__ = ["select_of_shard", "with_local_shard"]


def with_local_shard(logits: RowLogits) -> RowLogits:
    """Logits whose weight and bias are DTensors, as this rank's shard of them; others as they are.

    Gradients come back as DTensors of the same placements. Over the dimensions of the mesh on which
    the weight is replicated they are those of this rank, not summed.

    Raises:
      ValueError: the weight is not sharded on its classes alone, the bias not as the weight, or
        something besides the two is a DTensor.
    """
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None:  # nobody has made one
        return logits
    rows, weight, bias = logits.rows, logits.weight, logits.bias
    others = [*(table.values for table in rows.tables), *rows.parameters]
    if any(isinstance(tensor, kind) for tensor in others):
        raise ValueError(
            "rows: got a DTensor among what the joiner reads before its last layer, expected "
            "tensors; shard the weight and the bias of the last layer alone"
        )
    if bias is not None and isinstance(weight, kind) != isinstance(bias, kind):
        raise ValueError(
            f"bias: got {type(bias).__name__} for a weight that is {type(weight).__name__}, "
            "expected both to be DTensors, or none"
        )
    if not isinstance(weight, kind):
        return logits
    return _on_this_rank(logits, weight, bias)


def _on_this_rank(logits: RowLogits, weight: Any, bias: Any) -> RowLogits:
    """The logits with the local tensors of these two DTensors, whose type older torch lacks."""
    if bias is not None and (bias.placements, bias.device_mesh) != (
        weight.placements,
        weight.device_mesh,
    ):
        raise ValueError(
            f"bias: got placements {bias.placements}, expected those of the weight, "
            f"{weight.placements}, on the same mesh"
        )
    own, own_bias = weight.to_local(), None if bias is None else bias.to_local()
    return replace(logits, weight=own, bias=own_bias, shard=_shard_of(weight, own.shape[0]))


def _shard_of(weight: Any, held: int) -> ClassShard | None:
    """Which classes of a DTensor ``[C, H]`` this rank has, of which it holds that many; None: all.

    Raises:
      ValueError: it is not sharded on its classes alone.
    """
    from torch.distributed.tensor import Shard

    mesh, classes = weight.device_mesh, weight.shape[0]
    sharded = [(i, p) for i, p in enumerate(weight.placements) if not p.is_replicate()]
    if not sharded:
        return None
    expected = "expected Shard(0) on one dimension of its mesh and Replicate() on others"
    (axis, placement), *more = sharded
    if more or not isinstance(placement, Shard) or placement.dim != 0:
        raise ValueError(f"weight: got placements {weight.placements}, {expected}; redistribute it")
    if mesh.get_coordinate() is None:
        raise ValueError("weight: got a DTensor on a mesh without this rank; run the loss on its")
    # As torch.chunk cuts them: the last ranks may have fewer, or none.
    step = -(-classes // mesh.size(axis))
    low, high = (min(classes, step * (mesh.get_local_rank(axis) + i)) for i in (0, 1))
    if held != high - low:
        raise ValueError(f"weight: got {held} classes on a rank, {expected}: {high - low}")
    return ClassShard(low, classes, mesh.get_group(axis))


def select_of_shard(
    select: Callable[..., Any],
    logits: RowLogits,
    ids: Tensor,
    mask: Tensor | None,
    *,
    live: Tensor | KnownSites | None,
    counters: TileCounters | None,
    read: ClassRanges,
    **others: Any,
) -> Any:
    """``select`` of logits whose classes are sharded; every rank of the group has to call it.

    Args:
      select: ``panda_icefall.normalizer.op.select``, which goes through this rank's classes.
      others: as its arguments.

    Raises:
      ValueError, TypeError: as ``select``; or the ranks have other sites or ids than each other.
      RuntimeError: a CUDA graph is being captured.

    Note:
      One device sync more than ``select``, to learn whether the ranks have the same batch.
    """
    shard, weight = logits.shard, logits.weight
    assert shard is not None
    assert weight is not None
    own_read = read.held(shard.low, weight.shape[0])
    has_class = len(own_read.normalized) > 0
    own = logits
    if not has_class:
        own, own_read = _with_a_class(logits, own_read)
    check_not_captured("a head that is sharded on its classes")
    check_form(own, ids, mask, None if isinstance(live, KnownSites) else live)
    if mask is not None:
        ids = torch.where(mask, ids, torch.full_like(ids, read.normalized.start))
    if isinstance(live, KnownSites):
        sites = live.index
        _check_same_sites(ids if sites is None else ids.index_select(0, sites), ids, shard.group)
    else:
        used = ids if live is None else torch.where(live[:, None], ids, torch.zeros_like(ids))
        _check_same_sites(used, ids, shard.group)
        sites = live_sites(logits, ids, live, read.normalized)
    # Ids of other ranks are masked: none can meet a column that pads the last tile.
    is_here = (ids >= shard.low) & (ids < shard.low + weight.shape[0])
    is_here = is_here if mask is None else is_here & mask
    own_ids = ids - shard.low
    program, total = _on_every_rank(logits.rows, shard.group), ids.shape[0]
    if sites is not None:
        program = program.at(sites)
        own_ids, is_here = own_ids.index_select(0, sites), is_here.index_select(0, sites)
        if counters is not None:
            counters.add(sites=total - sites.shape[0])
    own = replace(own, rows=program, shard=None)
    found = select(
        own, own_ids, is_here, live=KnownSites(), counters=counters, read=own_read, is_part=True,
        **others,
    )  # fmt: skip
    # Of a rank without a class: it takes part, and adds nothing.
    own_log_z = found.log_z if has_class else found.log_z - torch.inf
    before = min(max(shard.low - read.plain.start, 0), len(read.plain))
    after = len(read.plain) - before - len(own_read.plain)
    plain = F.pad(found.logits, (before, after))
    logp, log_z, plain = _Combined.apply(found.logp, own_log_z, plain, is_here, shard.group)
    share = found.cost_share
    if sites is not None:
        logp, log_z, plain = (_spread(values, sites, total) for values in (logp, log_z, plain))
        share = _spread(share, sites, total) if share.numel() else share
    if mask is not None:
        logp = logp.masked_fill(~mask, 0.0)
    return found._replace(logp=logp, log_z=log_z, logits=plain, cost_share=share)


def _with_a_class(logits: RowLogits, read: ClassRanges) -> tuple[RowLogits, ClassRanges]:
    """Where a rank has no normalised class, one of zeros: it takes part in all that others do."""
    weight = logits.weight
    assert weight is not None
    bias = None if logits.bias is None else F.pad(logits.bias, (0, 1))
    logits = replace(logits, weight=F.pad(weight, (0, 0, 0, 1)), bias=bias)
    return logits, replace(read, normalized=range(weight.shape[0], weight.shape[0] + 1))


def _spread(values: Tensor, sites: Tensor, total: int) -> Tensor:
    """Values of some sites ``[n, ...]`` as those of all ``[N, ...]``, 0 where there are none."""
    return values.new_zeros((total, *values.shape[1:])).index_copy(0, sites, values)


def _check_same_sites(used: Tensor, ids: Tensor, group: Any) -> None:
    """Refuse ranks that compute the loss of other batches: their sums would mean nothing.

    Args:
      used: the ids that are read, ``[n, K]``; or all of them, 0 where they are not read.
      ids: all of them, ``[N, K]``.

    Raises:
      ValueError: on every rank, where the number of sites or an id differs.
    """
    places = torch.arange(used.numel(), device=ids.device).view_as(used) % 8191 + 1
    sizes = ids.new_tensor((*ids.shape, used.shape[0]))
    facts = torch.cat((sizes, (used * places).sum().view(1)))
    facts = torch.stack((facts, -facts))
    dist.all_reduce(facts, dist.ReduceOp.MAX, group)
    most, least = facts.tolist()
    if most != [-number for number in least]:
        raise ValueError(
            f"selected_ids: got other ones on other ranks, here of {used.shape[0]} sites of "
            f"{ids.shape[0]}; expected the same batch on every rank of the group over which the "
            "classes of the head are sharded (its data cannot be)"
        )


def _on_every_rank(program: RowProgram, group: Any) -> RowProgram:
    """The program, the gradients of whose inputs are summed over the ranks."""
    inputs = [*(table.values for table in program.tables), *program.parameters]
    wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return program
    for i, tensor in zip(wanted, _SameInputs.apply(group, *(inputs[i] for i in wanted))):
        inputs[i] = tensor
    tables = [RowTable(v, table.index) for v, table in zip(inputs, program.tables)]
    return RowProgram(tables, inputs[len(tables) :], program.steps)


class _SameInputs(torch.autograd.Function):
    """Tensors as they are, whose gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, group: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = [g.to(torch.promote_types(g.dtype, torch.float32), copy=True) for g in grads]
        sums = [g.contiguous() for g in wide]
        _all_sum(sums, ctx.group)
        return (None, *(total.to(g.dtype) for total, g in zip(sums, grads)))


def _all_sum(tensors: Sequence[Tensor], group: Any) -> None:
    """Sum each tensor over the ranks, in place."""
    pending = [dist.all_reduce(t, group=group, async_op=True) for t in tensors]
    for work in pending:
        work.wait()


class _Combined(torch.autograd.Function):
    """Log-probs ``[n, K]``, normaliser ``[n]`` and plain logits ``[n, m]`` over all ranks' classes.

    From those of each rank; its plain logits are 0 where others have the class.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logp: Tensor, log_z: Tensor, plain: Tensor, is_here: Tensor, group: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        peak = log_z.clone()
        if peak.numel():
            dist.all_reduce(peak, dist.ReduceOp.MAX, group)
        shift = finite_or_zero(peak)
        own_total = (log_z - shift).exp()
        chosen = logp + (log_z - shift)[:, None]
        # A rank whose logits are all -inf has no log-probs.
        chosen = torch.where(log_z.isneginf()[:, None], log_z[:, None], chosen)
        chosen = torch.where(is_here, chosen, torch.zeros_like(chosen))
        sums = torch.cat((own_total[:, None], chosen, plain), dim=1)
        if sums.numel():
            dist.all_reduce(sums, group=group)
        total, chosen, plain = sums.split([1, logp.shape[1], plain.shape[1]], dim=1)
        total = total.squeeze(1)
        ctx.save_for_backward(is_here, own_total / total)
        # As in the tiles: with large logits the two small differences round less.
        return chosen - total.log()[:, None], shift + total.log(), plain.clone()

    @staticmethod
    @first_order_only
    def backward(  # type: ignore[override]
        ctx: Any, logp_grad: Tensor, log_z_grad: Tensor, plain_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        is_here, own_share = ctx.saved_tensors
        own = torch.where(is_here, logp_grad, torch.zeros_like(logp_grad))
        of_normaliser = (log_z_grad - logp_grad.sum(dim=1)) * own_share
        return own, own.sum(dim=1) + of_normaliser, plain_grad, None, None
