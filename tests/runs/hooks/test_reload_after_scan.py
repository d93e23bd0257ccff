"""A sampler that a resumed run's scan went through to its end is put back where it was."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from panda_icefall.runs import UsageError
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.hooks.checkpoint_state import reload_after_scan
from panda_icefall.runs.hooks.repeatable_batches import RepeatableBatches
from panda_icefall.runs.recipe_calls import Epoch


class Sampler:
    """Ten batches an epoch, resumed as lhotse's samplers are."""

    def __init__(self):
        self.epoch = self.drawn = 0
        self._just_restored_state = False

    def set_epoch(self, epoch):
        if epoch != self.epoch:
            self._just_restored_state = False
        self.epoch = epoch

    def state_dict(self):
        return {"epoch": self.epoch, "drawn": self.drawn, "world_size": 1}

    def load_state_dict(self, state):
        assert state.pop("world_size") == 1, "another world size"
        self.epoch, self.drawn = state.pop("epoch"), state.pop("drawn")
        self._just_restored_state = True

    def __iter__(self):
        if not self._just_restored_state:
            self.drawn = 0
        return self

    def __next__(self):
        self._just_restored_state = False
        if self.drawn == 10:
            raise StopIteration
        self.drawn += 1
        return 100 * self.epoch + self.drawn


def epoch_of(folder, sampler, **params):
    model = torch.nn.Linear(2, 1)
    arguments = {
        "params": SimpleNamespace(exp_dir=folder, batch_idx_train=14, start_batch=14, **params),
        "train_dl": SimpleNamespace(sampler=sampler),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=0.5),
    }
    return Epoch(arguments, torch.device("cpu"), CounterLedger())


def begin(epoch):
    with RepeatableBatches(1).epoch(epoch):
        pass


def step(epoch):
    epoch.arguments["model"](torch.ones(3, 2)).sum().backward()
    epoch.arguments["optimizer"].step()


@pytest.fixture
def resumed(tmp_path):
    """A run resumed from a checkpoint within its second epoch, whose scan also took a step."""

    def resume(leave_out=(), **params):
        whole = epoch_of(tmp_path, Sampler())
        sampler = whole.arguments["train_dl"].sampler
        sampler.set_epoch(1)
        batches = iter(sampler)
        assert [next(batches) for _ in range(4)] == [101, 102, 103, 104]
        step(whole)
        state = {k: copy.deepcopy(whole.arguments[k].state_dict()) for k in ("model", "optimizer")}
        state["sampler"] = sampler.state_dict()
        kept = {name: value for name, value in state.items() if name not in leave_out}
        torch.save(kept, tmp_path / "checkpoint-14.pt")

        again = epoch_of(tmp_path, Sampler(), **params)
        again.arguments["train_dl"].sampler.load_state_dict(dict(state["sampler"]))
        again.arguments["model"].load_state_dict(state["model"])
        again.arguments["optimizer"].load_state_dict(state["optimizer"])
        assert len(list(again.arguments["train_dl"].sampler)) == 6
        step(again)
        again.arguments["train_dl"].sampler.set_epoch(1)
        return whole, again

    return resume


def test_the_batches_that_are_left_and_the_models_values_are_back(resumed, caplog):
    caplog.set_level(logging.INFO)
    whole, again = resumed()
    begin(again)
    assert list(again.arguments["train_dl"].sampler) == list(range(105, 111))
    assert "loaded again from checkpoint-14.pt" in caplog.text
    for _ in range(2):
        for old, new in zip(*(e.arguments["model"].parameters() for e in (whole, again))):
            assert torch.equal(old, new)
        step(whole)
        step(again)


def test_a_sampler_that_no_scan_went_through_is_left_alone(resumed):
    _, again = resumed()
    (again.folder / "checkpoint-14.pt").unlink()
    again.arguments["train_dl"].sampler._just_restored_state = True
    reload_after_scan(again, 14)
    again.arguments["train_dl"] = [1, 2]
    reload_after_scan(again, 14)


def test_a_checkpoint_without_a_sampler_is_refused(resumed):
    _, again = resumed(leave_out=["sampler"])
    expected = r"--start-batch 14: the sampler .* start of its epoch, and .*14\.pt holds no sampler"
    with pytest.raises(UsageError, match=expected):
        begin(again)


def test_a_recipe_that_skips_trained_batches_itself_needs_no_sampler(resumed):
    _, again = resumed(leave_out=["sampler"], cur_batch_idx=3)
    begin(again)
    assert again.arguments["params"].cur_batch_idx == 4


def test_a_recipe_that_skips_trained_batches_has_none_to_skip_after_a_restored_sampler(resumed):
    _, again = resumed(cur_batch_idx=3)
    begin(again)
    assert again.arguments["params"].cur_batch_idx == 0
    assert next(iter(again.arguments["train_dl"].sampler)) == 105


def test_a_checkpoint_that_is_gone_is_named(resumed):
    _, again = resumed()
    (again.folder / "checkpoint-14.pt").unlink()
    with pytest.raises(UsageError, match=r"checkpoint-14\.pt does not exist; restore that file"):
        reload_after_scan(again, 14)


def test_another_epoch_than_the_checkpoints_is_refused(resumed):
    _, again = resumed()
    again.arguments["train_dl"].sampler.set_epoch(2)
    with pytest.raises(UsageError, match=r"got a sampler saved in epoch 1 .*expected the epoch 2"):
        reload_after_scan(again, 14)


def test_a_sampler_that_does_not_take_its_state_is_named(resumed):
    _, again = resumed()
    path = again.folder / "checkpoint-14.pt"
    state = torch.load(path, weights_only=False)
    state["sampler"]["world_size"] = 2
    torch.save(state, path)
    with pytest.raises(UsageError, match=r"cannot load its state: .*another world size"):
        reload_after_scan(again, 14)


@pytest.mark.parametrize("kind", ["DynamicBucketingSampler", "SimpleCutSampler"])
@pytest.mark.parametrize("is_scanned", [False, True])
def test_lhotses_own_samplers_go_on_with_the_batch_after_the_checkpoint(tmp_path, kind, is_scanned):
    dataset = pytest.importorskip("lhotse.dataset")
    from lhotse import CutSet
    from lhotse.testing.dummies import DummyManifest

    cuts = DummyManifest(CutSet, begin_id=0, end_id=60)
    own = {"num_buckets": 2} if kind == "DynamicBucketingSampler" else {}

    def make():
        return getattr(dataset, kind)(cuts, max_duration=4, shuffle=True, seed=1, **own)

    def ids(sampler):
        return [[cut.id for cut in batch] for batch in sampler]

    sampler = make()
    if is_scanned:
        dataset.find_pessimistic_batches(sampler)
    sampler.set_epoch(1)
    whole = []
    for batch in sampler:
        whole.append([cut.id for cut in batch])
        if len(whole) == 5:
            saved = copy.deepcopy(sampler.state_dict())
    again = epoch_of(tmp_path, make())
    state = {"sampler": copy.deepcopy(saved), "model": again.arguments["model"].state_dict()}
    torch.save(state, tmp_path / "checkpoint-5.pt")
    resumed_sampler = again.arguments["train_dl"].sampler
    resumed_sampler.load_state_dict(saved)
    dataset.find_pessimistic_batches(resumed_sampler)
    resumed_sampler.set_epoch(1)
    reload_after_scan(again, 5)
    assert ids(resumed_sampler) == whole[5:]
    for each in (sampler, resumed_sampler):
        each.set_epoch(2)
    assert ids(resumed_sampler) == ids(sampler)
