"""The options are taken out of the command line and checked before anything runs."""

import argparse
import dataclasses
import inspect
import pickle
import re
from pathlib import Path

import pytest

import panda_icefall
from panda_icefall import routing
from panda_icefall.runs import PandaOptions, UsageError, panda_arguments, split_panda_arguments
from panda_icefall.runs.options import option


def test_words_of_the_recipe_stay_as_they_are_and_in_order():
    words = ["--lr", "-1e-3", "--use-panda", "1", "--", "x", "--panda-max-batches=7", "-v", "--y"]
    options, rest = split_panda_arguments(words)
    assert rest == ["--lr", "-1e-3", "--", "x", "-v", "--y"]
    assert options == PandaOptions(use_panda=True, max_batches=7)


WORDS = {
    "--use-panda": ("yes", True),
    "--panda-workspace-mib": ("0.5", 0.5),
    "--panda-adjoint-tolerance": ("0", 0.0),
    "--panda-engine": ("torch", "torch"),
    "--panda-recursion": ("exact", "exact"),
    "--panda-projections": ("am=am_proj,lm=j.lm_proj", {"am": "am_proj", "lm": "j.lm_proj"}),
    "--panda-ctc": ("1", True),
    "--panda-strict": ("1", True),
    "--panda-max-batches": ("3", 3),
    "--panda-check-batches": ("2", 2),
    "--panda-check-update-steps": ("5", 5),
    "--panda-check-tolerances": (
        "loss_rel=1e-3, log_z_rel_l2=0.5",
        {"loss_rel": 1e-3, "log_z_rel_l2": 0.5},
    ),
    "--panda-check-recursion": ("own", "own"),
    "--panda-memory-log": ("/logs/m.jsonl", Path("/logs/m.jsonl")),
    "--panda-verify-every": ("200", 200),
    "--panda-batch-seed": ("0", 0),
    "--panda-recipe-params": ("nhead=4,dropout=0.1", {"nhead": "4", "dropout": "0.1"}),
    "--panda-last-bit-twin": ("1", True),
}


def test_every_option_reaches_its_field_and_comes_back_in_words():
    typed = [word for flag, (text, _) in WORDS.items() for word in (flag, text)]
    typed[typed.index("--panda-max-batches") + 1] = "5"  # the check takes as many
    options, rest = split_panda_arguments(typed)
    assert rest == []
    assert list(PandaOptions.flags()) == list(WORDS)
    values = {field.name: WORDS[flag][1] for flag, field in PandaOptions.flags().items()}
    assert options == PandaOptions(**{**values, "max_batches": 5})
    assert split_panda_arguments(options.words) == (options, [])
    assert pickle.loads(pickle.dumps(options)) == options  # as a spawned child gets them


@pytest.mark.parametrize("flag", WORDS)
def test_a_run_is_active_by_what_it_is_asked_to_do_and_by_no_setting(flag):
    options = PandaOptions(**{PandaOptions.flags()[flag].name: WORDS[flag][1]})
    settings = (
        "workspace-mib adjoint-tolerance engine recursion projections ctc strict "
        "check-update-steps check-tolerances check-recursion"
    )
    assert options.is_active is (flag.removeprefix("--panda-") not in settings.split())
    assert options.words[0] == flag
    assert not PandaOptions().is_active


@dataclasses.dataclass(frozen=True)
class WithOneMore(PandaOptions):
    """What a new option takes: a field."""

    shards: int = option(1, int, "run", "Shards of the vocabulary.")
    kernel: str = option("fast", str, "loss", "Which kernel.")


def test_a_field_is_all_that_a_new_option_takes(monkeypatch):
    monkeypatch.setattr(panda_arguments, "PandaOptions", WithOneMore)
    options, rest = split_panda_arguments(["--lr", "1", "--panda-shards", "2"])
    assert (options, rest) == (WithOneMore(shards=2), ["--lr", "1"])
    assert (options.is_active, options.in_words) == (True, "--panda-shards 2")
    assert not WithOneMore(kernel="slow").is_active
    parser = argparse.ArgumentParser()
    panda_arguments.add_panda_arguments(parser)
    assert "--panda-shards PANDA_SHARDS" in parser.format_help()
    assert "Shards of the vocabulary." in parser.format_help()
    with pytest.raises(UsageError, match="did you mean --panda-shards"):
        split_panda_arguments(["--panda-shard", "2"])


def test_what_the_loss_is_asked_for_reaches_apply(monkeypatch):
    given = []
    monkeypatch.setattr(routing, "patched", lambda **options: given.append(options))
    PandaOptions(workspace_mib=2.0, engine="torch", strict=True, max_batches=3).routed()
    WithOneMore(kernel="slow").routed()
    arguments = set(inspect.signature(panda_icefall.apply).parameters) - {"model"}
    assert set(given[0]) == arguments
    assert {name: value for name, value in given[0].items() if value is not None} == {
        "workspace_mib": 2.0, "engine": "torch", "recursion": "auto", "strict": True, "ctc": False
    }  # fmt: skip
    assert given[1]["kernel"] == "slow"


def test_one_of_the_projections_may_be_named_alone():
    assert split_panda_arguments(["--panda-projections=lm= x"])[0].projections == {"lm": "x"}


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
        (["--panda-check-recursion", "k2"], "--panda-check-recursion: got 'k2', expected auto or"),
        (["--panda-recursion", "k3"], "--panda-recursion: got 'k3', expected one of auto, k2, ex"),
        (["--panda-engine", "cuda"], "--panda-engine: got 'cuda', expected one of auto, torch"),
        (["--panda-projections", "am"], "--panda-projections: got 'am', expected am=NAME,lm=NAME"),
        (["--panda-projections", "am="], "got 'am=', expected am=NAME,lm=NAME,ctc=NAME or some of"),
        (["--panda-projections", "pm=x"], "got 'pm=x', expected am=NAME"),
        (["--panda-projections", "ctc=x"], "got ctc=x without a CTC loss; give --panda-ctc 1"),
        (["--panda-ctc", "2"], "--panda-ctc: got '2', expected 0 or 1"),
        (["--panda-projections", "am=x,am=y"], "got 'am=x,am=y', expected am=NAME"),
        (["--panda-projections", ""], "got '', expected am=NAME"),
        (["--panda-memory-log", "."], "got '.', expected the path of a file"),
    ],
)
def test_bad_options_are_named_with_what_was_got(words, message):
    with pytest.raises(UsageError, match=message):
        split_panda_arguments(words)


def test_the_check_needs_the_batches_that_it_compares_and_those_it_steps_on():
    assert PandaOptions(check_batches=2, check_update_steps=5).batches_of_check == 5
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
    "words",
    [
        ["--panda-check-update-steps", "2"],
        ["--panda-check-tolerances", "loss_rel=0.1"],
        ["--panda-check-recursion", "own"],
    ],
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
    readme = (Path(__file__).parents[2] / "egs/README.md").read_text()
    assert "`--panda-workspace-mib` | by the device |" in readme
    assert PandaOptions().workspace_mib is None
    assert inspect.signature(panda_icefall.apply).parameters["workspace_mib"].default is None


def test_options_are_told_in_the_words_in_which_they_are_typed():
    words = (
        "--use-panda 1 --panda-workspace-mib 0.5 --panda-adjoint-tolerance 0 "
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
    assert check.announcement.endswith("are compared, the recipe itself trains dense")
