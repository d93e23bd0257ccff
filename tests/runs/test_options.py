"""The options are taken out of the command line and checked before anything runs."""

import inspect
import re
from pathlib import Path

import pytest

import panda_icefall
from panda_icefall.runs import PandaOptions, UsageError, split_panda_arguments


def test_words_of_the_recipe_stay_as_they_are_and_in_order():
    words = ["--lr", "-1e-3", "--use-panda", "1", "--", "x", "--panda-max-batches=7", "-v", "--y"]
    options, rest = split_panda_arguments(words)
    assert rest == ["--lr", "-1e-3", "--", "x", "-v", "--y"]
    assert options == PandaOptions(use_panda=True, max_batches=7)


def test_every_option_reaches_its_field(tmp_path):
    log = tmp_path / "m.jsonl"
    options, rest = split_panda_arguments(
        f"--use-panda yes --panda-workspace-mib 0.5 --panda-adjoint-tolerance 0 "
        f"--panda-max-batches 3 --panda-check-batches 2 --panda-memory-log {log} "
        f"--panda-engine torch --panda-projections am=am_proj,lm=joint.lm_proj".split()
    )
    assert rest == []
    names = {"am": "am_proj", "lm": "joint.lm_proj"}
    assert options == PandaOptions(
        True, 0.5, 0.0, 3, 2, log, False, engine="torch", projections=names
    )


def test_one_of_the_projections_may_be_named_alone():
    assert split_panda_arguments(["--panda-projections=lm= x"])[0].projections == {"lm": "x"}


def test_no_option_is_inactive_and_any_is_active():
    assert not split_panda_arguments(["--use-panda", "0"])[0].is_active
    assert split_panda_arguments(["--panda-max-batches", "1"])[0].is_active
    assert split_panda_arguments(["--panda-memory-log", "m"])[0].is_active


def test_the_memory_log_is_kept_as_an_absolute_path():
    options, _ = split_panda_arguments(["--panda-memory-log", "m.jsonl"])
    assert options.memory_log == Path.cwd() / "m.jsonl"


def test_a_check_runs_three_updates_unless_told_and_stops_afterwards():
    options, _ = split_panda_arguments([], is_check=True)
    assert (options.check_batches, options.stop_after_check) == (3, True)
    options, rest = split_panda_arguments(["--a", "--updates", "5"], is_check=True)
    assert (options.check_batches, rest) == (5, ["--a"])
    options, _ = split_panda_arguments(["--panda-check-batches", "2"], is_check=True)
    assert options.check_batches == 2


def test_updates_belongs_to_the_recipe_outside_of_a_check():
    assert split_panda_arguments(["--updates", "5"])[1] == ["--updates", "5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--use-pandas", "1"], "unknown PANDA option --use-pandas.*did you mean --use-panda?"),
        (["--panda-max-batch", "1"], "unknown PANDA option --panda-max-batch,.*max-batches?"),
        (["--panda"], "unknown PANDA option --panda,"),
        (["--use-panda", "maybe"], "--use-panda: got 'maybe', expected 0 or 1"),
        (["--use-panda"], "--use-panda: expected one argument"),
        (["--panda-workspace-mib", "0"], "--panda-workspace-mib: got '0', expected a number"),
        (["--panda-workspace-mib", "inf"], "--panda-workspace-mib: got 'inf'"),
        (["--panda-workspace-mib", "x"], "--panda-workspace-mib: got 'x'"),
        (["--panda-adjoint-tolerance", "1"], r"got '1', expected a number in \[0, 1\)"),
        (["--panda-adjoint-tolerance", "nan"], "got 'nan', expected a number in"),
        (["--panda-max-batches", "0"], "got '0', expected an integer of at least 1"),
        (["--panda-max-batches", "1.5"], "got '1.5', expected an integer"),
        (["--panda-check-batches=-1"], "got '-1', expected an integer of at least 0"),
        (["--panda-check-update-steps", "0"], "got '0', expected an integer of at least 1"),
        (["--panda-engine", "cuda"], "--panda-engine: got 'cuda', expected one of auto, torch"),
        (["--panda-projections", "am"], "--panda-projections: got 'am', expected am=NAME,lm=NAME"),
        (["--panda-projections", "am="], "got 'am=', expected am=NAME,lm=NAME or one of the two"),
        (["--panda-projections", "ctc=x"], "got 'ctc=x', expected am=NAME"),
        (["--panda-projections", "am=x,am=y"], "got 'am=x,am=y', expected am=NAME"),
        (["--panda-projections", ""], "got '', expected am=NAME"),
        (["--panda-memory-log", "."], "got '.', expected the path of a file"),
    ],
)
def test_bad_options_are_named_with_what_was_got(words, message):
    with pytest.raises(UsageError, match=message):
        split_panda_arguments(words)


