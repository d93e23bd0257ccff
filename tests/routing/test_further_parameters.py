"""Hosts of later versions: functions with more parameters than those known, at their defaults."""

import functools
import inspect
import sys
import types

import counted
import pytest
import torch
import toy
import toy_simple

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import PandaError, UnknownSignatureError

LATER = {"fused_log_softmax": True}


def later(function, further):
    """A host's function with further parameters; it notes the calls that reach it."""
    signature = inspect.signature(function)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    extra = [inspect.Parameter(n, kind, default=value) for n, value in further.items()]
    signature = signature.replace(parameters=[*signature.parameters.values(), *extra])

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        call.reached.append({n: given.arguments.pop(n) for n in further if n in given.arguments})
        return function(*given.args, **given.kwargs)

    call.reached = []
    call.__signature__ = signature
    return call


@pytest.fixture
def host(monkeypatch):
    """Makes a k2 of which some functions have further parameters."""

    def make(**further):
        k2 = types.ModuleType("k2")
        for name in rnnt.__all__:
            function = getattr(rnnt, name)
            k2.__dict__[name] = later(function, further[name]) if name in further else function
        monkeypatch.setitem(sys.modules, "k2", k2)
        return k2

    yield make
    panda_icefall.revert()


@pytest.mark.parametrize("words", [{}, LATER, {"use_hat_loss": True}])
def test_calls_that_leave_them_at_their_defaults_are_routed(host, words):
    k2 = host(rnnt_loss_pruned=LATER, do_rnnt_pruning={"contiguous": False})
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(rnnt, torch.float64)
    plain = {name: value for name, value in words.items() if name not in LATER}
    expected = toy.loss_and_gradients(rnnt, joiner, data, **plain)
    original = k2.rnnt_loss_pruned
    with counted.routed(adjoint_tolerance=0):
        assert list(inspect.signature(k2.rnnt_loss_pruned).parameters) == [
            *inspect.signature(rnnt.rnnt_loss_pruned).parameters, *LATER
        ]  # fmt: skip
        routed = toy.loss_and_gradients(k2, joiner, data, **words)
    assert original.reached == []
    torch.testing.assert_close(routed, expected, rtol=1e-10, atol=1e-12)


def test_the_positional_form_is_routed_too(host):
    k2 = host(rnnt_loss_pruned=LATER)
    joiner, data = toy.TanhJoiner(), toy.batch(rnnt)
    with counted.routed():
        logits = joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        k2.rnnt_loss_pruned(
            logits, data.symbols, data.ranges, 0, data.boundary, "regular", 0.0, "sum", False,
            False, True,
        )  # fmt: skip


def test_other_calls_go_to_the_original_counted_and_said_once(host, caplog):
    k2 = host(rnnt_loss_pruned=LATER)
    original = k2.rnnt_loss_pruned
    joiner, data = toy.TanhJoiner(), toy.batch(rnnt)
    expected = toy.loss_and_gradients(rnnt, joiner, data)
    with counted.routed(0, dense=2, materialised=None):
        for _ in range(2):
            found = toy.loss_and_gradients(k2, joiner, data, fused_log_softmax=False)
    assert original.reached == [{"fused_log_softmax": False}] * 2
    torch.testing.assert_close(found, expected)
    said = "was given fused_log_softmax, which PANDA does not know, and is computed as without"
    assert caplog.text.count(said) == 1


def test_a_strict_run_ends_at_such_a_call(host):
    k2 = host(rnnt_loss_pruned=LATER)
    joiner, data = toy.TanhJoiner(), toy.batch(rnnt)
    with (
        panda_icefall.patched(strict=True),
        pytest.raises(PandaError, match=r"strict=True: .*fused_log_softmax, which PANDA does not"),
    ):
        toy.pruned_loss(k2, joiner, data, fused_log_softmax=False)


def test_a_pruning_with_another_setting_gives_tensors(host):
    k2 = host(do_rnnt_pruning={"contiguous": False})
    original, data = k2.do_rnnt_pruning, toy.batch(rnnt)
    with panda_icefall.patched():
        am, _ = k2.do_rnnt_pruning(data.am, data.lm, data.ranges, contiguous=True)
    assert isinstance(am, torch.Tensor)
    assert original.reached == [{"contiguous": True}]


def test_simple_losses_have_it_likewise(host):
    k2 = host(rnnt_loss_smoothed={"mode": "sum"}, get_rnnt_prune_ranges={"align": 1})
    model, data = toy_simple.Transducer(), toy.batch(rnnt)
    with counted.deferred(model):
        model(k2, data)
    assert k2.rnnt_loss_smoothed.reached == []
    with panda_icefall.patched(model):
        model(k2, data, mode="mean")
        status = panda_icefall.status()
    assert (status.simple_losses_routed, status.simple_losses_dense) == (0, 1)
    assert k2.rnnt_loss_smoothed.reached == [{"mode": "mean"}]


REFUSED = {
    "renamed": "(logits, symbols, ranges, blank, boundary=None, rnnt_type='regular', "
    "delay_penalty=0.0, reduction='mean')",
    "missing": "(logits, symbols, ranges, termination_symbol, boundary=None)",
    "reordered": "(logits, ranges, symbols, termination_symbol, boundary=None, "
    "rnnt_type='regular', delay_penalty=0.0, reduction='mean', fused_log_softmax=True)",
    "without a default": "(logits, symbols, ranges, termination_symbol, boundary, rnnt_type, "
    "delay_penalty, reduction, fused_log_softmax)",
    "any": "(logits, symbols, ranges, termination_symbol, boundary=None, rnnt_type='regular', "
    "delay_penalty=0.0, reduction='mean', **kwargs)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_parameters_stay_refused(host, name):
    k2 = host()
    k2.rnnt_loss_pruned = eval(f"lambda {REFUSED[name][1:-1]}: None")
    with pytest.raises(UnknownSignatureError, match=r"k2.rnnt_loss_pruned of version unknown: got"):
        panda_icefall.apply()
    assert panda_icefall.status().replaced == ()
