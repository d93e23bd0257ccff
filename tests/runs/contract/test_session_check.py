"""What a session learns from its contract check before, during and without one."""

import inspect

import pytest
import torch
from rich.console import Console
from torch import nn

from panda_icefall.runs import NotRoutedError, PandaOptions
from panda_icefall.runs.contract.session_check import SessionCheck
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.recipe_calls import Epoch

CPU = torch.device("cpu")


def compute_loss(model, batch):
    return model(batch).sum(), {}


@pytest.fixture
def observed(tmp_path, monkeypatch):
    """Shows a check one batch of a model without any loss that could be routed."""
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 3)
    epoch = Epoch({"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}, CPU, None)
    bound = inspect.signature(compute_loss).bind(model, torch.ones(4, 2))

    def observe(check, rank=0):
        check.observe(compute_loss, bound, epoch, CounterLedger(), rank)

    return observe


def test_without_a_check_nothing_is_found_or_written(observed, tmp_path, capsys):
    check = SessionCheck(PandaOptions(use_panda=True), Console())
    check.prepare(CPU)
    observed(check)
    check.verify_routed()
    assert (check.is_complete, check.violations, check.path) == (False, (), None)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_check_that_saw_too_few_batches_is_a_violation(is_prepared):
    check = SessionCheck(PandaOptions(check_batches=2, check_update_steps=5), Console())
    if is_prepared:
        check.prepare(CPU)
    (violation,) = check.violations
    assert violation == "the contract check saw 0 of 5 training batches before the run ended"
    assert not check.is_complete


def test_a_loss_that_is_not_routed_ends_the_check_and_then_the_run(observed, tmp_path, capsys):
    check = SessionCheck(PandaOptions(check_batches=2), Console())
    check.prepare(CPU)
    check.verify_routed()
    observed(check)
    assert check.is_complete
    assert check.path == tmp_path / "panda-check.json"
    assert check.violations == ("no loss was routed in the routed arm",)
    assert "is VIOLATED" in capsys.readouterr().out
    with pytest.raises(NotRoutedError, match="rnnt_loss_pruned was not seen to be called"):
        check.verify_routed()


def test_a_later_epoch_and_later_batches_leave_a_complete_check_alone(observed, capsys):
    check = SessionCheck(PandaOptions(check_batches=1), Console())
    check.prepare(CPU)
    observed(check)
    capsys.readouterr()
    check.path.unlink()
    check.prepare(CPU)
    observed(check)
    assert check.is_complete
    assert not check.path.exists()
    assert capsys.readouterr() == ("", "")


def test_other_ranks_write_beside_rank_0_and_print_nothing(observed, tmp_path, capsys):
    check = SessionCheck(PandaOptions(check_batches=1), Console())
    check.prepare(CPU)
    observed(check, rank=2)
    assert check.path == tmp_path / "panda-check.rank2.json"
    assert check.path.is_file()
    assert capsys.readouterr() == ("", "")
