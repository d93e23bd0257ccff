"""While a CUDA graph is captured every loss says that it cannot be, before any work."""

import pytest
import torch
import toy
import toy_full
import toy_simple
from torch.utils._python_dispatch import TorchDispatchMode

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.cuda_graphs import check_not_captured


class NoWork(TorchDispatchMode):
    """Refuses the operations that a loss is made of."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("mm", "addmm", "bmm", "exp", "tanh", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def capturing(monkeypatch):
    def begin():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)

    yield begin
    monkeypatch.undo()
    panda_icefall.revert()


def refused(call, *given, **more):
    with NoWork(), pytest.raises(RuntimeError, match=r"CUDA graph: got .*capture the encoder"):
        call(*given, **more)


def test_outside_a_capture_nothing_is_said(monkeypatch):
    check_not_captured("a loss")  # without a GPU
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    check_not_captured("a loss")


def test_the_losses_of_a_pruned_recipe_are_refused(capturing):
    panda_icefall.apply()
    data, model = toy.batch(rnnt), toy_simple.Transducer()
    am, lm = (x.detach() for x in model.projections(data))
    logits = toy.TanhJoiner()(*rnnt.do_rnnt_pruning(data.am, data.lm, data.ranges))
    capturing()
    refused(toy_simple.smoothed_loss, rnnt, am, lm, data)
    refused(rnnt.rnnt_loss_pruned, logits, data.symbols, data.ranges, 0, data.boundary)


def test_the_losses_of_ones_own_loop_are_refused(capturing):
    data, model = toy_full.batch(torch.float32), toy_full.Transducer("torchaudio")
    encoder_out = model.encoder(data.x).detach()
    decoder_out = model.decoder(torch.zeros(toy_full.B, toy_full.S + 1).long()).detach()
    given = encoder_out, decoder_out, data.y, data.x_lens, data.y_lens
    pruned = toy.batch(rnnt)
    capturing()
    refused(panda_icefall.transducer_loss, model.joiner, *given)
    refused(
        panda_icefall.pruned_transducer_loss, toy.TanhJoiner(), pruned.am, pruned.lm,
        pruned.symbols, pruned.ranges, 0, pruned.boundary,
    )  # fmt: skip


def test_selected_log_probs_are_refused(capturing):
    capturing()
    rows, weight, ids = torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(3, 1).long()
    refused(panda_icefall.selected_log_probs, rows, weight, None, ids)
