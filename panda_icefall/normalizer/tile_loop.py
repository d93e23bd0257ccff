"""The loop over tiles, forward and backward: GEMMs, and the chosen row kernels between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from panda_icefall.normalizer.head import LinearHead
from panda_icefall.normalizer.plan import TilePlan
from panda_icefall.normalizer.program import RowProgram
from panda_icefall.normalizer.torch_rows import finite_or_zero


def forward(
    program: RowProgram,
    head: LinearHead,
    ids: Tensor,
    plan: TilePlan,
    kernels: ModuleType,
    plain_logits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Selected log-probs and normaliser of a program's sites.

    Args:
      ids: ``[n, K]`` int64 class ids, counted from the first of the normalised ones; contiguous.
      plan: tiles for ``n`` sites and the normalised classes.
      kernels: ``torch_rows``, or ``triton_rows``.
      plain_logits: ``[n, m]``, where the logits of the classes are written that are given as they
        are.

    Returns:
      ``[n, K]`` log-probs and ``[n]`` log_z (nats), in the head's dtype.
    """
    # Online log-sum-exp over class tiles (one pass when the classes are not split).
    chosen = torch.empty(ids.shape, dtype=head.dtype, device=ids.device)
    peak, total = chosen.new_empty(ids.shape[:1]), chosen.new_empty(ids.shape[:1])
    scratch = chosen.new_empty(plan.tile_rows, plan.row_stride)
    parameters = [p.detach() for p in program.parameters]
    class_tiles, head_tile = plan.class_tiles(), head.tiles(plan)
    plain_head = head.part(head.plain)
    for begin, end in plan.row_tiles():
        hidden = head.rows(program.replay(_gather(program, begin, end), parameters))
        if plain_logits.shape[1]:
            out = plain_logits[begin:end]
            bias = head.logits(hidden, *plain_head, head.plain, out)
            if bias is not None:
                out.add_(bias)
        tile = scratch[: end - begin]
        for at in class_tiles:
            out, classes = tile[:, : at.width], head.classes_of(at)
            bias = head.logits(hidden, *head_tile(at), classes, out, kernels.ADDS_BIAS)
            kernels.fold(
                tile, bias, at, ids[begin:end],
                peak[begin:end], total[begin:end], chosen[begin:end],
            )  # fmt: skip
    shift, log_total = finite_or_zero(peak), total.log_()
    # Not chosen - log_z: with large logits the two small differences round less.
    chosen.sub_(shift[:, None]).sub_(log_total[:, None])
    return chosen, shift.add_(log_total)


@dataclass
class Gradients:
    """Gradient buffers in the accumulation dtype; None where no gradient is wanted."""

    tables: list[Tensor | None]
    parameters: list[Tensor | None]
    weight: Tensor | None
    bias: Tensor | None


