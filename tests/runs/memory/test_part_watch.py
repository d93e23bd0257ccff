"""Encoder, losses, backward and optimizer are seen as they run, and left as they were found."""

import copy
import io
import pickle
import socket
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from panda_icefall import rnnt, routing
from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.memory.part_watch import PartWatch

try:
    import k2 as K2
except ImportError:
    K2 = rnnt

LOSSES = ("rnnt_loss_simple", "rnnt_loss_smoothed", "do_rnnt_pruning", "rnnt_loss_pruned")
FORWARD = ["other", "encoder", "simple_loss", "pruned_loss"]
BACKWARD = ["other", "backward", "optimizer"]


class Meter:
    """Writes down what it is told."""

    current = "other"

    def __init__(self):
        self.told = []

    def enter(self, name):
        self.told.append(f"+{name}")

    def leave(self, name, *, is_held=False):
        self.told.append(f"-{name}" + "..." * is_held)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder_embed = nn.Linear(3, 3)
        self.encoder = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.decoder = nn.Linear(3, 3)

    def forward(self, x):
        return self.decoder(self.encoder(self.encoder_embed(x)))


class Noam:
    """An optimizer that is none of torch's, as in older recipes."""

    def __init__(self, model):
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.steps = 0

    def step(self):
        self.steps += 1
        self.optimizer.step()


@pytest.fixture
def watch_of():
    watches = []

    def make(model=None, optimizer=None):
        watches.append(PartWatch(Meter(), model, optimizer))
        watches[-1].install()
        return watches[-1], watches[-1]._meter.told

    yield make
    for watch in watches:
        watch.remove()


def test_encoders_are_the_top_modules_of_that_name(watch_of):
    model = Model()
    _, told = watch_of(model)
    model(torch.ones(2, 3))
    assert told == ["+encoder", "-encoder"] * 2


def test_projections_to_classes_belong_to_the_simple_loss_until_it_is_over(monkeypatch, watch_of):
    monkeypatch.setattr(rnnt, "rnnt_loss_smoothed", lambda am, lm: 1)
    model = nn.Module()
    model.simple_am_proj, model.simple_lm_proj = nn.Linear(3, 4), nn.Linear(3, 4)
    watch, told = watch_of(model)
    x = torch.ones(1, 2, 3)
    rnnt.rnnt_loss_smoothed(model.simple_am_proj(x), model.simple_lm_proj(x))
    assert told == ["+simple_loss", "-simple_loss..."] * 2 + ["+simple_loss", "-simple_loss"]
    watch.remove()
    model.simple_am_proj(x)
    assert len(told) == 6


def test_a_full_lattice_loss_begins_with_the_joiner(monkeypatch, watch_of):
    monkeypatch.setattr(rnnt, "rnnt_loss", lambda logits: 1)
    monkeypatch.setattr(rnnt, "do_rnnt_pruning", lambda am: am)
    model = nn.Module()
    model.joiner = nn.Linear(3, 4)
    watch, told = watch_of(model)
    rnnt.rnnt_loss(model.joiner(torch.ones(1, 2, 3)))
    assert told == ["+full_loss", "-full_loss...", "+full_loss", "-full_loss"]
    told.clear()
    watch._meter.current = "pruned_loss"  # as after the pruning
    model.joiner(torch.ones(1, 2, 3))
    assert "+full_loss" not in told


def test_a_model_without_an_encoder_has_none(watch_of):
    model = nn.Sequential(nn.Linear(3, 3))
    _, told = watch_of(model)
    model(torch.ones(2, 3))
    assert told == []


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_seen_and_put_back(monkeypatch, watch_of, name):
    def function(value):
        """Its own text."""
        return 2 * value

    monkeypatch.setattr(rnnt, name, function)
    watch, told = watch_of()
    assert getattr(rnnt, name)(4) == 8
    assert getattr(rnnt, name).__doc__ == "Its own text."
    part = "pruned_loss" if name.endswith(("_pruning", "_pruned")) else "simple_loss"
    assert told == [f"+{part}", f"-{part}" + "..." * (name == "do_rnnt_pruning")]
    watch.remove()
    assert getattr(rnnt, name) is function


def test_what_raises_is_left_and_not_held(monkeypatch, watch_of):
    def function():
        raise MemoryError("full")

    monkeypatch.setattr(rnnt, "do_rnnt_pruning", function)
    _, told = watch_of()
    with pytest.raises(MemoryError, match="full"):
        rnnt.do_rnnt_pruning()
    assert told == ["+pruned_loss", "-pruned_loss"]


def test_what_routing_put_in_place_is_watched_and_can_be_reverted(watch_of):
    dense = K2.do_rnnt_pruning
    with routing.patched():
        routed = K2.do_rnnt_pruning
        watch, _ = watch_of()
        assert K2.do_rnnt_pruning.__wrapped__ is routed
        watch.remove()
        assert K2.do_rnnt_pruning is routed
    assert K2.do_rnnt_pruning is dense


def test_what_somebody_wrapped_meanwhile_is_not_lost(monkeypatch, watch_of):
    monkeypatch.setattr(rnnt, "rnnt_loss_simple", lambda: 1)
    watch, _ = watch_of()
    inner = rnnt.rnnt_loss_simple
    rnnt.rnnt_loss_simple = lambda: inner() + 1
    watch.remove()
    assert rnnt.rnnt_loss_simple() == 2


