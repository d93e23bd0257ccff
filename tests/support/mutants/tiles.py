"""Bugs of the tiles: normaliser, gradients, what is left out."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import gates
import torch

from mutants.mutation import Mutation
from panda_icefall.normalizer import TileOptions, TilePlan, node, op, tile_loop, torch_rows
from panda_icefall.normalizer.head import LinearHead

SPLIT = 3_001  # bytes: several row tiles and several class tiles


def dropped_class_tile(patch):
    tiles = TilePlan.class_tiles
    patch.setattr(TilePlan, "class_tiles", lambda self: tiles(self)[:-1] or tiles(self))


def dropped_row_tile(patch):
    tiles = TilePlan.row_tiles
    patch.setattr(TilePlan, "row_tiles", lambda self: tiles(self)[:-1] or tiles(self))


def wrong_sign(patch):
    gradient = torch_rows.gradient

    def wrong(tile, bias, at, ids, log_z, softmax_scale, *rest):
        gradient(tile, bias, at, ids, log_z, -softmax_scale, *rest)

    patch.setattr(torch_rows, "gradient", wrong)


def _backward(patch, change):
    """``tile_loop.backward`` of arguments by name that ``change`` changes."""
    backward = tile_loop.backward
    names = list(inspect.signature(backward).parameters)

    def wrong(*args: Any) -> None:
        given = dict(zip(names, args))
        change(given)
        backward(*given.values())

    patch.setattr(tile_loop, "backward", wrong)


def stale_log_z(patch):
    _backward(patch, lambda given: given.update(log_z=given["log_z"].roll(1)))


def log_z_adjoint_forgotten(patch):
    zeros = torch.zeros_like
    _backward(patch, lambda given: given.update(log_z_adjoints=zeros(given["log_z_adjoints"])))


def bias_missing_in_backward(patch):
    without = functools.partial(dataclasses.replace, bias=None)
    _backward(patch, lambda given: given.update(head=without(given["head"])))


def bias_gradient_missing(patch):
    without = functools.partial(dataclasses.replace, bias=None)
    _backward(patch, lambda given: given.update(wanted=without(given["wanted"])))


def dropped_clamp_in_backward(patch):
    _backward(patch, lambda given: given.update(limits=None))


def skipped_live_row(patch):
    kept = node._sites_that_matter
    patch.setattr(node, "_sites_that_matter", lambda *args: kept(*args)[1:])


def adjoint_tolerance_ignored(patch):
    patch.setattr(TileOptions, "tolerance_in", lambda self, dtype: 1e-3)


def nothing_ever_skipped(patch):
    kept = node._sites_that_matter

    def wrong(adjoints, *rest):
        kept(adjoints, *rest)
        return torch.arange(len(adjoints))

    patch.setattr(node, "_sites_that_matter", wrong)


def half_accumulator(patch):
    backward = tile_loop.backward

    def wrong(
        program, head, ids, log_z, adjoints, log_z_adjoints, plan, kernels, wanted, limits, scale,
        plain_adjoints,
    ):  # fmt: skip
        for begin, end in plan.row_tiles():
            some = slice(begin, end)
            small = dataclasses.replace(plan, sites=end - begin)
            backward(
                program.at(torch.arange(begin, end)), head, ids[some], log_z[some], adjoints[some],
                log_z_adjoints[some], small, kernels, wanted, limits, scale, plain_adjoints[some],
            )  # fmt: skip
            for buffer in (*wanted.tables, wanted.weight, wanted.bias):
                buffer.copy_(buffer.bfloat16())

    patch.setattr(tile_loop, "backward", wrong)


def rounded_normalizer(patch):
    forward = tile_loop.forward

    def wrong(*args):
        selected_logp, log_z = forward(*args)
        rounded = log_z.bfloat16().to(log_z.dtype)
        return selected_logp + (log_z - rounded)[:, None], rounded

    patch.setattr(tile_loop, "forward", wrong)


def not_rescaled(patch):
    """The sum so far keeps the peak of the first class tile."""
    finite_or_zero = torch_rows.finite_or_zero

    def fold(tile, bias, at, ids, peak, total, chosen):
        logits = tile[:, : at.width]
        if bias is not None:
            logits.add_(bias)
        if at.low == 0:
            peak.fill_(-torch.inf)
            total.zero_()
        inside, column = torch_rows._in_tile(ids, at)
        chosen.copy_(torch.where(inside, logits.gather(1, column), chosen))
        new_peak = torch.maximum(peak, logits.amax(dim=1))
        total.add_(logits.sub_(finite_or_zero(new_peak)[:, None]).exp_().sum(dim=1))
        peak.copy_(new_peak)

    patch.setattr(torch_rows, "fold", fold)


def duplicate_ids_once(patch):
    gradient = torch_rows.gradient

    def wrong(tile, bias, at, ids, log_z, softmax_scale, adjoints, *rest):
        again = (ids[:, :, None] == ids[:, None]).triu(1).any(dim=1)
        once = adjoints.masked_fill(again, 0)
        gradient(tile, bias, at, ids, log_z, softmax_scale, once, *rest)

    patch.setattr(torch_rows, "gradient", wrong)


def index_table_not_followed(patch):
    def gather(program, begin, end):
        sites = torch.arange(begin, end)
        return [t.values.detach()[sites % len(t.values)] for t in program.tables]

    patch.setattr(tile_loop, "_gather", gather)


def plain_logits_without_a_gradient(patch):
    """Logits beside the normalised classes give nothing to rows and weight."""
    backward = LinearHead.backward

    def wrong(self, grad, weight, classes, *rest, **options):
        if classes != self.plain:
            backward(self, grad, weight, classes, *rest, **options)

    patch.setattr(LinearHead, "backward", wrong)


def wrong_segment_of_lm(patch):
    """What a state's row of lm gets, the next row gets."""
    rows_backward = tile_loop._rows_backward

    def wrong(program, part, rows, leaves, output, output_grad, wanted):
        *_, last = wanted.tables
        before = None if last is None else last.clone()
        rows_backward(program, part, rows, leaves, output, output_grad, wanted)
        if last is not None and len(wanted.tables) > 1:
            last.copy_(before + (last - before).roll(1, 0))

    patch.setattr(tile_loop, "_rows_backward", wrong)


