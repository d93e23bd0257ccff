"""The recursion in band coordinates: against single states, the padded recursion and real k2.

Without a GPU the Triton kernels run in Triton's interpreter.
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
    long_band,
    make_band,
    outcome,
    random_band,
    score_by_states,
)
from dispatch import LargestTensor

from panda_icefall.lattice import banded_recursion, exact_recursion
from panda_icefall.lattice.validation import RNNT_TYPES
from panda_icefall.losses import pruned_px_py, score

# In the interpreter numpy tells of -inf minus -inf, and of what older Tritons do with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
rnnt_types = pytest.mark.parametrize("rnnt_type", RNNT_TYPES)
every_band = pytest.mark.parametrize("name", BANDS)


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.cuda)])
def recursion(request):
    """`banded_recursion` by one engine; Triton's kernels run on the GPU where there is one."""
    engine = request.param
    if engine == "triton":
        pytest.importorskip("triton", reason="needs triton: pip install triton")
    device = "cuda" if engine == "triton" and torch.cuda.is_available() else "cpu"

    def on_device(*band):
        band = [x.to(device) if isinstance(x, torch.Tensor) else x for x in band]
        return banded_recursion(*band, engine=engine).cpu()

    return on_device


def padded(recursion):
    """The same score over the full lattice, with -inf for what the band leaves out."""

    def scores(target_logp, blank_logp, ranges, S, boundary, rnnt_type):
        px, py = pruned_px_py(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
        return recursion(px, py, boundary)

    return scores


@every_band
@rnnt_types
def test_scores_and_gradients_are_those_of_a_loop_over_states(recursion, name, rnnt_type):
    band = make_band(name)
    got = outcome(recursion, *band, rnnt_type)
    assert_equal_outcome(got, outcome(score_by_states, *band, rnnt_type))
    if name in REACHED:
        assert got[0].isfinite().all()


@pytest.mark.parametrize(
    ("recursion", "seed"),
    [
        *(("torch", seed) for seed in range(30)),
        *(pytest.param("triton", seed, marks=pytest.mark.cuda) for seed in range(9)),
    ],
    indirect=["recursion"],
)
def test_any_band_and_boundary_give_the_score_of_a_loop_over_states(recursion, seed):
    band = (*random_band(seed, 3, 8, 7), RNNT_TYPES[seed % 3])
    assert_equal_outcome(outcome(recursion, *band), outcome(score_by_states, *band))


@pytest.mark.parametrize("name", [name for name in BANDS if name != "wider than the lattice"])
@rnnt_types
def test_scores_and_gradients_are_those_of_the_padded_lattice(name, rnnt_type):
    band = make_band(name)
    expected = outcome(padded(exact_recursion), *band, rnnt_type)
    assert_equal_outcome(outcome(banded_recursion, *band, rnnt_type), expected)


@pytest.mark.parametrize("name", REACHED)
@rnnt_types
def test_a_delay_penalty_is_a_term_per_frame(name, rnnt_type):
    target_logp, blank_logp, ranges, S, boundary = make_band(name)
    B, T, _ = ranges.shape
    t_end = torch.full((B,), T) if boundary is None else boundary[:, 3]
    frame = torch.arange(T, dtype=torch.float64)
    penalised = target_logp + 0.3 * ((t_end[:, None, None] - 1) / 2 - frame[:, None])
    px, py = pruned_px_py(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
    expected = -score(px, py, boundary, rnnt_type, 0.3, "none")
    got = banded_recursion(penalised, blank_logp, ranges, S, boundary, rnnt_type)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", REACHED)
@rnnt_types
def test_gradcheck_passes(name, rnnt_type):
    target_logp, blank_logp, *rest = make_band(name, scale=0.5)
    leaves = (target_logp.requires_grad_(), blank_logp.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: banded_recursion(x, y, *rest, rnnt_type), leaves)


@rnnt_types
def test_fp32_is_exact_to_its_own_rounding_at_scores_of_a_thousand(rnnt_type):
    target_logp, blank_logp, *rest = long_band(torch.float32)
    exact = outcome(
        padded(exact_recursion), target_logp.double(), blank_logp.double(), *rest, rnnt_type
    )
    assert exact[0].max() < -600
    got = outcome(banded_recursion, target_logp, blank_logp, *rest, rnnt_type)
    for value, reference in zip(got, exact):
        assert value.dtype == torch.float32
        assert error(value, reference) <= 2**-23


@pytest.mark.parametrize("level", [-300.0, 100.0])
def test_fp32_is_exact_to_its_own_rounding_at_large_scores(recursion, level):
    target_logp, blank_logp, *rest = make_band("ragged", torch.float32, scale=30.0)
    band = (target_logp + level, blank_logp + level, *rest, "regular")
    exact = outcome(banded_recursion, band[0].double(), band[1].double(), *band[2:])
    assert exact[0].abs().min() > 300
    for value, reference in zip(outcome(recursion, *band), exact):
        assert value.dtype == torch.float32
        assert error(value, reference) <= 2**-23


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [-1e4, 0.0, 1e3])
def test_occupations_stay_probabilities_at_any_level_of_the_scores(recursion, level, dtype):
    target_logp, blank_logp, *rest = make_band("one width", dtype, scale=30.0)
    leaves = [(x + level).requires_grad_() for x in (target_logp, blank_logp)]
    target_grad, blank_grad = torch.autograd.grad(recursion(*leaves, *rest).sum(), leaves)
    eps = torch.finfo(dtype).eps
    for occupation in (target_grad, blank_grad):
        assert occupation.min() >= 0
        assert occupation.max() <= 1 + 8 * eps
    # Every path takes one blank arc per frame and one symbol arc per symbol.
    ones = torch.ones_like(blank_grad[..., 0])
    torch.testing.assert_close(blank_grad.sum(2), ones, rtol=16 * eps, atol=0)
    S = rest[1]
    torch.testing.assert_close(target_grad.sum((1, 2)), S * ones[:, 0], rtol=16 * eps, atol=0)


@rnnt_types
def test_sites_that_no_path_takes_are_not_read_and_get_no_gradient(recursion, rnnt_type):
    target_logp, blank_logp, ranges, S, boundary = make_band("later begins")
    expected = outcome(recursion, target_logp, blank_logp, ranges, S, boundary, rnnt_type)
    s_begin, t_begin, s_end, t_end = boundary[:, :, None, None].unbind(1)
    frame = torch.arange(ranges.shape[1])[:, None]
    outside = (ranges < s_begin) | (ranges > s_end) | (frame < t_begin) | (frame >= t_end)
    for grad in expected[1:]:
        assert grad[outside].abs().sum() == 0
    # No symbol follows the last one.
    unread = [x.masked_fill(outside, math.nan) for x in (target_logp, blank_logp)]
    unread[0] = unread[0].masked_fill(ranges == s_end, math.nan)
    got = outcome(recursion, *unread, ranges, S, boundary, rnnt_type)
    assert all(torch.equal(x, y) for x, y in zip(got, expected))


@rnnt_types
def test_an_utterance_without_a_path_scores_minus_infinity_with_zero_gradients(
    recursion, rnnt_type
):
    target_logp, blank_logp, *rest = make_band("ragged")
    expected = outcome(recursion, target_logp, blank_logp, *rest, rnnt_type)
    blank_logp[0, 2] = NEG_INF
    target_logp[0, 2] = NEG_INF
    leaves = [x.requires_grad_() for x in (target_logp, blank_logp)]
    scores = recursion(*leaves, *rest, rnnt_type)
    weights = torch.arange(1, 4, dtype=torch.float64)
    grads = torch.autograd.grad((scores * weights).sum(), leaves)
    assert scores[0] == NEG_INF
    for value, reference in zip((scores, *grads), expected):
        assert torch.equal(value[1:], reference[1:])
    assert all(grad[0].abs().sum() == 0 for grad in grads)


@rnnt_types
def test_a_nan_on_a_path_makes_its_own_utterance_nan_and_no_other(recursion, rnnt_type):
    target_logp, blank_logp, *rest = make_band("ragged")
    expected = outcome(recursion, target_logp, blank_logp, *rest, rnnt_type)
    blank_logp[1, 1, 1] = math.nan
    leaves = [x.requires_grad_() for x in (target_logp, blank_logp)]
    scores = recursion(*leaves, *rest, rnnt_type)
    weights = torch.arange(1, 4, dtype=torch.float64)
    grads = torch.autograd.grad((scores * weights).sum(), leaves)
    assert scores[1].isnan()
    assert all(grad[1].isnan().any() for grad in grads)
    for value, reference in zip((scores, *grads), expected):
        assert torch.equal(value[[0, 2]], reference[[0, 2]])
    assert all(grad[1, 4:].abs().sum() == 0 for grad in grads)


def test_strided_inputs_give_the_same_result_and_stay_unchanged(recursion):
    target_logp, blank_logp, *rest = make_band("ragged")
    packed = torch.stack((target_logp, blank_logp), dim=-1)
    copy = packed.clone()
    got = outcome(lambda x, *args: recursion(*x.unbind(-1), *args[1:]), packed, packed, *rest)
    expected = outcome(recursion, target_logp, blank_logp, *rest)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], torch.stack(expected[1:], dim=-1))
    assert torch.equal(packed, copy)


