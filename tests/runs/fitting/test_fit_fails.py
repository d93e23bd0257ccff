"""A fit whose recipe fails for another reason than memory: what failed is named, and what to do."""

import shlex

import pytest

from panda_icefall.runs.fitting.fit import run_fit
from panda_icefall.runs.fitting.request import check_fit

BROKEN = "Traceback (most recent call last):\n  File 'train.py', line 3\nImportError: no icefall"


def test_a_recipe_that_refuses_its_arguments_is_a_usage_error(fitted):
    fitted.outcomes["dense", 100] = "failed"
    fitted.status, fitted.detail = 2, "status 2: train.py: error: unrecognized arguments: --lr"
    status, report, text, error = fitted()
    assert (status, text) == (2, "")
    assert "TRAIN_PY: dense --max-duration 100: status 2: train.py: error: unrecog" in error
    assert error.endswith("output.log; put it right and start the fit again\n")
    assert report["state"] == "partial"
    assert "unrecognized arguments: --lr" in report["reason"]


def test_a_recipe_that_is_broken_from_the_start_is_not_told_to_go_on(fitted, tmp_path):
    fitted.outcomes["dense", 100] = "failed"
    fitted.detail, fitted.tail = "status 1: ImportError: no icefall", BROKEN
    status, report, text, error = fitted(arguments=("--max-duration", "100", "--lr", "a b"))
    assert (status, report["state"]) == (1, "partial")
    assert fitted.tried == [("dense", 100)]
    assert "dense --max-duration 100: failed, 2.0 s: status 1: ImportError: no icefall" in error
    lines = text.splitlines()
    assert lines[0] == (
        "FAILED, and not for want of memory: dense --max-duration 100: status 1: ImportError: no "
        "icefall"
    )
    log = tmp_path / "fit/trials/dense-100/output.log"
    assert lines[1] == f"the last lines of its output, {log}:"
    assert lines[2:5] == [f"    {line}" for line in BROKEN.splitlines()]
    assert lines[5].startswith(
        f"what to do: make it run alone: panda-icefall run {fitted.train_py}"
    )
    assert "--lr 'a b' --max-duration 100" in lines[5]
    assert lines[5].endswith("--use-panda 0 --panda-max-batches 2")
    assert lines[6] == "Nothing was measured: then start the fit again."
    for missing in ("PARTIAL", "go on", "set: ", "Largest --max-duration", "Measured:"):
        assert missing not in text


def test_the_command_to_run_it_alone_is_one_that_can_be_run(fitted, command):
    fitted.outcomes["dense", 100] = "failed"
    words = ("--num-batches", "3", "--max-duration", "100")
    (line,) = [line for line in fitted(arguments=words)[2].splitlines() if "run alone: " in line]
    recipe_words = shlex.split(line.partition("run alone: ")[2])
    assert recipe_words[:2] == ["panda-icefall", "run"]
    assert "--max-duration" in recipe_words
    # The toy recipe has no such option, which its parser says: the words got there.
    status, _, error = command(*recipe_words[1:])
    assert status == 2
    assert "unrecognized arguments: --max-duration 100" in error


def test_a_recipe_that_fails_later_ends_the_search_with_what_was_found(fitted, tmp_path):
    fitted.outcomes["routed", 100] = "failed"
    fitted.detail = "status 1: ValueError: no"
    status, report, text, _ = fitted()
    assert status == 1
    assert "FAILED, and not for want of memory: routed --max-duration 100: status 1: " in text
    assert f"Then start the fit again: with --out {tmp_path}/fit what was measured is" in text
    assert "if neither the recipe nor its arguments changed; else it needs a new folder" in text
    assert "PARTIAL" not in text
    dense = report["arms"]["dense"]["fits"]
    assert dense > 120
    assert f"set: --max-duration {dense}" in text
    # Nothing is known of the other arm, which is not the same as none that fits.
    (header,) = [line for line in text.splitlines() if " dense " in line]
    assert "routed" not in header


def test_a_failure_is_in_the_json_as_well(fitted):
    fitted.outcomes["dense", 100] = "failed"
    fitted.tail = BROKEN
    _, report, _, _ = fitted("--json")
    (trial,) = report["trials"]
    assert (trial["outcome"], trial["tail"]) == ("failed", BROKEN)


@pytest.mark.slow
def test_the_minutes_of_a_fit_are_called_as_its_option_is(recipe):
    request = check_fit(
        recipe.train_py, [], device="cpu", limit_mib=100.0, scan_batches=None, most_trials=1,
        tolerance=0.1, max_minutes=1e-9, out=recipe.folder / "fit",
    )  # fmt: skip
    record, status = run_fit(request)
    assert status == 1
    assert record.reason.startswith("--max-minutes: the limit of 1e-09 minutes was reached")
