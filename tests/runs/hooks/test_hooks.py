"""Every hook is called at every event, in one order, and none loses what another has to say."""

import functools
import logging
from pathlib import Path

import pytest
from rich.console import Console

from panda_icefall.routing import PandaError
from panda_icefall.runs import NotRoutedError, PandaOptions, run_recipe, session
from panda_icefall.runs.hooks import Hook, call_each, hooks_for

MEMORY_LOG = PandaOptions(memory_log=Path("m.jsonl"))


class Told(Hook):
    """Notes what it is told; raises where it is asked to."""

    def __init__(self, name, notes, fails=None):
        self._name, self._notes, self._fails = name, notes, fails

    def _note(self, event):
        self._notes.append((event, self._name))
        if event == self._fails:
            raise ArithmeticError(f"{event} of {self._name}")

    def epoch(self, epoch):
        self._note("epoch")
        return super().epoch(epoch)

    def before_batch(self, epoch):
        self._note("before_batch")

    def before_loss(self, epoch, call):
        self._note("before_loss" if call.is_training else "before_validation")

    def around_loss(self, epoch, compute):
        self._note(f"around_loss {epoch.steps}")
        return super().around_loss(epoch, compute)

    def after_batch(self, epoch):
        self._note("after_batch")

    def close(self, reason):
        self._note(f"close {reason}")


@pytest.fixture
def told(recipe, monkeypatch):
    """Runs the recipe for two batches with hooks a and b beside the memory log; gives the notes."""

    def run(fails=None, error=None):
        notes = []
        hooks = [Told("a", notes, fails), *hooks_for(MEMORY_LOG, Console()), Told("b", notes)]
        monkeypatch.setattr(session, "hooks_for", lambda options, console: hooks)
        words = ["--num-batches", "2"]
        if error is None:
            assert run_recipe(recipe.train_py, words, MEMORY_LOG) == 0
        else:
            with pytest.raises(ArithmeticError, match=error):
                run_recipe(recipe.train_py, words, MEMORY_LOG)
        return notes

    return run


def both(*events):
    return [(event, name) for event in events for name in "ab"]


def test_all_hooks_are_told_of_every_event_in_one_order(told):
    batches = [
        both("before_batch", "before_loss", f"around_loss {step}", "after_batch") for step in (1, 2)
    ]
    validation = both("before_validation", "before_validation")
    last = both("before_batch")  # the request that finds no more batches
    expected = [*both("epoch"), *batches[0], *batches[1], *last, *validation]
    assert told() == [*expected, *both("close complete")]


def test_an_error_after_a_batch_loses_no_other_hooks_report(told, recipe):
    notes = told("after_batch", error="after_batch of a")
    assert notes[-4:] == both("after_batch", "close ArithmeticError")
    rows = recipe.rows("m.jsonl")
    assert [row["phase"] for row in recipe.phases("m.jsonl")] == ["compute_loss", "backward_update"]
    assert (rows[-1]["row"], rows[-1]["reason"]) == ("end", "ArithmeticError")


@pytest.mark.parametrize("event", ["epoch", "before_batch", "before_loss", "around_loss 1"])
def test_an_error_at_any_other_event_ends_the_run_with_all_hooks_closed(told, recipe, event):
    notes = told(event, error=f"{event} of a")
    assert notes[-2:] == both("close ArithmeticError")
    if event != "epoch":  # the log opens with the first epoch that reaches it
        assert recipe.rows("m.jsonl")[-1]["reason"] == "ArithmeticError"


def test_an_error_of_one_close_leaves_the_others_closed(told, recipe):
    assert told("close complete", error="close complete of a")[-2:] == both("close complete")
    assert recipe.rows("m.jsonl")[-1]["reason"] == "complete"


def test_every_call_is_made_and_the_first_error_raised(caplog):
    made = []

    def fail(error):
        made.append(error)
        raise error

    errors = [KeyError("first"), ValueError("second"), PandaError("third")]
    calls = [functools.partial(fail, error) for error in errors]
    with pytest.raises(KeyError, match="first"), caplog.at_level(logging.ERROR):
        call_each([calls[0], lambda: made.append(None), *calls[1:]])
    assert made == [errors[0], None, *errors[1:]]
    assert caplog.messages == ["panda: also ValueError: second", "panda: also PandaError: third"]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]


def test_a_signal_wins_over_an_error_before_it(caplog):
    def fail(error):
        raise error

    errors = [KeyError("first"), KeyboardInterrupt(), SystemExit(3)]
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.ERROR):
        call_each([functools.partial(fail, error) for error in errors])
    assert caplog.messages == ["panda: also KeyError: 'first'", "panda: also SystemExit: 3"]


def test_that_nothing_was_routed_is_said_once(caplog):
    def fail():
        raise NotRoutedError("nothing")

    with pytest.raises(NotRoutedError):
        call_each([fail, fail])
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (PandaOptions(max_batches=1, last_bit_twin=True), "PerturbedStart"),
        (PandaOptions(use_panda=True), "NonFiniteReport RoutingProof"),
        (PandaOptions(use_panda=True, verify_every=9), "NonFiniteReport Guard RoutingProof"),
        (PandaOptions(use_panda=False, workspace_mib=1e9), ""),
        (PandaOptions(batch_seed=0, check_batches=1), "ContractCheck RepeatableBatches"),
        (
            PandaOptions(True, memory_log=Path("m.jsonl"), check_batches=1, batch_seed=1),
            "MemoryLogging ContractCheck NonFiniteReport RoutingProof RepeatableBatches",
        ),
    ],
)
def test_a_run_has_the_hooks_that_it_asked_for(options, names):
    assert [type(hook).__name__ for hook in hooks_for(options, Console())] == names.split()