def mask_not_followed(patch):
    select = op.select

    def wrong(logits, ids, mask=None, **options):
        if mask is not None:
            ids = torch.where(mask, ids, torch.zeros_like(ids))
        return select(logits, ids, None, **options)

    patch.setattr(op, "select", wrong)


def structure():
    gates.structure_gate(workspace_bytes=SPLIT)


def low_precision():
    gates.low_precision_gate(workspace_bytes=SPLIT)


def rounding():
    # 128 row tiles.
    gates.rounding_gate(torch.bfloat16, "flat", workspace_bytes=5 * (211 + 4 * 13) * 4)


LOG_PROBS, FULL = "selected log-probs", "full lattice"
TILES = [
    Mutation("dropped class tile", "TilePlan.class_tiles", dropped_class_tile, FULL),
    Mutation("dropped row tile", "TilePlan.row_tiles", dropped_row_tile, "structure gate",
             structure),
    Mutation("wrong sign", "torch_rows.gradient", wrong_sign, FULL),
    Mutation("stale log_z", "tile_loop.backward", stale_log_z, FULL),
    Mutation("adjoint of log_z forgotten", "tile_loop.backward", log_z_adjoint_forgotten,
             LOG_PROBS),
    Mutation("bias missing in backward", "tile_loop.backward", bias_missing_in_backward, FULL),
    Mutation("bias gradient missing", "tile_loop.backward", bias_gradient_missing, FULL),
    Mutation("dropped clamp", "tile_loop.backward", dropped_clamp_in_backward, FULL),
    Mutation("skipped live row", "node._sites_that_matter", skipped_live_row, FULL),
    Mutation("adjoint tolerance ignored", "TileOptions.tolerance_in", adjoint_tolerance_ignored,
             LOG_PROBS),
    Mutation("nothing ever skipped", "node._sites_that_matter", nothing_ever_skipped, LOG_PROBS),
    Mutation("half accumulator", "tile_loop.backward", half_accumulator, "rounding gate",
             rounding),
    Mutation("normaliser rounded to half", "tile_loop.forward", rounded_normalizer,
             "low-precision gate", low_precision),
    Mutation("running sum not rescaled", "torch_rows.fold", not_rescaled, LOG_PROBS),
    Mutation("a class selected twice, once", "torch_rows.gradient", duplicate_ids_once,
             LOG_PROBS),
    Mutation("plain logits without a gradient", "LinearHead.backward",
             plain_logits_without_a_gradient, FULL),
    Mutation("index table not followed", "tile_loop._gather", index_table_not_followed, FULL),
    Mutation("wrong segment in an lm reduction", "tile_loop._rows_backward", wrong_segment_of_lm,
             FULL),
    Mutation("mask of selected ids ignored", "op.select", mask_not_followed, LOG_PROBS),
]  # fmt: skip
