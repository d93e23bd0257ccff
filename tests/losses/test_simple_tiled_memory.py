"""The tiled simple loss's memory as a fact: what is made, what is kept, what the plan says."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from simple_losses import of_projections, tiled
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from panda_icefall.losses.simple_tiled.plan import Block, SimpleTilePlan
from panda_icefall.losses.smoothed import rnnt_loss_smoothed

B, T, S, C, AM_WIDTH, LM_WIDTH = 7, 101, 5, 1_013, 24, 20
WORKSPACE = 128 * 1024
BLANK = {"termination_symbol": 0}


class TensorSizes(TorchDispatchMode):
    """Collects the numbers of elements of all tensors that operations return.

    Attributes:
      numels: of all of them, views and arguments changed in place included.
      made: of those that are neither views nor arguments.
    """

    def __init__(self):
        super().__init__()
        self.numels = set()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        values = [v for v in tree_flatten(result)[0] if isinstance(v, torch.Tensor)]
        self.numels.update(v.numel() for v in values)
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.made += [v.numel() for v in values]
        return result


def problem(classes=C):
    g = torch.Generator().manual_seed(0)
    shapes = (B, T, AM_WIDTH), (classes, AM_WIDTH), (classes,)
    shapes += (B, S + 1, LM_WIDTH), (classes, LM_WIDTH), (classes,)
    tensors = [torch.randn(*shape, generator=g).requires_grad_() for shape in shapes]
    return tensors, torch.randint(classes, (B, S), generator=g)


def saved_in(tensors):
    """Appends what autograd saves to the list."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t)


@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("am_only_scale", [0.0, 0.25])
def test_no_tensor_is_larger_than_a_tile_an_input_or_the_lattice(am_only_scale, head_dtype):
    tensors, symbols = problem()
    with TensorSizes() as sizes:
        loss, _ = of_projections(
            *tensors, symbols=symbols, **BLANK, am_only_scale=am_only_scale, return_grad=True,
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
    with saved_in(saved):
        of_projections(
            *tensors, symbols=symbols, **BLANK, lm_only_scale=0.25, am_only_scale=am_only_scale
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
            of_projections(*tensors, symbols=symbols, **BLANK, workspace_bytes=WORKSPACE).backward()
        largest.append(max(n for n in sizes.numels if n % classes))
    assert largest[0] == pytest.approx(largest[1], rel=0.05)


@pytest.mark.parametrize("am_only_scale", [0.0, 0.25])
def test_of_tensors_one_gradient_of_each_is_made_and_nothing_else_of_their_size(am_only_scale):
    tensors, symbols = problem()
    am, lm = (F.linear(*tensors[i : i + 3]).detach().requires_grad_() for i in (0, 3))
    scale_and_workspace = {"am_only_scale": am_only_scale, "workspace_bytes": WORKSPACE}
    saved = []
    with saved_in(saved):
        tiled(lm, am, symbols, 0, **scale_and_workspace)
    with TensorSizes() as sizes:
        loss, _ = tiled(lm, am, symbols, 0, **scale_and_workspace, return_grad=True)
        loss.backward()
    assert sizes.made.count(am.numel()) == sizes.made.count(lm.numel()) == 1
    large = max(n for n in sizes.made if n not in (am.numel(), lm.numel()))
    assert large <= max(WORKSPACE // 4, B * (S + 1) * (T + 1) * 2)
    others = [t for t in saved if t.data_ptr() not in (am.data_ptr(), lm.data_ptr())]
    assert {am.data_ptr(), lm.data_ptr()} <= {t.data_ptr() for t in saved}
    assert max(t.numel() for t in others) <= max(B * (S + 1) * (T + 1), C)


@pytest.mark.parametrize("weights", [{}, {"casts_weight": True}, {"copy_bytes": 16}])
@pytest.mark.parametrize(
    ("t_ends", "states", "classes", "workspace_bytes"),
    [
        ([1], 1, 1, 250),
        ([9, 4, 0], 3, 7, 3_000),
        ([150] * 20, 15, 4_336, 2**20),
        ([400, 390, 120] * 7, 60, 262_144, 8 * 2**20),
        ([5], 2, 10**6, 2**16),
    ],
)
def test_a_plan_covers_everything_once_and_stays_inside_its_workspace(
    t_ends, states, classes, workspace_bytes, weights
):
    plan = SimpleTilePlan.make(t_ends, states, classes, (5, 3), 4, workspace_bytes, **weights)
    tiles = plan.class_tiles()
    assert (tiles[0][0], tiles[-1][1]) == (0, classes)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(tiles))
    assert plan.tiles == len(tiles) * len(plan.blocks)
    for b, t_end in enumerate(t_ends):
        cuts = [(block.begin, block.end) for block in plan.blocks if b in block.utterances]
        assert cuts[0][0] == 0
        assert cuts[-1][1] >= t_end
        assert all(cut[1] == following[0] for cut, following in itertools.pairwise(cuts))
    assert plan.tile_bytes <= workspace_bytes


def test_copies_of_whole_weights_take_a_quarter_of_the_workspace_at_most():
    for classes, keeps in ((1_000, True), (1_001, False)):
        plan = SimpleTilePlan.make([9] * 4, 3, classes, (5, 3), 4, 64_000, copy_bytes=16)
        assert plan.keeps_copies is keeps
        assert 16 * (classes if keeps else plan.tile_classes) < plan.tile_bytes <= 64_000


def test_a_larger_workspace_takes_more_utterances_up_to_the_useful_rows_and_then_more_classes():
    tiles = []
    for workspace_mib in (1, 3, 8, 64):
        plan = SimpleTilePlan.make(
            [150] * 20, 15, 4_336, (512, 512), 4, workspace_mib * 2**20, useful_rows=600
        )
        tiles.append((len(plan.blocks[0].utterances), plan.tile_classes))
    assert tiles == [(1, 768), (2, 576), (4, 896), (4, 4336)]


def test_utterances_of_like_length_share_a_tile_and_no_frame_behind_the_longest_is_computed():
    plan = SimpleTilePlan.make([3, 9, 0, 7], 2, 4, (1, 1), 4, 10_000, useful_rows=15)
    assert plan.blocks == (Block((1, 3), 0, 9), Block((0, 2), 0, 3))


def test_an_utterance_that_does_not_fit_takes_several_blocks_of_its_frames():
    plan = SimpleTilePlan.make([90, 9, 0], 4, 20, (30, 5), 4, 30_000)
    assert plan.blocks[:2] == (Block((0,), 0, 45), Block((0,), 45, 90))
    assert [block.utterances for block in plan.blocks[2:]] == [(1, 2)]
    assert plan.tile_bytes <= 30_000


def test_many_states_take_narrower_tiles_before_thin_slices_of_frames():
    # Every slice projects all states again: 501 of them, in 8 MiB.
    plan = SimpleTilePlan.make([1000] * 4, 501, 5000, (512, 512), 4, 8 * 2**20)
    assert plan.tile_bytes <= 8 * 2**20
    assert len(plan.blocks) <= 4 * 4
    assert plan.tile_classes >= 64
