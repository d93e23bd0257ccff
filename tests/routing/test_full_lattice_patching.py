"""Losses of full lattices: what is replaced for them, when, and how it is put back."""

import gc
import sys
import types
import weakref

import counted
import pytest
import torch
import toy_full
from torch import nn

import panda_icefall
from panda_icefall.losses import of_logits
from panda_icefall.routing import applied, recording_projections, replace_awaited, suspended

pytestmark = pytest.mark.usefixtures("oracle_hosts")


def test_a_model_is_not_kept_alive():
    model = toy_full.Transducer("torchaudio")
    reference = weakref.ref(model)
    panda_icefall.apply(model)
    del model
    gc.collect()
    assert reference() is None
    panda_icefall.revert()


def test_torch_is_put_back_where_apply_meets_a_loss_of_ones_own():
    before = nn.Module.__call__, torch.autograd.backward

    class Applies(nn.Module):
        def forward(self, am, lm):
            panda_icefall.apply()
            return (am.unsqueeze(2) + lm.unsqueeze(1)).tanh()

    am, lm = torch.randn(1, 4, 5), torch.randn(1, 3, 5)
    lengths = torch.tensor([4]), torch.tensor([2])
    panda_icefall.transducer_loss(Applies(), am, lm, torch.tensor([[1, 2]]), *lengths)
    assert panda_icefall.status().materialised == {}
    assert nn.Module.__call__ is not before[0]
    panda_icefall.revert()
    assert (nn.Module.__call__, torch.autograd.backward) == before


def test_revert_restores_and_suspended_gives_the_originals_for_a_while():
    functional = sys.modules["torchaudio.functional"]
    originals = functional.rnnt_loss, sys.modules["k2"].rnnt_loss
    assert "optimized_transducer" not in sys.modules
    for host in toy_full.HOSTS:
        data, model = toy_full.batch(), toy_full.Transducer(host).double()
        expected, _ = toy_full.dense(model, data)
        panda_icefall.apply(model)
        assert functional.rnnt_loss.__wrapped__ is originals[0]
        with suspended():
            assert (functional.rnnt_loss, sys.modules["k2"].rnnt_loss) == originals
            package = sys.modules["optimized_transducer"]
            assert package.transducer_loss is of_logits.transducer_loss
            before = panda_icefall.status()
            torch.testing.assert_close(model(data).detach(), expected, rtol=1e-12, atol=0)
            assert (panda_icefall.status() - before).losses_routed == 0
        before = panda_icefall.status()
        model(data)
        assert (panda_icefall.status() - before).losses_routed == 1
        assert "joiner.forward" in panda_icefall.status().replaced
        panda_icefall.revert()
        assert (functional.rnnt_loss, sys.modules["k2"].rnnt_loss) == originals
        assert "optimized_transducer" not in sys.modules
    if host == "optimized_transducer":
        with pytest.raises(ModuleNotFoundError):
            model(data)


def test_an_installed_optimized_transducer_stays():
    installed = types.ModuleType("optimized_transducer")
    installed.transducer_loss = original = toy_full.host_losses.packed_loss
    sys.modules["optimized_transducer"] = installed
    model, data = toy_full.Transducer("optimized_transducer").double(), toy_full.batch()
    with counted.routed(model=model):
        model(data)
        assert sys.modules["optimized_transducer"] is installed
    assert sys.modules["optimized_transducer"] is installed
    assert installed.transducer_loss is original


@pytest.mark.parametrize("how", ["record", "replace"])
def test_torchaudio_may_be_imported_after_apply(how, monkeypatch):
    functional = sys.modules["torchaudio"].functional
    original = functional.rnnt_loss
    monkeypatch.delitem(sys.modules, "torchaudio.functional")
    model, data = toy_full.Transducer("torchaudio").double(), toy_full.batch()
    panda_icefall.apply()
    assert not any("torchaudio" in name for name in panda_icefall.status().replaced)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", functional)
    with suspended():
        replace_awaited()
        assert functional.rnnt_loss is original
    if how == "replace":
        assert functional.rnnt_loss.__wrapped__ is original
    panda_icefall.apply(model)
    model(data)
    assert panda_icefall.status().losses_routed == 1
    assert panda_icefall.status().replaced.count("torchaudio.functional.rnnt_loss") == 1
    panda_icefall.revert()
    assert functional.rnnt_loss is original


def test_steps_do_not_search_all_modules(monkeypatch):
    model, data = toy_full.Transducer("torchaudio").double(), toy_full.batch()
    panda_icefall.apply()

    def search(*args):
        raise AssertionError("a search of sys.modules in each step")

    monkeypatch.setattr(applied, "warn_of_other_names", search)
    with recording_projections(model):
        model(data)
    assert panda_icefall.status().losses_routed == 1
