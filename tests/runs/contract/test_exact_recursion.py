"""The contract's dense passes run the recursion that the routed ones run, or their own."""

import json
import sys
from types import ModuleType

import pytest
import torch

from panda_icefall.lattice import exact_recursion
from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.contract.check import Contract
from panda_icefall.runs.contract.dense_losses import exact_recursions
from panda_icefall.runs.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture
def host(monkeypatch):
    """The module of a host's losses, with a recursion of its own."""
    module = ModuleType("fast_rnnt.rnnt_loss")
    module.mutual_information_recursion = lambda *_: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_a_hosts_losses_run_the_exact_recursion_in_the_block_and_their_own_after(host):
    own = host.mutual_information_recursion
    with exact_recursions():
        assert host.mutual_information_recursion is exact_recursion
    assert host.mutual_information_recursion is own


def test_a_host_without_one_is_refused_by_name(host):
    del host.mutual_information_recursion
    message = "fast_rnnt.rnnt_loss: got no mutual_information_recursion .*check-recursion own"
    with pytest.raises(UsageError, match=message), exact_recursions():
        pass


@pytest.mark.parametrize(
    ("recursion", "check_recursion", "is_exact"),
    [("exact", "auto", True), ("exact", "own", False), ("k2", "auto", False), ("k2", "own", False)],
)
def test_dense_passes_run_what_was_asked_for(
    host, monkeypatch, recursion, check_recursion, is_exact
):
    own = host.mutual_information_recursion
    k2 = ModuleType("k2")
    k2.mutual_information_recursion = own
    monkeypatch.setitem(sys.modules, "k2", k2)
    monkeypatch.setattr("panda_icefall.lattice.mutual_information.check_recursion", str)
    options = PandaOptions(
        use_panda=True, check_batches=1, recursion=recursion, check_recursion=check_recursion
    )
    with Contract(options, CPU)._dense():
        assert host.mutual_information_recursion is (exact_recursion if is_exact else own)
    assert host.mutual_information_recursion is own


@pytest.mark.parametrize("recursion", ["auto", "own"])
def test_a_report_says_what_was_compared_and_its_bounds_fit_that(recipe, capsys, recursion):
    options = PandaOptions(check_batches=1, check_recursion=recursion)
    assert run_recipe(recipe.train_py, ["--num-batches", "1"], options) == 0
    found = json.loads((recipe.folder / "exp/panda-check.json").read_text())
    printed = " ".join(capsys.readouterr().err.split())
    is_own = recursion == "own"
    assert found["dense_recursion"] == ("own" if is_own else "exact")
    assert found["tolerances"]["gradient_rel_l2"] == (1e-5 if is_own else 1e-6)
    assert ("Dense: the losses as they are without PANDA." in printed) is is_own
    assert ("those of k2 over the exact recursion in float64" in printed) is not is_own


@pytest.mark.k2
def test_arms_over_long_utterances_are_closer_where_both_run_the_exact_recursion(recipe):
    recipe.edit(("B, T, S = 3, random.randint(7, 9), 4", "B, T, S = 3, 300, 60"))
    worst = {}
    for recursion in ("auto", "own"):
        options = PandaOptions(check_batches=1, check_recursion=recursion)
        words = ["--exp-dir", recursion, "--num-batches", "1"]
        assert run_recipe(recipe.train_py, words, options) == 0
        found = json.loads((recipe.folder / recursion / "panda-check.json").read_text())
        worst[recursion] = max(g["rel_l2"] for g in found["batches"][0]["gradients"])
    assert 0 < worst["auto"] <= 1e-6
    assert worst["own"] > 4 * worst["auto"]


@pytest.mark.k2
def test_k2s_pruned_loss_is_then_exact_to_its_rounding_at_thousands_of_nats():
    import k2

    B, T, S, s_range, C = 2, 200, 30, 5, 11
    generator = torch.Generator().manual_seed(3)
    logits = 12 * torch.randn(B, T, s_range, C, generator=generator)
    symbols = torch.randint(1, C, (B, S), generator=generator)
    start = (torch.arange(T) * S // T).clamp(max=S + 1 - s_range)
    ranges = (start[:, None] + torch.arange(s_range)).expand(B, T, s_range)
    boundary = torch.tensor([[0, 0, S, T]] * B)

    def gradient(dtype):
        leaf = logits.to(dtype).requires_grad_()
        loss = k2.rnnt_loss_pruned(leaf, symbols, ranges, 0, boundary, reduction="sum")
        return loss.item(), torch.autograd.grad(loss, leaf)[0].double()

    loss, exact = gradient(torch.float64)
    assert loss > 3000
    _, own = gradient(torch.float32)
    with exact_recursions():
        _, ours = gradient(torch.float32)
    errors = [(x - exact).norm() / exact.norm() for x in (own, ours)]
    assert errors[1] < 1e-6
    assert 10 * errors[1] < errors[0]