def optimizers(model):
    counted = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(counted, 1)  # leaves its wrapper on the instance
    return [torch.optim.Adam(model.parameters()), counted, Noam(model)]


@pytest.mark.parametrize("which", range(3))
def test_backward_and_the_step_of_every_kind_of_optimizer_are_seen(watch_of, which):
    model = Model()
    optimizer = optimizers(model)[which]
    before, of_class = dict(vars(optimizer)), type(optimizer).step
    backward = torch.Tensor.backward
    watch, told = watch_of(None, optimizer)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert told == ["+backward", "-backward", "+optimizer", "-optimizer"]
    watch.remove()
    assert torch.Tensor.backward is backward
    assert type(optimizer).step is of_class
    assert vars(optimizer).get("step") is before.get("step")
    assert list(vars(optimizer)) == list(before) or which != 2


def test_an_optimizer_that_inherits_its_step_inherits_it_again(watch_of):
    class Own(torch.optim.SGD):
        pass

    watch, told = watch_of(None, Own([nn.Parameter(torch.ones(1))], lr=0.1))
    watch._optimizer.step()
    assert told == ["+optimizer", "-optimizer"]
    watch.remove()
    Own([nn.Parameter(torch.ones(1))], lr=0.1).step()
    assert len(told) == 2


def test_an_object_without_a_step_is_no_optimizer(watch_of):
    watch, _ = watch_of(None, SimpleNamespace(step=None))
    watch.remove()
    assert watch._optimizer.step is None


@pytest.mark.parametrize("which", [0, 1])
def test_model_and_optimizer_can_be_copied_and_saved_meanwhile(watch_of, which):
    model = Model()
    optimizer = optimizers(model)[which]
    _, told = watch_of(model, optimizer)
    torch.save([model.state_dict(), optimizer.state_dict()], io.BytesIO())
    pickle.loads(pickle.dumps(optimizer))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied(torch.ones(2, 3))
    assert told == []
    model(torch.ones(2, 3))
    assert len(told) == 4


def test_a_model_whose_forward_is_over_has_no_hooks(watch_of):
    model = Model()
    watch, _ = watch_of(model)
    assert model.encoder._forward_hooks
    watch.remove()
    assert not model.encoder._forward_hooks
    watch.install(has_forward=False)
    assert not model.encoder._forward_hooks


def test_a_copied_noam_steps_its_own_parameters(watch_of):
    noam = Noam(Model())
    watch_of(None, noam)
    copied = copy.deepcopy(noam)
    copied.step()
    assert (noam.steps, copied.steps) == (0, 1)


@pytest.mark.parametrize("use_panda", [False, True])
def test_the_parts_of_each_step_are_in_the_log_and_add_up(recipe, use_panda):
    before = [getattr(K2, name) for name in LOSSES]
    options = PandaOptions(use_panda=use_panda, memory_log=recipe.folder / "m.jsonl")
    assert run_recipe(recipe.train_py, [], options) == 0
    assert [getattr(K2, name) for name in LOSSES] == before
    phases, parts = recipe.phases("m.jsonl"), recipe.parts("m.jsonl")
    assert len(phases) == 8
    for phase in phases:
        mine = [p for p in parts if (p["step"], p["within"]) == (phase["step"], phase["phase"])]
        names = FORWARD if phase["phase"] == "compute_loss" else BACKWARD
        assert [p["phase"] for p in mine] == names
        assert sum(p["seconds"] for p in mine) == pytest.approx(phase["seconds"], rel=1e-9)
        assert max(p["peak_rss_bytes"] for p in mine) == phase["peak_rss_bytes"]
        assert {p["batch_idx_train"] for p in mine} == {phase["step"]}
        assert all(p["stretches"] == 1 for p in mine if p["phase"] != "other")


def test_an_interrupted_phase_has_the_parts_it_came_to(recipe):
    joined = "logits = self.joiner(am_pruned, lm_pruned)"
    recipe.edit((joined, "raise MemoryError('full')"), name="toy_model.py")
    with pytest.raises(MemoryError, match="full"):
        run_recipe(recipe.train_py, [], PandaOptions(memory_log=recipe.folder / "m.jsonl"))
    assert [p["phase"] for p in recipe.parts("m.jsonl")] == FORWARD
    (phase,) = recipe.phases("m.jsonl")
    assert phase["error"] == "MemoryError: full"
    model = Model()
    model(torch.ones(2, 3)).sum().backward()


def test_passes_of_the_contract_check_are_not_recorded(recipe):
    options = PandaOptions(check_batches=2, max_batches=2, memory_log=recipe.folder / "m.jsonl")
    assert run_recipe(recipe.train_py, [], options) == 0
    parts = recipe.parts("m.jsonl")
    assert [p["phase"] for p in parts] == (FORWARD + BACKWARD) * 2
    assert all(p["stretches"] == 1 for p in parts if p["phase"] != "other")


def test_without_a_log_nothing_is_wrapped(recipe, monkeypatch):
    def refuse(self, **_):
        raise AssertionError("installed")

    monkeypatch.setattr(PartWatch, "install", refuse)
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0


def test_the_encoder_inside_ddp_is_seen(recipe):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    words = ["--world-size", 2, "--master-port", port, "--panda-memory-log", "m.jsonl"]
    done = recipe.subprocess("run", "train.py", *words)
    assert done.returncode == 0, done.stderr
    for name in ("m.jsonl", "m.rank1.jsonl"):
        assert [p["phase"] for p in recipe.parts(name)] == (FORWARD + BACKWARD) * 4
