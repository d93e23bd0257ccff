"""apply / revert / patched / status: what is replaced, when, and what is refused."""

import sys
import types

import counted
import pytest
import torch
import toy

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import PandaError, UnknownSignatureError, suspended

LOSSES = ("rnnt_loss_smoothed", "rnnt_loss_simple")
NAMES = ("do_rnnt_pruning", "rnnt_loss_pruned", *LOSSES, "get_rnnt_prune_ranges")


@pytest.fixture
def stub(monkeypatch):
    """A module named k2 whose originals of the replaced functions raise when reached."""
    module = types.ModuleType("k2")
    module.__dev_version__ = "9.9.stub"

    def do_rnnt_pruning(am, lm, ranges):
        raise AssertionError("the original do_rnnt_pruning was reached")

    def rnnt_loss_pruned(
        logits, symbols, ranges, termination_symbol, boundary=None, rnnt_type="regular",
        delay_penalty=0.0, reduction="mean",
    ):  # fmt: skip
        raise AssertionError("the original rnnt_loss_pruned was reached")

    module.do_rnnt_pruning = do_rnnt_pruning
    module.rnnt_loss_pruned = rnnt_loss_pruned
    for name in ("rnnt_loss_smoothed", "get_rnnt_prune_ranges"):
        setattr(module, name, getattr(rnnt, name))
    monkeypatch.setitem(sys.modules, "k2", module)
    yield module
    panda_icefall.revert()


def test_a_printed_status_has_a_line_for_each_figure_that_is_not_zero(stub):
    panda_icefall.apply()
    assert str(panda_icefall.status()).startswith("no loss was computed while applied\nreplaced: ")
    joiner, data = toy.TanhJoiner(), toy.batch(stub)
    toy.loss_and_gradients(stub, joiner, data)
    status = panda_icefall.status()
    lines = str(status).splitlines()
    assert lines[0] == "losses_routed: 1"
    assert f"sites: {status.sites:,}" in lines
    assert not any(
        line.startswith(("losses_dense", "materialised", "non_finite")) for line in lines
    )
    assert any(
        line.startswith("replaced: k2.do_rnnt_pruning, k2.rnnt_loss_pruned") for line in lines
    )
    assert "losses_dense=0" in repr(status)


def test_the_routed_loss_never_reaches_the_originals(stub):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), toy.batch(stub)
    dense = toy.loss_and_gradients(rnnt, joiner, data)
    panda_icefall.apply()
    routed = toy.loss_and_gradients(stub, joiner, data)
    torch.testing.assert_close(routed, dense, rtol=1e-5, atol=1e-6)
    replaced = panda_icefall.status().replaced
    assert replaced[:10] == (
        *(f"k2.{name}" for name in NAMES if name != "rnnt_loss_simple"),
        *(f"panda_icefall.rnnt.{name}" for name in NAMES),
        "panda_icefall.rnnt.rnnt_loss",
    )
    # The latter is ours, where that is not installed.
    assert {"torch.autograd.function.Function.apply", "optimized_transducer.transducer_loss"} <= {
        *replaced
    }


def test_revert_restores_and_apply_is_idempotent(k2):
    originals = {name: getattr(k2, name) for name in NAMES}
    siblings = {"mutual_information_recursion": k2.mutual_information_recursion}
    panda_icefall.apply()
    first = {name: getattr(k2, name) for name in NAMES}
    panda_icefall.apply(workspace_mib=1)
    assert {name: getattr(k2, name) for name in NAMES} == first
    assert all(first[name] is not originals[name] for name in NAMES)
    assert all(first[name].__wrapped__ is originals[name] for name in NAMES)
    assert {n: getattr(k2, n) for n in siblings} == siblings
    panda_icefall.revert()
    panda_icefall.revert()
    assert {name: getattr(k2, name) for name in NAMES} == originals
    assert panda_icefall.status().replaced == ()


def test_patched_reverts_on_errors_and_keeps_an_outer_apply(k2):
    original = k2.rnnt_loss_pruned
    with pytest.raises(ZeroDivisionError), panda_icefall.patched():
        1 / 0  # noqa: B018
    assert k2.rnnt_loss_pruned is original
    panda_icefall.apply()
    with panda_icefall.patched(workspace_mib=1):
        pass
    assert k2.rnnt_loss_pruned is not original


def test_suspended_puts_the_originals_in_place_for_a_while(k2):
    original = k2.rnnt_loss_pruned
    with suspended():
        assert k2.rnnt_loss_pruned is original
    panda_icefall.apply()
    replaced = k2.rnnt_loss_pruned
    assert any(name.endswith("rnnt_loss_pruned") for name in panda_icefall.status().replaced)
    with suspended():
        assert k2.rnnt_loss_pruned is original
        assert panda_icefall.status().replaced == ()
    assert k2.rnnt_loss_pruned is replaced


