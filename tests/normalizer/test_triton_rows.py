"""The row kernels in Triton against float64 and ``torch_rows``, alone and under the whole op.

Without a GPU the kernels run in Triton's interpreter, so shapes are tiny.
"""

import pytest
import torch
from gates import NAMES, dense, in_dtype, rms, run, values
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import selected_log_probs, torch_rows
from panda_icefall.normalizer.plan import ClassTile

pytest.importorskip("triton", reason="needs triton: pip install triton")
# In the interpreter numpy tells of -inf minus -inf, of exponentials of what lies after a row's
# classes, and of what older Tritons do with it.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF, NAN = float("inf"), float("nan")
LOW = 100  # first class of the tile
ACCUMULATION = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
every_dtype = pytest.mark.parametrize("dtype", ACCUMULATION, ids=str)


@pytest.fixture
def kernels(monkeypatch):
    """``triton_rows`` with blocks of 8 classes, so that tiny rows take several of them."""
    from panda_icefall.normalizer import triton_rows

    monkeypatch.setattr(triton_rows, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(triton_rows, "GRADIENT_CLASSES", 8)
    monkeypatch.setattr(triton_rows, "GRADIENT_BLOCK", 16)
    monkeypatch.setattr(triton_rows, "SUMMED_ROWS", 4)
    return triton_rows


def classes_of(logits, low=LOW):
    return ClassTile(low, low + logits.shape[1], False)


def fold(kernels, logits, ids, low, peak, total, chosen, bias=None):
    kernels.fold(logits, bias, classes_of(logits, low), ids, peak, total, chosen)


def gradient_(kernels, logits, ids, low, log_z, scale, adjoints):
    at = classes_of(logits, low)
    kernels.gradient(logits, None, at, ids, log_z, scale, adjoints, None, logits, None)


def tile(dtype, n=5, c=21, K=3, seed=0):
    """Logits ``[n, c]`` and ids ``[n, K]``: inside and outside of the tile, duplicates."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    ids = torch.randint(LOW - 5, LOW + c + 5, (n, K), generator=generator)
    ids[0] = LOW + c - 1
    ids[1, 0] = LOW - 1
    ids[1, -1] = LOW + c
    return logits.to(dtype).to(DEVICE), ids.to(DEVICE)


def start(ids, dtype):
    """``peak, total, chosen`` before the first tile; what is chosen shows if it is not written."""
    peak = torch.full(ids.shape[:1], -INF, dtype=dtype, device=DEVICE)
    return peak, torch.zeros_like(peak), torch.full(ids.shape, NAN, dtype=dtype, device=DEVICE)


def log_z_of(peak, total):
    return torch_rows.finite_or_zero(peak) + total.log()


def assert_as_accurate(got, exact, dtype, ulps=8):
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=ulps * eps, atol=ulps * eps)


@every_dtype
@pytest.mark.parametrize("c", [1, 7, 8, 21])
def test_fold_gives_the_log_sum_exp_and_the_selected_logits_of_a_row(kernels, c, dtype):
    logits, ids = tile(dtype, c=c)
    peak, total, chosen = start(ids, ACCUMULATION[dtype])
    copy = logits.clone()
    fold(kernels, logits, ids, LOW, peak, total, chosen)
    assert torch.equal(logits, copy)
    assert torch.equal(peak.double(), logits.double().amax(dim=1))
    assert_as_accurate(log_z_of(peak, total), logits.double().logsumexp(1), peak.dtype)
    inside = (ids >= LOW) & (ids < LOW + c)
    expected = logits.gather(1, (ids - LOW).clamp(0, c - 1)).to(chosen.dtype)
    assert torch.equal(chosen[inside], expected[inside])
    assert chosen[~inside].isnan().all()


def test_fold_over_class_tiles_is_that_of_the_torch_engine(kernels):
    logits, ids = tile(torch.float64, c=50, seed=1)
    logits[:, 30] += 900  # the peak of the first tile is dwarfed
    sums = [start(ids, torch.float64) for _ in range(2)]
    for low, high in ((0, 20), (20, 37), (37, 50)):
        for engine, (peak, total, chosen) in zip((kernels, torch_rows), sums):
            fold(engine, logits[:, low:high].clone(), ids, LOW + low, peak, total, chosen)
    for got, expected in zip(*sums):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.parametrize("at", [0, 12])
@pytest.mark.parametrize("tiles", [((0, 21),), ((0, 11), (11, 21))])
def test_infinities_and_nans_are_those_of_the_dense_log_sum_exp(kernels, at, tiles):
    logits, ids = tile(torch.float32, n=6)
    ids[:] = LOW + at
    logits[0] = -INF
    logits[1, at] = INF
    logits[2, at] = NAN
    logits[3, at] = -INF
    logits[4] = -INF
    logits[4, at] = 2.5
    peak, total, chosen = start(ids, torch.float32)
    for low, high in tiles:
        fold(kernels, logits[:, low:high], ids, LOW + low, peak, total, chosen)
    log_z = logits.logsumexp(1)
    torch.testing.assert_close(log_z_of(peak, total), log_z, equal_nan=True)
    shift = torch_rows.finite_or_zero(peak)[:, None]
    torch.testing.assert_close(
        (chosen - shift) - total.log()[:, None],
        logits.gather(1, ids - LOW) - log_z[:, None],
        equal_nan=True,
    )
    grad, expected = logits.clone(), logits.clone()
    ones = torch.ones_like(log_z)
    gradient_(kernels, grad, ids, LOW, log_z, ones, torch.ones_like(chosen))
    gradient_(torch_rows, expected, ids, LOW, log_z, ones, torch.ones_like(chosen))
    torch.testing.assert_close(grad, expected, equal_nan=True)


@every_dtype
@pytest.mark.parametrize("c", [1, 8, 21])
def test_the_gradient_is_the_softmax_scaled_plus_the_adjoints_of_the_selected(kernels, c, dtype):
    logits, ids = tile(dtype, c=c)
    generator = torch.Generator().manual_seed(2)
    accumulation = ACCUMULATION[dtype]
    adjoints = torch.randn(ids.shape, generator=generator).to(DEVICE, accumulation)
    scale = torch.randn(ids.shape[:1], generator=generator).to(DEVICE, accumulation)
    log_z = logits.double().logsumexp(1).to(accumulation)
    exact = scale.double()[:, None] * (logits.double() - log_z.double()[:, None]).exp()
    columns = torch.arange(LOW, LOW + c, device=DEVICE)
    for k in range(ids.shape[1]):
        exact += adjoints.double()[:, k : k + 1] * (ids[:, k : k + 1] == columns)
    gradient_(kernels, logits, ids, LOW, log_z, scale, adjoints)
    assert logits.dtype == dtype
    assert_as_accurate(logits, exact, dtype)
    assert rms(logits - exact) <= torch.finfo(dtype).eps * max(rms(exact), 1.0)


def test_what_lies_after_the_classes_of_a_row_is_not_read(kernels):
    logits, ids = tile(torch.float64)
    n, c = logits.shape
    width = c + 7
    wide = torch.full((n, width), NAN, dtype=torch.float64, device=DEVICE)
    wide[:, :c] = logits
    bias = torch.linspace(-1, 2, c, dtype=torch.float64, device=DEVICE)
    at = ClassTile(LOW, LOW + c, False)
    scale = torch.linspace(-1, 1, n, dtype=torch.float64, device=DEVICE)
    adjoints = torch.arange(ids.numel(), dtype=torch.float64, device=DEVICE).view(ids.shape)
    limits = torch.full_like(scale, 2.5)
    results = []
    for engine, given in ((kernels, wide), (torch_rows, logits.clone())):
        peak, total, chosen = start(ids, torch.float64)
        engine.fold(given.clone(), bias, at, ids, peak, total, chosen)
        bias_grad = torch.ones(c, dtype=torch.float64, device=DEVICE)
        out = torch.empty_like(given)
        engine.gradient(
            given, bias, at, ids, log_z_of(peak, total), scale, adjoints, limits, out, bias_grad
        )
        results.append((peak, log_z_of(peak, total), chosen.nan_to_num(7.0), out[:, :c], bias_grad))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)
    by_hand = 1 + results[0][3].sum(dim=0)
    torch.testing.assert_close(results[0][4], by_hand, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("low", [0, LOW])
def test_the_first_classes_take_no_notice_of_what_was_there(kernels, low):
    logits, ids = tile(torch.float64)
    for engine in (kernels, torch_rows):
        peak, total, chosen = start(ids, torch.float64)
        peak[:], total[:] = 1e3, NAN
        fold(engine, logits.clone(), (ids - LOW).clamp(min=0) + low, low, peak, total, chosen)
        is_right = torch.allclose(log_z_of(peak, total), logits.logsumexp(1), rtol=1e-14)
        assert is_right is (low == 0)


def test_a_half_gradient_is_rounded_once_and_its_sum_is_not(kernels):
    logits, ids = tile(torch.float32, n=11)
    peak, total, chosen = start(ids, torch.float32)
    fold(kernels, logits.clone(), ids, LOW, peak, total, chosen)
    exact, sums = logits.double(), torch.zeros(logits.shape[1], device=DEVICE)
    adjoints = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    given = log_z_of(peak, total), -adjoints.sum(1), adjoints
    gradient_(torch_rows, exact, ids, LOW, *(t.double() for t in given))
    # Of the interpreter's roundings to half precision only this one is to the nearest.
    out = torch.empty_like(logits, dtype=torch.float16)
    kernels.gradient(logits, None, classes_of(logits), ids, *given, None, out, sums)
    assert rms(out - exact.half()) <= 1e-4 * rms(exact)  # but for ties
    assert_as_accurate(sums, exact.sum(0), torch.float32, ulps=16)


@pytest.mark.parametrize("engine", ["torch", "triton"])
def test_a_nan_survives_limits(kernels, engine):
    logits, ids = tile(torch.float64)
    logits[2, 3] = NAN
    ones = torch.ones_like(logits[:, 0])
    adjoints = torch.zeros(ids.shape, dtype=torch.float64, device=DEVICE)
    chosen = kernels if engine == "triton" else torch_rows
    chosen.gradient(
        logits, None, classes_of(logits), ids, ones, ones, adjoints, 0.5 * ones, logits, None
    )
    assert logits[2, 3].isnan()
    assert logits.nan_to_num(0.0).abs().max() <= 0.5


def test_offsets_past_two_to_the_31_are_64_bit(kernels):
    # Rows lie 2^30 elements apart in memory of which only the rows themselves are touched.
    storage = torch.empty(2 * 2**30 + 40, dtype=torch.float16, device=DEVICE)
    logits = storage.as_strided((3, 5), (2**30, 1))
    values = torch.arange(15, dtype=torch.float16, device=DEVICE).reshape(3, 5)
    logits.copy_(values)
    ids = torch.full((3, 1), LOW + 4, device=DEVICE)
    peak, total, chosen = start(ids, torch.float32)
    fold(kernels, logits, ids, LOW, peak, total, chosen)
    assert torch.equal(chosen, values[:, 4:].float())
    assert_as_accurate(log_z_of(peak, total), values.double().logsumexp(1), torch.float32)
    gradient_(kernels, logits, ids, LOW, peak, torch.zeros_like(peak), torch.ones_like(chosen))
    assert torch.equal(logits.sum(dim=1), torch.ones(3, dtype=torch.float16, device=DEVICE))


def test_no_rows_are_no_work(kernels):
    logits, ids = tile(torch.float32)
    peak, total, chosen = start(ids[:0], torch.float32)
    fold(kernels, logits[:0], ids[:0], LOW, peak, total, chosen)
    gradient_(kernels, logits[:0], ids[:0], LOW, peak, total, chosen)


# Under the whole op.


def small_values(dtype=torch.float64, kind="flat"):
    data = values(kind, classes=29, sites=11, hidden=5)
    return [t.to(DEVICE) for t in in_dtype(data, dtype)]


@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
@pytest.mark.parametrize("workspace_bytes", [400, 1_500, 2**20])
def test_the_op_in_float64_equals_the_dense_expression_and_the_torch_engine(
    kernels, kind, workspace_bytes
):
    data = small_values(kind=kind)
    options = {"workspace_bytes": workspace_bytes, "adjoint_tolerance": 0.0}
    ours = run(lambda *a: selected_log_probs(*a, engine="triton", **options), *data)
    by_torch = run(lambda *a: selected_log_probs(*a, engine="torch", **options), *data)
    truth = run(dense_selected_log_probs, *data)
    for name, x, y, ref in zip(NAMES, ours, by_torch, truth):
        assert rms(x - ref) <= 1e-12 * rms(ref), name
        assert rms(x - y) <= 1e-12 * rms(ref), name


@pytest.mark.parametrize("workspace_bytes", [400, 2**20])
def test_the_op_in_float32_rounds_no_worse_than_the_dense_path(kernels, workspace_bytes):
    data = small_values(torch.float32)
    options = {"workspace_bytes": workspace_bytes, "engine": "triton"}
    ours = run(lambda *a: selected_log_probs(*a, **options), *data)
    plain = run(dense, *data)
    truth = run(dense_selected_log_probs, *in_dtype(data, torch.float64))
    for name, x, y, ref in zip(NAMES, ours, plain, truth):
        assert rms(x - ref) <= max(1.5 * rms(y - ref), 4 * 2**-23 * rms(ref)), name


@pytest.mark.parametrize("workspace_bytes", [400, 2**20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_op_in_half_is_exact_to_float32_in_log_probs_and_to_half_in_gradients(
    kernels, dtype, workspace_bytes
):
    data = small_values(dtype)
    options = {"workspace_bytes": workspace_bytes, "engine": "triton"}
    ours = run(lambda *a: selected_log_probs(*a, **options), *data)
    truth = run(dense_selected_log_probs, *in_dtype(data, torch.float64))
    for name, x, ref in zip(NAMES, ours, truth):
        eps = torch.finfo(dtype).eps if name.startswith("d ") else 8 * 2**-23
        assert rms(x - ref) <= eps * rms(ref), name


def test_sites_that_are_not_live_and_masked_selections_are_left_out(kernels):
    rows, weight, bias, ids, *adjoints = small_values()
    live = torch.arange(len(ids), device=DEVICE) % 3 > 0
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 1] = False
    ids[~live] = 10**9
    options = {"live": live, "selected_mask": mask, "workspace_bytes": 1_500}
    data = (rows, weight, bias, ids, *adjoints)
    ours = run(lambda *a: selected_log_probs(*a, engine="triton", **options), *data)
    by_torch = run(lambda *a: selected_log_probs(*a, engine="torch", **options), *data)
    for x, y in zip(ours, by_torch):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
