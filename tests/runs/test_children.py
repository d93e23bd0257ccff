"""Children of ``mp.spawn`` and their parent in one process: what is left, read and said."""

import multiprocessing
import re
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from panda_icefall.routing import LossTotals
from panda_icefall.runs import NotRoutedError, PandaOptions, UsageError, run_recipe, termination
from panda_icefall.runs.memory.reading import read_last_run
from panda_icefall.runs.records import RunOutcome, read_outcomes
from panda_icefall.runs.spawn import ChildEntry
from panda_icefall.runs.termination import TO_CHILDREN, Terminated, ending_children

PANDA = PandaOptions(use_panda=True)
ROUTED = LossTotals(losses_routed=1)


@pytest.fixture
def spawning(recipe, monkeypatch):
    """Has the recipe train in children; a function stands for ``torch.multiprocessing.spawn``."""
    recipe.edit(
        ("if args.world_size > 1:\n        mp.spawn", "if True:\n        mp.spawn"),
        ("args=(args.world_size, args), nprocs=args.world_size", "args=(1, args), nprocs=2"),
    )

    def start(spawn):
        monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)

    return start


def first_alone(fn, args=(), nprocs=1, join=True):
    """Rank 0 runs in this process, and the others were killed; errors are those of torch."""
    try:
        fn(0, *args)
    except Exception as error:
        raise ProcessRaisedException(traceback.format_exc(), 0, 1) from error


def leaving(*outcomes):
    """Children that leave these outcomes and train nothing."""

    def spawn(fn, args=(), nprocs=1, join=True):
        for outcome in outcomes:
            outcome.write(Path(fn.outcome_folder))

    return spawn


def test_a_child_trains_routed_and_one_that_left_nothing_is_named(recipe, spawning, capsys):
    spawning(first_alone)
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], PANDA) == 0
    said = capsys.readouterr().err
    assert re.search(r"losses routed / dense\W+6 / 0", said)
    assert "Rank(s) 1 ended without leaving an outcome." in said
    assert len(recipe.lines("exp/losses-0.txt")) == 4


def test_an_error_with_a_name_is_raised_by_that_name(recipe, spawning):
    spawning(first_alone)
    with pytest.raises(NotRoutedError, match="no loss was routed in the first training batch"):
        run_recipe(recipe.train_py, ["--kind", "ctc"], PANDA)
    wrong = PandaOptions(use_panda=True, projections={"am": "head", "lm": "simple_lm_proj"})
    with pytest.raises(UsageError, match="--panda-projections: got am='head'"):
        run_recipe(recipe.train_py, [], wrong)


def test_the_recipes_own_error_is_that_of_its_process(recipe, spawning):
    spawning(first_alone)
    with pytest.raises(ProcessRaisedException, match="fails on purpose"):
        run_recipe(recipe.train_py, ["--fail-at", "0"], PANDA)


def test_children_that_routed_nothing_are_no_success(recipe, spawning):
    spawning(leaving(*(RunOutcome(rank=rank, batches=2, seconds=1.0) for rank in range(2))))
    with pytest.raises(NotRoutedError, match="ended after 4 training batches without a routed"):
        run_recipe(recipe.train_py, [], PANDA)
    assert run_recipe(recipe.train_py, [], PandaOptions(max_batches=2)) == 0


def test_a_violation_on_a_later_rank_is_printed_and_status_1(recipe, spawning, capsys):
    found = [
        RunOutcome(rank=0, batches=2, seconds=1.0, counters=ROUTED),
        RunOutcome(rank=1, batches=2, seconds=1.0, violations=("the loss is off by 3",)),
    ]
    spawning(leaving(*found))
    assert run_recipe(recipe.train_py, [], PANDA) == 1
    assert "contract violated (rank 1): the loss is off by 3" in capsys.readouterr().err


def test_a_function_that_a_partial_holds_is_the_recipes(recipe, spawning, capsys):
    spawning(first_alone)
    recipe.edit(
        ("mp.spawn(run, args=(1, args)", "mp.spawn(functools.partial(run), args=(1, args)"),
        ("import argparse\n", "import argparse\nimport functools\n"),
    )
    assert run_recipe(recipe.train_py, [], PANDA) == 0
    assert re.search(r"losses routed / dense\W+6 / 0", capsys.readouterr().err)


def test_a_function_without_a_training_loop_beside_it_runs_as_it_is(tmp_path):
    seen = []
    ChildEntry(lambda *given: seen.append(given), PANDA, "train.py", str(tmp_path))(1, "word")
    assert seen == [(1, "word")]
    (outcome,) = read_outcomes(tmp_path)
    assert (outcome.rank, outcome.batches) == (1, 0)


def wait(is_ready, *, is_stubborn):
    if is_stubborn:
        signal.signal(TO_CHILDREN, signal.SIG_IGN)
    is_ready.set()
    time.sleep(60)


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_a_sigterm_is_passed_on_to_children_and_ends_them(monkeypatch, is_stubborn):
    monkeypatch.setattr(termination, "GRACE_SECONDS", 0.3 if is_stubborn else 20.0)
    fork = multiprocessing.get_context("fork")
    children = []

    def started():
        is_ready = fork.Event()
        children.append(
            fork.Process(target=wait, args=(is_ready,), kwargs={"is_stubborn": is_stubborn})
        )
        children[-1].start()
        assert is_ready.wait(300)

    def terminated():
        started()
        raise Terminated

    started()  # somebody else's
    try:
        with pytest.raises(Terminated), ending_children():
            terminated()
        others, ours = children
        assert ours.exitcode == -(signal.SIGKILL if is_stubborn else TO_CHILDREN)
        assert others.is_alive()
    finally:
        for child in children:
            child.kill()
            child.join()


def test_a_sigterm_in_a_step_ends_the_run_with_its_rows_and_status_143(recipe, capsys):
    step = "            loss.backward()\n"
    told = "            import signal\n            signal.raise_signal(signal.SIGTERM)\n"
    recipe.edit((step, step + told))
    options = PandaOptions(use_panda=True, memory_log=Path("m.jsonl"))
    assert run_recipe(recipe.train_py, [], options) == 128 + signal.SIGTERM
    assert read_last_run(recipe.folder / "m.jsonl")[-1]["reason"] == "SIGTERM"
    assert "PANDA summary" in capsys.readouterr().err


def test_a_bound_that_is_reached_leaves_the_process_group(recipe):
    joined = (
        "    torch.distributed.init_process_group(\n"
        "        'gloo', init_method=f'file://{Path(params.exp_dir).absolute()}/sync',\n"
        "        rank=0, world_size=1)\n"
        "    random.seed(3)\n"
    )
    recipe.edit(("    random.seed(3)\n", joined))
    bounded = PandaOptions(max_batches=4)
    try:
        assert run_recipe(recipe.train_py, ["--num-epochs", "2", "--exp-dir", "exp"], bounded) == 0
        assert not torch.distributed.is_initialized()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert len(recipe.lines("exp/losses-0.txt")) == 4
