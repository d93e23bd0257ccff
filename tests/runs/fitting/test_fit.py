"""The command around its trials: what is refused, written after each one, continued and printed."""

import json

import pytest

from panda_icefall.runs.fitting import fit, request

CPU = ("--device", "cpu", "--limit-mib", "200")


def test_each_arm_has_its_largest(fitted):
    status, report, text, error = fitted()
    assert status == 0
    assert report["state"] == "complete"
    dense, routed = (report["arms"][arm] for arm in ("dense", "routed"))
    assert 123 <= dense["fits"] <= 130 < dense["too_long"]
    assert 660 <= routed["fits"] <= 700 < routed["too_long"]
    assert dense["is_settled"]
    assert fitted.tried[0] == ("dense", 100)
    assert [(t["arm"], t["max_duration"]) for t in report["trials"]] == fitted.tried
    assert f"set: --use-panda 1 --max-duration {routed['fits']}, 5" in text
    assert "take 5 to 10 percent less" in text
    assert "MiB above what is held before training, on cpu" in " ".join(text.split())
    assert "peak of the process in all" in text
    assert "PARTIAL" not in text
    # Not a terminal: a line for each trial, and nothing that moves.
    lines = error.splitlines()
    assert len(lines) == len(fitted.tried)
    assert lines[0] == "dense --max-duration 100: fits, peak 454 MiB (process RSS), 2.0 s"


@pytest.mark.parametrize(("given", "arm"), [("0", "dense"), ("1", "routed")])
def test_use_panda_names_the_only_arm(fitted, given, arm):
    status, report, text, _ = fitted(arguments=("--use-panda", given, "--max-duration=90"))
    assert (status, list(report["arms"])) == (0, [arm])
    assert {name for name, _ in fitted.tried} == {arm}
    assert ("--use-panda 1" in text) is (arm == "routed")
    assert report["inputs"]["ARGS"] == []


def test_json_takes_the_place_of_the_table(fitted):
    status, report, text, _ = fitted("--json")
    assert status == 0
    assert json.loads(text) == report


def test_where_nothing_fits_the_status_is_one(fitted):
    fitted.outcomes.update({("dense", n): "killed" for n in (100, 50, 25, 12, 6, 3, 1)})
    status, report, text, _ = fitted(arguments=("--max-duration", "100", "--use-panda", "0"))
    assert (status, report["arms"]["dense"]["fits"]) == (1, 0)
    assert "dense: not even --max-duration 1 fitted" in text


def test_data_that_are_too_few_are_said(fitted):
    fitted.outcomes.update({("routed", n): "no batch" for n in range(200, 1000)})
    status, report, text, _ = fitted(arguments=("--max-duration", "100", "--use-panda", "1"))
    assert status == 0
    assert report["arms"]["routed"]["lacks_data"]
    assert "routed: the data make no larger batches" in text
    assert ">= 1" in text


def test_more_trials_than_were_admitted_are_asked_for(fitted):
    status, _, text, _ = fitted("--max-trials", "1")
    assert status == 0
    assert "dense: --max-trials came first" in text
    assert len(fitted.tried) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--limit-mib: got none on a CPU"),
        (["--device", "cpu", "--limit-mib", "0"], "--limit-mib: got 0, expected a number above 0"),
        (["--device", "cpu", "--limit-mib", "inf"], "--limit-mib: got inf"),
        ([*CPU, "--tolerance", "1"], "--tolerance: got 1, expected a number between 0 and 1"),
        ([*CPU, "--max-minutes", "nan"], "--max-minutes: got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(fitted, words, message):
    status, report, text, error = fitted(options=words)
    assert (status, report, text) == (2, None, "")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-duration", "long"], "--max-duration: got 'long', expected seconds"),
        (["--max-duration", "0.2"], "--max-duration: got '0.2', expected seconds, at least 1"),
        (["--start-epoch", "3"], "--start-epoch: got 3, expected training from its start"),
        (["--start-batch=50"], "--start-batch: got 50"),
        (["--panda-max-batches", "3"], "--panda-max-batches: got it in a fit"),
        (["--panda-memory-log", "m.jsonl"], "--panda-memory-log: got it in a fit"),
        (["--panda-nonsense", "3"], "unknown PANDA option --panda-nonsense"),
        (["--limit-mib", "50"], "--limit-mib: got it after TRAIN_PY, expected before"),
        (["--help"], "ARGS: got --help, expected training"),
    ],
)
def test_arguments_that_a_trial_cannot_have_are_refused(fitted, arguments, message):
    status, report, text, error = fitted(arguments=arguments)
    assert (status, report, text) == (2, None, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_gpu_that_is_not_there_and_a_recipe_that_is_not(fitted, command, monkeypatch):
    monkeypatch.setattr(request.torch.cuda, "is_available", lambda: False)
    assert "--device: got cuda, but torch sees no GPU" in fitted(options=("--device", "cuda"))[3]
    status, _, error = command("fit", *CPU, "gone.py")
    assert status == 2
    assert "gone.py does not exist" in error


def test_a_gpu_that_cannot_be_asked_is_said(fitted, monkeypatch):
    """The process that asks for its name fails, as where a driver is missing."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(request.torch.cuda, "is_available", lambda: True)
    status, _, _, error = fitted(options=("--device", "cuda"))
    assert status == 2
    assert "--device: got cuda, whose GPU cannot be used (" in error


def test_the_first_duration_is_the_recipes_own_default(fitted, recipe):
    line = '    parser.add_argument("--max-duration", type=int, default=40)\n    return parser\n'
    more = '    parser.add_argument("--prune-range", type=int, default=5)\n' + line
    recipe.edit(("    return parser\n", more))
    assert fitted(arguments=())[0] == 0
    assert fitted.tried[0] == ("dense", 40)


def test_a_report_that_cannot_be_written_ends_no_search(fitted, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(fit, "replace_json", full)
    status, report, text, error = fitted()
    assert (status, report) == (0, None)
    assert "set: --use-panda 1 --max-duration" in text
    assert "fit.json could not be written: no space left" in error
