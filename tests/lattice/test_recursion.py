"""The lattice recursion against a loop over single states, and against real k2."""

import math
import random

import pytest
import torch

from panda_icefall.lattice import exact_recursion, mutual_information_recursion
from panda_icefall.lattice.mutual_information import unchecked_recursion

NEG_INF = float("-inf")

# In the interpreter numpy tells of -inf minus -inf, and of what older Tritons do with it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

# name: (is_regular, S, T, boundary rows or None)
LATTICES = {
    "regular": (True, 3, 7, None),
    "regular ragged": (True, 4, 6, [[0, 0, 4, 6], [0, 0, 2, 5], [0, 0, 0, 3]]),
    "regular more symbols than frames": (True, 7, 3, [[0, 0, 7, 3], [0, 0, 5, 1], [0, 0, 6, 2]]),
    "regular later begins": (True, 5, 7, [[1, 2, 4, 6], [2, 0, 5, 7], [3, 3, 3, 3]]),
    "regular no symbols": (True, 0, 5, None),
    "regular no frames": (True, 3, 0, None),
    "regular nothing": (True, 0, 0, None),
    "modified": (False, 3, 7, None),
    "modified ragged": (False, 4, 7, [[0, 0, 4, 7], [0, 0, 3, 3], [0, 0, 0, 5]]),
    "modified later begins": (False, 5, 7, [[1, 2, 4, 6], [3, 0, 5, 7], [2, 4, 2, 4]]),
    "modified no symbols": (False, 0, 5, None),
}


@pytest.fixture(params=LATTICES, ids=lambda name: name.replace(" ", "-"))
def lattice(request):
    return make_lattice(request.param)


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.cuda)])
def recursion(request):
    """`exact_recursion` by one engine; Triton's kernels run on the GPU where there is one."""
    engine = request.param
    if engine == "triton":
        pytest.importorskip("triton", reason="needs triton: pip install triton")
    device = "cuda" if engine == "triton" and torch.cuda.is_available() else "cpu"

    def on_device(px, py, boundary=None, return_grad=False):
        given = [None if x is None else x.to(device) for x in (px, py, boundary)]
        result = exact_recursion(*given, return_grad, engine)
        if not return_grad:
            return result.cpu()
        return result[0].cpu(), tuple(x.cpu() for x in result[1])

    return on_device


def make_lattice(name, dtype=torch.float64, scale=2.0):
    is_regular, S, T, rows = LATTICES[name]
    generator = torch.Generator().manual_seed(len(name))
    B = 2 if rows is None else len(rows)
    px = scale * torch.randn(B, S, T + is_regular, generator=generator, dtype=torch.float64) - 1
    py = scale * torch.randn(B, S + 1, T, generator=generator, dtype=torch.float64) - 1
    boundary = None if rows is None else torch.tensor(rows)
    return px.to(dtype), py.to(dtype), boundary


def log_add(terms, like):
    terms = [term for term in terms if float(term.detach()) != NEG_INF]
    return torch.logsumexp(torch.stack(terms), 0) if terms else like.new_tensor(NEG_INF)


def score_by_states(px, py, boundary):
    """The recursion of k2's docstring, one state at a time: the oracle (autograd runs through)."""
    B, S, T1 = px.shape
    T = py.shape[2]
    back = 0 if T1 == T + 1 else 1
    rows = [[0, 0, S, T]] * B if boundary is None else boundary.tolist()
    scores = []
    for b, (s_begin, t_begin, s_end, t_end) in enumerate(rows):
        p = {(s_begin, t_begin): px.new_zeros(())}
        for t in range(t_begin, t_end + 1):
            for s in range(s_begin, s_end + 1):
                terms = []
                if (s - 1, t - back) in p:
                    terms.append(p[s - 1, t - back] + px[b, s - 1, t - back])
                if (s, t - 1) in p:
                    terms.append(p[s, t - 1] + py[b, s, t - 1])
                if (s, t) not in p:
                    p[s, t] = log_add(terms, px)
        scores.append(p[s_end, t_end])
    return torch.stack(scores)


