"""A run that asked for PANDA goes on after its first batch only if a loss was routed in it."""

import logging

import pytest
import torch
from torch import nn

from panda_icefall.routing import LossTotals
from panda_icefall.runs import NotRoutedError
from panda_icefall.runs.hooks.routing_proof import RoutingProof
from panda_icefall.runs.recipe_calls import Epoch

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


def epoch_of(*deltas, model=MODEL, device="cpu"):
    return Epoch({"model": model}, torch.device(device), Ledger(*deltas))


def begin(proof, epoch):
    with proof.epoch(epoch):
        pass


@pytest.fixture(autouse=True)
def original(monkeypatch):
    """Stands for one of the loss functions that are watched."""

    def ctc_loss():
        return 1.0

    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_loss)
    return ctc_loss


def test_a_routed_loss_is_the_proof_and_nothing_is_asked_or_watched_afterwards(original):
    proof = RoutingProof()
    epoch = epoch_of(LossTotals(losses_routed=1))
    watched = [proof.around_loss(epoch, lambda: torch.nn.functional.ctc_loss)]
    proof.after_batch(epoch)
    proof.after_batch(epoch)  # would fail in a ledger that has nothing more to book
    watched.append(proof.around_loss(epoch, lambda: torch.nn.functional.ctc_loss))
    assert [function is original for function in watched] == [False, True]


def test_without_one_the_error_names_what_every_watched_call_called():
    proof = RoutingProof()
    epoch = epoch_of(LossTotals(losses_dense=3))
    for _ in range(2):
        assert proof.around_loss(epoch, lambda: torch.nn.functional.ctc_loss()) == 1.0
    torch.nn.functional.ctc_loss()
    with pytest.raises(NotRoutedError, match=r"called 3 time.*functional\.ctc_loss \(2 times\)"):
        proof.after_batch(epoch)


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
    epoch = epoch_of(LossTotals(losses_routed=1, **counted), model=WithProjections())
    with caplog.at_level(logging.WARNING):
        RoutingProof().after_batch(epoch)
    if said is None:
        assert caplog.text == ""
    else:
        assert "the model has simple_am_proj and simple_lm_proj, but" in caplog.text
        assert said in caplog.text


def test_a_model_without_projections_is_not_warned_of(caplog):
    RoutingProof().after_batch(epoch_of(LossTotals(losses_routed=1, simple_losses_dense=1)))
    assert caplog.text == ""


class WithCtcHead(WithProjections):
    def __init__(self):
        super().__init__()
        self.ctc_output = nn.Sequential(nn.Linear(2, 3), nn.LogSoftmax(-1))


@pytest.mark.parametrize(
    ("model", "counted", "said"),
    [
        (
            MODEL,
            {},
            r"the model has no ctc_output; no call of torch\.nn\.functional\.ctc_loss was seen",
        ),
        (
            WithCtcHead(),
            {"ctc_losses_dense": 2, "materialised": {"ctc_output: exp": 1}},
            r"the model has ctc_output; .* was called 2 time\(s\), each .* by ctc_output: exp \(1 ",
        ),
    ],
)
def test_where_ctc_losses_were_asked_for_one_has_to_be_routed_too(model, counted, said):
    counted = LossTotals(losses_routed=1, simple_losses_routed=1, **counted)
    RoutingProof().after_batch(epoch_of(counted, model=model))
    with pytest.raises(NotRoutedError, match=f"--panda-ctc 1 was given, but no CTC .*: {said}"):
        RoutingProof(asks_ctc=True).after_batch(epoch_of(counted, model=model))


def test_ctc_losses_alone_are_a_proof_where_no_other_loss_was_seen(caplog):
    alone = LossTotals(ctc_losses_routed=1)
    RoutingProof(asks_ctc=True).after_batch(epoch_of(alone))
    assert "only CTC losses are routed; no transducer loss was seen" in caplog.text
    for further in (LossTotals(losses_dense=1), LossTotals(simple_losses_routed=1)):
        with pytest.raises(NotRoutedError, match="no loss was routed in the first training batch"):
            RoutingProof(asks_ctc=True).after_batch(epoch_of(alone + further))


def test_an_error_of_the_loss_comes_through_and_the_watch_ends(original):
    with pytest.raises(ZeroDivisionError):
        RoutingProof().around_loss(epoch_of(), lambda: 1 / 0)
    assert torch.nn.functional.ctc_loss is original


WITHOUT_TILES = LossTotals(losses_routed=1, tiles_forward=1)


@pytest.mark.parametrize(
    ("workspace_mib", "counted", "said"),
    [
        (1e9, LossTotals(losses_routed=1, tiles_forward=7), "which is more than the"),
        (1e9, WITHOUT_TILES, "which is more than the"),
        (1000, WITHOUT_TILES, "which holds the whole loss of the first batch in one tile"),
        (1000, LossTotals(losses_routed=1, tiles_forward=2), None),
        (16, WITHOUT_TILES, None),  # as by default
        (None, WITHOUT_TILES, None),
    ],
)
def test_a_workspace_with_which_nothing_is_tiled_is_warned_of_once(
    caplog, workspace_mib, counted, said
):
    proof, epoch = RoutingProof(workspace_mib), epoch_of(counted)
    begin(proof, epoch)
    begin(proof, epoch)
    proof.after_batch(epoch)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (said is not None)
    if said is not None:
        (text,) = warnings
        assert text.startswith(f"panda: --panda-workspace-mib: got {workspace_mib:g}, {said}")
        assert "the loss is not tiled" in text


def test_the_memory_of_a_gpu_bounds_its_workspace(monkeypatch, caplog):
    class Properties:
        total_memory = 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    begin(RoutingProof(2000), epoch_of(device="cuda:0"))
    assert "which is more than the 1024 MiB of cuda:0" in caplog.text
