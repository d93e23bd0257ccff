"""Every benchmark from its command line at tiny sizes: what it writes, and what is made of it."""

import importlib
import json
import re
import sys
from dataclasses import replace

import pytest
from bench_capacity import SHORTEST, largest_that_fits
from benchmarks import tables
from benchmarks.arms import arms_of
from benchmarks.child import Measured
from benchmarks.packages import HAS_K2
from results_tables import read

TINY = "--B 3 --T 12 --S 4 --C 40 --H 8 --D 8 --repeats 1".split()


def test_loss_compares_all_methods_on_the_whole_and_its_halves(script, checked):
    figures = script("bench_loss", *TINY)
    rows = checked(figures, "loss")
    for part in ("whole", "simple", "pruned"):
        assert [row["arm"] for row in rows if row["part"] == part] == arms_of(part)
    assert 0 < figures["sessions"][0]["facts"]["carrying_share"] <= 1
    for row in rows:
        assert 0 < row["seconds_min"] == min(row["samples_s"]) <= row["seconds"]
        assert row["time_ratio"] > 0
        # A row of another method has no products of its own, and one without k2 no ratio to it.
        assert (row["of_limit"] is not None) == row["arm"].startswith("panda")
        assert (row["k2_time_ratio"] is not None) == HAS_K2
        assert row["grad_rel_l2"] < 1e-5
        assert row["parameter_bytes"] > 0
        if row["arm"].startswith("panda") and row["part"] != "simple":
            assert row["forward_share"] < 1


def test_ctc_compares_both_methods_at_every_c(script, checked):
    words = "--B 3 --T 12 --D 8 --repeats 1 --classes 20 40".split()
    figures = script("bench_ctc", *words)
    rows = checked(figures, "ctc")
    assert [(row["C"], row["arm"]) for row in rows] == [
        (C, arm) for C in (20, 40) for arm in ("dense", "panda")
    ]
    assert all(row["seconds_min"] > 0 and row["grad_rel_l2"] < 1e-4 for row in rows)


def test_a_peak_too_small_to_measure_has_no_ratio(script, checked, monkeypatch):
    from benchmarks import child

    run = child.run
    monkeypatch.setattr(child, "run", lambda job: replace(run(job), peak_bytes=0))
    rows = checked(script("bench_loss", *TINY, "--arms", "panda"), "loss")
    assert [row["memory_ratio"] for row in rows] == [None] * len(rows)
    assert tables.part_of("memory_ratio")(rows) is None


def test_classes_marks_the_first_c_that_does_not_fit_and_stops_there(script, checked, monkeypatch):
    module = importlib.import_module("bench_classes")
    from benchmarks import child

    run = child.run
    too_large = Measured(is_out_of_memory=True)
    monkeypatch.setattr(
        child,
        "run",
        lambda job: too_large if job.arm == "dense" and job.shape.C > 50 else run(job),
    )
    assert module.SHAPE.sites == 2000
    words = ["--classes", 30, 60, 90, "--cap-gib", 0.5, "--arms", "dense", "panda"]
    # By the dense loss at the same C where that one fits.
    rows = checked(script("bench_classes", *TINY[:6], "--H", 8, "--D", 8, *words), "classes")
    assert [(row["C"], row["arm"], row["is_out_of_memory"]) for row in rows] == [
        (30, "dense", False),
        (30, "panda", False),
        (60, "dense", True),
        (60, "panda", False),
        (90, "panda", False),
    ]
    assert rows[-1]["slope_copies"] is not None
    assert [row["time_ratio"] is None for row in rows] == [False, False, True, True, True]


def test_capacity_compares_dense_and_routed(script, checked):
    words = ["--recipes", "aishell", "--C", 50, "--H", 8, "--D", 8, "--budget-mib", 64]
    rows = checked(script("bench_capacity", *words, "--start", 2, "--longest", 4), "capacity")
    assert [row["arm"] for row in rows] == ["dense", "panda"]
    assert {row["max_duration"] for row in rows} == {4.0}
    assert {row["bound"] for row in rows} == {">= "}


def test_workspace_measures_each_size(script, checked):
    rows = checked(script("bench_workspace", *TINY, "--sizes-mib", 1, 4), "workspace")
    assert [row["workspace_mib"] for row in rows] == [1.0, 4.0]


def test_guard_compares_both_losses_and_says_what_that_costs(script, checked):
    figures = script("bench_guard", *TINY, "--every", 50)
    rows = checked(figures, "guard")
    assert [row["name"] for row in rows] == ["a batch", "compared"]
    batch, compared = (row["seconds_min"] for row in rows)
    assert rows[1]["share"] == pytest.approx(compared / batch / 50)
    assert rows[0]["share"] is None
    assert figures["settings"]["every"] == 50


@pytest.mark.parametrize("limit", [0.7, 5.0, 9.9, 300.0])
def test_bisection_ends_at_the_largest_duration_that_fits(limit):
    asked = []

    def peak_of(duration):
        asked.append(duration)
        return Measured(is_out_of_memory=False, peak_bytes=1 if duration <= limit else 3)

    fits, best, is_bound = largest_that_fits(peak_of, 2, start=8, longest=1000, tolerance=0.05)
    assert limit / 1.05 <= fits <= limit
    assert best.peak_bytes == 1
    assert not is_bound
    assert len(asked) < 14