def test_gradients_flow_to_the_one_input_that_asks(recursion):
    target_logp, blank_logp, *rest = make_band("one width")
    blank_logp.requires_grad_()
    recursion(target_logp, blank_logp, *rest).sum().backward()
    assert target_logp.grad is None
    torch.testing.assert_close(blank_logp.grad.sum(2), torch.ones(2, 6, dtype=torch.float64))


def test_no_graph_is_built_where_gradients_are_off(recursion):
    target_logp, blank_logp, *rest = make_band("ragged")
    with_graph = recursion(target_logp.requires_grad_(), blank_logp, *rest)
    with torch.no_grad():
        scores = recursion(target_logp, blank_logp, *rest)
    assert with_graph.requires_grad
    assert not scores.requires_grad
    assert torch.equal(scores, with_graph)


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_no_utterances_and_no_frames_are_served(recursion, shape):
    logp = torch.zeros(2, *shape, requires_grad=True)
    scores = recursion(*logp, torch.zeros(shape, dtype=torch.int64), 0)
    assert torch.equal(scores, torch.zeros(shape[0]))
    scores.sum().backward()
    assert logp.grad.shape == logp.shape


def test_a_wide_band_fills_many_columns(recursion):
    B, T, S, s_range = 2, 3, 40, 37
    generator = torch.Generator().manual_seed(4)
    logp = torch.randn(2, B, T, s_range, generator=generator, dtype=torch.float64)
    ranges = torch.tensor([[0, 2, 4], [1, 1, 4]]).unsqueeze(2) + torch.arange(s_range)
    boundary = torch.tensor([[0, 0, 40, 3], [1, 0, 40, 3]])
    band = (*logp, ranges, S, boundary, "regular")
    assert_equal_outcome(outcome(recursion, *band), outcome(score_by_states, *band))