def gradients(function, px, py, *args):
    px, py = px.clone().requires_grad_(), py.clone().requires_grad_()
    scores = function(px, py, *args)
    # Different weights per utterance, or a mix-up of utterances would not show.
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    grads = (None, None)
    if scores.requires_grad:
        grads = torch.autograd.grad((scores * weights).sum(), (px, py), allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip((px, py), grads)]
    return [scores.detach(), *grads]


def test_scores_and_gradients_are_those_of_a_loop_over_states(recursion, lattice):
    px, py, boundary = lattice
    got = gradients(recursion, px, py, boundary)
    expected = gradients(score_by_states, px, py, boundary)
    for value, reference in zip(got, expected):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)


def random_lattice(seed, B, most_frames, most_symbols):
    """Any boundary and any type, a tenth of the arcs missing, in float64."""
    draw = random.Random(seed)
    T, S, is_regular = draw.randint(0, most_frames), draw.randint(0, most_symbols), seed % 2
    rows = []
    for _ in range(B):
        s_begin, t_begin = draw.choice([0, draw.randint(0, S)]), draw.choice([0, T // 3])
        rows.append([s_begin, t_begin, draw.randint(s_begin, S), draw.randint(t_begin, T)])
    generator = torch.Generator().manual_seed(seed)
    arcs = [
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((B, S, T + is_regular), (B, S + 1, T))
    ]
    px, py = (x.masked_fill(torch.rand(x.shape, generator=generator) < 0.1, NEG_INF) for x in arcs)
    return px, py, torch.tensor(rows)


def assert_equal_outcome(recursion, px, py, boundary):
    reached = score_by_states(px, py, boundary) > NEG_INF
    got = gradients(recursion, px, py, boundary)
    assert (got[0] > NEG_INF).tolist() == reached.tolist()
    if not reached.any():
        return
    expected = gradients(score_by_states, px[reached], py[reached], boundary[reached])
    weights = torch.arange(1, len(px) + 1)[reached] / torch.arange(1, reached.sum() + 1)
    for value, reference in zip(got, expected):
        scale = 1 if value.dim() == 1 else weights.view(-1, 1, 1)
        torch.testing.assert_close(value[reached], reference * scale, rtol=1e-12, atol=1e-13)
        if value.dim() > 1:
            assert value[~reached].abs().sum() == 0


@pytest.mark.parametrize(
    ("recursion", "seed"),
    [*(("torch", seed) for seed in range(20)), *(("triton", seed) for seed in range(8))],
    indirect=["recursion"],
)
def test_any_lattice_and_boundary_give_the_score_of_a_loop_over_states(recursion, seed):
    assert_equal_outcome(recursion, *random_lattice(seed, 3, 8, 7))


@pytest.mark.parametrize("is_regular", [True, False])
def test_more_states_than_a_warp_has_threads_are_served(recursion, is_regular):
    S, T = 37, 5 if is_regular else 40
    generator = torch.Generator().manual_seed(4)
    px = torch.randn(2, S, T + is_regular, generator=generator, dtype=torch.float64)
    py = torch.randn(2, S + 1, T, generator=generator, dtype=torch.float64)
    assert_equal_outcome(recursion, px, py, torch.tensor([[0, 0, S, T], [1, 1, S - 1, T]]))


@pytest.mark.parametrize("name", ["regular ragged", "modified ragged", "regular later begins"])
def test_fp32_is_as_exact_as_the_loop_in_fp32(recursion, name):
    px, py, boundary = make_lattice(name, torch.float32)
    reference = gradients(score_by_states, px.double(), py.double(), boundary)
    loop = gradients(score_by_states, px, py, boundary)
    for value, looped, exact in zip(gradients(recursion, px, py, boundary), loop, reference):
        rms = exact.square().mean().sqrt()
        error = (value.double() - exact).square().mean().sqrt()
        loop_error = (looped.double() - exact).square().mean().sqrt()
        assert error <= max(1.5 * loop_error, 4 * 2**-23 * rms)


@pytest.mark.parametrize("name", ["regular ragged", "modified later begins"])
def test_gradcheck_passes(name):
    px, py, boundary = make_lattice(name, scale=0.5)
    px.requires_grad_()
    py.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: exact_recursion(x, y, boundary), (px, py))


def test_return_grad_gives_the_gradients_of_the_summed_scores(recursion, lattice):
    px, py, boundary = lattice
    scores, (px_grad, py_grad) = recursion(px, py, boundary, return_grad=True)
    assert not scores.requires_grad
    px, py = px.clone().requires_grad_(), py.clone().requires_grad_()
    again, _ = recursion(px, py, boundary, return_grad=True)
    again.sum().backward()
    assert torch.equal(scores, again)
    assert torch.equal(px.grad, px_grad)
    assert torch.equal(py.grad, py_grad)


def test_arcs_outside_the_boundary_are_not_read_and_get_no_gradient(recursion):
    px, py, boundary = make_lattice("regular later begins")
    expected = gradients(recursion, px, py, boundary)
    for b, (s_begin, t_begin, s_end, t_end) in enumerate(boundary.tolist()):
        x_inside, y_inside = torch.zeros_like(px[b]), torch.zeros_like(py[b])
        x_inside[s_begin:s_end, t_begin : t_end + 1] = 1
        y_inside[s_begin : s_end + 1, t_begin:t_end] = 1
        px[b].masked_fill_(x_inside == 0, math.nan)
        py[b].masked_fill_(y_inside == 0, math.nan)
        assert expected[1][b][x_inside == 0].abs().sum() == 0
        assert expected[2][b][y_inside == 0].abs().sum() == 0
    for value, reference in zip(gradients(recursion, px, py, boundary), expected):
        assert torch.equal(value, reference)


def test_blocked_arcs_carry_nothing(recursion):
    px, py, _ = make_lattice("regular")
    px[0, 1, 2:] = NEG_INF
    py[1, :, 3] = NEG_INF
    py[1, 2, 3] = -0.5
    got = gradients(recursion, px, py)
    for value, reference in zip(got, gradients(score_by_states, px, py, None)):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)
    assert got[1][0, 1, 2:].abs().sum() == 0


