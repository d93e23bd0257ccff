"""What modules remember outside of their state_dict is kept beside the recipe's checkpoints."""

import json

import pytest
from torch import nn

from panda_icefall.runs import PandaOptions, UsageError, run_recipe
from panda_icefall.runs.module_numbers import ModuleNumbers


class Whiten(nn.Module):
    def __init__(self):
        super().__init__()
        self.prob = 0.25
        self.calls = 0
        self.is_early = True
        self.name = "no number"
        self.limit = None


def model_of():
    return nn.Sequential(Whiten(), nn.Dropout(0.5), Whiten())


def test_what_training_changed_is_saved_and_restored(tmp_path):
    model = model_of()
    numbers = ModuleNumbers(model, tmp_path, 0)
    model[2].prob, model[2].calls, model[2].is_early = 0.025, 3, False
    model[2].limit = 4.5
    model[1].p = 0.1
    model.eval()
    numbers.save(20)
    saved = json.loads((tmp_path / "checkpoint-20.panda-rank0.json").read_text())
    changed = {"prob": 0.025, "calls": 3, "is_early": False, "limit": 4.5}
    assert saved == {"1": {"p": 0.1}, "2": changed}

    resumed = model_of()
    ModuleNumbers(resumed, tmp_path, 0).restore(20)
    assert vars(resumed[2]) == {**vars(model[2]), "training": True}
    assert (resumed[0].prob, resumed[1].p, resumed.training) == (0.25, 0.1, True)


def test_a_second_resumption_still_knows_what_the_first_run_changed(tmp_path):
    model = model_of()
    numbers = ModuleNumbers(model, tmp_path, 0)
    model[0].prob = 0.1
    numbers.save(10)
    resumed = model_of()
    numbers = ModuleNumbers(resumed, tmp_path, 0)
    numbers.restore(10)
    numbers.save(20)
    again = model_of()
    ModuleNumbers(again, tmp_path, 0).restore(20)
    assert again[0].prob == 0.1


def test_each_rank_has_its_own(tmp_path):
    assert ModuleNumbers(model_of(), tmp_path, 3).path(7).name == "checkpoint-7.panda-rank3.json"


def test_a_missing_file_is_said(tmp_path, caplog):
    ModuleNumbers(model_of(), tmp_path, 0).restore(10)
    assert "checkpoint-10.panda-rank0.json: not found" in caplog.text


def test_numbers_of_another_model_are_refused(tmp_path):
    numbers = ModuleNumbers(model_of(), tmp_path, 0)
    numbers.path(10).write_text('{"9": {"prob": 0.1}}')
    with pytest.raises(UsageError, match=r"--start-batch: .*got numbers of the module '9', exp"):
        numbers.restore(10)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_run_with_a_batch_seed_saves_and_resumes_them(recipe, seed):
    arguments = (
        '    parser.add_argument("--start-batch", type=int, default=0, help="Checkpoint.")\n'
        '    parser.add_argument("--save-every-n", type=int, default=2, help="Batches.")\n'
    )
    built = "    model = Transducer(C=11)\n"
    stepped = "            optimizer.zero_grad()\n"
    seen = 'Path(params.exp_dir, "seen.txt").write_text(str(model.joiner.seen))'
    recipe.edit(
        ('    parser.add_argument("--kind"', arguments + '    parser.add_argument("--kind"'),
        (built, built + "    model.joiner.seen = 0\n"),
        (stepped, stepped + "            model.joiner.seen += 1\n"),
        ("    model.eval()\n", f"    {seen}\n    model.eval()\n"),
    )
    options = PandaOptions(batch_seed=seed, max_batches=4)
    assert run_recipe(recipe.train_py, [], options) == 0
    saved = sorted(p.name for p in (recipe.folder / "exp").glob("*.panda-rank0.json"))
    expected = ["checkpoint-2.panda-rank0.json", "checkpoint-4.panda-rank0.json"]
    assert saved == ([] if seed is None else expected)
    assert run_recipe(recipe.train_py, ["--start-batch", "2"], options) == 0
    assert recipe.lines("exp/seen.txt") == ["4" if seed is None else "6"]


def test_a_missing_file_of_a_resumed_run_does_not_stop_it(recipe, caplog):
    recipe.edit(("batch_idx_train=0", "batch_idx_train=0, start_batch=2"))
    assert run_recipe(recipe.train_py, [], PandaOptions(batch_seed=1)) == 0
    assert caplog.text.count("checkpoint-2.panda-rank0.json: not found") == 1