def test_steps_and_bounds_of_the_check_reach_their_fields():
    words = "--panda-check-batches 2 --panda-check-update-steps 5 --panda-check-tolerances"
    options, _ = split_panda_arguments([*words.split(), "loss_rel=1e-3, log_z_rel_l2=0.5"])
    assert (options.check_update_steps, options.batches_of_check) == (5, 5)
    assert options.check_tolerances == "loss_rel=1e-3, log_z_rel_l2=0.5"
    assert PandaOptions(check_batches=3, check_update_steps=1).batches_of_check == 3
    assert PandaOptions(check_batches=3).batches_of_check == 3
    assert PandaOptions().batches_of_check == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss=1", "got the name 'loss', expected one of loss_rel, gradient_rel_l2, gradient_cos"),
        ("loss_rel", "got 'loss_rel', expected NAME=VALUE,NAME=VALUE"),
        ("", "got '', expected NAME=VALUE,NAME=VALUE"),
        ("loss_rel=1,", "got '', expected NAME=VALUE,NAME=VALUE"),
        ("loss_rel=", "got 'loss_rel=', expected NAME=VALUE"),
        ("loss_rel=1,loss_rel=2", "got loss_rel twice, expected it once"),
        ("loss_rel=x", "got loss_rel=x, expected a number above 0"),
        ("loss_rel=nan", "got loss_rel=nan, expected a number above 0"),
        ("loss_rel=inf", "got loss_rel=inf, expected a number above 0"),
        ("loss_rel=0", "got loss_rel=0, expected a number above 0"),
        ("gradient_cosine=1.5", "got gradient_cosine=1.5, expected a number above 0, at most 1"),
    ],
)
def test_bad_tolerances_are_named_with_what_was_got(text, message):
    words = ["--panda-check-batches", "1", "--panda-check-tolerances", text]
    with pytest.raises(UsageError, match=f"--panda-check-tolerances: {re.escape(message)}"):
        split_panda_arguments(words)


@pytest.mark.parametrize(
    "words", [["--panda-check-update-steps", "2"], ["--panda-check-tolerances", "loss_rel=1"]]
)
def test_settings_of_a_check_that_is_not_asked_for_are_refused(words):
    with pytest.raises(UsageError, match=f"{words[0]}: got {words[1]} without a check; give --pan"):
        split_panda_arguments(words)
    assert split_panda_arguments(words, is_check=True)[0].check_batches == 3


def test_a_bound_below_the_steps_of_the_check_is_refused():
    words = "--panda-check-batches 1 --panda-check-update-steps 4 --panda-max-batches 3"
    with pytest.raises(UsageError, match="--panda-max-batches: got 3, expected at least the 4"):
        split_panda_arguments(words.split())


def test_a_check_without_updates_is_refused():
    with pytest.raises(UsageError, match="--updates: got 0"):
        split_panda_arguments(["--updates", "0"], is_check=True)


def test_a_bound_below_the_checked_batches_is_refused():
    with pytest.raises(UsageError, match="--panda-max-batches: got 1, expected at least the 2"):
        split_panda_arguments(["--panda-check-batches", "2", "--panda-max-batches", "1"])


def test_one_workspace_default_for_everybody():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "`--panda-workspace-mib` | by the device |" in readme
    assert PandaOptions().workspace_mib is None
    assert inspect.signature(panda_icefall.apply).parameters["workspace_mib"].default is None


def test_options_are_told_in_the_words_in_which_they_are_typed():
    words = (
        "--use-panda 1 --panda-workspace-mib 0.5 --panda-adjoint-tolerance 0.0 "
        "--panda-max-batches 1 --panda-batch-seed 0 --panda-last-bit-twin 1"
    )
    options, _ = split_panda_arguments(words.split())
    assert options.in_words == words
    assert split_panda_arguments(options.in_words.split())[0] == options
    assert options.announcement == f"panda-icefall {panda_icefall.__version__}: {words}"
    logged, _ = split_panda_arguments([*words.split(), "--panda-memory-log", "m.jsonl"])
    assert logged.in_words == words
    check, _ = split_panda_arguments([], is_check=True)
    assert check.in_words == "--panda-check-batches 3"
    assert check.announcement.endswith("; PANDA is OFF, the recipe trains dense")