@pytest.mark.parametrize("name", ["regular", "modified"])
def test_an_utterance_without_a_path_scores_minus_infinity_with_zero_gradients(recursion, name):
    px, py, _ = make_lattice(name)
    expected = gradients(recursion, px, py)
    px[0] = NEG_INF
    scores, px_grad, py_grad = gradients(recursion, px, py)
    assert scores[0] == NEG_INF
    assert px_grad[0].abs().sum() == 0
    assert py_grad[0].abs().sum() == 0
    for value, reference in zip((scores, px_grad, py_grad), expected):
        assert torch.equal(value[1], reference[1])


def test_a_modified_lattice_with_too_few_frames_has_no_path(recursion):
    scores = recursion(torch.zeros(1, 3, 2), torch.zeros(1, 4, 2))
    assert scores.tolist() == [NEG_INF]


def test_a_nan_arc_makes_its_own_utterance_nan_inside_its_boundary_and_no_other(recursion):
    px, py, boundary = make_lattice("regular ragged")
    expected = gradients(recursion, px, py, boundary)
    px[1, 1, 2] = math.nan
    got = gradients(recursion, px, py, boundary)
    _, _, s_end, t_end = boundary[1].tolist()
    assert got[0][1].isnan()
    assert got[1][1].isnan().any()
    for outside in (got[1][1, s_end:], got[1][1, :, t_end + 1 :], got[2][1, s_end + 1 :]):
        assert outside.abs().sum() == 0
    for value, reference in zip(got, expected):
        assert torch.equal(value[[0, 2]], reference[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [-1e4, 0.0, 1e3])
def test_occupations_stay_probabilities_at_any_level_of_the_scores(recursion, level, dtype):
    px, py, _ = make_lattice("regular", dtype, scale=30.0)
    _, (px_grad, py_grad) = recursion(px + level, py + level, return_grad=True)
    for occupation in (px_grad, py_grad):
        assert occupation.min() >= 0
        assert occupation.max() <= 1 + 8 * torch.finfo(dtype).eps
    # Every path takes one blank arc per frame and one symbol arc per symbol.
    ones = {"rtol": 16 * torch.finfo(dtype).eps, "atol": 0}
    torch.testing.assert_close(py_grad.sum(1), torch.ones_like(py_grad[:, 0]), **ones)
    torch.testing.assert_close(px_grad.sum(2), torch.ones_like(px_grad[:, :, 0]), **ones)


def test_the_score_of_a_uniform_lattice_counts_its_paths(recursion):
    S, T = 4, 6
    scores = recursion(
        torch.zeros(1, S, T + 1, dtype=torch.float64), torch.zeros(1, S + 1, T, dtype=torch.float64)
    )
    assert scores.item() == pytest.approx(math.log(math.comb(S + T, S)), rel=1e-14)
    scores = recursion(
        torch.zeros(1, S, T, dtype=torch.float64), torch.zeros(1, S + 1, T, dtype=torch.float64)
    )
    assert scores.item() == pytest.approx(math.log(math.comb(T, S)), rel=1e-14)


def test_strided_inputs_give_the_same_result_and_stay_unchanged(recursion):
    px, py, boundary = make_lattice("regular ragged")
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (px, py)]
    copies = [x.clone() for x in strided]
    for value, reference in zip(
        gradients(recursion, *strided, boundary), gradients(recursion, px, py, boundary)
    ):
        assert torch.equal(value, reference)
    assert all(torch.equal(x, copy) for x, copy in zip(strided, copies))


