"""The planner's figures against peaks that were measured, and how they move with the sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from panda_icefall.runs.planning.loss_memory import (
    MEASURED_ERROR,
    Batch,
    LossSizes,
    dense_memory,
    routed_memory,
)

MIB = 2**20
RESULTS = Path(__file__).resolve().parents[3] / "scripts/results/plan.json"
ROWS = json.loads(RESULTS.read_text())["rows"]
AISHELL = LossSizes(C=4336, H=512, am_dim=512, lm_dim=512, s_range=5)


def predicted(row):
    shape = row["shape"]
    batch = Batch(shape["B"], shape["T"], shape["S"])
    sizes = LossSizes(shape["C"], shape["H"], shape["D"], shape["D"], shape["s_range"])
    if row["arm"] == "dense":
        return sum(dense_memory(batch, sizes).values())
    workspace_bytes = int(row["workspace_mib"] * MIB)
    return sum(routed_memory(batch, sizes, workspace_bytes, on_gpu=False).values())


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['arm']}-{r['shape']['C']}")
def test_the_figure_is_within_its_error_of_the_measured_peak(row):
    assert abs(predicted(row) / row["measured_bytes"] - 1) <= MEASURED_ERROR


def test_both_arms_and_several_shapes_were_measured():
    assert MEASURED_ERROR <= 0.10
    assert {row["arm"] for row in ROWS} == {"dense", "panda"}
    assert len({row["shape"]["C"] for row in ROWS}) >= 4


def test_published_figures_of_the_dense_loss_are_met():
    """The peak of k2's losses that were measured before: B=20 T=150 S=14, 1389 MiB."""
    figure = sum(dense_memory(Batch(20, 150, 14), AISHELL).values())
    assert figure == pytest.approx(1389.4 * MIB, rel=0.02)


def test_dense_memory_grows_with_classes_and_routed_memory_with_their_gradients_only():
    batch = Batch(50, 200, 30)
    larger = replace(AISHELL, C=4 * AISHELL.C)
    dense = [sum(dense_memory(batch, sizes).values()) for sizes in (AISHELL, larger)]
    routed = [sum(routed_memory(batch, s, 64 * MIB).values()) for s in (AISHELL, larger)]
    assert dense[1] > 3.5 * dense[0]
    gradients = larger.joiner_bytes + larger.projection_bytes
    assert routed[1] - routed[0] < gradients
    assert routed[0] < dense[0] / 20


def test_a_tile_is_never_more_than_the_workspace():
    for workspace in (8 * MIB, 64 * MIB, 256 * MIB):
        components = routed_memory(Batch(100, 250, 30), AISHELL, workspace)
        (tile,) = [size for name, size in components.items() if name.endswith("a tile")]
        assert tile <= workspace


def test_half_precision_keeps_the_logits_in_float():
    batch = Batch(50, 200, 30)
    half = dense_memory(batch, replace(AISHELL, half=True))
    full = dense_memory(batch, AISHELL)
    assert (
        half["pruned loss: joiner [B, T, s_range, H]"] * 2
        == (full["pruned loss: joiner [B, T, s_range, H]"])
    )
    name = "pruned loss: logits [B, T, s_range, C], 5 times"
    assert half[name] == full[name]


def test_the_simple_loss_is_the_peak_where_the_lattice_is_narrow():
    """A joiner's band of two states, and very many symbols: am and lm are then what counts."""
    sizes = replace(AISHELL, s_range=1)
    components = dense_memory(Batch(4, 10, 200), sizes)
    assert "simple loss: am and lm of C classes, 5 times" in components
