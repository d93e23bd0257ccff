"""A run that asked for PANDA goes on after its first batch only if a loss was routed in it."""

import pytest
import torch

from panda_icefall.routing import LossTotals
from panda_icefall.runs import NotRoutedError
from panda_icefall.runs.routing_proof import RoutingProof


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
    proof.verify(ledger)
    proof.verify(ledger)  # would fail in a ledger that has nothing more to book
    with proof.watching():
        assert torch.nn.functional.ctc_loss is original


def test_without_one_the_error_names_what_every_watched_block_called():
    proof = RoutingProof(True)
    for _ in range(2):
        with proof.watching():
            torch.nn.functional.ctc_loss()
    torch.nn.functional.ctc_loss()
    with pytest.raises(NotRoutedError, match=r"called 3 time.*functional\.ctc_loss \(2 times\)"):
        proof.verify(Ledger(LossTotals(losses_dense=3)))


def test_a_run_that_did_not_ask_is_neither_watched_nor_stopped(original):
    proof = RoutingProof(False)
    with proof.watching():
        assert torch.nn.functional.ctc_loss is original
    proof.verify(Ledger())


def test_an_error_of_the_block_comes_through_and_the_watch_ends(original):
    proof = RoutingProof(True)
    with pytest.raises(ZeroDivisionError), proof.watching():
        _ = 1 / 0
    assert torch.nn.functional.ctc_loss is original
