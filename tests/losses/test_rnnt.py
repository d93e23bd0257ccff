"""What fast_rnnt and k2 have and no recipe calls: the full lattice, arcs; and all names."""

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from rnnt_batches import (
    CASES,
    TYPES,
    C,
    make_batch,
    randn,
    values_and_gradients,
    weighted_gradients,
)

from panda_icefall import rnnt

SCALES = (0.2, 0.1)

# blank, use_hat_loss
HEADS = [(0, False), (C - 1, False), (0, True)]


def log_probs_of(logits, use_hat_loss=False):
    if not use_hat_loss:
        return logits.log_softmax(-1)
    labels = F.logsigmoid(-logits[..., :1]) + logits[..., 1:].log_softmax(-1)
    return torch.cat((F.logsigmoid(logits[..., :1]), labels), dim=-1)


def losses_by_paths(loss_by_paths, log_probs, symbols, boundary, blank, *args, **kwargs):
    limits = [None] * len(symbols) if boundary is None else boundary.tolist()
    each = zip(log_probs, symbols.tolist(), limits)
    return torch.stack([loss_by_paths(x, y, blank, *args, limits=z, **kwargs) for x, y, z in each])


@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize(("blank", "use_hat_loss"), HEADS)
@pytest.mark.parametrize(("name", "rnnt_type"), CASES)
def test_the_full_loss_and_its_gradient_are_those_of_all_paths(
    loss_by_paths, name, rnnt_type, blank, use_hat_loss, delay_penalty
):
    logits, symbols, boundary = make_batch(name, blank)
    logits.requires_grad_()
    got = rnnt.rnnt_loss(
        logits, symbols, blank, boundary, rnnt_type, delay_penalty, "none",
        use_hat_loss=use_hat_loss,
    )  # fmt: skip
    expected = losses_by_paths(
        loss_by_paths, log_probs_of(logits, use_hat_loss), symbols, boundary, blank, rnnt_type,
        delay_penalty=delay_penalty,
    )  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    (grad,), (expected_grad,) = (weighted_gradients(x, logits) for x in (got, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 60.0])
def test_flat_and_peaked_logits_cost_what_all_paths_do(loss_by_paths, scale):
    logits, symbols, boundary = make_batch("ragged", scale=scale)
    got = rnnt.rnnt_loss(logits + 100, symbols, 0, boundary, reduction="none")
    log_probs = logits.log_softmax(-1)
    expected = losses_by_paths(loss_by_paths, log_probs, symbols, boundary, 0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_hat_loss", [False, True])
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_with_all_states_retained_the_pruned_loss_is_the_full_one(rnnt_type, use_hat_loss):
    logits, symbols, boundary = make_batch("ragged")
    B, T, S1, _ = logits.shape
    ranges = torch.arange(S1).expand(B, T, S1)
    tail = (0, boundary, rnnt_type, 0.1, "none")
    options = {"use_hat_loss": use_hat_loss, "return_grad": True}
    full, (px_grad, py_grad) = rnnt.rnnt_loss(logits, symbols, *tail, **options)
    loss, occupations = rnnt.rnnt_loss_pruned(logits, symbols, ranges, *tail, **options)
    torch.testing.assert_close(loss, full, rtol=1e-13, atol=0)
    torch.testing.assert_close(occupations, (px_grad, py_grad), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("is_pruned", [False, True])
@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])
@pytest.mark.parametrize("name", ["full length", "ragged", "later begins"])
def test_occupations_are_the_shares_of_the_paths_that_take_an_arc(
    loss_by_paths, name, rnnt_type, is_pruned
):
    logits, symbols, boundary = make_batch(name)
    B, T, S1, _ = logits.shape
    # All states, or three: from 0 on, and the last ones from the last frame but one.
    limits = torch.tensor([[0, 0, S1 - 1, T]] * B) if boundary is None else boundary
    width = 3 if is_pruned else S1
    is_late = torch.arange(T) >= limits[:, 3:] - 2
    first = is_late * (limits[:, 2:3] + 1 - width).clamp(min=0)  # [B, T]
    ranges = first.unsqueeze(2) + torch.arange(width)
    log_probs = logits.log_softmax(-1).detach().requires_grad_()
    total = sum(
        loss_by_paths(
            log_probs[b], symbols[b].tolist(), 0, rnnt_type, limits[b].tolist(),
            kept=lambda t, s, b=b: first[b, t] <= s < first[b, t] + width,
        )
        for b in range(B)
    )  # fmt: skip
    (grad,) = torch.autograd.grad(-total, log_probs)
    py_grad = grad[..., 0].transpose(1, 2)
    ids = symbols[:, None, :, None].expand(B, T, -1, 1)
    px_grad = grad[:, :, :-1].gather(3, ids).squeeze(3).transpose(1, 2)
    px_grad = px_grad.masked_fill(symbols.unsqueeze(2) == 0, 0)  # the padding
    if rnnt_type == "regular":
        px_grad = F.pad(px_grad, (0, 1))

    for reduction in ("none", "mean", "sum"):
        tail = (0, boundary, rnnt_type, 0.0, reduction)
        if is_pruned:
            sites = logits.gather(2, ranges.unsqueeze(3).expand(-1, -1, -1, C))
            given = (rnnt.rnnt_loss_pruned, sites, symbols, ranges)
        else:
            given = (rnnt.rnnt_loss, logits, symbols)
        function, *arguments = given
        loss, occupations = function(*arguments, *tail, return_grad=True)
        assert torch.equal(loss, function(*arguments, *tail))
        torch.testing.assert_close(occupations, (px_grad, py_grad), rtol=1e-12, atol=1e-13)


