"""`opaque`: what it leaves of a function, and what torch.compile makes of it."""

import inspect
import shutil
import subprocess
import sys

import pytest
import torch

from panda_icefall import losses
from panda_icefall.dynamo import opaque
from panda_icefall.lattice import banded_recursion, exact_recursion

needs_compile = pytest.mark.skipif(
    not hasattr(torch, "compile"), reason="needs torch.compile: runs in the modern lane"
)


@opaque
def total(x: torch.Tensor, times: int = 1) -> torch.Tensor:
    """As a loss: reads values, and is called with any shape."""
    return torch.tensor(times * sum(x.tolist()))


def test_an_opaque_function_looks_and_works_as_before():
    assert total(torch.ones(2), times=3) == 6
    assert list(inspect.signature(total).parameters) == ["x", "times"]
    assert total.__doc__.startswith("As a loss")
    with pytest.raises(AttributeError, match="tolist"):
        total(None)


def test_calling_an_opaque_function_loads_no_compiler():
    program = (
        "import sys, torch; from panda_icefall.dynamo import opaque; "
        "assert opaque(abs)(-1) == 1; print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@needs_compile
def test_a_compiled_caller_traces_around_it_whatever_the_shape():
    from torch._dynamo.testing import CompileCounter

    def caller(x):
        return total(torch.relu(x + 1)) * 2

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(caller, backend=counter)
    for n in range(2, 14):
        x = torch.linspace(-2, 2, n)
        assert torch.equal(compiled(x), caller(x))
    assert counter.frame_count <= 3  # before it, for one shape and for all; behind it
    direct = CompileCounter()
    assert torch.compile(total, backend=direct)(torch.ones(3)) == 3
    assert direct.frame_count == 0


@needs_compile
def test_a_caller_that_may_not_break_is_told_who_breaks():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: total(x), backend="eager", fullgraph=True)
    # Older dynamos name the function alone.
    gives_reasons = "reason" in inspect.signature(torch._dynamo.disable).parameters
    said = "PANDA's losses are not compiled" if gives_reasons else "disable.* wrapped function"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=said):
        compiled(torch.ones(2))


@pytest.fixture
def lattice():
    torch.manual_seed(0)
    B, T, S, C = 3, 9, 4, 11
    lm, am = torch.randn(B, S + 1, C), torch.randn(B, T, C)
    boundary = torch.tensor([[0, 0, S, T], [0, 0, S - 1, T - 2], [0, 0, 0, 5]])
    return lm, am, torch.randint(1, C, (B, S)), boundary


@needs_compile
def test_inductor_gives_the_eager_loss_of_a_lattice_with_a_boundary(lattice):
    assert shutil.which("g++") or shutil.which("clang++"), "inductor needs a C++ compiler"
    lm, am, symbols, boundary = lattice
    torch._dynamo.reset()
    compiled = torch.compile(losses.rnnt_loss_simple, backend="inductor")
    found = compiled(lm, am, symbols, 0, boundary=boundary)
    assert torch.equal(found, losses.rnnt_loss_simple(lm, am, symbols, 0, boundary=boundary))


@needs_compile
def test_no_public_function_is_traced(lattice):
    from torch._dynamo.testing import CompileCounter

    lm, am, symbols, boundary = lattice
    T = am.shape[1]
    px, py = torch.randn(3, 4, T + 1), torch.randn(3, 5, T)
    logp, ranges = torch.randn(3, T, 5), torch.arange(5).expand(3, T, 5)
    calls = [
        (losses.rnnt_loss_smoothed, (lm, am, symbols, 0, 0.2, 0.1, boundary)),
        (losses.rnnt_loss_pruned, (torch.randn(3, T, 5, 11), symbols, ranges, 0, boundary)),
        (losses.get_rnnt_prune_ranges, (px, py, boundary, 3)),
        (losses.do_rnnt_pruning, (am, lm, ranges)),
        (losses.pruned_score, (logp, logp, ranges, 4, boundary, "regular", 0.0, "sum")),
        (losses.score, (px, py, boundary, "regular", 0.0, "sum")),
        (exact_recursion, (px, py, boundary)),
        (banded_recursion, (logp, logp, ranges, 4, boundary)),
    ]
    for function, arguments in calls:
        torch._dynamo.reset()
        counter = CompileCounter()
        found = torch.compile(function, backend=counter)(*arguments)
        torch.testing.assert_close(found, function(*arguments), rtol=0, atol=0)
        assert counter.frame_count == 0, function
