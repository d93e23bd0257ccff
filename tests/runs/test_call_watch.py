"""The watch counts what is called, and leaves the functions as they were."""

from collections import Counter

import pytest
import torch

from panda_icefall import rnnt
from panda_icefall.routing import LossTotals
from panda_icefall.runs.call_watch import (
    LossCallWatch,
    explain_ctc_not_routed,
    explain_not_routed,
)


def ctc():
    logp = torch.zeros(4, 1, 3).log_softmax(-1)
    return torch.nn.functional.ctc_loss(logp, torch.ones(1, 2).long(), (4,), (2,))


def test_calls_are_counted_and_give_what_they_give():
    original, expected = torch.nn.functional.ctc_loss, ctc()
    with LossCallWatch() as watch:
        assert torch.equal(ctc(), expected)
        ctc()
    assert watch.calls == {"torch.nn.functional.ctc_loss": 2}
    assert torch.nn.functional.ctc_loss is original
    ctc()
    assert sum(watch.calls.values()) == 2


def test_functions_are_put_back_after_an_exception():
    original = torch.nn.functional.ctc_loss
    with pytest.raises(TypeError), LossCallWatch() as watch:
        torch.nn.functional.ctc_loss()
    assert torch.nn.functional.ctc_loss is original
    assert watch.calls["torch.nn.functional.ctc_loss"] == 1


def test_what_routing_replaces_is_not_called_instead():
    original = rnnt.rnnt_loss_smoothed
    with LossCallWatch():
        assert rnnt.rnnt_loss_smoothed is original
    text = explain_not_routed(LossTotals(simple_losses_routed=2), Counter())
    assert "only simple losses were routed (2 times)" in text
    assert "called instead" not in text


def test_a_replacement_made_meanwhile_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", torch.nn.functional.ctc_loss)
    other = object()
    with LossCallWatch():
        torch.nn.functional.ctc_loss = other
    assert torch.nn.functional.ctc_loss is other


def test_the_explanation_names_dense_calls_materialised_operations_and_other_losses():
    counters = LossTotals(losses_dense=2, materialised={"cumsum": 1, "bmm": 3})
    text = explain_not_routed(counters, Counter({"k2.rnnt_loss": 4}))
    assert "full-lattice losses were called 2 time(s), each with ordinary logits" in text
    assert "turned into a tensor by bmm (3 times), cumsum (1 times)" in text
    assert "called instead: k2.rnnt_loss (4 times)" in text


def test_a_call_that_was_not_seen_is_not_said_not_to_have_been():
    text = explain_not_routed(LossTotals(), Counter())
    assert "no call of a pruned or full-lattice loss was seen" in text
    assert "names bound by `from k2 import ...` before PANDA was applied" in text
    assert "never called" not in text


def test_simple_losses_that_were_dense_are_said():
    text = explain_not_routed(LossTotals(simple_losses_dense=3), Counter())
    assert "simple losses were computed as without PANDA (3 times)" in text


def test_a_ctc_loss_that_was_called_and_not_recorded_is_told_from_one_that_was_not_called():
    counters = LossTotals(ctc_losses_dense=2, materialised={"exp": 1})
    text = explain_ctc_not_routed(counters, ["encoder.ctc_output"])
    assert "the model has encoder.ctc_output" in text
    assert "ctc_loss was called 2 time(s), each with log-probs that were not recorded" in text
    assert "turned into ordinary ones by exp (1 times)" in text
    text = explain_ctc_not_routed(LossTotals(), [])
    assert "the model has no ctc_output" in text
    assert "no call of torch.nn.functional.ctc_loss was seen" in text
    assert "ordinary ones" not in text
