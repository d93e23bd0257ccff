"""What a run learns from its contract check before it, during it and after it."""

import contextlib
import inspect
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn

from panda_icefall.runs import BoundReached, NotRoutedError, PandaOptions
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.hooks import contract_check
from panda_icefall.runs.hooks.contract_check import ContractCheck
from panda_icefall.runs.recipe_calls import Epoch, LossCall


def compute_loss(model, batch, is_training=True):
    return model(batch).sum(), {}


@pytest.fixture
def observed(tmp_path, monkeypatch):
    """Shows a check one batch of a model without any loss that could be routed."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 3)

    def observe(check, rank=0, is_training=True):
        arguments = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        epoch = Epoch(arguments, torch.device("cpu"), CounterLedger(), rank)
        bound = inspect.signature(compute_loss).bind(model, torch.ones(4, 2), is_training)
        with check.epoch(epoch):
            check.before_batch(epoch)
            check.before_loss(epoch, LossCall(compute_loss, bound))
            return epoch

    return observe


def test_a_validation_batch_is_not_checked(observed, tmp_path, capsys):
    check = ContractCheck(PandaOptions(check_batches=1), Console())
    check.after_batch(observed(check, is_training=False))
    assert check.path is None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_told_which_batch_is_compared_and_how_long_the_rest_takes(
    observed, monkeypatch
):
    told = []

    def waiting(text):
        told.append(text)
        return contextlib.nullcontext()

    monkeypatch.setattr(contract_check, "waiting", waiting)
    observed(ContractCheck(PandaOptions(check_batches=2), Console()))
    assert told == ["contract check: batch 1 of 2"]
    observed(ContractCheck(PandaOptions(check_batches=2), Console()), rank=1)
    assert len(told) == 1
    check = ContractCheck(PandaOptions(check_batches=5), Console())
    check._contract, check._seconds = SimpleNamespace(batches_seen=2), 10.0
    assert check._progress == "contract check: batch 3 of 5, 10.0 s, about 15.0 s left"


def test_where_there_is_no_terminal_each_compared_batch_is_a_line(observed, monkeypatch, capsys):
    """By which the process of a bounded run sees how far its check is."""

    def observe(contract, *_):
        contract.batches_seen += 1

    monkeypatch.setattr(contract_check.Contract, "observe", observe)
    check = ContractCheck(PandaOptions(check_batches=3), Console())
    check._seconds = 4.0
    observed(check)
    observed(check, rank=1)
    observed(check)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{contract_check.COMPARED} 1 of 3, 4.0 s, about 8.0 s left")
    assert lines[1].startswith(f"{contract_check.COMPARED} 3 of 3")


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_check_that_saw_too_few_batches_is_a_violation(observed, has_begun):
    check = ContractCheck(PandaOptions(check_batches=2, check_update_steps=5), Console())
    if has_begun:
        observed(check, is_training=False)
    (violation,) = check.outcome()["violations"]
    assert violation == "the contract check saw 0 of 5 training batches before the run ended"


def test_a_loss_that_is_not_routed_ends_the_check_and_then_the_run(observed, tmp_path, capsys):
    check = ContractCheck(PandaOptions(check_batches=2), Console())
    epoch = observed(check)
    assert check.outcome() == {
        "contract": str(tmp_path / "panda-check.json"),
        "violations": ("no loss was routed in the routed arm",),
    }
    assert "is VIOLATED" in capsys.readouterr().out
    with pytest.raises(NotRoutedError, match="call of a pruned or full-lattice loss was seen"):
        check.after_batch(epoch)


def test_a_later_epoch_and_later_batches_leave_a_complete_check_alone(observed, capsys):
    check = ContractCheck(PandaOptions(check_batches=1), Console())
    observed(check)
    capsys.readouterr()
    check.path.unlink()
    observed(check)
    assert not check.path.exists()
    assert capsys.readouterr() == ("", "")


def test_a_run_for_the_check_alone_ends_before_the_next_batch(observed):
    check = ContractCheck(PandaOptions(check_batches=1, stop_after_check=True), Console())
    epoch = observed(check)
    with pytest.raises(BoundReached):
        check.before_batch(epoch)


def test_other_ranks_write_beside_rank_0_and_print_nothing(observed, tmp_path, capsys):
    check = ContractCheck(PandaOptions(check_batches=1), Console())
    observed(check, rank=2)
    assert check.path == tmp_path / "panda-check.rank2.json"
    assert check.path.is_file()
    assert capsys.readouterr() == ("", "")
