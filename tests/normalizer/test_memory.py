"""Memory as a fact: the largest tensor made and the bytes kept, against the plan's own figures."""

import pytest
import torch
from dispatch import LargestTensor, NewTensors
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import selected_log_probs

SITES, HIDDEN, CLASSES = 4_001, 24, 1_013
WORKSPACE = 256 * 1024


def problem():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(SITES, HIDDEN, generator=g).requires_grad_()
    weight = torch.randn(CLASSES, HIDDEN, generator=g).requires_grad_()
    bias = torch.zeros(CLASSES, requires_grad=True)
    return rows, weight, bias, torch.randint(0, CLASSES, (SITES, 2), generator=g)


@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
def test_no_tensor_is_larger_than_the_workspace_or_an_input(head_dtype):
    rows, weight, bias, ids = problem()
    assert WORKSPACE < SITES * CLASSES * 4 // 50
    with LargestTensor() as largest:
        logp, _ = selected_log_probs(
            rows, weight, bias, ids, head_dtype=head_dtype, workspace_bytes=WORKSPACE
        )
        logp.sum().backward()
    inputs = max(SITES * HIDDEN * 4, CLASSES * HIDDEN * 4)
    assert largest.bytes <= max(WORKSPACE, inputs)


@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
def test_the_only_tensor_of_the_weights_size_is_its_gradient(head_dtype):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, HIDDEN, generator=g).requires_grad_()
    rows, ids = torch.randn(300, HIDDEN, generator=g), torch.zeros(300, 1, dtype=torch.int64)
    with NewTensors(least=weight.numel()) as made:
        logp, _ = selected_log_probs(
            rows, weight, None, ids, head_dtype=head_dtype, workspace_bytes=WORKSPACE // 4
        )
        logp.sum().backward()
    assert made.shapes == [weight.shape]


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


@pytest.mark.slow
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
