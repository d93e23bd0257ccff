"""What a batch draws depends on the seed and the batch's number, not on the run so far."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch

from panda_icefall.runs import PandaOptions, UsageError, run_recipe, split_panda_arguments
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.hooks.repeatable_batches import RepeatableBatches, seed_batch
from panda_icefall.runs.recipe_calls import Epoch

RESUMABLE = [
    (
        '    parser.add_argument("--kind"',
        '    parser.add_argument("--start-batch", type=int, default=0, help="Checkpoint.")\n'
        '    parser.add_argument("--kind"',
    ),
    (
        "            optimizer.zero_grad()\n",
        "            optimizer.zero_grad()\n"
        "            state = [params.batch_idx_train, model.state_dict(), optimizer.state_dict()]\n"
        '            torch.save(state, Path(params.exp_dir, f"checkpoint-{state[0]}.pt"))\n',
    ),
    (
        "    for epoch in range(params.num_epochs):\n",
        "    if params.start_batch:\n"
        '        state = torch.load(Path(params.exp_dir, f"checkpoint-{params.start_batch}.pt"))\n'
        "        params.batch_idx_train = state[0]\n"
        "        model.load_state_dict(state[1])\n"
        "        optimizer.load_state_dict(state[2])\n"
        "        params.num_batches -= params.start_batch\n"
        "    for epoch in range(params.num_epochs):\n",
    ),
]


def draws():
    return random.random(), torch.rand(1).item(), float(numpy.random.rand())


def test_every_generator_repeats_what_it_drew_for_the_same_batch():
    seed_batch(7, 3)
    first = draws()
    draws()
    seed_batch(7, 3)
    assert draws() == first


@pytest.mark.parametrize("other", [(8, 3, 0), (7, 4, 0), (7, 3, 1)])
def test_seed_batch_and_rank_all_matter(other):
    seed_batch(7, 3)
    first = draws()
    seed_batch(*other)
    assert all(a != b for a, b in zip(first, draws()))


@pytest.mark.parametrize("use_panda", [False, True])
def test_a_run_resumed_within_an_epoch_repeats_the_uninterrupted_one(recipe, use_panda):
    recipe.edit(*RESUMABLE)
    seeded = PandaOptions(use_panda=use_panda, batch_seed=5)
    assert run_recipe(recipe.train_py, ["--exp-dir", "whole"], seeded) == 0
    bounded = PandaOptions(use_panda=use_panda, batch_seed=5, max_batches=2)
    assert run_recipe(recipe.train_py, ["--exp-dir", "parts"], bounded) == 0
    assert recipe.lines("parts/losses-0.txt") == recipe.lines("whole/losses-0.txt")[:2]
    resumed = ["--exp-dir", "parts", "--start-batch", "2"]
    assert run_recipe(recipe.train_py, resumed, seeded) == 0
    assert recipe.lines("parts/losses-0.txt") == recipe.lines("whole/losses-0.txt")
    whole, parts = (torch.load(recipe.folder / f / "epoch-0.pt") for f in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_without_the_seed_a_resumed_run_draws_other_batches(recipe):
    recipe.edit(*RESUMABLE)
    options = PandaOptions(max_batches=4)
    assert run_recipe(recipe.train_py, ["--exp-dir", "whole"], options) == 0
    resumed = ["--exp-dir", "whole", "--start-batch", "2"]
    assert run_recipe(recipe.train_py, resumed, options) == 0
    losses = recipe.lines("whole/losses-0.txt")
    assert losses[4:] != losses[2:4]


def test_a_recipe_that_counts_no_batches_is_seeded_by_ours_and_told_so(recipe, caplog):
    recipe.edit((", batch_idx_train=0", ""), ("params.batch_idx_train += 1", "pass"))
    for folder in ("a", "b"):
        caplog.clear()
        words = ["--exp-dir", folder, "--num-epochs", "2"]
        assert run_recipe(recipe.train_py, words, PandaOptions(batch_seed=5)) == 0
    losses = recipe.lines("a/losses-0.txt")
    assert caplog.text.count("keeps no params.batch_idx_train: batches are counted") == 1
    assert len(set(losses)) == 8
    assert recipe.lines("b/losses-0.txt") == losses


def test_batches_made_by_other_processes_are_named(caplog):
    def begin(loader):
        params = SimpleNamespace(batch_idx_train=0)
        arguments = {"model": torch.nn.Linear(1, 1), "train_dl": loader, "params": params}
        epoch = Epoch(arguments, torch.device("cpu"), CounterLedger())
        with RepeatableBatches(1).epoch(epoch):
            pass

    begin(SimpleNamespace(num_workers=0))
    begin([1, 2])
    assert caplog.text == ""
    begin(SimpleNamespace(num_workers=2))
    assert "got a training data loader with num_workers=2" in caplog.text
    assert "a resumed run skips those in between" in caplog.text


def test_the_option_is_a_seed_and_makes_the_run_active():
    options, rest = split_panda_arguments(["--panda-batch-seed", "0"])
    assert (options.batch_seed, options.is_active, rest) == (0, True, [])
    assert split_panda_arguments([])[0].batch_seed is None
    with pytest.raises(UsageError, match="--panda-batch-seed: got '-1', expected an integer of"):
        split_panda_arguments(["--panda-batch-seed", "-1"])
