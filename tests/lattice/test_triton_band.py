"""The banded recursion's Triton kernels against its torch engine and a loop over single states.

Without a GPU the kernels run in Triton's interpreter.
"""

import math

import pytest
import torch
from bands import (
    BANDS,
    NEG_INF,
    REACHED,
    assert_equal_outcome,
    error,
    make_band,
    outcome,
    random_band,
)
from bands import score_by_states as by_states

from panda_icefall.lattice import banded_recursion
from panda_icefall.lattice.validation import RNNT_TYPES

pytest.importorskip("triton", reason="needs triton: pip install triton")
# In the interpreter numpy tells of -inf minus -inf, and of what older Tritons do with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

rnnt_types = pytest.mark.parametrize("rnnt_type", RNNT_TYPES)


def by_triton(*band):
    return banded_recursion(*band, engine="triton")


def by_torch(*band):
    return banded_recursion(*band, engine="torch")


def on_device(band):
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in band]


def band_on_device(name, dtype=torch.float64, scale=2.0):
    return on_device(make_band(name, dtype, scale))


@pytest.mark.parametrize("name", BANDS)
@rnnt_types
def test_scores_and_gradients_are_those_of_the_torch_engine(name, rnnt_type):
    band = band_on_device(name)
    got = outcome(by_triton, *band, rnnt_type)
    assert_equal_outcome(got, outcome(by_torch, *band, rnnt_type))
    if name in REACHED:
        assert got[0].isfinite().all()


@pytest.mark.parametrize("seed", range(9))
def test_any_band_and_boundary_give_the_score_of_a_loop_over_states(seed):
    band = on_device((*random_band(seed, 2, 6, 5), RNNT_TYPES[seed % 3]))
    assert_equal_outcome(outcome(by_triton, *band), outcome(by_states, *band))


@pytest.mark.parametrize("level", [-300.0, 100.0])
def test_fp32_is_exact_to_its_own_rounding_at_large_scores(level):
    target_logp, blank_logp, *rest = band_on_device("ragged", torch.float32, scale=30.0)
    band = (target_logp + level, blank_logp + level, *rest, "regular")
    exact = outcome(by_torch, band[0].double(), band[1].double(), *band[2:])
    assert exact[0].abs().min() > 300
    for value, reference in zip(outcome(by_triton, *band), exact):
        assert value.dtype == torch.float32
        assert error(value, reference) <= 2**-23


@rnnt_types
def test_an_utterance_without_a_path_scores_minus_infinity_with_zero_gradients(rnnt_type):
    target_logp, blank_logp, *rest = band_on_device("ragged")
    expected = outcome(by_triton, target_logp, blank_logp, *rest, rnnt_type)
    blank_logp[0, 2] = NEG_INF
    target_logp[0, 2] = NEG_INF
    leaves = [x.requires_grad_() for x in (target_logp, blank_logp)]
    scores = by_triton(*leaves, *rest, rnnt_type)
    weights = torch.arange(1, 4, dtype=torch.float64, device=DEVICE)
    grads = torch.autograd.grad((scores * weights).sum(), leaves)
    assert scores[0] == NEG_INF
    for value, reference in zip((scores, *grads), expected):
        assert torch.equal(value[1:], reference[1:])
    assert all(grad[0].abs().sum() == 0 for grad in grads)


@rnnt_types
def test_a_nan_on_a_path_makes_its_own_utterance_nan_and_no_other(rnnt_type):
    target_logp, blank_logp, *rest = band_on_device("ragged")
    expected = outcome(by_triton, target_logp, blank_logp, *rest, rnnt_type)
    blank_logp[1, 1, 1] = math.nan
    leaves = [x.requires_grad_() for x in (target_logp, blank_logp)]
    scores = by_triton(*leaves, *rest, rnnt_type)
    weights = torch.arange(1, 4, dtype=torch.float64, device=DEVICE)
    grads = torch.autograd.grad((scores * weights).sum(), leaves)
    assert scores[1].isnan()
    assert all(grad[1].isnan().any() for grad in grads)
    for value, reference in zip((scores, *grads), expected):
        assert torch.equal(value[[0, 2]], reference[[0, 2]])
    assert all(grad[1, 4:].abs().sum() == 0 for grad in grads)


def test_sites_outside_the_boundary_are_not_read():
    target_logp, blank_logp, ranges, S, boundary = band_on_device("later begins")
    expected = outcome(by_triton, target_logp, blank_logp, ranges, S, boundary, "regular")
    s_begin, t_begin, s_end, t_end = boundary[:, :, None, None].unbind(1)
    frame = torch.arange(ranges.shape[1], device=DEVICE)[:, None]
    outside = (ranges < s_begin) | (ranges > s_end) | (frame < t_begin) | (frame >= t_end)
    unread = [x.masked_fill(outside, math.nan) for x in (target_logp, blank_logp)]
    got = outcome(by_triton, *unread, ranges, S, boundary, "regular")
    assert all(torch.equal(x, y) for x, y in zip(got, expected))


def test_strided_inputs_give_the_same_result_and_stay_unchanged():
    target_logp, blank_logp, *rest = band_on_device("ragged")
    packed = torch.stack((target_logp, blank_logp), dim=-1)
    copy = packed.clone()
    scores = by_triton(*packed.unbind(-1), *rest)
    assert torch.equal(scores, by_triton(target_logp, blank_logp, *rest))
    assert torch.equal(packed, copy)


def test_no_graph_is_built_where_gradients_are_off():
    target_logp, blank_logp, *rest = band_on_device("ragged")
    with_graph = by_triton(target_logp.requires_grad_(), blank_logp, *rest)
    with torch.no_grad():
        scores = by_triton(target_logp, blank_logp, *rest)
    assert with_graph.requires_grad
    assert not scores.requires_grad
    assert torch.equal(scores, with_graph)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_no_utterances_and_no_frames_are_served(shape):
    logp = torch.zeros(2, *shape, device=DEVICE, requires_grad=True)
    ranges = torch.zeros(shape, dtype=torch.int64, device=DEVICE)
    scores = by_triton(*logp, ranges, 0)
    assert torch.equal(scores, torch.zeros(shape[0], device=DEVICE))
    scores.sum().backward()
    assert logp.grad.shape == logp.shape


def test_a_wide_band_fills_many_columns():
    B, T, S, s_range = 2, 3, 40, 37
    generator = torch.Generator().manual_seed(4)
    logp = torch.randn(2, B, T, s_range, generator=generator, dtype=torch.float64)
    ranges = torch.tensor([[0, 2, 4], [1, 1, 4]]).unsqueeze(2) + torch.arange(s_range)
    boundary = torch.tensor([[0, 0, 40, 3], [1, 0, 40, 3]])
    band = on_device((*logp, ranges, S, boundary, "regular"))
    assert_equal_outcome(outcome(by_triton, *band), outcome(by_torch, *band))
