"""Tile plans: everything once, inside the workspace, in sizes that a GEMM is good for."""

import itertools

import pytest
import torch

from panda_icefall.normalizer import RowProgram, RowTable, TilePlan
from panda_icefall.normalizer.plan import TileCosts

PLAIN = TileCosts(logit_bytes=4, row_bytes=64)
WITH_CAST = TileCosts(logit_bytes=4, row_bytes=64, class_bytes=100)
every_cost = pytest.mark.parametrize("costs", [PLAIN, WITH_CAST], ids=["plain", "cast"])


@every_cost
@pytest.mark.parametrize(
    ("sites", "classes", "workspace_bytes"),
    [
        (1, 1, 20_000),
        (5, 7, 1_000),
        (5, 7, 176),
        (1_000, 211, 100_000),
        (10_000, 500, 2**20),
        (10_000, 262_144, 2**20),
        (3, 10**6, 2**16),
    ],
)
def test_a_plan_covers_everything_once_and_stays_inside_its_workspace(
    sites, classes, workspace_bytes, costs
):
    plan = TilePlan.make(sites, classes, costs, workspace_bytes)
    for total, tiles in ((sites, plan.row_tiles()), (classes, plan.class_tiles())):
        assert [i for low, high in tiles for i in (low, high)][:: 2 * len(tiles) - 1] == [0, total]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(tiles))
    rows = max(high - low for low, high in plan.row_tiles())
    assert rows == plan.tile_rows
    assert costs.tile_bytes(rows, plan.tile_classes) == plan.tile_bytes
    assert plan.tile_bytes <= workspace_bytes


def test_tiles_are_square_where_they_can_be():
    plan = TilePlan.make(100_000, 262_144, TileCosts(logit_bytes=4, row_bytes=1), 2**20)
    assert plan.tile_rows == pytest.approx(512, rel=0.02)
    assert plan.tile_classes == pytest.approx(512, rel=0.02)


def test_few_sites_take_more_classes_and_few_classes_more_sites():
    assert TilePlan.make(10, 262_144, PLAIN, 2**20).tile_classes > 10_000
    assert TilePlan.make(100_000, 10, PLAIN, 2**20).tile_rows > 10_000


def test_a_plan_without_sites_has_no_tiles():
    plan = TilePlan.make(0, 10, WITH_CAST, 1_000)
    assert plan.row_tiles() == []
    assert plan.tile_bytes == 0


def test_offsets_beyond_two_to_the_31_are_planned():
    plan = TilePlan.make(2**20, 2**18, PLAIN, 8 * 2**20)
    assert plan.row_tiles()[-1][1] * plan.class_tiles()[-1][1] == 2**38


@every_cost
def test_a_workspace_that_holds_no_logit_is_refused(costs):
    least = costs.tile_bytes(1, 1)
    assert TilePlan.make(5, 5, costs, least).tile_bytes == least
    with pytest.raises(ValueError, match=f"workspace_bytes: got {least - 1}, expected at least"):
        TilePlan.make(5, 5, costs, least - 1)


def test_backward_costs_more_than_forward_and_a_cast_weight_more_than_none():
    program = RowProgram(tables=(RowTable(torch.zeros(3, 20)),))

    def costs(**changes):
        options = {"casts_weight": False, "with_gradients": False, **changes}
        return TileCosts.of(program, 4, **options).tile_bytes(100, 100)

    assert costs(with_gradients=True) > costs()
    assert costs(casts_weight=True) == costs() + 100 * 20 * 4 * 2