def arcs_by_site(log_probs, symbols, boundary, blank, rnnt_type, kept):
    """The arcs one at a time."""
    B, T, S1, _ = log_probs.shape
    px = torch.full((B, S1 - 1, T + (rnnt_type == "regular")), -torch.inf, dtype=log_probs.dtype)
    py = torch.full((B, S1, T), -torch.inf, dtype=log_probs.dtype)
    for b, t, s in itertools.product(range(B), range(T), range(S1)):
        if not kept(t, s):
            continue
        py[b, s, t] = log_probs[b, t, s, blank]
        is_after_last = rnnt_type == "regular" and boundary is not None and t == boundary[b, 3]
        if s == S1 - 1 or is_after_last:
            continue
        px[b, s, t] = log_probs[b, t, s, symbols[b, s]]
        if rnnt_type == "constrained":
            px[b, s, t] += log_probs[b, t, s + 1, blank] if kept(t, s + 1) else -torch.inf
    return px, py


@pytest.mark.parametrize("kind", ["joint", "pruned", "simple", "smoothed"])
@pytest.mark.parametrize(("name", "rnnt_type"), CASES)
def test_arcs_are_the_log_probs_of_their_sites(name, rnnt_type, kind):
    blank = 2
    logits, symbols, boundary = make_batch(name, blank)
    B, T, S1, _ = logits.shape
    lm, am = randn(B, S1, C, seed=5), randn(B, T, C, seed=6)
    options = {"termination_symbol": blank, "boundary": boundary, "rnnt_type": rnnt_type}
    kept = lambda t, s: True  # noqa: E731
    if kind == "joint":
        log_probs = logits.log_softmax(-1)
        got = rnnt.get_rnnt_logprobs_joint(logits, symbols, **options)
    elif kind == "pruned":
        width = min(2, S1)
        first = torch.arange(T).clamp(max=S1 - width)
        ranges = first.reshape(1, T, 1) + torch.arange(width).expand(B, T, width)
        sites = logits.gather(2, ranges.unsqueeze(3).expand(-1, -1, -1, C))
        log_probs = logits.log_softmax(-1)
        kept = lambda t, s: first[t] <= s < first[t] + width  # noqa: E731
        got = rnnt.get_rnnt_logprobs_pruned(sites, symbols, ranges, **options)
    else:
        log_probs = (am.unsqueeze(2) + lm.unsqueeze(1)).log_softmax(-1)
        if kind == "simple":
            got = rnnt.get_rnnt_logprobs(lm, am, symbols, **options)
        else:
            unigram = lm.softmax(-1).mean(dim=(0, 1)).log()
            log_probs = (
                (1 - sum(SCALES)) * log_probs
                + SCALES[0] * lm.log_softmax(-1).unsqueeze(1)
                + SCALES[1] * (am + unigram).log_softmax(-1).unsqueeze(2)
            )
            got = rnnt.get_rnnt_logprobs_smoothed(
                lm, am, symbols, lm_only_scale=SCALES[0], am_only_scale=SCALES[1], **options
            )
    expected = arcs_by_site(log_probs, symbols, boundary, blank, rnnt_type, kept)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32_and_get_half_gradients(dtype):
    logits, symbols, boundary = make_batch("ragged", dtype=dtype)
    B, T, S1, _ = logits.shape
    lm, am = randn(B, S1, C, dtype=dtype), randn(B, T, C, dtype=dtype)
    functions = {
        lambda x: rnnt.rnnt_loss(x, symbols, 0, boundary): logits,
        lambda x: rnnt.get_rnnt_logprobs_joint(x, symbols, 0)[1]: logits,
        lambda x: rnnt.get_rnnt_logprobs(lm.to(x.dtype), x, symbols, 0)[1]: am,
        lambda x: rnnt.joint_mutual_information_recursion(
            [x.transpose(1, 2)[:, 1:]], [x.transpose(1, 2)]
        ): am,
    }
    for function, given in functions.items():
        results = []
        for leaf in (given.clone(), given.double()):
            value = function(leaf.requires_grad_())
            results.append((value.detach(), *torch.autograd.grad(value.sum(), leaf)))
        (value, grad), (exact, exact_grad) = results
        assert (value.dtype, grad.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(grad.double(), exact_grad, rtol=eps, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"logits": torch.zeros(3, 6, C)}, ValueError, r"logits: got shape \(3, 6, 7\), expected "),
        ({"logits": torch.zeros(3, 6, 5, C).int()}, TypeError, r"logits: got torch.int32.*float"),
        (
            {"logits": torch.zeros(3, 6, 4, C)},
            ValueError,
            r"symbols: got .*\[B, S\] = \[3, 3\]",
        ),
        ({"logits": torch.zeros(3, 5, 5, C)}, ValueError, r"boundary: .*utterance b=0.*t_end <= T"),
        ({"symbols": torch.full((3, 4), C)}, ValueError, r"symbols: got id 7 for utterance b=0"),
        ({"boundary": torch.tensor([[0, 0, 4, 6]])}, ValueError, r"boundary: got shape \(1, 4\)"),
        ({"boundary": "regular"}, (TypeError, AttributeError), "str"),
        ({"rnnt_type": torch.zeros(3, 4)}, ValueError, r"rnnt_type: got tensor"),
        (
            {"termination_symbol": 1, "use_hat_loss": True},
            ValueError,
            "expected 0 with use_hat",
        ),
        ({"reduction": "max"}, ValueError, r"reduction: got 'max'"),
    ],
)
def test_unfit_inputs_of_the_full_loss_are_refused(changed, error, message):
    logits, symbols, boundary = make_batch("ragged")
    given = {"logits": logits, "symbols": symbols, "termination_symbol": 0, "boundary": boundary}
    with pytest.raises(error, match=message):
        rnnt.rnnt_loss(**(given | changed))


