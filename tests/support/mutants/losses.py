"""Bugs of the losses: ids, boundaries, arcs, and what each loss adds to the plain one."""

from __future__ import annotations

import dataclasses

import torch

from mutants.mutation import Mutation
from panda_icefall.losses import ctc, selected, sites, variant
from panda_icefall.losses.heads import HatHead, MultiBlankHead
from panda_icefall.losses.lattices import durations, full
from panda_icefall.losses.simple_tiled import gradients, plan, projection
from panda_icefall.losses.spec import LatticeOptions


def ids_of_another_utterance(patch):
    next_symbols = sites.FullSites.next_symbols

    def wrong(self):
        spec = dataclasses.replace(self.spec, symbols=self.spec.symbols.roll(1, 0))
        return next_symbols(dataclasses.replace(self, spec=spec))

    patch.setattr(sites.FullSites, "next_symbols", wrong)


def ids_of_the_state_before(patch):
    next_symbols = sites.next_symbols
    patch.setattr(
        sites, "next_symbols", lambda symbols, *rest: next_symbols(symbols.roll(1, 1), *rest)
    )


def boundary_off_by_one(patch):
    inside = sites.inside_boundary

    def wrong(ranges, boundary):
        if boundary is not None:
            boundary = boundary - torch.tensor([0, 0, 0, 1])
        return inside(ranges, boundary)

    patch.setattr(sites, "inside_boundary", wrong)


def last_state_outside(patch):
    inside = sites.inside_boundary

    def wrong(ranges, boundary):
        if boundary is not None:
            boundary = boundary - torch.tensor([0, 0, 1, 0])
        return inside(ranges, boundary)

    patch.setattr(sites, "inside_boundary", wrong)


def symbol_arc_at_the_last_frame(patch):
    """One symbol more after the last frame; -inf arcs there are what keeps paths out."""

    def wrong(px, py, options):
        if options.is_regular:
            px = torch.cat((px, px[:, :, -1:]), dim=2)
        return full.close_symbol_arcs(px, py, dataclasses.replace(options, boundary=None))

    patch.setattr(full, "symbol_arcs", wrong)


def final_blank_forgotten(patch):
    last_frame = LatticeOptions.last_frame
    patch.setattr(LatticeOptions, "last_frame", lambda self, *args: last_frame(self, *args) & False)


def constrained_as_modified(patch):
    close = full.close_symbol_arcs

    def wrong(px, py, options):
        return px if options.rnnt_type == "constrained" else close(px, py, options)

    patch.setattr(full, "close_symbol_arcs", wrong)


def penalty_of_the_padded_length(patch):
    earliness = LatticeOptions.earliness

    def wrong(self, like, frames, T):
        return earliness(dataclasses.replace(self, boundary=None), like, frames, T)

    patch.setattr(LatticeOptions, "earliness", wrong)


def fastemit_on_blank_arcs(patch):
    loss_of_full_sites = full.loss_of_full_sites

    def wrong(target_logp, blank_logp, lattice, *rest):
        return loss_of_full_sites(target_logp, lattice.spec.emitted(blank_logp), lattice, *rest)

    patch.setattr(selected, "loss_of_full_sites", wrong)


def fastemit_cost_not_scaled(patch):
    patch.setattr(LatticeOptions, "loss_of", lambda self, scores: self.reduced(-scores))


def wrong_duration_arc(patch):
    tdt_loss = variant.tdt_loss

    def wrong(found, lattice, durations, sigma):
        return tdt_loss(found, lattice, [d + (d == max(durations)) for d in durations], sigma)

    patch.setattr(variant, "tdt_loss", wrong)


def big_blank_off_by_one(patch):
    ids = MultiBlankHead._ids

    def wrong(self, targets, blank):
        found = ids(self, targets, blank).clone()
        found[..., -1] = found[..., 1]
        return found

    patch.setattr(MultiBlankHead, "_ids", wrong)


def sigma_forgotten(patch):
    grids = durations._grids
    patch.setattr(durations, "_grids", lambda found, lattice, sigma: grids(found, lattice, 0.0))


def blank_in_the_labels_of_hat(patch):
    of_rows = HatHead.of_rows

    def wrong(self, logits, targets, blank, select):
        is_label = targets > 0
        found = of_rows(self, logits, targets, blank, select)
        every = select(logits, targets.unsqueeze(1))
        label = every.logp.squeeze(1) + torch.nn.functional.logsigmoid(-found.blank)
        return found._replace(target=torch.where(is_label, label, found.target))

    patch.setattr(HatHead, "of_rows", wrong)


