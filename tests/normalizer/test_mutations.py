"""The gates must fail on bugs they exist for: each is planted here, and must be caught."""

import pytest
import torch
from gates import low_precision_gate, rounding_gate, structure_gate
from mutants.tiles import (
    SPLIT,
    bias_missing_in_backward,
    dropped_class_tile,
    dropped_row_tile,
    half_accumulator,
    rounded_normalizer,
)


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
    [dropped_class_tile, dropped_row_tile, bias_missing_in_backward, ignore_duplicate_ids],
)
def test_the_structure_gate_catches(plant, monkeypatch):
    structure_gate(workspace_bytes=SPLIT)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        structure_gate(workspace_bytes=SPLIT)


def test_the_low_precision_gate_catches_a_bfloat16_normalizer(monkeypatch):
    low_precision_gate(workspace_bytes=SPLIT)
    rounded_normalizer(monkeypatch)
    with pytest.raises(AssertionError):
        low_precision_gate(workspace_bytes=SPLIT)


def test_the_low_precision_gate_catches_a_few_dropped_classes(monkeypatch):
    dropped_class_tile(monkeypatch)
    with pytest.raises(AssertionError):
        low_precision_gate(workspace_bytes=SPLIT)


def test_the_rounding_gate_catches_a_bfloat16_accumulator(monkeypatch):
    workspace_bytes = 5 * (224 + 4 * 13) * 4  # at least 128 row tiles
    rounding_gate(torch.bfloat16, "flat", workspace_bytes=workspace_bytes)
    half_accumulator(monkeypatch)
    with pytest.raises(AssertionError):
        rounding_gate(torch.bfloat16, "flat", workspace_bytes=workspace_bytes)
