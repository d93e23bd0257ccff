"""The planner's figures against peaks that were measured, and how they move with the sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from half_gemms import emulate
from simple_losses import of_projections

from panda_icefall.losses.simple_tiled import loss as tiled_loss
from panda_icefall.losses.simple_tiled.plan import USEFUL_ROWS_ON_DEVICE, SimpleTilePlan
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


HALF = LossSizes(C=501, H=8, am_dim=64, lm_dim=64, s_range=1, half=True)
OF_HALF = Batch(8, 60, 8)


def own_tile_bytes(workspace_bytes, monkeypatch, *, on_gpu, has_half_gemms):
    """Of the plan that the simple loss of half projections makes for itself."""
    (B, T, S), C = (OF_HALF.B, OF_HALF.T, OF_HALF.S), HALF.C
    projections = [torch.zeros(B, T, 64), torch.zeros(C, 64), torch.zeros(C)]
    projections += [torch.zeros(B, S + 1, 64), torch.zeros(C, 64), torch.zeros(C)]
    made, make = [], SimpleTilePlan.make

    def noted(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    with monkeypatch.context() as patch:
        if has_half_gemms:
            emulate(patch)
        if on_gpu:
            patch.setattr(tiled_loss, "USEFUL_ROWS", USEFUL_ROWS_ON_DEVICE)
        patch.setattr(SimpleTilePlan, "make", noted)
        of_projections(
            *projections, symbols=torch.ones(B, S, dtype=torch.int64), termination_symbol=0,
            am_only_scale=0.0, head_dtype=torch.float16, workspace_bytes=workspace_bytes,
        )  # fmt: skip
    (plan,) = made
    return plan.tile_bytes


# Copies of the half weights are made tile by tile, once for all tiles, and beside all classes.
@pytest.mark.parametrize("workspace_bytes", [300_000, 1_000_000, 16 * MIB])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_tile_of_half_projections_is_the_one_that_the_loss_plans(
    on_gpu, workspace_bytes, monkeypatch
):
    forms = (True, False) if on_gpu else (False,)
    own = [
        own_tile_bytes(workspace_bytes, monkeypatch, on_gpu=on_gpu, has_half_gemms=form)
        for form in forms
    ]
    planned = routed_memory(OF_HALF, HALF, workspace_bytes, on_gpu=on_gpu)
    assert planned["simple loss: a tile"] == max(own)
    if on_gpu and workspace_bytes == 16 * MIB:
        assert own[0] > own[1]
