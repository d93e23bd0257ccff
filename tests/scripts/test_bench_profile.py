"""Where a step's time goes, and the matrix products that it cannot be faster than."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import bench_all
import bench_profile
import pytest
import torch
from benchmarks import profile, tables
from benchmarks.arms import Step
from benchmarks.gemm_limit import products_of, recorded_gemms
from benchmarks.inputs import LossInputs
from benchmarks.packages import HAS_K2
from benchmarks.shapes import LossShape

import panda_icefall

SHAPE = LossShape(B=3, T=11, S=5, s_range=4, C=37, H=7, D=6, shortest=0.4)
TINY = "--B 3 --T 12 --S 4 --C 40 --H 8 --D 8 --repeats 2".split()


def step_of(part, arm="panda-all-sites"):
    return Step.make(arm, part, LossInputs.random(SHAPE, torch.device("cpu")))


def test_the_products_of_the_pruned_loss_are_one_forward_and_three_backward():
    step = step_of("pruned")
    products = products_of(step)
    shape = step.inputs.shape
    status = panda_icefall.status()
    # Tolerance 0 leaves out those whose adjoint is 0.
    sites = status.sites_evaluated + 3 * status.sites_backward
    of_head = [p for p in products if shape.C in (*p.left[0], *p.right[0])]
    assert sum(p.flops for p in of_head) == 2 * shape.C * shape.H * sites


def test_the_products_are_run_again_at_their_layouts():
    products = products_of(step_of("whole"))
    assert {len(p.left[0]) for p in products} == {2, 3}
    assert any(p.left[1] != (p.left[0][1], 1) for p in products if len(p.left[0]) == 2)
    recorded_gemms(step_of("whole"))()


def test_the_parts_of_a_step_add_up_to_it():
    step = step_of("whole")
    parts = profile.parts_of(step)
    whole = parts.pop("the whole step")
    assert sum(s for name, s in parts.items() if name not in profile.INSIDE) == pytest.approx(whole)
    for name in (*profile.COUNTED, *profile.INSIDE, "recursions forward", "checks"):
        assert 0 < parts[name] < whole, name


def test_kinds_of_operations_have_names_that_the_profiler_gives():
    kinds = profile.kinds_of(step_of("whole"))
    expected = {"matrix products", "exponentials and logarithms", "elementwise",
                "fills and allocation", "gathers and scatters"}  # fmt: skip
    assert expected <= set(kinds)
    assert all(seconds >= 0 for seconds in kinds.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm_", "matrix products"),
        ("aten::exp_", "exponentials and logarithms"),
        ("aten::view", profile.OTHER),
        ("autograd::engine::evaluate_function: MulBackward0", profile.OTHER),
    ],
)
def test_the_kind_of_an_operation(name, kind):
    assert profile.kind_of(name) == kind


def test_a_function_that_is_gone_is_named():
    timed = profile._timed("panda_icefall.losses.sites.gone", "checks", {"checks": 0.0})
    with pytest.raises(AttributeError, match=r"panda_icefall\.losses\.sites\.gone: not there"):
        timed.__enter__()


def test_a_profile_is_written(script):
    figures = script("bench_profile", *TINY)
    (session,) = figures["sessions"]
    names = {row["name"] for row in session["rows"]}
    assert {"the whole step", "matrix products alone", "pruned forward", "elementwise"} <= names
    assert all(len(row["samples_s"]) <= 2 for row in session["rows"])
    assert "Where a step's time goes, random adjoints" in tables.title(figures)


def test_the_waits_of_a_step_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_profile.py", "--syncs", *TINY])
    bench_profile.main()
    said = capsys.readouterr().out
    assert "losses/host_values.py: on_host" in said
    *_, total = said.splitlines()
    assert total.endswith("waits in a step, forward and backward")
    # k2's recursion reads the boundary of each of the two losses, in Python.
    assert int(total.split()[0]) <= 4 + 2 * HAS_K2


def test_the_whole_list_says_its_commands_and_minutes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_all.py", "--list"])
    bench_all.main()
    said = capsys.readouterr().out
    assert "python scripts/bench_loss.py --adjoints trained" in said
    assert ("--arms k2 panda" in said) == HAS_K2
    assert "benchmarks, about" in said


def test_the_whole_list_runs_quickly_and_writes_results(monkeypatch, tmp_path):
    words = ["bench_all.py", "--quick", "--only", "profile-random", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    # That it is of this lane is no matter here.
    monkeypatch.setattr(bench_all, "chosen", lambda only, lane: [(b, 1.0) for b in
                        bench_all.BENCHMARKS if b.name in only])  # fmt: skip
    bench_all.main()
    assert {path.name for path in tmp_path.iterdir()} >= {"profile-random.json", "RESULTS.md"}


def test_quick_figures_do_not_go_to_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_all.py", "--quick"])
    with pytest.raises(SystemExit):
        bench_all.main()
    assert "--quick: its figures mean nothing; give --out" in capsys.readouterr().err


def test_every_benchmark_runs_and_a_failing_one_is_named(monkeypatch, tmp_path):
    ran = []

    def run(words, check):
        ran.append(words)
        return SimpleNamespace(returncode=int("bench_loss.py" in words[1]))

    monkeypatch.setattr(bench_all.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["bench_all.py"])
    failed = "k2-trained, k2-random" if HAS_K2 else "loss-trained, loss-random"
    with pytest.raises(SystemExit, match=f"failed: {failed}; see"):
        bench_all.main()
    names = [Path(words[1]).name for words in ran]
    assert names[0] == names[1] == "bench_loss.py"
    assert names[-2:] == ["plot_benchmarks.py", "results_tables.py"]
    assert all(Path(words[1]).is_file() for words in ran)
    for words in ran[:-2]:
        importlib.import_module(Path(words[1]).stem).get_parser().parse_args(words[2:])