def test_somebody_elses_later_patch_is_left_alone(stub, caplog):
    panda_icefall.apply()
    stub.rnnt_loss_pruned = other = lambda: None
    panda_icefall.revert()
    assert stub.rnnt_loss_pruned is other
    assert "k2.rnnt_loss_pruned was replaced by something else" in caplog.text


def test_unknown_signatures_are_refused_with_both_in_the_message(stub):
    stub.rnnt_loss_pruned = lambda logits, symbols, modified=False: None
    with pytest.raises(
        UnknownSignatureError,
        match=r"(?s)k2.rnnt_loss_pruned of version 9.9.stub: got \(logits, symbols, modified=False"
        r".*expected the parameters \(logits, symbols, ranges",
    ):
        panda_icefall.apply()
    assert not hasattr(stub.do_rnnt_pruning, "__wrapped__")  # nothing was half applied


def test_an_unknown_simple_loss_is_refused_too(stub):
    stub.rnnt_loss_smoothed = lambda lm, am, symbols: None
    with pytest.raises(UnknownSignatureError, match=r"k2.rnnt_loss_smoothed of version 9.9.stub"):
        panda_icefall.apply()


def test_a_k2_without_simple_losses_is_none_to_refuse(stub):
    del stub.rnnt_loss_smoothed
    model = torch.nn.Module()
    model.simple_am_proj = model.simple_lm_proj = torch.nn.Linear(2, 3)
    panda_icefall.apply(model=model)
    assert panda_icefall.status().replaced[:2] == ("k2.do_rnnt_pruning", "k2.rnnt_loss_pruned")
    assert "forward" not in vars(model.simple_am_proj)


def test_a_missing_function_is_named(stub):
    del stub.do_rnnt_pruning
    with pytest.raises(PandaError, match=r"k2.do_rnnt_pruning: not found in version 9.9.stub"):
        panda_icefall.apply()


def test_plain_logits_go_to_the_original(k2):
    data = toy.batch(k2)
    logits = torch.randn(toy.B, toy.T, toy.S_RANGE, toy.C)
    arguments = (logits, data.symbols, data.ranges, 0, data.boundary)
    expected = k2.rnnt_loss_pruned(*arguments)
    with panda_icefall.patched():
        assert torch.equal(k2.rnnt_loss_pruned(*arguments), expected)
        assert panda_icefall.status().losses_dense == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace_mib": 0}, "workspace_mib: got 0"),
        ({"workspace_mib": float("nan")}, "workspace_mib: got nan"),
        ({"workspace_mib": float("inf")}, "workspace_mib: got inf"),
        ({"adjoint_tolerance": -0.1}, "adjoint_tolerance: got -0.1"),
        ({"adjoint_tolerance": 1}, "adjoint_tolerance: got 1"),
        ({"engine": "cuda"}, "engine: got 'cuda', expected one of auto, torch, triton"),
        ({"recursion": "fp64"}, "recursion: got 'fp64', expected one of auto, k2, exact"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_replaced(k2, options, message):
    original = k2.rnnt_loss_pruned
    with pytest.raises(ValueError, match=message):
        panda_icefall.apply(**options)
    assert k2.rnnt_loss_pruned is original


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"am": torch.zeros(3, 11)}, ValueError, r"am: got shape \(3, 11\), expected \[B, T"),
        ({"lm": torch.zeros(2, 7, 5)}, ValueError, r"lm: got shape \(2, 7, 5\), expected"),
        ({"ranges": torch.zeros(3, 9, 4).long()}, ValueError, r"for ranges of shape \(3, 9, 4\)"),
        ({"ranges": torch.zeros(3, 11, 4)}, TypeError, r"ranges: got torch.float32"),
    ],
)
def test_bad_pruning_inputs_are_named(k2, changes, error, message):
    data = toy.batch(k2)
    given = {"am": data.am, "lm": data.lm, "ranges": data.ranges, **changes}
    with panda_icefall.patched(), pytest.raises(error, match=message):
        k2.do_rnnt_pruning(**given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.ranges.add_(3), ValueError, "ranges"),
        (lambda d: d.boundary.__setitem__((1, 3), toy.T + 1), ValueError, "boundary"),
        (lambda d: d.symbols.__setitem__((0, 0), toy.C), ValueError, "symbols"),
        (lambda d: setattr(d, "symbols", d.symbols.float()), TypeError, "symbols"),
        (lambda d: setattr(d, "boundary", d.boundary[:2]), ValueError, "boundary"),
    ],
)
def test_bad_loss_inputs_are_named(k2, change, error, message):
    data = toy.batch(k2)
    with counted.routed(0):
        logits = toy.TanhJoiner()(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges.clone()))
        change(data)
        with pytest.raises(error, match=message):
            k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
