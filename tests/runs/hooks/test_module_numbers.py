"""What modules remember outside of their state_dict is kept beside the recipe's checkpoints."""

import json

import pytest
import torch
from torch import nn

from panda_icefall.runs import PandaOptions, UsageError, run_recipe
from panda_icefall.runs.hooks.checkpoint_state import ModuleNumbers, parameter_digest


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


def with_weights(value):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), Whiten())
    nn.init.constant_(model[0].weight, value)
    nn.init.constant_(model[0].bias, value)
    return model


def test_all_plain_numbers_are_saved_and_restored(tmp_path):
    model = model_of()
    numbers = ModuleNumbers(model, tmp_path, 0)
    model[2].prob, model[2].calls, model[2].is_early = 0.025, 3, False
    model[2].limit = 4.5
    model[1].p = 0.1
    model.eval()
    numbers.save(20)
    saved = json.loads((tmp_path / "checkpoint-20.panda-rank0.json").read_text())
    assert saved["modules"] == {
        "0": {"prob": 0.25, "calls": 0, "is_early": True},
        "1": {"p": 0.1, "inplace": False},
        "2": {"prob": 0.025, "calls": 3, "is_early": False, "limit": 4.5},
    }

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
    numbers.save(10)
    path = numbers.path(10)
    path.write_text(path.read_text().replace('"2": {', '"9": {'))
    with pytest.raises(UsageError, match=r"--start-batch: .*got numbers of the module '9', exp"):
        numbers.restore(10)


def test_a_number_that_changed_before_the_first_epoch_is_saved_too(tmp_path):
    model = model_of()
    model[0].prob = 0.1  # as a scan for large batches leaves it
    ModuleNumbers(model, tmp_path, 0).save(10)
    resumed = model_of()
    ModuleNumbers(resumed, tmp_path, 0).restore(10)
    assert resumed[0].prob == 0.1


def test_numbers_of_another_checkpoint_are_refused(tmp_path):
    ModuleNumbers(with_weights(0.5), tmp_path, 0).save(10)
    other = with_weights(0.25)
    expected = r"--start-batch: .*rank0\.json: got a model whose parameters .* checkpoint-10\.pt"
    with pytest.raises(UsageError, match=expected):
        ModuleNumbers(other, tmp_path, 0).restore(10)
    same = with_weights(0.5)
    same[1].running_mean += 1  # buffers may have seen a scan, and differ between ranks
    ModuleNumbers(same, tmp_path, 0).restore(10)


@pytest.mark.parametrize("text", ["", "[]", '{"2": {"prob": 0.1}}', '{"parameters": ""}'])
def test_a_file_that_is_none_of_ours_is_refused(tmp_path, text):
    numbers = ModuleNumbers(model_of(), tmp_path, 0)
    numbers.path(10).write_text(text)
    with pytest.raises(UsageError, match="expected what --panda-batch-seed saves"):
        numbers.restore(10)


def test_the_digest_sees_one_bit_a_swap_and_a_name():
    digests = {parameter_digest(with_weights(value)) for value in (0.5, 0.5 + 2**-24, -0.5)}
    swapped = with_weights(0.5)
    with torch.no_grad():
        swapped[0].bias[0], swapped[0].bias[1] = 1.0, 2.0
        digests.add(parameter_digest(swapped))
        swapped[0].bias[0], swapped[0].bias[1] = 2.0, 1.0
        digests.add(parameter_digest(swapped))
    digests.add(parameter_digest(nn.Sequential(nn.Identity(), *with_weights(0.5))))
    assert len(digests) == 6
    assert parameter_digest(with_weights(0.5)) in digests
    assert parameter_digest(nn.ParameterDict({"scale": nn.Parameter(torch.tensor(2.0))}))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.complex128]
)
def test_the_digest_takes_every_dtype(dtype):
    ones, twos = (
        nn.ParameterList([nn.Parameter(torch.full((2, 0), 1, dtype=dtype)), nn.Parameter(values)])
        for values in (torch.ones(3, dtype=dtype), torch.full((3,), 2, dtype=dtype))
    )
    assert parameter_digest(ones) != parameter_digest(twos)


