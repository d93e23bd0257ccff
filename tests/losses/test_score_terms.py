"""The terms of a score, as ``joint_mutual_information_recursion`` gives them."""

import pytest
import torch
from rnnt_batches import randn, values_and_gradients, weighted_gradients

from panda_icefall import rnnt


def paths_of(boundary, is_modified):
    """All paths of one utterance, each the list of its arcs ``(is_symbol, s, t)``."""
    s_begin, t_begin, s_end, t_end = boundary

    def onward(s, t):
        if (s, t) == (s_end, t_end):
            yield []
        if t < t_end:
            for rest in onward(s, t + 1):
                yield [(False, s, t), *rest]
        if s < s_end and (t < t_end or not is_modified):
            for rest in onward(s + 1, t + is_modified):
                yield [(True, s, t), *rest]

    return list(onward(s_begin, t_begin))


def terms_by_paths(px, py, boundary, is_modified):
    """The terms ``[N, B]`` of the score, by the probability of every path."""
    columns = []
    for b, limits in enumerate(boundary.tolist()):
        of_paths = torch.stack(
            [
                sum((px if is_symbol else py)[:, b, s, t] for is_symbol, s, t in path)
                for path in paths_of(limits, is_modified)
            ]
        )  # [paths, N]
        totals = of_paths.sum(1)
        # A path of probability 0 adds nothing, not 0 * inf.
        shares = totals.softmax(0).detach().unsqueeze(1)
        expected = torch.where(shares > 0, of_paths, 0.0).mul(shares).sum(0)
        rest = totals.logsumexp(0).detach() - expected.detach().sum()
        columns.append(torch.cat((expected[:1] + rest, expected[1:])))
    return torch.stack(columns, dim=1)


def term_batch(is_modified, N=3):
    B, S, T = 3, 3, 4
    boundary = torch.tensor([[0, 0, S, T], [1, 1, 2, 3], [0, 1, 0, 3]])
    px = randn(N, B, S, T + (not is_modified), seed=7)
    px[1, 0, 1, 2] = -torch.inf
    return px, randn(N, B, S + 1, T, seed=8), boundary


@pytest.mark.parametrize("is_modified", [False, True])
def test_terms_of_a_score_are_their_expectations_over_all_paths(is_modified):
    px, py, boundary = term_batch(is_modified)
    results = []
    for function in (
        lambda px, py: rnnt.joint_mutual_information_recursion(
            px.unbind(0), py.unbind(0), boundary
        ),
        lambda px, py: terms_by_paths(px, py, boundary, is_modified),
    ):
        leaves = [x.clone().requires_grad_() for x in (px, py)]
        terms = function(*leaves)
        assert terms.shape == (3, 3)
        adjoints = randn(3, 3, seed=9)
        results.append((terms.detach(), *torch.autograd.grad((terms * adjoints).sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("is_modified", [False, True])
def test_terms_sum_to_the_score_of_the_summed_arcs_and_to_its_gradients(is_modified):
    px, py, boundary = term_batch(is_modified)
    leaves = [x.clone().requires_grad_() for x in (px, py)]
    terms = rnnt.joint_mutual_information_recursion(*(x.unbind(0) for x in leaves), boundary)
    got = (terms.sum(0), *weighted_gradients(terms.sum(0), *leaves))
    total = rnnt.mutual_information_recursion(*(x.sum(0) for x in leaves), boundary)
    expected = (total, *weighted_gradients(total, *leaves))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_an_utterance_without_a_path_has_no_score_and_no_gradient():
    px, py, _ = term_batch(is_modified=False)
    px[:, 1] = -torch.inf
    leaves = [x.clone().requires_grad_() for x in (px, py)]
    terms = rnnt.joint_mutual_information_recursion(*(x.unbind(0) for x in leaves))
    assert terms[:, 1].tolist() == [-torch.inf, 0, 0]
    assert terms[:, [0, 2]].isfinite().all()
    px_grad, py_grad = torch.autograd.grad(terms[:, [0, 2]].sum() + terms[1:, 1].sum(), leaves)
    assert px_grad[:, 1].abs().sum() == py_grad[:, 1].abs().sum() == 0
    assert px_grad.isfinite().all()


@pytest.mark.parametrize(
    ("px", "py", "error", "message"),
    [
        ((), (), ValueError, "px: got 0 terms, expected one or more"),
        ((2,), (), ValueError, "py: got 0 terms, expected 1"),
        ((2, 3), (3, 3), ValueError, r"px\[1\]: got shape \(1, 3, 5\), expected .*\(1, 2, 5\)"),
        ((2, 2), (3, 4), ValueError, r"py\[1\]: got shape \(1, 4, 4\), expected .*\(1, 3, 4\)"),
        ((2,), (4,), ValueError, r"py: got shape \(1, 4, 4\), expected \[B, S\+1, T\]"),
    ],
)
def test_unfit_terms_are_refused(px, py, error, message):
    px, py = [torch.zeros(1, s, 5) for s in px], [torch.zeros(1, s, 4) for s in py]
    with pytest.raises(error, match=message):
        rnnt.joint_mutual_information_recursion(px, py)
    if len(px) == 2:
        with pytest.raises(TypeError, match=r"px\[1\]: got torch.float64, expected .*float32"):
            rnnt.joint_mutual_information_recursion([px[0], px[0].double()], [py[0]] * 2)


@pytest.mark.k2
@pytest.mark.parametrize("is_modified", [False, True])
def test_terms_are_those_of_k2(is_modified):
    import k2

    px, py, boundary = term_batch(is_modified)
    ours, theirs = (
        values_and_gradients(
            lambda px, py, m=m: m.joint_mutual_information_recursion(
                px.unbind(0), py.unbind(0), boundary
            ),
            (px, py),
        )
        for m in (rnnt, k2)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
