"""Half heads on CUDA: half operands, float32 sums, a half gradient tile; emulated on the CPU."""

import importlib.util

import pytest
import torch
from gates import NAMES, in_dtype, low_precision_gate, rms, rounding_gate, run, values
from half_gemms import emulate
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import selected_log_probs
from panda_icefall.normalizer.tensor_cores import Gemms, widening_gemms

KINDS = ("flat", "peaked", "shifted", "negative")
ENGINES = ["torch", "triton"] if importlib.util.find_spec("triton") else ["torch"]
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(params=[True, False], ids=["addmm widens", "only mm widens"])
def half_gemms(request, monkeypatch):
    """What half GEMMs were called, by a CPU that has them."""
    return emulate(monkeypatch, request.param)


@HALVES
@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_exact_at_the_scale_of_float32(half_gemms, kind, dtype):
    low_precision_gate(dtype, kind, workspace_bytes=9_000)
    assert {d for _, d, *_ in half_gemms} == {dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_round_no_worse_than_the_dense_path(half_gemms, kind):
    # 640 sites in tiles of at most 5: 128 accumulations.
    rounding_gate(torch.bfloat16, kind, workspace_bytes=5 * (224 + 4 * 13) * 6)
    assert len(half_gemms) >= 3 * 128


@HALVES
@pytest.mark.parametrize("kind", ["flat", "negative"])
@pytest.mark.parametrize("loss_scale", [1.0, 65_536.0, 2.0**-20])
def test_gradients_are_those_of_the_rounded_operands_at_any_loss_scale(
    half_gemms, kind, loss_scale, dtype
):
    # As under autocast and a GradScaler: float32 leaves, operands rounded, adjoints scaled.
    *inputs, adjoints, log_z_adjoints = values(kind, sites=200)
    scaled = [loss_scale * t for t in (adjoints, log_z_adjoints)]
    rows, weight, bias, ids = in_dtype(inputs, torch.float32)
    rounded = [t.to(dtype).double() for t in (rows, weight)]
    options = {"head_dtype": dtype, "workspace_bytes": 30_000, "adjoint_tolerance": 0.0}
    ours = run(lambda *a: selected_log_probs(*a, **options), rows, weight, bias, ids, *scaled)
    truth = run(dense_selected_log_probs, *rounded, bias.double(), ids, *scaled)
    for name, x, ref in [*zip(NAMES, ours, truth)][2:]:
        assert rms(x - ref) <= torch.finfo(dtype).eps * rms(ref), name
    assert {d for _, d, *_ in half_gemms} == {dtype}


@HALVES
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_both_engines_give_the_same(half_gemms, engine, dtype):
    data = in_dtype(values(classes=29, sites=70, hidden=5), dtype)
    options = {"workspace_bytes": 6_000, "engine": engine, "adjoint_tolerance": 0.0}
    ours = run(lambda *a: selected_log_probs(*a, **options), *data)
    truth = run(dense_selected_log_probs, *in_dtype(data, torch.float64))
    for name, x, ref in zip(NAMES, ours, truth):
        eps = torch.finfo(dtype).eps if name.startswith("d ") else 8 * 2**-23
        assert rms(x - ref) <= eps * rms(ref), name
    assert {d for _, d, *_ in half_gemms} == {dtype}


@HALVES
@pytest.mark.parametrize("trouble", [float("inf"), float("nan")])
def test_an_overflown_adjoint_shows_in_the_gradients(half_gemms, dtype, trouble):
    rows, weight, bias, ids, adjoints, log_z_adjoints = in_dtype(values(), torch.float32)
    adjoints[4, 0] = trouble
    *_, by_rows, by_weight, _ = run(
        lambda *a: selected_log_probs(*a, head_dtype=dtype),
        rows, weight, bias, ids, adjoints, log_z_adjoints,
    )  # fmt: skip
    assert not by_rows[4].isfinite().any()
    assert by_rows[5].isfinite().all()
    assert not by_weight.isfinite().all()


def test_float32_heads_take_no_half_gemms(half_gemms):
    rounding_gate(torch.float32, workspace_bytes=30_000)
    assert half_gemms == []


def test_operands_begin_at_aligned_rows(half_gemms):
    rows, weight, bias, ids, *adjoints = in_dtype(values(classes=1_001), torch.bfloat16)
    run(
        lambda *a: selected_log_probs(*a, workspace_bytes=60_000),
        rows, weight, bias, ids, *adjoints,
    )  # fmt: skip
    of_tiles = [s for _, _, *strides in half_gemms for s in strides if max(s) > weight.shape[1]]
    assert of_tiles
    assert all(max(strides) % 8 == 0 for strides in of_tiles)


def test_a_cpu_has_none(monkeypatch):
    widening_gemms.cache_clear()
    assert widening_gemms(torch.device("cpu"), torch.bfloat16) == (False, False)
    gemms = Gemms.of(torch.zeros(3, 3, dtype=torch.bfloat16), None, torch.float32)
    assert gemms == Gemms(torch.float32, torch.float32)
    widening_gemms.cache_clear()
