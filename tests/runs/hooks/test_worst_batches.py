"""The worst batches of a sampler: those known by hand, and those that icefall's scan names."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from panda_icefall.runs import BoundReached, PandaOptions, UsageError, run_recipe
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.hooks import worst_batches
from panda_icefall.runs.hooks.worst_batches import WorstBatches, find_worst
from panda_icefall.runs.options import WorstOnly
from panda_icefall.runs.recipe_calls import Epoch


def cut(seconds, text, *more):
    supervisions = [SimpleNamespace(duration=seconds, text=t) for t in (text, *more)]
    return SimpleNamespace(duration=seconds, supervisions=supervisions)


class Sampler(list):
    """An epoch of batches, with what tells lhotse's samplers from torch's."""

    def state_dict(self):
        return {}


class Loader:
    def __init__(self, batches):
        self.sampler = Sampler(batches)
        self.dataset = _Dataset()


class _Dataset:
    def __getitem__(self, cuts):
        return {"cuts": cuts}


# By its number: many short ones, one long among short ones, the longest transcript, the most
# seconds of speech.
BATCHES = [
    [cut(1.0, "ab")] * 30,
    [cut(12.0, "abcd"), *[cut(2.0, "a")] * 8],
    [cut(5.0, "a" * 90), cut(5.0, None)],
    [cut(9.0, "abc")] * 7,
]


def test_each_measure_has_its_batch():
    scan, chosen = find_worst(Sampler(BATCHES))
    assert scan.batches == 4
    assert chosen[0] is BATCHES[1]
    found = {name: size for size in scan.worst for name in size.worst_by}
    by_cuts = {size.cuts: size for size in scan.worst}
    assert set(by_cuts) == {30, 9, 2, 7}
    assert by_cuts[9].padded_seconds == 9 * 12.0
    assert found["seconds with padding"] is by_cuts[9]
    assert found["padding"] is by_cuts[9]
    assert found["longest cut"] is by_cuts[9]
    assert found["cuts"] is by_cuts[30]
    assert found["longest transcript"] is by_cuts[2]
    assert found["predictor states"] is by_cuts[2]
    assert found["lattice sites"] is by_cuts[2]
    assert found["seconds"] is by_cuts[7]


def test_what_is_not_looked_at_is_not_found():
    scan, chosen = find_worst(Sampler(BATCHES), 1)
    assert scan.batches == 1
    assert all(batch is BATCHES[0] for batch in chosen)
    assert find_worst(Sampler([])) == (worst_batches.Scan(batches=0, worst=[]), [])


def test_a_batch_may_be_a_tuple_that_begins_with_its_cuts():
    batches = [(cuts, "more") for cuts in BATCHES]
    scan, chosen = find_worst(Sampler(batches))
    assert chosen[0] is batches[1]
    assert len(scan.worst) == 4


def lhotse_sampler(max_duration=60):
    lhotse = pytest.importorskip("lhotse")
    from lhotse.dataset import DynamicBucketingSampler

    draw = random.Random(7)

    def one(i):
        seconds = round(draw.uniform(1, 16), 2)
        text = "x" * draw.randint(0, int(6 * seconds))
        supervision = lhotse.SupervisionSegment(f"{i}", "r", 0, seconds, text=text)
        return lhotse.MonoCut(str(i), 0, seconds, channel=0, supervisions=[supervision])

    cuts = lhotse.CutSet.from_cuts(one(i) for i in range(600))
    return DynamicBucketingSampler(
        cuts, max_duration=max_duration, num_buckets=4, shuffle=True, seed=1
    )


def test_all_that_icefalls_scan_names_is_among_them_and_more():
    from lhotse.dataset import find_pessimistic_batches

    sampler = lhotse_sampler()
    scan, _ = find_worst(sampler)
    ours = {name: size for size in scan.worst for name in size.worst_by}
    _, theirs = find_pessimistic_batches(lhotse_sampler())
    assert ours["cuts"].cuts == theirs["max_num_cuts"]
    assert ours["longest cut"].longest_seconds == theirs["single_longest_cut"]
    assert ours["seconds"].seconds == pytest.approx(theirs["largest_batch_cuts_duration"])
    batches = [list(cuts) for cuts in lhotse_sampler()]
    assert scan.batches == len(batches)
    padded = max(len(cuts) * max(c.duration for c in cuts) for cuts in batches)
    assert ours["seconds with padding"].padded_seconds == pytest.approx(padded)
    assert padded > theirs["largest_batch_cuts_duration"]
    letters = max(len(c.supervisions[0].text) for cuts in batches for c in cuts)
    assert ours["longest transcript"].transcript == letters


def epoch_of(loader, **arguments):
    model = torch.nn.Linear(2, 2)
    given = {"model": model, "train_dl": loader, **arguments}
    return Epoch(given, torch.device("cpu"), CounterLedger())


def test_the_recipe_gets_each_once_and_the_first_again_then_the_run_ends(tmp_path):
    epoch = epoch_of(Loader(BATCHES), valid_dl=[1, 2, 3])
    hook = WorstBatches(WorstOnly(str(tmp_path / "scan.json")))
    with hook.epoch(epoch):
        trained = []
        for batch in epoch.arguments["train_dl"]:
            hook.before_batch(epoch)
            trained.append(batch["cuts"])
        with pytest.raises(BoundReached):
            hook.before_batch(epoch)
    assert trained[0] is BATCHES[1]
    assert trained[-1] is BATCHES[1]
    assert sorted(map(len, trained)) == [2, 7, 9, 9, 30]
    assert list(epoch.arguments["valid_dl"]) == [1]
    report = json.loads((tmp_path / "scan.json").read_text())
    assert report["batches"] == 4
    assert report["available_bytes"] is None
    assert report["worst"][0]["cuts"] == 9


def test_ranks_train_on_equally_many(tmp_path, monkeypatch):
    monkeypatch.setattr(worst_batches, "_is_one_of_several", lambda: True)
    counts = set()
    for batches in (BATCHES, BATCHES[:1]):
        epoch = epoch_of(Loader(batches))
        with WorstBatches(WorstOnly(str(tmp_path / "scan.json"))).epoch(epoch):
            counts.add(len(list(epoch.arguments["train_dl"])))
    assert len(counts) == 1


def test_an_epoch_without_a_batch_is_reported_and_ends(tmp_path):
    hook = WorstBatches(WorstOnly(str(tmp_path / "scan.json")))
    with pytest.raises(BoundReached), hook.epoch(epoch_of(Loader([]))):
        pass
    assert json.loads((tmp_path / "scan.json").read_text())["worst"] == []


def test_an_iterable_dataset_may_have_the_sampler(tmp_path):
    loader = Loader(BATCHES)
    loader.dataset.sampler, loader.sampler = loader.sampler, object()
    loader.dataset.dataset = _Dataset()
    epoch = epoch_of(loader)
    with WorstBatches(WorstOnly(str(tmp_path / "scan.json"))).epoch(epoch):
        assert len(list(epoch.arguments["train_dl"])) == 5


def test_other_samplers_are_refused(tmp_path, recipe):
    options = PandaOptions(memory_log=tmp_path / "m.jsonl", worst_only=WorstOnly("scan.json"))
    with pytest.raises(UsageError, match="train_dl is a Loader with the sampler str, expected a"):
        run_recipe(recipe.train_py, [], options)
    hook = WorstBatches(WorstOnly(str(tmp_path / "scan.json")))
    epoch = epoch_of(Loader([[3, 4]]))
    with pytest.raises(UsageError, match="has a int, expected lhotse's cuts"), hook.epoch(epoch):
        pass


def test_a_limit_is_set_and_what_may_be_used_reported(tmp_path, monkeypatch):
    capped = []
    monkeypatch.setattr(worst_batches, "cap_memory", lambda *given: capped.append(given))
    monkeypatch.setattr(worst_batches, "status_bytes", {"VmRSS": 500}.__getitem__)
    hook = WorstBatches(WorstOnly(str(tmp_path / "scan.json"), limit_bytes=70))
    with hook.epoch(epoch_of(Loader(BATCHES))):
        assert capped == [(70, torch.device("cpu"))]
    assert json.loads((tmp_path / "scan.json").read_text())["available_bytes"] == 570


def test_a_gpu_has_what_is_free_and_no_more_than_the_limit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (900, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    device = torch.device("cuda", 0)
    assert worst_batches._available(device, None) == 950
    assert worst_batches._available(device, 300) == 300
    assert worst_batches._available(device, 3000) == 950


def test_a_limit_that_cannot_be_set_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(worst_batches, "cap_memory", fail)
    hook = WorstBatches(WorstOnly(str(tmp_path / "scan.json"), limit_bytes=70))
    epoch = epoch_of(Loader(BATCHES))
    with pytest.raises(UsageError, match="--limit-mib: cannot be set here: not"), hook.epoch(epoch):
        pass
