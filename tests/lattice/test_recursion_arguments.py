"""What the lattice recursion takes and refuses, and k2's where it is asked for or cannot run."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from panda_icefall.lattice import (
    exact_recursion,
    has_k2_recursion,
    mutual_information_recursion,
)
from panda_icefall.lattice.mutual_information import unchecked_recursion

GOOD_PX, GOOD_PY = torch.zeros(2, 3, 5), torch.zeros(2, 4, 4)


@pytest.mark.parametrize(
    ("px", "py", "error", "message"),
    [
        (torch.zeros(3, 5), GOOD_PY, ValueError, r"px: got 2 dimensions \(3, 5\), expected 3"),
        (GOOD_PX, torch.zeros(2, 3, 4), ValueError, r"py: got shape \(2, 3, 4\), .*\[2, 4, T\]"),
        (GOOD_PX, torch.zeros(2, 4), ValueError, r"py: got shape \(2, 4\)"),
        (torch.zeros(2, 3, 7), GOOD_PY, ValueError, r"px: got 7 frames for py with T=4"),
        (GOOD_PX.half(), GOOD_PY, TypeError, r"px: got torch.float16.*call px.float\(\)"),
        (GOOD_PX, GOOD_PY.bfloat16(), TypeError, r"py: got torch.bfloat16"),
        (GOOD_PX.double(), GOOD_PY, TypeError, r"py: got torch.float32, expected px's"),
        (GOOD_PX, GOOD_PY.to("meta"), ValueError, r"py: got device meta, expected px's cpu"),
    ],
)
@pytest.mark.parametrize("function", [exact_recursion, mutual_information_recursion])
def test_unfit_arcs_are_refused_by_name(function, px, py, error, message):
    with pytest.raises(error, match=message):
        function(px, py)


@pytest.mark.parametrize(
    ("boundary", "error", "message"),
    [
        (torch.zeros(2, 3).long(), ValueError, r"boundary: got shape \(2, 3\), expected \[B, 4\]"),
        (torch.zeros(2, 4), TypeError, r"boundary: got torch.float32, expected torch.int64"),
        (torch.zeros(2, 4).long().to("meta"), ValueError, r"boundary: got device meta"),
        (torch.tensor([[0, 0, 3, 4], [0, 0, 4, 4]]), ValueError, r"\[0, 0, 4, 4\] .* b=1 .* S=3"),
        (torch.tensor([[0, 0, 3, 5], [0, 0, 3, 4]]), ValueError, r"\[0, 0, 3, 5\] .* b=0 .* T=4"),
        (torch.tensor([[0, 0, 3, 4], [2, 0, 1, 4]]), ValueError, r"utterance b=1"),
        (torch.tensor([[0, 0, 3, 4], [0, -1, 1, 4]]), ValueError, r"utterance b=1"),
    ],
)
@pytest.mark.parametrize("function", [exact_recursion, mutual_information_recursion])
def test_an_unfit_boundary_is_refused_naming_the_utterance(function, boundary, error, message):
    with pytest.raises(error, match=message):
        function(GOOD_PX, GOOD_PY, boundary)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_arcs_are_computed_in_float32_and_get_half_gradients(dtype):
    g = torch.Generator().manual_seed(3)
    px, py = torch.randn(2, 3, 6, generator=g), torch.randn(2, 4, 5, generator=g)
    px, py = (-100 * p.abs().to(dtype) for p in (px, py))
    boundary = torch.tensor([[0, 0, 3, 5], [0, 0, 0, 2]])
    half = [p.clone().requires_grad_() for p in (px, py)]
    wide = [p.double().requires_grad_() for p in (px, py)]
    scores, occupations = mutual_information_recursion(*half, boundary, return_grad=True)
    expected, expected_occupations = exact_recursion(*wide, boundary, return_grad=True)
    assert scores.dtype == occupations[0].dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)
    for x, ref in zip(occupations, expected_occupations):
        torch.testing.assert_close(x.double(), ref, rtol=0, atol=1e-4)
    found = torch.autograd.grad(scores.sum(), half)
    assert {x.dtype for x in found} == {dtype}
    for x, ref in zip(found, torch.autograd.grad(expected.sum(), wide)):
        torch.testing.assert_close(x.double(), ref, rtol=2**-7, atol=1e-3)


def test_k2s_runs_where_it_is_asked_for(monkeypatch):
    calls = []
    stub = ModuleType("k2")
    stub.__spec__ = ModuleSpec("k2", None)
    stub.mutual_information_recursion = lambda *args: calls.append(args) or "k2's"
    monkeypatch.setitem(sys.modules, "k2", stub)
    assert unchecked_recursion(GOOD_PX, GOOD_PY, None, True, recursion="k2") == "k2's"
    assert calls[0][2:] == (None, True)


def test_k2_is_left_aside_for_cuda_tensors_if_built_without_cuda(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    stub = SimpleNamespace(mutual_information_recursion=None, with_cuda=False)
    monkeypatch.setitem(sys.modules, "k2", stub)
    assert has_k2_recursion(cpu)
    assert not has_k2_recursion(cuda)
    stub.with_cuda = True
    assert has_k2_recursion(cuda)
