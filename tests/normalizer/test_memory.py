"""Memory as a fact: the largest tensor made and the bytes kept, against the plan's own figures."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from panda_icefall.normalizer import TilePlan, dense_selected_log_probs, selected_log_probs

SITES, HIDDEN, CLASSES = 4_001, 24, 1_013
WORKSPACE = 256 * 1024


class LargestTensor(TorchDispatchMode):
    """Records the largest storage, in bytes, of any tensor an operation returns."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return result


def problem():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(SITES, HIDDEN, generator=g).requires_grad_()
    weight = torch.randn(CLASSES, HIDDEN, generator=g).requires_grad_()
    bias = torch.zeros(CLASSES, requires_grad=True)
    return rows, weight, bias, torch.randint(0, CLASSES, (SITES, 2), generator=g)


def test_no_tensor_is_larger_than_a_tile_or_an_input():
    rows, weight, bias, ids = problem()
    row_bytes = 2 * HIDDEN * 4 + 2 * HIDDEN * 4
    plan = TilePlan.make(SITES, CLASSES, 4, row_bytes, WORKSPACE)
    assert plan.tile_bytes <= WORKSPACE < SITES * CLASSES * 4 // 50
    with LargestTensor() as largest:
        logp, _ = selected_log_probs(rows, weight, bias, ids, workspace_bytes=WORKSPACE)
        logp.sum().backward()
    inputs = max(SITES * HIDDEN * 4, CLASSES * HIDDEN * 4)
    assert largest.bytes <= max(plan.tile_rows * plan.tile_classes * 4, inputs)


def test_the_dense_twin_shows_that_the_measurement_sees_logits():
    rows, weight, bias, _ = problem()
    with LargestTensor() as largest:
        torch.nn.functional.linear(rows, weight, bias).logsumexp(1)
    assert largest.bytes == SITES * CLASSES * 4


def test_saved_for_backward_are_the_inputs_ids_and_log_z():
    rows, weight, bias, ids = problem()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selected_log_probs(rows, weight, bias, ids, workspace_bytes=WORKSPACE)
    expected = [rows, weight, bias, ids, torch.empty(SITES)]
    assert sorted(tuple(t.shape) for t in saved) == sorted(tuple(t.shape) for t in expected)


@pytest.mark.parametrize(
    ("sites", "classes", "workspace_bytes"),
    [
        (1, 1, 1_000),
        (5, 7, 1_000),
        (10_000, 500, 2**20),
        (10_000, 262_144, 2**20),
        (3, 10**6, 2**16),
    ],
)
def test_a_plan_covers_everything_once_and_stays_inside_its_workspace(
    sites, classes, workspace_bytes
):
    plan = TilePlan.make(sites, classes, 4, 64, workspace_bytes)
    for total, tiles in ((sites, plan.row_tiles()), (classes, plan.class_tiles())):
        assert [i for low, high in tiles for i in (low, high)][:: 2 * len(tiles) - 1] == [0, total]
        assert all(a[1] == b[0] for a, b in zip(tiles, tiles[1:]))
    assert plan.tile_bytes <= workspace_bytes


def test_classes_are_split_only_when_a_useful_row_block_does_not_fit():
    roomy = TilePlan.make(10_000, 4_336, 4, 64, 8 * 2**20)
    tight = TilePlan.make(10_000, 262_144, 4, 64, 8 * 2**20)
    assert roomy.tile_classes == 4_336
    assert tight.tile_classes < 262_144
    assert tight.tile_rows == 128


def test_a_plan_without_sites_has_no_tiles():
    plan = TilePlan.make(0, 10, 4, 64, 1_000)
    assert plan.row_tiles() == []
    assert plan.tile_bytes == 0


def test_offsets_beyond_two_to_the_31_are_planned():
    plan = TilePlan.make(2**20, 2**18, 4, 64, 8 * 2**20)
    assert plan.row_tiles()[-1][1] * plan.class_tiles()[-1][1] == 2**38


def test_more_than_two_to_the_31_logits_are_addressed_rightly():
    sites, classes = 66_001, 32_771
    assert sites * classes > 2**31
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(sites, 1, generator=g)
    weight = torch.randn(classes, 1, generator=g).requires_grad_()
    ids = torch.randint(0, classes, (sites, 1), generator=g)
    ids[-1] = classes - 1
    logp, _ = selected_log_probs(rows, weight, None, ids)
    last = slice(sites - 50, sites)
    expected, _ = dense_selected_log_probs(rows[last], weight, None, ids[last])
    torch.testing.assert_close(logp[last].double(), expected, rtol=0, atol=1e-5)
    (ours,) = torch.autograd.grad(logp[last].sum(), weight)
    (truth,) = torch.autograd.grad(expected.sum(), weight)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