COUNTING = [
    (
        '    parser.add_argument("--kind"',
        '    parser.add_argument("--start-batch", type=int, default=0, help="Checkpoint.")\n'
        '    parser.add_argument("--save-every-n", type=int, default=2, help="Batches.")\n'
        '    parser.add_argument("--kind"',
    ),
    (
        "    model = Transducer(C=11)\n",
        "    model = Transducer(C=11)\n"
        "    model.joiner.seen = 0\n"
        "    if params.start_batch:\n"
        '        name = f"checkpoint-{params.start_batch}.pt"\n'
        "        model.load_state_dict(torch.load(Path(params.exp_dir, name)))\n"
        "        params.batch_idx_train = params.start_batch\n",
    ),
    (
        "            optimizer.zero_grad()\n",
        "            optimizer.zero_grad()\n"
        "            model.joiner.seen += 1\n"
        '            name = f"checkpoint-{params.batch_idx_train}.pt"\n'
        "            torch.save(model.state_dict(), Path(params.exp_dir, name))\n",
    ),
    (
        "    model.eval()\n",
        '    Path(params.exp_dir, "seen.txt").write_text(str(model.joiner.seen))\n'
        "    model.eval()\n",
    ),
]
SCAN = (
    "    for epoch in range(params.num_epochs):\n",
    "    if not params.start_batch:\n"
    "        for batch in Loader(1):\n"
    "            compute_loss(params=params, model=model, batch=batch, is_training=True)\n"
    "            model.joiner.seen += 100\n"
    "    for epoch in range(params.num_epochs):\n",
)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_run_with_a_batch_seed_saves_and_resumes_them(recipe, seed):
    recipe.edit(*COUNTING)
    options = PandaOptions(batch_seed=seed, max_batches=4)
    assert run_recipe(recipe.train_py, [], options) == 0
    saved = sorted(p.name for p in (recipe.folder / "exp").glob("*.panda-rank0.json"))
    expected = ["checkpoint-2.panda-rank0.json", "checkpoint-4.panda-rank0.json"]
    assert saved == ([] if seed is None else expected)
    assert run_recipe(recipe.train_py, ["--start-batch", "2"], options) == 0
    assert recipe.lines("exp/seen.txt") == ["4" if seed is None else "6"]


def test_what_a_scan_ahead_of_the_first_epoch_left_is_resumed(recipe):
    recipe.edit(*COUNTING, SCAN)
    options = PandaOptions(batch_seed=3, max_batches=2)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert run_recipe(recipe.train_py, ["--start-batch", "2"], options) == 0
    assert recipe.lines("exp/seen.txt") == ["104"]


def test_an_exp_dir_used_again_by_a_run_without_a_seed_is_refused(recipe, capsys):
    recipe.edit(*COUNTING)
    assert run_recipe(recipe.train_py, [], PandaOptions(batch_seed=3)) == 0
    recipe.edit(("lr=1e-3", "lr=1e-2"))
    assert run_recipe(recipe.train_py, [], PandaOptions()) == 0
    with pytest.raises(UsageError, match=r"checkpoint-2\.pt beside it is of another run"):
        run_recipe(recipe.train_py, ["--start-batch", "2"], PandaOptions(batch_seed=3))


def test_a_missing_file_of_a_resumed_run_does_not_stop_it(recipe, caplog):
    recipe.edit(("batch_idx_train=0", "batch_idx_train=0, start_batch=2"))
    assert run_recipe(recipe.train_py, [], PandaOptions(batch_seed=1)) == 0
    assert caplog.text.count("checkpoint-2.panda-rank0.json: not found") == 1