def test_bisection_says_when_nothing_or_everything_fits():
    nothing = largest_that_fits(lambda d: Measured(False, peak_bytes=3), 2, 8, 100, 0.05)
    assert nothing == (0.0, None, False)
    fits, _, is_bound = largest_that_fits(lambda d: Measured(False, peak_bytes=1), 2, 8, 100, 0.05)
    assert (fits, is_bound) == (100, True)
    assert SHORTEST < 1


@pytest.mark.parametrize(
    ("name", "words", "match"),
    [
        (
            "bench_loss",
            ["--adjoints", "trained", "--B", "3"],
            "--B: got 3, expected 20, as the stored inputs have",
        ),
        ("bench_loss", ["--adjoints", "trained", "--H", "50"], "--H: got 50, expected a multiple"),
        (
            "bench_loss",
            ["--adjoints", "trained", "--C", "20"],
            "--C: got 20, expected at least 100, the trained symbols",
        ),
        (
            "bench_loss",
            ["--adjoints", "trained", "--checkpoint", "absent/epoch-1.pt"],
            "--checkpoint: got absent/epoch-1.pt, expected an epoch-N.pt",
        ),
        ("bench_loss", ["--repeats", "0"], "--repeats: got 0, expected at least 1"),
        ("bench_classes", ["--classes", "9", "3"], "--classes: got .* expected them ascending"),
        ("bench_classes", ["--cap-gib", "0"], "--cap-gib: got 0.0, expected above 0"),
        ("bench_capacity", ["--budget-mib", "0"], "--budget-mib: got 0.0, expected above 0"),
        ("bench_workspace", ["--sizes-mib", "0"], "--sizes-mib: got .* expected sizes above 0"),
        ("bench_losses", ["--shorten", "0"], "--shorten: got 0, expected at least 1"),
        ("bench_loss", ["--B", "0"], "--B: got 0, expected at least 1"),
        ("bench_loss", ["--s-range", "-2"], "--s-range: got -2, expected at least 1"),
        ("bench_loss", ["--C", "1"], "--C: got 1, expected at least 2"),
        ("bench_loss", ["--T", "few"], "--T: got few, expected at least 1"),
        ("bench_losses", ["--S", "0"], "--S: got 0, expected at least 1"),
        ("bench_losses", ["--classes", "1"], "--classes: got 1, expected at least 2"),
        ("bench_classes", ["--H", "0"], "--H: got 0, expected at least 1"),
        ("bench_capacity", ["--D", "-1"], "--D: got -1, expected at least 1"),
        ("bench_ctc", ["--classes", "0"], "--classes: got 0, expected at least 2"),
        ("bench_ctc", ["--T", "0"], "--T: got 0, expected at least 1"),
        ("bench_guard", ["--every", "0"], "--every: got 0, expected at least 1"),
        ("bench_versions", [".", "--B", "0"], "--B: got 0, expected at least 1"),
        ("bench_versions", [".", "--device", "cuda"], r"--device: invalid choice: 'cuda'"),
        ("bench_losses", ["--cap-gib", "0"], "--cap-gib: got 0.0, expected above 0"),
        ("bench_losses", ["--adjoints", "peaked", "--D", "8"], "--D: got 8, expected 512, as"),
    ],
)
def test_unusable_options_are_refused(script, capsys, name, words, match):
    with pytest.raises(SystemExit) as caught:
        script(name, *words)
    assert caught.value.code == 2
    assert re.search(match, capsys.readouterr().err)


def test_figures_and_results_are_written_from_the_json_files(script, tmp_path, monkeypatch):
    folder = tmp_path / "results"
    folder.mkdir()
    documents = {
        "loss-aishell-random-k2": script("bench_loss", *TINY, "--arms", "panda"),
        "classes-k2": script("bench_classes", *TINY[:6], "--classes", 30, 60, "--H", 8, "--D", 8),
        "capacity-k2": script(
            "bench_capacity", "--C", 50, "--H", 8, "--D", 8, "--longest", 2, "--start", 2
        ),
    }
    documents["classes-k2"]["sessions"][0]["rows"][-1]["is_out_of_memory"] = True
    documents["loss-aishell-random-k2"]["sessions"][0]["rows"][0]["memory_ratio"] = None
    for name, figures in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(figures))
    for suffix in ("json", "md"):
        (folder / f"gpu-a-2.13.0.{suffix}").write_text("{}")
    for name in ("plot_benchmarks", "results_tables"):
        monkeypatch.setattr(sys, "argv", [name, "--results", str(folder)])
        importlib.import_module(name).main()
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {
        "memory-by-component-aishell-random-k2.png",
        "memory-against-classes-k2.png",
        "time-ratio-against-classes-k2.png",
        "capacity-k2.png",
    }
    text = (folder / "RESULTS.md").read_text()
    assert all(picture in text for picture in pictures)
    assert all(d["sessions"][0]["command"] in text for d in documents.values())
    assert "| OOM |" in text
    assert "[gpu-a-2.13.0](gpu-a-2.13.0.md)" in text


def test_a_json_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"benchmark": "dinner", "sessions": [{}]}')
    with pytest.raises(SystemExit, match="got benchmark 'dinner', expected one of loss"):
        read(path)
    path.write_text('{"benchmark": "loss", "rows": []}')
    with pytest.raises(SystemExit, match="got no sessions, expected a file that a benchmark wrote"):
        read(path)
