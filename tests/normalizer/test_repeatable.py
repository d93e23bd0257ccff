"""The same bits run after run, and under torch's own demand for deterministic algorithms."""

import pytest
import torch

from panda_icefall.normalizer import RowProgram, RowTable, Slot, Step, selected_log_probs

SITES, FRAMES, STATES, HIDDEN, CLASSES = 701, 150, 20, 40, 303


def joiner_run(workspace_bytes=400_000, seed=0):
    """Outputs and gradients of ``tanh(am + lm)`` whose sites share rows of both tables."""
    g = torch.Generator().manual_seed(seed)
    am, lm, weight, bias = (
        torch.randn(*shape, generator=g).requires_grad_()
        for shape in ((FRAMES, HIDDEN), (STATES, HIDDEN), (CLASSES, HIDDEN), (CLASSES,))
    )
    am_rows = torch.randint(0, FRAMES, (SITES,), generator=g).sort().values
    lm_rows = torch.randint(0, STATES, (SITES,), generator=g)
    ids = torch.randint(0, CLASSES, (SITES, 2), generator=g)
    ids[::5, 1] = ids[::5, 0]
    adjoints = torch.randn(SITES, 2, generator=g)
    steps = (
        Step(torch.add, (Slot(0), Slot(1)), {}, HIDDEN, torch.float32),
        Step(torch.tanh, (Slot(2),), {}, HIDDEN, torch.float32),
    )
    program = RowProgram((RowTable(am, am_rows), RowTable(lm, lm_rows)), steps=steps)
    outputs = selected_log_probs(program, weight, bias, ids, workspace_bytes=workspace_bytes)
    grads = torch.autograd.grad((outputs[0] * adjoints).sum(), (am, lm, weight, bias))
    return [t.detach() for t in (*outputs, *grads)]


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_two_runs_are_bitwise_equal(threads):
    assert all(torch.equal(x, y) for x, y in zip(joiner_run(), joiner_run()))


def test_deterministic_algorithms_are_what_runs_anyway(threads, deterministic_algorithms):
    strict = joiner_run()
    torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(strict, joiner_run()))