_LATTICE = "symbols termination_symbol"
_SCALES = "lm_only_scale am_only_scale"
_LOSS = "boundary rnnt_type delay_penalty reduction return_grad"
FAST_RNNT = {  # 1.3, the parameters of github.com/k2-fsa/fast_rnnt
    "do_rnnt_pruning": "am lm ranges",
    "get_rnnt_logprobs": f"lm am {_LATTICE} rnnt_type boundary",
    "get_rnnt_logprobs_joint": f"logits {_LATTICE} boundary rnnt_type",
    "get_rnnt_logprobs_pruned": "logits symbols ranges termination_symbol boundary rnnt_type",
    "get_rnnt_logprobs_smoothed": f"lm am {_LATTICE} {_SCALES} boundary rnnt_type",
    "get_rnnt_prune_ranges": "px_grad py_grad boundary s_range",
    "joint_mutual_information_recursion": "px py boundary",
    "mutual_information_recursion": "px py boundary return_grad",
    "rnnt_loss": f"logits {_LATTICE} {_LOSS}",
    "rnnt_loss_pruned": f"logits symbols ranges termination_symbol {_LOSS}",
    "rnnt_loss_simple": f"lm am {_LATTICE} {_LOSS}",
    "rnnt_loss_smoothed": f"lm am {_LATTICE} {_SCALES} {_LOSS}",
}


