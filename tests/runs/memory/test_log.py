"""The memory log has a row per step and phase, whatever becomes of the run."""

import builtins
import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from panda_icefall.runs import PandaOptions, UsageError, run_recipe
from panda_icefall.runs.atomic_file import finite_json
from panda_icefall.runs.hooks.memory_log import MemoryLogging
from panda_icefall.runs.memory.log import MemoryLog, rank_path
from panda_icefall.runs.memory.part_watch import PartMeter
from panda_icefall.runs.memory.probe import MemoryProbe, process_peak_bytes
from panda_icefall.runs.memory.reading import read_last_run

PHASES = ["compute_loss", "backward_update"]


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))


def options_for(recipe, **settings):
    return PandaOptions(memory_log=recipe.folder / "log" / "m.jsonl", **settings)


def test_the_peak_of_a_stretch_counts_what_was_freed_again():
    probe = MemoryProbe("cpu")
    probe.start()
    start = probe.read()
    block = torch.ones(40 * 2**20 // 4)
    del block
    reading = probe.read()
    assert reading.peak_bytes >= start.current_bytes + 39 * 2**20
    if not reading.is_since_start:
        probe.start()
        assert probe.read().peak_bytes < reading.peak_bytes - 30 * 2**20


def test_the_peak_of_the_process_outlives_the_resets_of_the_probes():
    probe = MemoryProbe("cpu")
    before = process_peak_bytes(probe.device)
    probe.start()
    block = torch.ones((before + 40 * 2**20) // 4)
    block_bytes = block.numel() * 4
    del block
    probe.start()
    assert process_peak_bytes(probe.device) >= block_bytes
    probe.start()
    assert process_peak_bytes(probe.device) >= block_bytes


def test_a_peak_that_cannot_be_reset_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "panda_icefall.runs.memory.probe._CLEAR_REFS", tmp_path / "none" / "clear_refs"
    )
    probe = MemoryProbe("cpu")
    probe.start()
    assert probe.read().as_row()["peak_is_since_start"] is True


def test_without_proc_the_peak_comes_from_getrusage(monkeypatch, tmp_path):
    expected = MemoryProbe("cpu").read().peak_bytes
    monkeypatch.setattr("panda_icefall.runs.memory.probe._STATUS", tmp_path / "status")
    assert MemoryProbe("cpu").read().peak_bytes >= expected // 2


def test_every_step_has_two_rows_with_the_counters_of_its_phase(recipe):
    assert run_recipe(recipe.train_py, [], options_for(recipe, use_panda=True)) == 0
    header, *_, end = recipe.rows("log/m.jsonl")
    assert (end["row"], end["reason"]) == ("end", "complete")
    rows = recipe.phases("log/m.jsonl")
    assert header["row"] == "header"
    assert header["versions"]["torch"] == torch.__version__
    assert header["options"]["use_panda"] is True
    assert [(r["step"], r["phase"]) for r in rows] == [(s, p) for s in range(1, 5) for p in PHASES]
    for forward, backward in zip(rows[::2], rows[1::2]):
        assert forward["losses_routed"] == 1
        assert (forward["simple_losses_routed"], forward["simple_losses_of_tensors"]) == (1, 0)
        assert forward["simple_forward_seconds"] > 0 == forward["simple_backward_seconds"]
        assert backward["simple_backward_seconds"] > 0 == backward["simple_forward_seconds"]
        assert forward["tiles_forward"] >= 1
        assert 0 < forward["sites_evaluated"] < forward["sites"]  # the batches are ragged
        assert forward["tiles_backward"] == 0
        assert backward["tiles_forward"] == 0
        assert backward["tiles_backward"] >= 1
        assert 0 < backward["sites_backward"] <= forward["sites_evaluated"]
        assert backward["adjoint_mass"] > backward["adjoint_mass_skipped"] >= 0
        assert forward["batch_idx_train"] == forward["step"]
        for row in (forward, backward):
            assert row["rank"] == 0
            assert row["device"] == "cpu"
            assert row["seconds"] > 0
            assert row["peak_rss_bytes"] >= row["rss_bytes"] > 0
    losses = [float(line) for line in recipe.lines("exp/losses-0.txt")]
    assert [r["loss"] for r in rows[::2]] == losses
    assert all(r["frames"] > 0 for r in rows[::2])


def test_a_dense_run_is_logged_too(recipe):
    assert run_recipe(recipe.train_py, [], options_for(recipe)) == 0
    rows = recipe.phases("log/m.jsonl")
    assert [r["phase"] for r in rows] == PHASES * 4
    assert {r["losses_routed"] for r in rows} == {0}


def test_rows_outlive_an_exception_of_the_recipe(recipe):
    with pytest.raises(RuntimeError, match="on purpose"):
        run_recipe(recipe.train_py, ["--fail-at", "1"], options_for(recipe))
    rows = recipe.phases("log/m.jsonl")
    assert [(r["step"], r["phase"]) for r in rows] == [(s, p) for s in (1, 2) for p in PHASES]
    assert rows[-1]["error"] == "RuntimeError: the toy recipe fails on purpose"


def test_an_exception_inside_compute_loss_has_its_row(recipe):
    recipe.edit(("    assert loss.requires_grad ==", "    raise MemoryError('full')\n    assert"))
    with pytest.raises(MemoryError):
        run_recipe(recipe.train_py, [], options_for(recipe))
    (row,) = recipe.phases("log/m.jsonl")
    assert (row["phase"], row["error"]) == ("compute_loss", "MemoryError: full")


def test_rows_outlive_a_killed_process(recipe):
    done = recipe.subprocess("run", "train.py", "--kill-at", 1, "--panda-memory-log", "m.jsonl")
    assert done.returncode == -9
    assert all(row["row"] != "end" for row in recipe.rows("m.jsonl"))
    rows = recipe.phases("m.jsonl")
    assert [(r["step"], r["phase"]) for r in rows] == [
        (1, "compute_loss"),
        (1, "backward_update"),
        (2, "compute_loss"),
    ]


def test_the_recipes_tensorboard_gets_the_same_scalars(recipe):
    given = "    args = get_parser().parse_args()\n"
    writer = "    import builtins\n    args.tb_writer = builtins.toy_writer\n"
    recipe.edit((given, given + writer), ("json.dumps(params)", "''"))
    builtins.toy_writer = Writer()
    try:
        assert run_recipe(recipe.train_py, [], options_for(recipe, use_panda=True)) == 0
        scalars = builtins.toy_writer.scalars
    finally:
        del builtins.toy_writer
    rows = recipe.phases("log/m.jsonl")
    found = [s for s in scalars if s[0] == "panda/compute_loss/peak_rss_bytes"]
    assert [(value, step) for _, value, step in found] == [
        (r["peak_rss_bytes"], r["step"]) for r in rows[::2]
    ]
    assert {name.split("/")[0] for name, _, _ in scalars} == {"panda"}
    names = {name for name, _, _ in scalars}
    assert "panda/compute_loss/encoder/seconds" in names
    assert "panda/backward_update/other/peak_rss_bytes" in names


def test_a_log_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "m.jsonl"
    with pytest.raises(UsageError, match="--panda-memory-log: cannot write"):
        MemoryLog(path, 0, PandaOptions(memory_log=path), torch.device("cpu"))


def test_other_ranks_write_beside_rank_zero(tmp_path):
    assert rank_path(tmp_path / "m.jsonl", 0).name == "m.jsonl"
    assert rank_path(tmp_path / "m.jsonl", 3).name == "m.rank3.jsonl"


def test_what_strict_json_lacks_is_spelt_out():
    value = {"a": float("nan"), "b": [1.5, float("-inf")], "c": (True, None)}
    assert json.loads(json.dumps(finite_json(value), allow_nan=False)) == {
        "a": "nan",
        "b": [1.5, "-inf"],
        "c": [True, None],
    }


class Allocator:
    """What torch.cuda tells of a GPU that is not there; counts what it is asked for."""

    def __init__(self, monkeypatch):
        self.current = self.peak = self.reserved = self.peak_reserved = 0
        self.asked = []
        for name in ("synchronize", "memory_stats", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)

    def hold(self, allocated, reserved):
        self.current, self.reserved = allocated, reserved
        self.peak, self.peak_reserved = (
            max(self.peak, allocated), max(self.peak_reserved, reserved)
        )  # fmt: skip

    def synchronize(self, device):
        self.asked.append("synchronize")

    def memory_stats(self, device):
        self.asked.append("memory_stats")
        return {
            "allocated_bytes.all.current": self.current, "allocated_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.peak_reserved,
        }  # fmt: skip

    def reset_peak_memory_stats(self, device):
        self.asked.append("reset")
        self.peak, self.peak_reserved = self.current, self.reserved


def test_a_gpu_is_asked_once_at_each_cut(monkeypatch):
    allocator, device = Allocator(monkeypatch), torch.device("cuda", 3)
    meter = PartMeter(MemoryProbe(device))
    allocator.hold(7, 70)
    allocator.hold(5, 70)
    meter.start()
    allocator.asked.clear()
    allocator.hold(30, 80)
    allocator.hold(10, 60)
    meter.enter("losses")
    assert allocator.asked == ["synchronize", "memory_stats", "reset"]
    allocator.hold(20, 65)
    allocator.hold(11, 64)
    meter.leave("losses")
    allocator.hold(12, 90)
    whole, parts = meter.finish()
    assert parts["losses"].reading.as_row() == {
        "device": "cuda:3", "allocated_bytes": 11, "reserved_bytes": 64, "peak_bytes": 20,
        "peak_reserved_bytes": 65,
    }  # fmt: skip
    assert (whole.reading.peak_bytes, whole.reading.peak_reserved_bytes) == (30, 90)
    assert process_peak_bytes(device) == 30  # the resets left out of it


def test_that_peaks_are_reset_is_said(monkeypatch, caplog, tmp_path):
    Allocator(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    hook = MemoryLogging(tmp_path / "m.jsonl", PandaOptions())
    epoch = SimpleNamespace(
        rank=0, device=torch.device("cuda", 0), ledger=None, arguments={}, model=torch.nn.Module(),
        folder=tmp_path,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        for _ in range(2):
            with hook.epoch(epoch):
                pass
    assert caplog.text.count("the memory log resets the peak statistics of cuda:0") == 1
    assert json.loads((tmp_path / "m.jsonl").read_text())["memory"]["peak_reserved_bytes"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocators_figures_are_read():
    probe = MemoryProbe("cuda")
    probe.start()
    before = probe.read()
    block = torch.ones(2**20, device="cuda")
    del block
    row = probe.read().as_row()
    assert row["peak_bytes"] >= before.current_bytes + 4 * 2**20
    assert row["reserved_bytes"] >= row["allocated_bytes"]


def test_a_log_that_cannot_be_written_stops_the_run_before_the_recipe_starts(recipe):
    (recipe.folder / "file").write_text("")
    log = recipe.folder / "file" / "m.jsonl"
    recipe.train_py.write_text("raise SystemExit('the recipe was started')\n" + GUARDED)
    with pytest.raises(UsageError, match="--panda-memory-log: cannot write"):
        run_recipe(recipe.train_py, [], PandaOptions(memory_log=log))


GUARDED = "if __name__ == '__main__':\n    pass\n"


def test_losses_that_are_not_finite_are_counted(recipe):
    assert run_recipe(recipe.train_py, ["--kind", "nan"], options_for(recipe)) == 0
    rows = recipe.phases("log/m.jsonl")
    assert [r.get("losses_nonfinite") for r in rows] == [1, None] * 4
    other = options_for(recipe)
    assert run_recipe(recipe.train_py, [], dataclasses.replace(other, max_batches=1)) == 0
    assert recipe.phases("log/m.jsonl")[-2]["losses_nonfinite"] == 0


class Scaler:
    """A GradScaler whose scale grows by one with each step."""

    def __init__(self, is_enabled):
        self.scale = 7.0
        self.enabled = is_enabled

    def is_enabled(self):
        return self.enabled

    def get_scale(self):
        return self.scale

    def step(self, optimizer):
        optimizer.step()
        self.scale += 1


SCALED = [
    ("valid_dl, tb_writer=None", "valid_dl, scaler, tb_writer=None"),
    ("            optimizer.step()\n", "            scaler.step(optimizer)\n"),
    ("valid_dl=Loader(2),", "valid_dl=Loader(2), scaler=__import__('builtins').toy_scaler,"),
]


@pytest.mark.parametrize(
    ("is_enabled", "scales"), [(True, [8.0, 9.0, 10.0, 11.0]), (False, [None] * 4)]
)
def test_the_grad_scale_after_each_step_is_logged(recipe, monkeypatch, is_enabled, scales):
    recipe.edit(*SCALED)
    monkeypatch.setattr(builtins, "toy_scaler", Scaler(is_enabled), raising=False)
    assert run_recipe(recipe.train_py, [], options_for(recipe)) == 0
    rows = recipe.phases("log/m.jsonl")
    assert [r.get("grad_scale") for r in rows[1::2]] == scales
    assert not any("grad_scale" in r for r in rows[::2])
    assert sum(p["phase"] == "optimizer" for p in recipe.parts("log/m.jsonl")) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_ends_the_log_and_not_the_training(recipe, caplog, capsys):
    options = PandaOptions(use_panda=True, memory_log=Path("/dev/full"))
    assert run_recipe(recipe.train_py, [], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 4
    assert caplog.text.count("the memory log /dev/full ends here") == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("The memory log /dev/full (rank 0) is NOT complete: [Errno 28]")


def test_a_second_run_appends_below_the_first(recipe):
    for _ in range(2):
        assert run_recipe(recipe.train_py, [], options_for(recipe, max_batches=1)) == 0
    rows = [row["row"] for row in recipe.rows("log/m.jsonl") if row["row"] != "part"]
    assert rows == ["header", "phase", "phase", "end"] * 2
    rows = recipe.rows("log/m.jsonl")
    first, second = (header for header in rows if header["row"] == "header")
    assert first["run_id"] != second["run_id"]
    assert first["argv"] == ["train.py"] or first["argv"][0].endswith("train.py")
    assert first["time"] <= second["time"]
    assert {row["run_id"] for row in rows} == {first["run_id"], second["run_id"]}
    last = read_last_run(recipe.folder / "log/m.jsonl")
    assert last == [row for row in rows if row["run_id"] == second["run_id"]]
    assert last[0] == second


def test_of_runs_that_wrote_to_one_log_at_once_the_last_to_begin_is_read(tmp_path):
    path = tmp_path / "m.jsonl"
    logs = [MemoryLog(path, 0, PandaOptions(), torch.device("cpu")) for _ in range(2)]
    for step in range(2):
        for number, log in enumerate(logs):
            log.write_phase({"phase": "compute_loss", "step": step, "run": number}, None, step)
    logs[1].close("complete")
    logs[0].close("bound")
    rows = read_last_run(path)
    assert [row["row"] for row in rows] == ["header", "phase", "phase", "end"]
    assert [row["run"] for row in rows[1:3]] == [1, 1]
    assert rows[-1]["reason"] == "complete"


def test_half_a_row_and_rows_without_a_run_id_are_read_over(tmp_path):
    path = tmp_path / "m.jsonl"
    old = '{"row": "header"}\n{"row": "phase", "step": 1}\n'
    path.write_text(old + '{"row": "pha')
    assert [row["row"] for row in read_last_run(path)] == ["header", "phase"]
    MemoryLog(path, 0, PandaOptions(), torch.device("cpu")).close("complete")
    header, end = read_last_run(path)
    assert (header["row"], end["reason"]) == ("header", "complete")


@pytest.mark.parametrize(
    ("words", "reason"), [(["--fail-at", "1"], "RuntimeError"), (["--num-epochs", "1"], "complete")]
)
def test_the_last_row_says_how_the_run_ended(recipe, words, reason):
    with contextlib.suppress(RuntimeError):
        run_recipe(recipe.train_py, words, options_for(recipe))
    assert recipe.rows("log/m.jsonl")[-1]["reason"] == reason