@pytest.mark.parametrize(("rnnt_type", "steps"), [("regular", 40 + 300), ("modified", 40)])
def test_no_tensor_is_larger_than_two_terms_per_step_and_column(rnnt_type, steps):
    B, T, S, s_range = 2, 40, 300, 4
    ranges = torch.arange(s_range).expand(B, T, s_range)
    leaves = torch.zeros(2, B, T, s_range).requires_grad_()
    with LargestTensor() as largest:
        banded_recursion(*leaves, ranges, S, None, rnnt_type).sum().backward()
    assert largest.elements <= 2 * B * steps * s_range + 1


def test_saved_for_backward_are_the_two_occupations_in_the_dtype_of_the_log_probs():
    target_logp, blank_logp, *rest = make_band("ragged", torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        banded_recursion(target_logp.requires_grad_(), blank_logp.requires_grad_(), *rest)
    assert [(x.shape, x.dtype) for x in saved] == [(target_logp.shape, torch.float32)] * 2


# What is refused.

LOGP = torch.zeros(2, 4, 3)
BAND = {
    "target_logp": LOGP,
    "blank_logp": LOGP,
    "ranges": torch.arange(3).expand(2, 4, 3),
    "S": 3,
    "boundary": torch.tensor([[0, 0, 3, 4], [0, 0, 2, 3]]),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rnnt_type": "monotonic"}, r"rnnt_type: got 'monotonic', expected one of regular, mod"),
        ({"S": -1}, r"S: got -1, expected the number of symbols"),
        ({"ranges": BAND["ranges"][0]}, r"ranges: got shape \(4, 3\), expected \[B, T, s_range\]"),
        ({"ranges": BAND["ranges"][..., :0]}, r"ranges: got shape \(2, 4, 0\).*s_range >= 1"),
        ({"target_logp": LOGP[..., :2]}, r"target_logp: got shape \(2, 4, 2\), .*\[2, 4, 3\]"),
        ({"blank_logp": LOGP[:1]}, r"blank_logp: got shape \(1, 4, 3\), expected that of ranges"),
        ({"blank_logp": LOGP.to("meta")}, r"blank_logp: got device meta, .*ranges, cpu"),
        ({"boundary": BAND["boundary"][:1]}, r"boundary: got shape \(1, 4\), expected \[B, 4\]"),
        ({"boundary": BAND["boundary"] + 1}, r"boundary: got \[1, 1, 4, 5\] for utterance b=0"),
    ],
)
def test_unfit_values_are_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        banded_recursion(**{**BAND, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranges": BAND["ranges"].int()}, r"ranges: got torch.int32, expected torch.int64"),
        ({"target_logp": LOGP.half()}, r"target_logp: got torch.float16.*target_logp.float\(\)"),
        ({"blank_logp": LOGP.bfloat16()}, r"blank_logp: got torch.bfloat16"),
        ({"blank_logp": LOGP.double()}, r"blank_logp: got torch.float64, expected target_logp's"),
        ({"boundary": BAND["boundary"].int()}, r"boundary: got torch.int32, expected torch.int64"),
    ],
)
def test_unfit_dtypes_are_refused_by_name(changed, message):
    with pytest.raises(TypeError, match=message):
        banded_recursion(**{**BAND, **changed})


