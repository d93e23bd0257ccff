"""Full disks, read-only folders, broken files, killed processes: nothing written is lost.

More of it: `test_termination.py` (SIGTERM), `memory/test_log.py` (a full disk and a killed process
under the log), `test_atomic_file.py`, `hooks/test_non_finite.py` (a full disk under a report),
`bounded/test_config.py` (YAML), `bounded/test_bounded_run.py` (killed arms and runs).
"""

import json

import pytest
import torch

from panda_icefall.runs import PandaOptions, UsageError, run_recipe, session
from panda_icefall.runs.bounded import arms
from panda_icefall.runs.bounded.config import load_config
from panda_icefall.runs.contract import result as contract_result
from panda_icefall.runs.hooks import checkpoint_state
from panda_icefall.runs.memory.reading import read_last_run
from panda_icefall.runs.records import RunOutcome

FULL = OSError(28, "No space left on device")


def full(*args, **kwargs):
    raise FULL


def test_a_full_disk_under_the_contract_report_ends_no_training(
    recipe, monkeypatch, caplog, capsys
):
    monkeypatch.setattr(contract_result, "replace_json", full)
    options = PandaOptions(use_panda=True, check_batches=1)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 4
    assert "the contract report could not be written: [Errno 28]" in caplog.text
    printed = capsys.readouterr().err
    assert "The contract holds over 1 update(s)" in printed
    assert "details: not written" in printed


def test_a_full_disk_under_the_numbers_of_modules_ends_no_training(recipe, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint_state, "replace_json", full)
    # As icefall's recipes say after which batches they save a checkpoint.
    recipe.edit(("batch_idx_train=0)", "batch_idx_train=0, save_every_n=2)"))
    options = PandaOptions(use_panda=True, batch_seed=3)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 4
    assert caplog.text.count("could not be saved; a run resumed from it") == 2


def test_an_outcome_that_cannot_be_left_ends_no_training(recipe, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(RunOutcome, "write", full)
    running = session.TrainingSession(PandaOptions(use_panda=True), 0, tmp_path)
    with running.running():
        running._leave_outcome()
    assert "the outcome of rank 0, for the summary, could not be written" in caplog.text


def test_a_folder_that_cannot_be_written_ends_no_training(recipe, caplog):
    # A file where the recipe's folder should be: refused to root, too, unlike a read-only folder.
    recipe.edit(
        ("params.exp_dir, f\"losses", "'.', f\"losses"),
        ("params.exp_dir, f\"valid", "'.', f\"valid"),
        ("    model = Transducer(C=11)\n", "    model = Transducer(C=11)\n"
         "    params.exp_dir = 'file/exp'\n    Path('file').write_text('')\n"),
        ("torch.save(state, Path(params.exp_dir", "torch.save(state, Path('.'"),
        ("Path(params.exp_dir, f\"done", "Path('.', f\"done"),
        ("    with torch.set_grad_enabled(is_training):\n        loss =",
         "    batch['inputs'][0, 0] = float('nan')\n"
         "    with torch.set_grad_enabled(is_training):\n        loss ="),
    )  # fmt: skip
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    assert len(recipe.lines("losses-0.txt")) == 4
    assert "the batch could not be saved to file/exp/batch-" in caplog.text
    assert "could not be written ([Errno 20] Not a directory" in caplog.text


@pytest.mark.parametrize("kept", [0, 10, -40])
def test_a_checkpoint_that_is_cut_off_is_named(tmp_path, kept):
    path = tmp_path / "epoch-1.pt"
    torch.save({"model": {"weight": torch.ones(30)}}, path)
    assert torch.equal(arms.final_parameters(tmp_path)["weight"], torch.ones(30))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"epoch-1.pt: cannot be read, .*run that arm again"):
        arms.final_parameters(tmp_path)


@pytest.mark.parametrize("text", ["recipe: [", "\x00", "a: b: c", "- 1\n- 2\n", ""])
def test_a_broken_yaml_file_is_named(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"CONFIG: .*config.yaml"):
        load_config(path)


def test_a_run_killed_in_a_step_leaves_what_was_written_and_the_next_one_goes_on(recipe):
    words = ["--use-panda", 1, "--panda-memory-log", "m.jsonl", "--panda-check-batches", 1]
    done = recipe.subprocess("run", "train.py", "--kill-at", 1, *words)
    assert done.returncode == -9, done.stderr
    assert len(recipe.lines("exp/losses-0.txt")) == 1
    assert json.loads((recipe.folder / "exp/panda-check.json").read_text())["violations"] == []
    killed = read_last_run(recipe.folder / "m.jsonl")
    assert killed[-1]["row"] != "end"
    done = recipe.subprocess("run", "train.py", *words)
    assert done.returncode == 0, done.stderr
    rows = read_last_run(recipe.folder / "m.jsonl")
    assert rows[0]["run_id"] != killed[0]["run_id"]
    assert rows[-1] == {"row": "end", "reason": "complete", "run_id": rows[0]["run_id"]}
    text = (recipe.folder / "m.jsonl").read_text()
    assert all(row["run_id"] in text for row in killed)
    assert not list(recipe.folder.rglob(".*.partial"))


def test_brackets_in_names_of_files_are_printed_as_they_are(recipe, capsys):
    name = "exp[red]"
    options = PandaOptions(use_panda=True, check_batches=1)
    assert run_recipe(recipe.train_py, ["--exp-dir", name], options) == 0
    assert "exp[red]/panda-check.json" in capsys.readouterr().err.replace("\n", "")


def test_no_words_of_a_recipe_reach_a_shell():
    from pathlib import Path

    import panda_icefall

    for file in Path(panda_icefall.__file__).parent.rglob("*.py"):
        text = file.read_text()
        for call in ("shell=True", "os.system", "os.popen", "getoutput("):
            assert call not in text, f"{file}: {call}"
