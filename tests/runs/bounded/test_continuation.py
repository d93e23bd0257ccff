"""Which earlier runs may be continued, and what of them is taken over."""

import json
from pathlib import Path

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.continuation import (
    finished_row,
    move_aside,
    read_earlier,
    run_inputs,
)
from panda_icefall.runs.bounded.plan import Stage
from panda_icefall.runs.run_record import RunRecord, StageRecord

CONTENT = {
    "recipe": "egs/aishell/ASR/zipformer/train.py",
    "train_args": {"base-lr": 0.045},
    "data": {"corpus": "aishell", "lang": "char", "vocab_size": 11},
    "bounds": {"max_batches": 30, "max_minutes": 5.0},
    "contract": {"batches": 3},
}


@pytest.fixture
def inputs(tmp_path):
    """The inputs of a run with some keys of its configuration, or its files, changed."""
    recipe = tmp_path / "ASR" / "recipe"
    recipe.mkdir(parents=True)
    (recipe / "train.py").write_text("1")
    data = tmp_path / "data"
    (data / "fbank").mkdir(parents=True)
    (data / "fbank" / "cuts.jsonl.gz").write_text("1")

    def inputs(with_data=True, **changes):
        config = BoundedConfig.model_validate({**CONTENT, **changes})
        folder = data if with_data else None
        return run_inputs(config, tmp_path, recipe / "train.py", "cpu", folder)

    inputs.recipe, inputs.data = recipe, data
    return inputs


@pytest.fixture
def earlier(tmp_path, inputs):
    """Leaves the report of an earlier run in a folder, and gives the folder."""
    out = tmp_path / "out"

    def earlier(state="partial", **changes):
        out.mkdir(exist_ok=True)
        content = {"state": state, "inputs": inputs(), "stages": [], **changes}
        (out / "report.json").write_text(json.dumps(content))
        return out

    return earlier


@pytest.mark.parametrize("state", ["partial", "running"])
def test_an_unfinished_or_killed_run_is_continued(earlier, inputs, state):
    assert read_earlier(earlier(state), inputs()).state == state


def test_the_bound_in_minutes_may_change_and_nothing_else(earlier, inputs):
    out = earlier()
    raised = {"max_batches": 30, "max_minutes": 50.0}
    assert read_earlier(out, inputs(bounds=raised)) is not None
    changed = {
        "bounds": inputs(bounds={"max_batches": 31, "max_minutes": 5.0}),
        "train_args": inputs(train_args={"base-lr": 0.04}),
        "contract, data folder, data files": inputs(with_data=False, contract={"batches": 2}),
    }
    for names, other in changed.items():
        with pytest.raises(UsageError, match=f"an unfinished run with other {names}; expected"):
            read_earlier(out, other)
    (inputs.recipe / "model.py").write_text("2")
    with pytest.raises(UsageError, match="with other source files; expected"):
        read_earlier(out, inputs())
    (inputs.data / "fbank" / "cuts.jsonl.gz").write_text("23")
    with pytest.raises(UsageError, match="with other data files, source files; expected"):
        read_earlier(out, inputs())


def test_a_link_to_a_file_that_is_gone_is_left_out(inputs):
    before = inputs()
    (inputs.recipe / "gone.py").symlink_to(inputs.recipe / "nowhere.py")
    assert inputs() == before


def test_folders_that_hold_no_unfinished_run(earlier, inputs, tmp_path):
    assert read_earlier(tmp_path / "new", inputs()) is None
    (tmp_path / "empty").mkdir()
    assert read_earlier(tmp_path / "empty", inputs()) is None
    with pytest.raises(UsageError, match="which holds a finished run"):
        read_earlier(earlier("complete"), inputs())
    for text in ("[]", "{}", '{"state": "partial"}', "{"):
        (earlier() / "report.json").write_text(text)
        with pytest.raises(UsageError, match="which exists and is not empty, expected a new fold"):
            read_earlier(earlier().parent / "out" / "..", inputs())


def test_a_stage_is_finished_if_it_was_done_by_the_same_command():
    stage = Stage("dense", "", ("python", "a b"), Path("log"), Path("memory"), Path("exp"))
    row = StageRecord(name="dense", command="python 'a b'", state="done")
    other = StageRecord(name="x", command="x", state="done")

    def found(**changes):
        stages = [other, row.model_copy(update=changes)]
        return finished_row(RunRecord(stages=stages), stage)

    assert found() == row
    assert found(state="taken over") is not None
    assert found(state="interrupted") is None
    assert found(state="failed") is None
    assert found(command="python a") is None
    assert finished_row(None, stage) is None


def test_what_attempts_left_is_kept(tmp_path):
    folder = tmp_path / "dense"
    move_aside(folder)
    for attempt in (1, 2):
        folder.mkdir()
        (folder / "output.log").write_text(str(attempt))
        move_aside(folder)
        assert not folder.exists()
        assert (tmp_path / f"dense-attempt-{attempt}" / "output.log").read_text() == str(attempt)
