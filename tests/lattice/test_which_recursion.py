"""Which recursion runs where, how exact it is, and what it launches."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from bands import long_lattice
from dispatch import Launches

from panda_icefall.engine_choice import MissingEngineError
from panda_icefall.lattice import exact_recursion, is_k2_chosen, mutual_information, recursion

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture
def machine(monkeypatch):
    """Sets what the installed k2 has (None: not installed), and whether Triton runs on CUDA."""

    def install(k2, has_triton=True):
        stub = None
        if k2 is not None:
            stub = SimpleNamespace(mutual_information_recursion=print, with_cuda=k2 == "cuda")
        monkeypatch.setitem(sys.modules, "k2", stub)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: stub)
        monkeypatch.setattr(
            mutual_information,
            "is_triton_chosen",
            lambda engine, device: has_triton and engine != "torch" and device.type == "cuda",
        )

    return install


@pytest.mark.parametrize(
    ("recursion", "device", "k2", "has_triton", "is_k2"),
    [
        ("auto", CPU, "cpu", True, False),
        ("auto", CPU, None, True, False),
        ("auto", CUDA, "cuda", True, False),
        ("auto", CUDA, "cuda", False, True),
        ("auto", CUDA, "cpu", False, False),
        ("auto", CUDA, None, True, False),
        ("exact", CPU, "cuda", False, False),
        ("exact", CUDA, "cuda", False, False),
        ("k2", CPU, "cpu", True, True),
        ("k2", CUDA, "cuda", True, True),
    ],
)
def test_one_rule_chooses_the_recursion(machine, recursion, device, k2, has_triton, is_k2):
    machine(k2, has_triton)
    assert is_k2_chosen(recursion, "auto", device) is is_k2


def test_an_engine_that_is_torch_leaves_cuda_to_k2(machine):
    machine("cuda")
    assert is_k2_chosen("auto", "torch", CUDA)


def test_a_recursion_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"recursion: got 'fp64', expected one of auto, k2, exact"):
        is_k2_chosen("fp64", "auto", CPU)


def test_that_of_k2_is_refused_where_k2_is_missing(machine):
    machine(None)
    with pytest.raises(MissingEngineError, match=r"recursion: got 'k2', which is not installed"):
        is_k2_chosen("k2", "auto", CPU)


def test_that_of_k2_is_refused_on_a_device_that_it_was_not_built_for(machine):
    machine("cpu")
    with pytest.raises(ValueError, match=r"recursion: got 'k2' for arcs on cuda, where the inst"):
        is_k2_chosen("k2", "auto", CUDA)


def relative_error(value, exact):
    return ((value.double() - exact).norm() / exact.norm()).item()


def outcome(function, px, py, boundary):
    leaves = [x.clone().requires_grad_() for x in (px, py)]
    scores = function(*leaves, boundary)
    return [scores.detach(), *torch.autograd.grad(scores.sum(), leaves)]


@pytest.mark.parametrize("is_regular", [True, False])
def test_fp32_is_exact_to_its_own_rounding_at_a_loss_of_3000_nats(is_regular):
    px, py, boundary = long_lattice(is_regular)
    exact = outcome(exact_recursion, px.double(), py.double(), boundary)
    assert exact[0].max() < -3000
    for value, reference in zip(outcome(exact_recursion, px, py, boundary), exact):
        assert value.dtype == torch.float32
        assert relative_error(value, reference) <= 2**-24


@pytest.mark.k2
@pytest.mark.parametrize("is_regular", [True, False])
def test_it_is_ten_times_closer_to_fp64_than_k2s_there(is_regular):
    import k2

    px, py, boundary = long_lattice(is_regular)
    exact = outcome(k2.mutual_information_recursion, px.double(), py.double(), boundary)
    ours = outcome(exact_recursion, px, py, boundary)
    theirs = outcome(k2.mutual_information_recursion, px, py, boundary)
    for value, k2s, reference in zip(ours[1:], theirs[1:], exact[1:]):
        assert 10 * relative_error(value, reference) < relative_error(k2s, reference)


def launches(run, px, py, boundary):
    with torch.no_grad(), Launches() as counted:
        run(px, py, boundary, True)
    return counted


@pytest.mark.parametrize("is_regular", [True, False])
@pytest.mark.parametrize("T", [6, 19])
def test_triton_launches_a_kernel_each_way_however_long_the_batch_is(is_regular, T):
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    px, py = torch.zeros(2, 3, T + is_regular), torch.zeros(2, 4, T)
    boundary = torch.tensor([[0, 0, 3, T], [0, 0, 1, T - 2]])
    counted = launches(recursion._run_in_triton, px, py, boundary)
    assert counted.counts["triton"] == 2
    # Two tensors are filled with zeros.
    assert counted.total == 4


def test_in_torch_it_takes_four_launches_a_front():
    px, py, boundary = long_lattice(is_regular=True)
    fronts = px.shape[1] + py.shape[2]
    counted = launches(recursion._run, px, py, boundary)
    assert 4 * fronts < counted.total < 4 * fronts + 100