def test_every_function_of_fast_rnnt_is_there_with_its_argument_names():
    assert sorted(FAST_RNNT) == sorted(rnnt.__all__)
    for name, parameters in FAST_RNNT.items():
        ours = set(inspect.signature(getattr(rnnt, name)).parameters)
        assert ours - {"use_hat_loss"} == set(parameters.split())


@pytest.mark.k2
def test_signatures_begin_as_those_of_k2():
    import k2

    for name in rnnt.__all__:
        ours = inspect.signature(getattr(rnnt, name)).parameters
        theirs = inspect.signature(getattr(k2, name)).parameters
        common = [*ours][: len(theirs)]
        assert common == [*theirs]
        for parameter in common:
            # k2 has no default for the boundary of the pruned arcs.
            if (name, parameter) != ("get_rnnt_logprobs_pruned", "boundary"):
                assert ours[parameter].default == theirs[parameter].default


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("name", ["full length", "ragged", "later begins"])  # 1.23.4 refuses S = 0
def test_arcs_and_losses_are_those_of_k2(name, rnnt_type):
    import k2

    logits, symbols, boundary = make_batch(name, blank=2)
    B, T, S1, _ = logits.shape
    lm, am = randn(B, S1, C, seed=5), randn(B, T, C, seed=6)
    width = min(3, S1)
    ranges = torch.arange(T).clamp(max=S1 - width).reshape(1, T, 1)
    ranges = (ranges + torch.arange(width)).repeat(B, 1, 1)
    sites = logits.gather(2, ranges.unsqueeze(3).expand(-1, -1, -1, C))
    arcs = {"termination_symbol": 2, "boundary": boundary, "rnnt_type": rnnt_type}
    for function, inputs, args, options in (
        ("get_rnnt_logprobs", (lm, am), (symbols,), arcs),
        ("get_rnnt_logprobs_smoothed", (lm, am), (symbols,), arcs),
        ("get_rnnt_logprobs_joint", (logits,), (symbols,), arcs),
        ("get_rnnt_logprobs_pruned", (sites,), (symbols, ranges), arcs),
        ("rnnt_loss", (logits,), (symbols,), arcs | {"delay_penalty": 0.25, "reduction": "none"}),
        ("rnnt_loss", (logits,), (symbols,), arcs),
    ):
        ours, theirs = (
            values_and_gradients(getattr(m, function), inputs, *args, **options) for m in (rnnt, k2)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13, msg=function)


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_occupations_of_the_full_loss_are_those_of_k2s_recursion(rnnt_type):
    import k2

    logits, symbols, boundary = make_batch("ragged")
    px, py = k2.get_rnnt_logprobs_joint(logits, symbols, 0, rnnt_type, boundary)
    _, expected = k2.mutual_information_recursion(px, py, boundary, return_grad=True)
    _, got = rnnt.rnnt_loss(logits, symbols, 0, boundary, rnnt_type, return_grad=True)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_all_losses_of_an_additive_joiner_agree_and_do_not_change_with_its_level():
    """What k2's rnnt_loss_test.py expects of its first example."""
    lm = torch.tensor([[[0, 0, 1], [0, 1, 1], [1, 0, 1], [2, 2, 0]]], dtype=torch.float)
    am = torch.tensor([[[0, 1, 2], [0, 0, 0], [0, 2, 4], [0, 3, 3]]], dtype=torch.float)
    symbols = torch.tensor([[0, 1, 0]])
    expected = None
    for level in (0, 3):
        lm, am = lm + level * randn(1, 4, 1).float(), am - level * randn(1, 4, 1, seed=1).float()
        px, py = rnnt.get_rnnt_logprobs(lm, am, symbols, 2)
        losses = [
            -rnnt.mutual_information_recursion(px, py, None),
            rnnt.rnnt_loss_simple(lm, am, symbols, 2, reduction="none"),
            rnnt.rnnt_loss_smoothed(lm, am, symbols, 2, 0.0, 0.0, reduction="none"),
            rnnt.rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, 2, reduction="none"),
        ]
        expected = losses[0] if expected is None else expected
        for loss in losses:
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
