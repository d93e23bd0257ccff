"""A run that asked for PANDA goes on after its first batch only if a loss was routed in it."""

import logging

import pytest
import torch
from torch import nn

from panda_icefall.routing import LossTotals
from panda_icefall.runs import NotRoutedError
from panda_icefall.runs.routing_proof import RoutingProof

MODEL = nn.Linear(2, 3)


class WithProjections(nn.Module):
    def __init__(self):
        super().__init__()
        self.simple_am_proj = nn.Linear(2, 3)
        self.simple_lm_proj = nn.Linear(2, 3)


class Ledger:
    """Books what it is given, as if routing had counted it since the last mark."""

    def __init__(self, *deltas):
        self.total = LossTotals()
        self._deltas = list(deltas)

    def advance(self):
        self.total = self.total + self._deltas.pop(0)


@pytest.fixture(autouse=True)
def original(monkeypatch):
    """Stands for one of the loss functions that are watched."""

    def ctc_loss():
        return 1.0

    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_loss)
    return ctc_loss


def test_a_routed_loss_is_the_proof_and_nothing_is_asked_or_watched_afterwards(original):
    proof = RoutingProof(True)
    ledger = Ledger(LossTotals(losses_routed=1))
    with proof.watching():
        assert torch.nn.functional.ctc_loss is not original
    proof.verify(ledger, MODEL)
    proof.verify(ledger, MODEL)  # would fail in a ledger that has nothing more to book
    with proof.watching():
        assert torch.nn.functional.ctc_loss is original


def test_without_one_the_error_names_what_every_watched_block_called():
    proof = RoutingProof(True)
    for _ in range(2):
        with proof.watching():
            torch.nn.functional.ctc_loss()
    torch.nn.functional.ctc_loss()
    with pytest.raises(NotRoutedError, match=r"called 3 time.*functional\.ctc_loss \(2 times\)"):
        proof.verify(Ledger(LossTotals(losses_dense=3)), MODEL)


@pytest.mark.parametrize(
    ("counted", "said"),
    [
        ({"simple_losses_routed": 1}, None),
        ({}, "no simple loss was seen in the first training batch"),
        ({"simple_losses_dense": 1}, "was given tensors"),
        (
            {
                "simple_losses_routed": 1,
                "simple_losses_of_tensors": 1,
                "materialised": {"simple_am_proj: softmax": 1, "cumsum": 2},
            },
            r"was given tensors (simple_am_proj: softmax)",
        ),
    ],
)
def test_projections_whose_simple_loss_was_not_routed_are_warned_of(caplog, counted, said):
    proof = RoutingProof(True)
    with caplog.at_level(logging.WARNING):
        proof.verify(Ledger(LossTotals(losses_routed=1, **counted)), WithProjections())
    if said is None:
        assert caplog.text == ""
    else:
        assert "the model has simple_am_proj and simple_lm_proj, but" in caplog.text
        assert said in caplog.text


def test_a_model_without_projections_is_not_warned_of(caplog):
    RoutingProof(True).verify(Ledger(LossTotals(losses_routed=1, simple_losses_dense=1)), MODEL)
    assert caplog.text == ""


def test_a_run_that_did_not_ask_is_neither_watched_nor_stopped(original):
    proof = RoutingProof(False)
    with proof.watching():
        assert torch.nn.functional.ctc_loss is original
    proof.verify(Ledger(), MODEL)


def test_an_error_of_the_block_comes_through_and_the_watch_ends(original):
    proof = RoutingProof(True)
    with pytest.raises(ZeroDivisionError), proof.watching():
        _ = 1 / 0
    assert torch.nn.functional.ctc_loss is original


WITHOUT_TILES = LossTotals(losses_routed=1, tiles_forward=1)


@pytest.mark.parametrize(
    ("workspace_mib", "counted", "said"),
    [
        (1e9, LossTotals(losses_routed=1, tiles_forward=7), "which is more than the"),
        (1e9, WITHOUT_TILES, "which is more than the"),
        (1000, WITHOUT_TILES, "which held the whole of the first batch's loss"),
        (1000, LossTotals(losses_routed=1, tiles_forward=2), None),
        (16, WITHOUT_TILES, None),  # as by default
        (None, WITHOUT_TILES, None),
    ],
)
def test_a_workspace_with_which_nothing_is_tiled_is_warned_of_once(
    caplog, workspace_mib, counted, said
):
    proof = RoutingProof(True, workspace_mib)
    proof.begin(torch.device("cpu"))
    proof.verify(Ledger(counted), MODEL)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (said is not None)
    if said is not None:
        (text,) = warnings
        assert text.startswith(f"panda: --panda-workspace-mib: got {workspace_mib:g}, {said}")
        assert "the loss is not tiled" in text


def test_a_run_without_panda_is_not_warned_of_its_workspace(caplog):
    RoutingProof(False, 1e9).begin(torch.device("cpu"))
    assert caplog.text == ""


def test_the_memory_of_a_gpu_bounds_its_workspace(monkeypatch, caplog):
    class Properties:
        total_memory = 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    RoutingProof(True, 2000).begin(torch.device("cuda", 0))
    assert "which is more than the 1024 MiB of cuda:0" in caplog.text