# Against real k2.


@pytest.mark.k2
@pytest.mark.parametrize("name", REACHED)
@rnnt_types
def test_scores_and_gradients_are_those_of_k2_on_the_padded_lattice(name, rnnt_type):
    import k2

    band = make_band(name)
    expected = outcome(padded(k2.mutual_information_recursion), *band, rnnt_type)
    assert_equal_outcome(outcome(banded_recursion, *band, rnnt_type), expected)


@pytest.mark.k2
@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@rnnt_types
def test_the_loss_and_its_gradient_are_those_of_k2_from_the_logits_on(rnnt_type, delay_penalty):
    import k2

    _, _, ranges, S, boundary = make_band("ragged")
    B, T, _ = ranges.shape
    C, blank = 7, 2
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(*ranges.shape, C, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    symbols = torch.randint(0, C, (B, S), generator=generator)
    expected = k2.rnnt_loss_pruned(
        logits, symbols, ranges, blank, boundary, rnnt_type, delay_penalty, "none"
    )
    log_probs = logits.log_softmax(dim=-1)
    padded_symbols = torch.cat((symbols, torch.zeros(B, 1, dtype=torch.int64)), dim=1)
    targets = padded_symbols.gather(1, ranges.flatten(1)).reshape(*ranges.shape, 1)
    middle = (boundary[:, 3].reshape(B, 1, 1) - 1) / 2
    earliness = middle.double() - torch.arange(T, dtype=torch.float64).reshape(1, T, 1)
    target_logp = log_probs.gather(3, targets).squeeze(3) + delay_penalty * earliness
    got = -banded_recursion(target_logp, log_probs[..., blank], ranges, S, boundary, rnnt_type)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    weights = torch.arange(1, B + 1, dtype=torch.float64)
    grads = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (got, expected)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-13)


@pytest.mark.k2
@rnnt_types
def test_fp32_occupations_are_far_closer_to_fp64_than_those_of_k2(rnnt_type):
    import k2

    target_logp, blank_logp, *rest = long_band(torch.float32)
    theirs = padded(k2.mutual_information_recursion)
    exact = outcome(theirs, target_logp.double(), blank_logp.double(), *rest, rnnt_type)
    ours = outcome(banded_recursion, target_logp, blank_logp, *rest, rnnt_type)
    k2s = outcome(theirs, target_logp, blank_logp, *rest, rnnt_type)
    for got, other, reference in zip(ours, k2s, exact):
        assert error(got, reference) <= error(other, reference)
    for got, other, reference in zip(ours[1:], k2s[1:], exact[1:]):
        assert 4 * error(got, reference) < error(other, reference)
