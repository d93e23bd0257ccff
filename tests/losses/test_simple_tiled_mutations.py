"""Planted bugs in the tiled simple loss, which its gates must catch."""

import pytest
import torch
from simple_losses import of_projections, of_tensors, structure_gate, workspace_of

from panda_icefall.losses.simple_tiled import gradients, plan, projection, rows, terms


def forget_the_last_class_tile(patch):
    tiles = plan.SimpleTilePlan.class_tiles
    patch.setattr(plan.SimpleTilePlan, "class_tiles", lambda self: tiles(self)[:-1])


def forget_the_last_block(patch):
    blocks_on = plan.SimpleTilePlan.blocks_on
    patch.setattr(
        plan.SimpleTilePlan, "blocks_on", lambda self, device: list(blocks_on(self, device))[:-1]
    )


def forget_to_rescale(patch):
    raise_peak = rows._raise_peak
    patch.setattr(rows, "_raise_peak", lambda peak, tile: raise_peak(peak, tile).clamp_(min=1.0))


def forget_the_peak_in_backward(patch):
    patch.setattr(rows, "exp_below_", lambda tile, peak, bias: tile.exp_())


def give_every_block_what_the_first_gets(patch):
    blocks_on = plan.SimpleTilePlan.blocks_on

    def whole(self, device):
        return [(b, slice(0, live.stop)) for b, live in blocks_on(self, device)]

    patch.setattr(plan.SimpleTilePlan, "blocks_on", whole)


def keep_the_caller_s_order(patch):
    patch.setattr(
        projection._ProjectedRows,
        "close",
        lambda self: self._input_grad[: len(self._row_grads), self._places].add_(self._row_grads),
    )


def forget_repeated_symbols(patch):
    index_add_ = torch.Tensor.index_add_
    patch.setattr(
        torch.Tensor,
        "index_add_",
        lambda self, dim, index, values: (
            self.index_copy_(0, index, values + self[index])
            if self.shape[0] == 37
            else index_add_(self, dim, index, values)
        ),
    )


def forget_the_unigram_in_backward(patch):
    patch.setattr(gradients, "unigram_backward", lambda *_: None)


def round_the_masses(patch):
    sum_over_classes = terms.sum_over_classes

    def rounded(*args):
        result = sum_over_classes(*args)
        result.mass.copy_(result.mass.bfloat16())
        return result

    patch.setattr(terms, "sum_over_classes", rounded)


EITHER = [
    forget_the_last_class_tile,
    forget_the_last_block,
    forget_to_rescale,
    forget_the_peak_in_backward,
    forget_the_unigram_in_backward,
    round_the_masses,
]
PROJECTED = [keep_the_caller_s_order, forget_repeated_symbols]


def test_the_structure_gate_catches_frames_that_are_counted_twice(monkeypatch):
    workspace_bytes = workspace_of(1, 7, monkeypatch, frames=3)
    structure_gate(workspace_bytes=workspace_bytes)
    give_every_block_what_the_first_gets(monkeypatch)
    with pytest.raises(AssertionError):
        structure_gate(workspace_bytes=workspace_bytes)


@pytest.mark.parametrize(
    ("plant", "loss"),
    [(plant, of_projections) for plant in EITHER + PROJECTED]
    + [(plant, of_tensors) for plant in EITHER],
)
def test_the_structure_gate_catches(plant, loss, monkeypatch):
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    structure_gate(loss=loss, workspace_bytes=workspace_bytes)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        structure_gate(loss=loss, workspace_bytes=workspace_bytes)
