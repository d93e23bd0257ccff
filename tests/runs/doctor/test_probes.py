"""What a child process of the doctor tries and prints, tried in this process."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from panda_icefall import engine_choice, rnnt, routing
from panda_icefall.runs.doctor import probes


@pytest.fixture
def answered(capsys):
    """The answer of a probe, behind whatever an import prints."""

    def answer(probe):
        probes.answer(probe)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return answer


@pytest.fixture
def fake_k2(monkeypatch):
    k2 = ModuleType("k2")
    for name in rnnt.__all__:
        setattr(k2, name, getattr(rnnt, name))
    extension = ModuleType("_k2")
    extension.version = SimpleNamespace(__version__="1.24", with_cuda=False)
    monkeypatch.setitem(sys.modules, "k2", k2)
    monkeypatch.setitem(sys.modules, "_k2", extension)
    return k2


def test_k2_tells_its_build_and_what_it_does_not_say_is_unknown(answered, fake_k2):
    facts = answered("k2")["facts"]
    assert (facts["__version__"], facts["with_cuda"]) == ("1.24", "False")
    assert facts["git_sha1"] == facts["torch_version"] == "unknown"


def test_an_import_that_fails_is_the_answer(answered, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    assert answered("k2")["error"].startswith("ModuleNotFoundError: import of k2 halted")


def test_routing_is_applied_listed_and_reverted(answered, fake_k2):
    original = fake_k2.rnnt_loss_pruned
    assert "k2.rnnt_loss_pruned" in answered("routing")["facts"]["replaced"]
    assert fake_k2.rnnt_loss_pruned is original
    assert routing.status().replaced == ()


def test_lhotse_makes_a_sampler(answered):
    lhotse = pytest.importorskip("lhotse")
    assert answered("lhotse") == {"facts": {"version": lhotse.__version__}}


def test_each_gpu_is_asked_for_its_kernel(answered, monkeypatch):
    assert answered("triton") == {"facts": {}} or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    why = {0: None, 1: "no C compiler"}
    monkeypatch.setattr(engine_choice, "why_not_triton", lambda device: why[device.index])
    assert answered("triton")["facts"] == {"cuda:0": None, "cuda:1": "no C compiler"}
