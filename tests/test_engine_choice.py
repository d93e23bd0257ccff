"""Which engine serves a device, and what is refused."""

import importlib.util
import inspect
import logging
import sys
import types

import pytest
import torch

from panda_icefall import engine_choice
from panda_icefall.engine_choice import (
    MissingEngineError,
    is_triton_chosen,
    row_kernels,
    why_not_triton,
)
from panda_icefall.lattice import banded
from panda_icefall.lattice.banded import WIDEST_IN_TRITON, banded_recursion
from panda_icefall.losses.simple_tiled import rows
from panda_icefall.normalizer import selected_log_probs, torch_rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def installed(monkeypatch):
    """Sets the Triton that is found (None: no such package) and the GPU's compute capability."""

    def install(version, capability=(9, 0)):
        package = None if version is None else types.SimpleNamespace(__version__=version)
        monkeypatch.setitem(sys.modules, "triton", package)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(engine_choice, "_try_kernel", tried.append)

    tried = install.tried = []
    why_not_triton.cache_clear()
    yield install
    why_not_triton.cache_clear()


@pytest.mark.parametrize(
    ("version", "capability", "chosen"),
    [
        ("3.7.1", (9, 0), True),
        ("3.0.0", (7, 0), True),
        ("3.7.1", (6, 1), False),
        ("2.1.0", (8, 0), False),
        (None, (9, 0), False),
    ],
)
def test_auto_takes_triton_on_gpus_that_it_serves(installed, version, capability, chosen):
    installed(version, capability)
    assert is_triton_chosen("auto", CUDA) is chosen
    assert is_triton_chosen("auto", CUDA) is chosen
    assert installed.tried == ([CUDA] if chosen else [])


def test_auto_takes_torch_where_triton_compiles_nothing_and_says_so_once(
    installed, monkeypatch, caplog
):
    def fail(device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify it")

    installed("3.7.1")
    monkeypatch.setattr(engine_choice, "_try_kernel", fail)
    with caplog.at_level(logging.WARNING):
        assert not is_triton_chosen("auto", CUDA)
        assert not is_triton_chosen("auto", CUDA)
    (record,) = caplog.records
    assert "no kernel for cuda (RuntimeError: Failed to find C compiler. Please" in record.message
    assert why_not_triton(CUDA) == "RuntimeError: Failed to find C compiler. Please specify it"
    # Who asks for it gets Triton's own error.
    assert is_triton_chosen("triton", CUDA)


def test_the_kernel_that_is_tried_runs_and_is_checked(monkeypatch):
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    from panda_icefall import triton_probe

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine_choice._try_kernel(device)

    class DoesNothing:
        def __getitem__(self, grid):
            return lambda *args: None

    monkeypatch.setattr(triton_probe, "_add_place", DoesNothing())
    with pytest.raises(RuntimeError, match=r"a kernel wrote \[0.0, .*expected 0 to 7"):
        engine_choice._try_kernel(device)


def test_auto_takes_torch_on_the_cpu_even_where_the_interpreter_is_on(installed, monkeypatch):
    installed("3.7.1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not is_triton_chosen("auto", CPU)


def test_torch_is_taken_where_it_is_asked_for(installed):
    installed("3.7.1")
    assert not is_triton_chosen("torch", CUDA)


def call_op(engine):
    rows, weight = torch.zeros(2, 3), torch.zeros(4, 3)
    selected_log_probs(rows, weight, None, torch.zeros(2, 1, dtype=torch.int64), engine=engine)


def call_recursion(engine):
    logp = torch.zeros(1, 2, 1)
    banded_recursion(logp, logp, torch.zeros(1, 2, 1, dtype=torch.int64), 0, engine=engine)


every_call = pytest.mark.parametrize("call", [call_op, call_recursion])


@every_call
def test_an_unknown_engine_is_refused(call):
    with pytest.raises(ValueError, match=r"engine: got 'cuda', expected one of auto, torch, trit"):
        call("cuda")


@every_call
def test_triton_where_it_is_missing_is_refused_with_the_install_line(call, installed):
    installed(None)
    with pytest.raises(MissingEngineError, match=r"engine: got 'triton', .*pip install triton"):
        call("triton")


@every_call
def test_triton_on_the_cpu_is_refused_outside_its_interpreter(call, installed, monkeypatch):
    installed("3.7.1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"engine: got 'triton' for tensors on cpu, expected CUDA"):
        call("triton")


def test_bands_too_wide_for_one_warp_are_left_to_torch(monkeypatch):
    asked = []
    monkeypatch.setattr(banded, "is_triton_chosen", lambda *given: asked.append(given) or False)
    for s_range in (WIDEST_IN_TRITON, WIDEST_IN_TRITON + 1):
        logp, ranges = torch.zeros(1, 2, s_range), torch.arange(s_range).expand(1, 2, s_range)
        banded_recursion(logp, logp, ranges, s_range - 1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("in_torch", "functions"),
    [(torch_rows, ("fold", "gradient")), (rows, ("fold_", "exp_below_", "gradient_"))],
)
def test_row_kernels_of_both_engines_take_the_same_arguments(in_torch, functions, monkeypatch):
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert row_kernels("torch", CPU, in_torch) is row_kernels("auto", CPU, in_torch) is in_torch
    in_triton = row_kernels("triton", CPU, in_torch)
    for name in functions:
        theirs, ours = (
            [(p.name, p.default) for p in inspect.signature(getattr(m, name)).parameters.values()]
            for m in (in_torch, in_triton)
        )
        assert ours == theirs
