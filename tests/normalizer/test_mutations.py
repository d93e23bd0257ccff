"""The gates must fail on bugs they exist for: each is planted here, and must be caught."""

import dataclasses

import pytest
import torch
from gates import low_precision_gate, rounding_gate, structure_gate

from panda_icefall.normalizer import TilePlan, tile_loop

SPLIT = 3_001  # bytes: several row tiles and several class tiles


def drop_last_class_tile(patch):
    tiles = TilePlan.class_tiles
    patch.setattr(TilePlan, "class_tiles", lambda self: tiles(self)[:-1] or tiles(self))


def drop_last_row(patch):
    tiles = TilePlan.row_tiles
    patch.setattr(TilePlan, "row_tiles", lambda self: tiles(self)[:-1] or tiles(self))


def forget_bias_in_backward(patch):
    backward = tile_loop.backward

    def wrong(program, head, *args):
        return backward(program, dataclasses.replace(head, bias=None), *args)

    patch.setattr(tile_loop, "backward", wrong)


def round_normalizer_to_bfloat16(patch):
    forward = tile_loop.forward

    def wrong(*args):
        selected_logp, log_z = forward(*args)
        rounded = log_z.bfloat16().to(log_z.dtype)
        return selected_logp + (log_z - rounded)[:, None], rounded

    patch.setattr(tile_loop, "forward", wrong)


def accumulate_in_bfloat16(patch):
    backward = tile_loop.backward

    def wrong(
        program, head, ids, log_z, adjoints, log_z_adjoints, plan, kernels, wanted, limits, scale
    ):
        for begin, end in plan.row_tiles():
            part = slice(begin, end)
            small = dataclasses.replace(plan, sites=end - begin)
            backward(
                program.at(torch.arange(begin, end)), head, ids[part], log_z[part],
                adjoints[part], log_z_adjoints[part], small, kernels, wanted, limits,
            )  # fmt: skip
            for buffer in (*wanted.tables, wanted.weight, wanted.bias):
                buffer.copy_(buffer.bfloat16())

    patch.setattr(tile_loop, "backward", wrong)


def ignore_duplicate_ids(patch):
    index_put_ = torch.Tensor.index_put_
    patch.setattr(
        torch.Tensor,
        "index_put_",
        lambda self, at, src, accumulate: index_put_(
            self, (at[0], at[1][:, :1]), src[:, :1], accumulate=accumulate
        ),
    )


@pytest.mark.parametrize(
    "plant",
    [drop_last_class_tile, drop_last_row, forget_bias_in_backward, ignore_duplicate_ids],
)
def test_the_structure_gate_catches(plant, monkeypatch):
    structure_gate(workspace_bytes=SPLIT)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        structure_gate(workspace_bytes=SPLIT)


def test_the_low_precision_gate_catches_a_bfloat16_normalizer(monkeypatch):
    low_precision_gate(workspace_bytes=SPLIT)
    round_normalizer_to_bfloat16(monkeypatch)
    with pytest.raises(AssertionError):
        low_precision_gate(workspace_bytes=SPLIT)


def test_the_low_precision_gate_catches_a_few_dropped_classes(monkeypatch):
    drop_last_class_tile(monkeypatch)
    with pytest.raises(AssertionError):
        low_precision_gate(workspace_bytes=SPLIT)


def test_the_rounding_gate_catches_a_bfloat16_accumulator(monkeypatch):
    workspace_bytes = 5 * (224 + 4 * 13) * 4  # at least 128 row tiles
    rounding_gate(torch.bfloat16, "flat", workspace_bytes=workspace_bytes)
    accumulate_in_bfloat16(monkeypatch)
    with pytest.raises(AssertionError):
        rounding_gate(torch.bfloat16, "flat", workspace_bytes=workspace_bytes)