def backward(
    program: RowProgram,
    head: LinearHead,
    ids: Tensor,
    log_z: Tensor,
    adjoints: Tensor,
    log_z_adjoints: Tensor,
    plan: TilePlan,
    kernels: ModuleType,
    wanted: Gradients,
    limits: Tensor | None,
    scale: Tensor | None,
    plain_adjoints: Tensor,
) -> None:
    """Add the gradients of log-probs, ``log_z`` and plain logits, times their adjoints, summed.

    With p the softmax row and a, c the adjoints of a site, the gradient of its normalised logits is
    ``sum_k a_k [v = id_k] + (c - sum_k a_k) p_v``; they are recomputed tile by tile. That of the
    plain ones is their adjoint.

    Args:
      program: of the ``n`` sites to go through.
      ids, log_z: ``[n, K]``, ``[n]``; these and the next are contiguous.
      adjoints, log_z_adjoints: ``[n, K]`` and ``[n]``.
      plan: tiles for ``n`` sites.
      wanted: zero-filled buffers to add into.
      limits: ``[n]``, bounds of the absolute gradient of a site's normalised logits; None: none.
      scale: ``[]`` by which the adjoints and limits were multiplied; None: 1. Gradients of the
        head are left multiplied by it, those of the rows are divided, before the joiner's own
        half-precision layers see them.
      plain_adjoints: ``[n, m]``.
    """
    scratch = log_z.new_empty(plan.tile_rows, plan.row_stride)
    grads: Tensor | None = None  # in place, but where GEMMs take other operands
    if head.gemms.widens:
        grads = scratch.new_empty(scratch.shape, dtype=head.gemms.operands)
    softmax_scale = log_z_adjoints - adjoints.sum(dim=1)
    wants_rows = any(g is not None for g in (*wanted.tables, *wanted.parameters))
    class_tiles, head_tile = plan.class_tiles(), head.tiles(plan)
    # Without a weight, and with all classes normalised, a tile's gradient is that of its rows.
    is_of_rows = head.weight is None and len(head.read.normalized) == program.width
    has_plain, plain_weight = plain_adjoints.shape[1] > 0, head.part(head.plain)[0]
    plain_grads = plain_adjoints.to(head.gemms.operands)
    if has_plain and wanted.bias is not None:
        wanted.bias[head.plain] += plain_adjoints.sum(dim=0)
    for begin, end in plan.row_tiles():
        part = slice(begin, end)
        with torch.set_grad_enabled(wants_rows):
            rows = [
                r.requires_grad_(wants_rows and r.is_floating_point())
                for r in _gather(program, begin, end)
            ]
            leaves = [
                p.detach().requires_grad_(g is not None)
                for p, g in zip(program.parameters, wanted.parameters)
            ]
            output = program.replay(rows, leaves)
        hidden = head.rows(output.detach())
        hidden_grad: Tensor | None = None
        if wants_rows and not is_of_rows:
            hidden_grad = hidden.new_empty(hidden.shape, dtype=head.dtype)
        tile = scratch[: end - begin]
        grad_tile = tile if grads is None else grads[: end - begin]
        for at in class_tiles:
            weight, bias = head_tile(at)
            grad, classes = grad_tile[:, : at.width], head.classes_of(at)
            out = tile[:, : at.width]
            bias = head.logits(hidden, weight, bias, classes, out, kernels.ADDS_BIAS)
            kernels.gradient(
                tile, bias, at, ids[part], log_z[part], softmax_scale[part], adjoints[part],
                None if limits is None else limits[part], grad_tile,
                None if wanted.bias is None else wanted.bias[classes],
            )  # fmt: skip
            if is_of_rows:
                hidden_grad = grad if wants_rows else None
                continue
            head.backward(
                grad, weight, classes, hidden, hidden_grad, wanted.weight, is_first=at.low == 0
            )
        if has_plain:
            head.backward(
                plain_grads[part], plain_weight, head.plain, hidden, hidden_grad, wanted.weight
            )
        # Rows of steps without a derivative, such as comparisons, take no gradient.
        if hidden_grad is not None and output.requires_grad:
            if scale is not None:
                hidden_grad.div_(scale)
            _rows_backward(program, part, rows, leaves, output, hidden_grad, wanted)


def _gather(program: RowProgram, begin: int, end: int) -> list[Tensor]:
    """Rows ``[n, X]`` of every table for the sites ``[begin, end)``; where steps work, copies."""

    def rows(values: Tensor, index: Tensor | None) -> Tensor:
        if index is not None:
            return values.index_select(0, index[begin:end])
        return values[begin:end].clone() if program.steps else values[begin:end]

    return [rows(table.values.detach(), table.index) for table in program.tables]


def _rows_backward(
    program: RowProgram,
    part: slice,
    rows: Sequence[Tensor],
    leaves: Sequence[Tensor],
    output: Tensor,
    output_grad: Tensor,
    wanted: Gradients,
) -> None:
    """Add what a tile's hidden gradient ``[n, H]`` gives to the program's inputs."""
    targets: list[tuple[Tensor, Tensor, Tensor | None]] = []  # input, buffer, buffer rows
    for table, row, buffer in zip(program.tables, rows, wanted.tables):
        if buffer is not None and table.index is None:
            targets.append((row, buffer[part], None))
        elif buffer is not None and table.index is not None:
            targets.append((row, buffer, table.index[part]))
    for leaf, buffer in zip(leaves, wanted.parameters):
        if buffer is not None:
            targets.append((leaf, buffer, None))
    grads = torch.autograd.grad(
        output, [t[0] for t in targets], output_grad.to(output.dtype), allow_unused=True
    )
    for (_, total, index), grad in zip(targets, grads):
        if grad is None:
            continue
        if index is None:
            total += grad
        else:
            total.index_add_(0, index, grad.to(total.dtype))
