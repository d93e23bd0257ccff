"""Recipes that train in children of ``mp.spawn``: PANDA is in the children too."""

import re

import pytest


def test_two_processes_train_routed_checked_and_logged(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--num-epochs", 3]
    done = recipe.subprocess(
        "run", "train.py", *arguments, "--exp-dir", "exp", "--use-panda", 1,
        "--panda-check-batches", 1, "--panda-max-batches", 2, "--panda-memory-log", "log/m.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The contract holds over 1 update(s)" in done.stderr
    assert "2, 2" in done.stderr  # batches per rank
    assert "8 / 0" in done.stderr  # two training and two validation losses on each rank
    for rank, suffix in ((0, ""), (1, ".rank1")):
        assert len(recipe.lines(f"exp/losses-{rank}.txt")) == 2
        assert (recipe.folder / f"exp/panda-check{suffix}.json").exists()
        rows = recipe.phases(f"log/m{suffix}.jsonl")
        assert [row["rank"] for row in rows] == [rank] * 4
        assert recipe.rows(f"log/m{suffix}.jsonl")[-1]["reason"] == "bound"
    assert (recipe.folder / "exp/epoch-0.pt").exists()


def test_two_processes_give_the_losses_of_a_direct_start(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--exp-dir"]
    direct = recipe.subprocess("train.py", *arguments, "direct", module=None)
    routed = recipe.subprocess("run", "train.py", *arguments, "routed", "--use-panda", 1)
    assert (direct.returncode, routed.returncode) == (0, 0), routed.stderr
    for rank in (0, 1):
        expected, found = (
            [float(line) for line in recipe.lines(f"{arm}/losses-{rank}.txt")]
            for arm in ("direct", "routed")
        )
        assert found == pytest.approx(expected, rel=1e-5)


def test_what_a_child_did_not_route_is_said_in_one_line(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--kind", "ctc", "--use-panda", 1]
    done = recipe.subprocess("run", "train.py", *arguments)
    assert done.returncode == 1
    assert "panda-icefall: PANDA was asked for, but no loss was routed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_error_of_a_child_comes_through(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--fail-at", 0, "--use-panda", 1]
    done = recipe.subprocess("run", "train.py", *arguments)
    assert done.returncode == 1
    assert "fails on purpose" in done.stderr
    assert "ProcessRaisedException" in done.stderr


def test_a_violation_in_a_child_is_the_exit_status_of_the_run(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--kind", "skewed"]
    done = recipe.subprocess("check", "train.py", *arguments, "--updates", 1)
    assert done.returncode == 1, done.stderr
    assert "contract violated (rank 0)" in done.stderr
    assert "contract violated (rank 1)" in done.stderr


def test_a_killed_child_leaves_what_it_did_so_far(recipe, port):
    arguments = ["--world-size", 2, "--master-port", port, "--kill-at", 2]
    done = recipe.subprocess("run", "train.py", *arguments, "--use-panda", 1)
    assert done.returncode != 0
    counts = re.search(r"training batches per rank\W+(\d)(?:, (\d))?", done.stderr)
    assert counts, done.stderr
    assert int(counts[1]) == 2  # settled when the third was asked for


def test_a_childs_usage_error_is_one_line_with_its_status(recipe, port):
    (recipe.folder / "m.rank1.jsonl").mkdir()  # only rank 1 cannot write its log
    arguments = ["--world-size", 2, "--master-port", port, "--panda-memory-log", "m.jsonl"]
    done = recipe.subprocess("run", "train.py", *arguments)
    assert done.returncode == 2
    assert "panda-icefall: --panda-memory-log: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
