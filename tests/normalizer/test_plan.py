"""Tile plans: everything once, inside the workspace, in sizes that a GEMM is good for."""

import itertools

import pytest
import torch

from panda_icefall.normalizer import ClassRanges, RowProgram, RowTable, TilePlan
from panda_icefall.normalizer.head import LinearHead
from panda_icefall.normalizer.plan import (
    CLASS_UNIT,
    LEAST_SHARE_ON_DEVICE,
    ROW_UNIT,
    ClassTile,
    TileCosts,
)

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
    class_tiles = [(at.low, at.high) for at in plan.class_tiles()]
    for total, tiles in ((sites, plan.row_tiles()), (classes, class_tiles)):
        assert [i for low, high in tiles for i in (low, high)][:: 2 * len(tiles) - 1] == [0, total]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(tiles))
    rows = max(high - low for low, high in plan.row_tiles())
    assert rows == plan.tile_rows
    assert costs.tile_bytes(rows, plan.row_stride) == plan.tile_bytes
    assert plan.tile_bytes <= workspace_bytes
    assert 0 <= plan.row_stride - plan.tile_classes < CLASS_UNIT
    assert all(at.is_whole is (at.width == classes) for at in plan.class_tiles())


@every_cost
@pytest.mark.parametrize("classes", [500, 4336, 5537, 65_536, 262_143])
@pytest.mark.parametrize("workspace_mib", [8, 16, 64, 100, 256])
def test_sides_and_strides_fill_the_blocks_of_gemms_and_kernels(classes, workspace_mib, costs):
    plan = TilePlan.make(400_009, classes, costs, workspace_mib * 2**20)
    assert plan.row_stride % CLASS_UNIT == 0
    assert plan.tile_rows % ROW_UNIT == 0
    if plan.tile_classes < classes:
        assert plan.tile_classes == plan.row_stride
    # Rounding leaves most of the workspace in use.
    assert plan.tile_bytes > 0.6 * workspace_mib * 2**20


@pytest.mark.parametrize("workspace_bytes", [20_000, 60_000, 200_000])
def test_small_tiles_are_aligned_as_far_as_that_costs_little(workspace_bytes):
    plan = TilePlan.make(1_009, 251, PLAIN, workspace_bytes)
    assert plan.row_stride % 8 == 0
    assert plan.tile_bytes > 0.6 * workspace_bytes


def test_all_classes_are_in_a_tile_of_at_least_half_the_rows_of_a_square():
    costs = TileCosts(logit_bytes=4, row_bytes=12_288)
    share = LEAST_SHARE_ON_DEVICE
    for classes, least_share, is_whole in (
        (5_537, share, True), (65_536, share, False), (5_537, 1.0, False), (3_001, 1.0, True)
    ):  # fmt: skip
        plan = TilePlan.make(40_000, classes, costs, 100 * 2**20, least_share=least_share)
        assert plan.class_tiles()[0].is_whole == is_whole


def test_tiles_are_square_where_they_can_be():
    plan = TilePlan.make(100_000, 262_144, TileCosts(logit_bytes=4, row_bytes=1), 2**20)
    assert plan.tile_rows == pytest.approx(512, rel=0.15)
    assert plan.tile_classes == pytest.approx(512, rel=0.15)


def test_few_sites_take_more_classes_and_few_classes_more_sites():
    assert TilePlan.make(10, 262_144, PLAIN, 2**20).tile_classes > 10_000
    assert TilePlan.make(100_000, 10, PLAIN, 2**20).tile_rows > 9_000


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


def test_backward_costs_more_than_forward_and_copies_of_the_weight_more_than_none():
    program = RowProgram(tables=(RowTable(torch.zeros(3, 20)),))

    def costs(**changes):
        return TileCosts.of(program, 4, **changes).tile_bytes(100, 100)

    assert costs(with_gradients=True) > costs()
    assert costs(class_bytes=30) == costs() + 100 * 30
    backward = costs(with_gradients=True)
    assert costs(with_gradients=True, half_gradient=True) == backward + 100 * 100 * 2


@pytest.mark.parametrize(
    ("dtype", "head_dtype", "expected"),
    [
        (torch.float32, None, 0),
        (torch.float32, torch.float32, 0),
        (torch.float32, torch.bfloat16, 20 * (2 + 4)),
        (torch.bfloat16, None, 20 * 4),
        (torch.float64, torch.float16, 20 * (2 + 4)),
    ],
)
def test_the_copies_of_a_class_are_counted(dtype, head_dtype, expected):
    weight = torch.zeros(7, 20, dtype=dtype)
    head = LinearHead.of(weight, None, head_dtype, torch.float32, ClassRanges(range(7)))
    assert head.class_bytes == expected
    copied, _ = head.tile(ClassTile(0, 7, True))
    assert (copied.data_ptr() == weight.data_ptr()) is (expected == 0)
