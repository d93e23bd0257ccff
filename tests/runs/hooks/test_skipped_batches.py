"""A resumed epoch goes on with the batch after the last trained one."""

import logging
from argparse import Namespace
from types import SimpleNamespace

import pytest

from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.hooks.repeatable_batches import correct_skipped_batches


def loader(is_restored):
    return SimpleNamespace(sampler=SimpleNamespace(_just_restored_state=is_restored))


@pytest.mark.parametrize(
    ("is_restored", "is_first", "expected"),
    [(True, True, 0), (False, True, 10), (False, False, 0), (True, False, 0)],
)
def test_what_is_skipped_is_what_was_trained(is_restored, is_first, expected, caplog):
    caplog.set_level(logging.INFO)
    params = Namespace(cur_batch_idx=9)
    correct_skipped_batches(params, loader(is_restored), is_first=is_first)
    assert params.cur_batch_idx == expected
    assert f"skips {expected} batches of this epoch instead of 9" in caplog.text


@pytest.mark.parametrize("params", [None, Namespace(), Namespace(cur_batch_idx=None)])
def test_recipes_that_skip_nothing_are_left_alone(params, caplog):
    caplog.set_level(logging.INFO)
    before = None if params is None else dict(vars(params))
    correct_skipped_batches(params, [1, 2], is_first=True)
    assert before == (None if params is None else vars(params))
    assert caplog.text == ""


SKIPPING = [
    (
        "    for batch_idx, batch in enumerate(train_dl):\n",
        "    for batch_idx, batch in enumerate(train_dl):\n"
        '        if batch_idx < params.get("cur_batch_idx", 0):\n'
        "            continue\n",
    ),
    (", batch_idx_train=0)", ", batch_idx_train=0, cur_batch_idx=1)"),
]


@pytest.mark.parametrize(("seed", "trained"), [(None, [3, 3]), (1, [2, 4])])
def test_only_runs_with_a_batch_seed_are_corrected(recipe, seed, trained):
    recipe.edit(*SKIPPING)
    for epochs in (1, 2):
        words = ["--num-epochs", str(epochs), "--exp-dir", f"exp{epochs}"]
        options = PandaOptions(max_batches=100, batch_seed=seed)
        assert run_recipe(recipe.train_py, words, options) == 0
        assert len(recipe.lines(f"exp{epochs}/losses-0.txt")) == sum(trained[:epochs])