def mean_as_sum(patch):
    patch.setattr(
        LatticeOptions,
        "reduced",
        lambda self, costs: costs if self.reduction == "none" else costs.sum(),
    )


def unigram_forgotten_in_backward(patch):
    patch.setattr(gradients, "unigram_backward", lambda *_: None)


def simple_class_tile_dropped(patch):
    tiles = plan.SimpleTilePlan.class_tiles
    patch.setattr(plan.SimpleTilePlan, "class_tiles", lambda self: tiles(self)[:-1] or tiles(self))


def rows_in_the_order_of_blocks(patch):
    close = projection._ProjectedRows.close

    def wrong(self):
        if self._row_grads is None:
            close(self)
        else:
            self._input_grad[: len(self._row_grads), self._places].add_(self._row_grads)

    patch.setattr(projection._ProjectedRows, "close", wrong)


def alphabet_of_another_utterance(patch):
    of = ctc._OwnAlphabets.of.__func__

    def wrong(cls, targets):
        found = of(cls, targets)
        return dataclasses.replace(found, classes=found.classes.roll(1, 0))

    patch.setattr(ctc._OwnAlphabets, "of", classmethod(wrong))


def gradient_behind_a_log_softmax(patch):
    """As if the classes of an utterance were all there are."""
    backward = ctc._CompactCtc.backward

    def wrong(ctx, grad):
        first, *others = backward(ctx, grad)
        return (first - first.mean(dim=2, keepdim=True), *others)

    patch.setattr(ctc._CompactCtc, "backward", staticmethod(wrong))


FULL, PRUNED, SIMPLE, CTC = "full lattice", "pruned lattice", "k2's simple loss", "torch's CTC loss"
LOSSES = [
    Mutation("ids of another utterance", "FullSites.next_symbols", ids_of_another_utterance, FULL),
    Mutation("ids of the state before", "sites.next_symbols", ids_of_the_state_before, PRUNED),
    Mutation("boundary a frame too early", "sites.inside_boundary", boundary_off_by_one, PRUNED),
    Mutation("boundary a state too early", "sites.inside_boundary", last_state_outside, PRUNED),
    Mutation("symbols after the last frame", "full.symbol_arcs", symbol_arc_at_the_last_frame,
             FULL),
    Mutation("final blank forgotten", "LatticeOptions.last_frame", final_blank_forgotten, FULL),
    Mutation("constrained as modified", "full.close_symbol_arcs", constrained_as_modified, FULL),
    Mutation("delay penalty of the padded length", "LatticeOptions.earliness",
             penalty_of_the_padded_length, FULL),
    Mutation("FastEmit on blank arcs", "full.loss_of_full_sites", fastemit_on_blank_arcs, FULL),
    Mutation("FastEmit's cost not scaled", "LatticeOptions.loss_of", fastemit_cost_not_scaled,
             FULL),
    Mutation("wrong duration of an arc", "durations.tdt_loss", wrong_duration_arc, FULL),
    Mutation("big blank off by one", "MultiBlankHead._ids", big_blank_off_by_one, FULL),
    Mutation("sigma forgotten", "durations._grids", sigma_forgotten, FULL),
    Mutation("HAT's labels share with the blank", "HatHead.of_rows", blank_in_the_labels_of_hat,
             PRUNED),
    Mutation("mean as sum", "LatticeOptions.reduced", mean_as_sum, FULL),
    Mutation("unigram missing in backward", "gradients.unigram_backward",
             unigram_forgotten_in_backward, SIMPLE),
    Mutation("class tile of the simple loss dropped", "SimpleTilePlan.class_tiles",
             simple_class_tile_dropped, SIMPLE),
    Mutation("rows in the order of their blocks", "_ProjectedRows.close",
             rows_in_the_order_of_blocks, SIMPLE),
    Mutation("CTC alphabet of another utterance", "_OwnAlphabets.of",
             alphabet_of_another_utterance, CTC),
    Mutation("CTC's gradient behind a log-softmax", "_CompactCtc.backward",
             gradient_behind_a_log_softmax, CTC),
]  # fmt: skip