def test_gradients_flow_to_the_one_input_that_asks(recursion):
    px, py, _ = make_lattice("regular")
    py.requires_grad_()
    recursion(px, py).sum().backward()
    assert px.grad is None
    torch.testing.assert_close(py.grad.sum(1), torch.ones(2, 7, dtype=torch.float64))


def test_no_graph_is_built_where_gradients_are_off(recursion):
    px, py, _ = make_lattice("regular")
    with torch.no_grad():
        assert not recursion(px.requires_grad_(), py.requires_grad_()).requires_grad


def test_the_public_function_is_the_exact_one_on_a_cpu():
    px, py, boundary = make_lattice("regular ragged")
    scores = mutual_information_recursion(px, py, boundary)
    assert torch.equal(scores, exact_recursion(px, py, boundary))


@pytest.mark.k2
def test_scores_and_gradients_are_those_of_k2(lattice):
    import k2

    px, py, boundary = lattice
    got = gradients(exact_recursion, px, py, boundary)
    expected = gradients(k2.mutual_information_recursion, px, py, boundary)
    for value, reference in zip(got, expected):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.k2
@pytest.mark.parametrize("name", ["regular ragged", "modified ragged"])
def test_occupations_with_blocked_arcs_are_those_of_k2(name):
    import k2

    px, py, boundary = make_lattice(name)
    px[0, 1, 2:4] = NEG_INF
    py[1, 0, 1] = NEG_INF
    scores, grads = exact_recursion(px, py, boundary, return_grad=True)
    k2_scores, k2_grads = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    torch.testing.assert_close(scores, k2_scores, rtol=1e-12, atol=0)
    assert scores.isfinite().all()
    for grad, k2_grad in zip(grads, k2_grads):
        torch.testing.assert_close(grad, k2_grad, rtol=1e-12, atol=1e-13)


@pytest.mark.k2
def test_fp32_is_at_most_as_wrong_as_k2_in_fp32():
    import k2

    generator = torch.Generator().manual_seed(5)
    px = torch.randn(5, 14, 84, generator=generator) * 3 - 4
    py = torch.randn(5, 15, 83, generator=generator) * 3 - 2
    boundary = torch.tensor([[0, 0, 14 - 3 * b, 83 - 7 * b] for b in range(5)])
    exact = gradients(k2.mutual_information_recursion, px.double(), py.double(), boundary)
    theirs = gradients(k2.mutual_information_recursion, px, py, boundary)
    ours = gradients(exact_recursion, px, py, boundary)
    for value, k2_value, reference in zip(ours, theirs, exact):
        rms = reference.square().mean().sqrt()
        error = (value.double() - reference).square().mean().sqrt()
        k2_error = (k2_value.double() - reference).square().mean().sqrt()
        assert error <= max(1.5 * k2_error, 4 * 2**-23 * rms)


@pytest.mark.k2
def test_k2s_is_the_one_that_runs_where_it_is_asked_for_in_the_k2_lane(lattice):
    import k2

    px, py, boundary = lattice
    assert torch.equal(
        unchecked_recursion(px, py, boundary, False, recursion="k2"),
        k2.mutual_information_recursion(px, py, boundary),
    )
