"""The tiled simple loss's memory as a fact: what is made, what is kept, what the plan says."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from panda_icefall.losses.simple_tiled import selected_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.plan import Block, Selections, SimpleTilePlan
from panda_icefall.losses.smoothed import rnnt_loss_smoothed

B, T, S, C, AM_WIDTH, LM_WIDTH = 7, 101, 5, 1_013, 24, 20
WORKSPACE = 128 * 1024


class TensorSizes(TorchDispatchMode):
    """Collects the numbers of elements of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.numels = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        values = [v for v in tree_flatten(result)[0] if isinstance(v, torch.Tensor)]
        self.numels.update(v.numel() for v in values)
        return result


def problem(classes=C):
    g = torch.Generator().manual_seed(0)
    shapes = (B, T, AM_WIDTH), (classes, AM_WIDTH), (classes,)
    shapes += (B, S + 1, LM_WIDTH), (classes, LM_WIDTH), (classes,)
    tensors = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    return tensors, torch.randint(classes, (B, S), generator=g)


@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("am_only_scale", [0.0, 0.25])
def test_no_tensor_is_larger_than_a_tile_an_input_or_the_lattice(am_only_scale, head_dtype):
    tensors, symbols = problem()
    with TensorSizes() as sizes:
        loss, _ = selected_rnnt_loss_smoothed(
            *tensors, symbols, 0, am_only_scale=am_only_scale, return_grad=True,
            head_dtype=head_dtype, workspace_bytes=WORKSPACE,
        )  # fmt: skip
        loss.backward()
    lattice = B * (S + 1) * (T + 1) * 2  # the recursion holds the arcs by step, S + T of them
    assert max(sizes.numels) <= max(WORKSPACE // 4, lattice, C * AM_WIDTH, B * T * AM_WIDTH)
    assert max(sizes.numels) < B * (S + 1) * C < B * T * C


def test_the_materialised_twin_shows_that_the_measurement_sees_projections():
    tensors, symbols = problem()
    with TensorSizes() as sizes:
        rnnt_loss_smoothed(F.linear(*tensors[3:]), F.linear(*tensors[:3]), symbols, 0).backward()
    assert {B * T * C, B * (S + 1) * C} <= sizes.numels


@pytest.mark.parametrize("am_only_scale", [0.0, 0.25])
def test_saved_for_backward_are_the_inputs_and_what_remains_of_the_classes(am_only_scale):
    tensors, symbols = problem()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selected_rnnt_loss_smoothed(
            *tensors, symbols, 0, lm_only_scale=0.25, am_only_scale=am_only_scale
        )
    pointers = {t.data_ptr() for t in tensors}
    others = [t for t in saved if t.data_ptr() not in pointers]
    assert pointers <= {t.data_ptr() for t in saved}
    with_classes = [t.shape for t in others if C in t.shape]
    assert with_classes == ([(C,)] if am_only_scale else [])
    assert sum(t.numel() for t in others if C not in t.shape) <= 4 * B * (S + 1) * (T + 1)


def test_memory_grows_with_the_classes_by_their_weights_alone():
    largest = []
    for classes in (C, 4 * C):
        tensors, symbols = problem(classes)
        with TensorSizes() as sizes:
            selected_rnnt_loss_smoothed(*tensors, symbols, 0, workspace_bytes=WORKSPACE).backward()
        largest.append(max(n for n in sizes.numels if n % classes))
    assert largest[0] == pytest.approx(largest[1], rel=0.05)


@pytest.mark.parametrize("casts_weight", [False, True])
@pytest.mark.parametrize(
    ("t_ends", "states", "classes", "workspace_bytes"),
    [
        ([1], 1, 1, 200),
        ([9, 4, 0], 3, 7, 3_000),
        ([150] * 20, 15, 4_336, 2**20),
        ([400, 390, 120] * 7, 60, 262_144, 8 * 2**20),
        ([5], 2, 10**6, 2**16),
    ],
)
def test_a_plan_covers_everything_once_and_stays_inside_its_workspace(
    t_ends, states, classes, workspace_bytes, casts_weight
):
    plan = SimpleTilePlan.make(
        t_ends, states, classes, (5, 3), 4, workspace_bytes, casts_weight=casts_weight
    )
    tiles = plan.class_tiles()
    assert (tiles[0][0], tiles[-1][1]) == (0, classes)
    assert all(a[1] == b[0] for a, b in zip(tiles, tiles[1:]))
    covered = [b for block in plan.blocks for b in range(block.begin, block.end)]
    assert covered == list(range(len(t_ends)))
    for block in plan.blocks:
        assert block.frames == max(t_ends[block.utterances])
    assert plan.tile_bytes <= workspace_bytes


def test_a_larger_workspace_takes_more_utterances_and_then_more_classes():
    tiles = []
    for workspace_mib in (1, 4, 64):
        plan = SimpleTilePlan.make([150] * 20, 15, 4_336, (512, 512), 4, workspace_mib * 2**20)
        tiles.append((plan.tile_utterances, plan.tile_classes))
    assert tiles == [(1, 282), (3, 547), (20, 2030)]


def test_selections_meet_each_symbol_and_blank_once_in_its_tile():
    plan = SimpleTilePlan.make([3, 3, 2], 4, 10, (1, 1), 8, 800)
    assert plan.tile_classes < 10
    symbols = torch.tensor([[9, 0, 0], [4, 2, 9], [2, 7, 1]])
    selections = Selections.make(symbols, 2, plan)
    met = []
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            for b, s, c in zip(*(t.tolist() for t in selections.inside(low, block))):
                assert 0 <= c < high - low
                met.append((b + block.begin, s, c + low))
    ids = torch.cat((symbols, torch.full((3, 1), 2)), dim=1).tolist()
    assert sorted(met) == [(b, s, ids[b][s]) for b in range(3) for s in range(4)]


def test_only_the_frames_of_the_longest_utterance_of_a_block_are_computed():
    plan = SimpleTilePlan.make([9, 7, 3, 0], 2, 4, (1, 1), 4, 2 * (2 * 4 * 11 * 5))
    assert plan.blocks == (Block(0, 2, 9), Block(2, 4, 3))
