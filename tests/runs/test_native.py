"""A patched recipe started by itself does what the launcher does to the unpatched one."""

import json
import re
import runpy
import sys

import pytest

import panda_icefall
from panda_icefall.runs import NotRoutedError, PandaOptions, run_recipe
from panda_icefall.runs.native import with_panda
from panda_icefall.runs.patching.recipe_file import apply_patch, revert_patch


@pytest.fixture
def native(recipe, monkeypatch):
    """Patches the toy recipe; gives a function that runs it as `./train.py words`, in process."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", [str(recipe.train_py), *map(str, words)])
        status = 0
        try:
            runpy.run_path(str(recipe.train_py), run_name="__main__")
        except SystemExit as error:
            status = error.code
        assert sys.argv[1:] == [*map(str, words)]
        assert panda_icefall.status().replaced == ()
        return status

    monkeypatch.syspath_prepend(recipe.folder)
    apply_patch(recipe.folder)
    run.recipe = recipe
    return run


@pytest.mark.parametrize("words", [[], ["--use-panda", "0"], ["--use-panda=no"]])
def test_without_options_the_patched_recipe_is_as_if_unpatched(native, words, capsys):
    recipe = native.recipe
    assert native("--exp-dir", "native", *words) == 0
    revert_patch(recipe.folder)
    assert native("--exp-dir", "native2") == 0
    for name in ("losses-0.txt", "valid-0.txt"):
        assert recipe.lines(f"native/{name}") == recipe.lines(f"native2/{name}")
    params, unpatched = (
        json.loads((recipe.folder / arm / "params-0.json").read_text())
        for arm in ("native", "native2")
    )
    assert params == {**unpatched, "exp_dir": "native"}
    assert "PANDA" not in capsys.readouterr().err


def test_the_patched_recipe_trains_as_the_launcher_does(native, capsys):
    recipe = native.recipe
    logged = ["--panda-memory-log", "native.jsonl", "--panda-max-batches", 6]
    size = ["--num-epochs", 5, "--use-panda", 1]
    assert native("--exp-dir", "native", *size, *logged) == 0
    summary = capsys.readouterr().err
    revert_patch(recipe.folder)
    options = PandaOptions(
        use_panda=True, max_batches=6, memory_log=recipe.folder / "launched.jsonl"
    )
    words = ["--exp-dir", "launched", "--num-epochs", "5"]
    assert run_recipe(recipe.train_py, words, options) == 0

    losses, launched = (recipe.lines(f"{arm}/losses-0.txt") for arm in ("native", "launched"))
    assert len(losses) == 6
    assert losses == launched
    rows, expected = (recipe.phases(f"{arm}.jsonl") for arm in ("native", "launched"))
    assert [(row["step"], row["phase"]) for row in rows] == [
        (row["step"], row["phase"]) for row in expected
    ]
    assert recipe.rows("native.jsonl")[-1]["reason"] == "bound"
    told = []
    for text in (summary, capsys.readouterr().err):
        table = re.sub(r"│ added by the losses.*\n", "", text[text.index("PANDA summary") :])
        told.append(re.sub(r"\d+\.\d+|\d+ MiB|\w+\.jsonl", "#", table).split())
    assert [word for word in told[0] if "native" not in word and "launched" not in word] == [
        word for word in told[1] if "native" not in word and "launched" not in word
    ]


def test_the_recipe_sees_none_of_pandas_options(native):
    assert native("--exp-dir", "exp", "--use-panda", 1, "--panda-memory-log", "m.jsonl") == 0
    params = json.loads((native.recipe.folder / "exp/params-0.json").read_text())
    assert not [name for name in params if "panda" in name]


@pytest.mark.parametrize("launched", [False, True])
def test_help_shows_the_panda_group_once(native, capsys, launched):
    if launched:
        assert run_recipe(native.recipe.train_py, ["--help"], PandaOptions()) == 0
    else:
        assert native("--help", "--use-panda", 1) == 0
    text = capsys.readouterr().out
    assert "--world-size" in text
    assert text.count("PANDA:") == 1
    assert text.count("Options of panda-icefall") == 1
    assert "--panda-max-batches" in text


def test_the_contract_check_runs_natively_and_its_violation_is_status_one(native, capsys):
    words = ["--exp-dir", "exp", "--panda-check-batches", 1]
    assert native(*words) == 0
    assert "The contract holds over 1 update(s)" in capsys.readouterr().err
    assert native(*words, "--kind", "skewed") == 1
    assert "contract violated (rank 0)" in capsys.readouterr().err
    assert (native.recipe.folder / "exp/panda-check.json").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--use-pandas", 1], 2, "unknown PANDA option --use-pandas"),
        (["--panda-max-batches", 0], 2, "got '0', expected an integer of at least 1"),
        (
            ["--panda-check-batches", 2, "--panda-max-batches", 1],
            2,
            "--panda-max-batches: got 1, expected at least the 2",
        ),
        (["--panda-memory-log", "train.py/m.jsonl"], 2, "--panda-memory-log: cannot write"),
        (["--use-panda", 1, "--num-epochs", 0], 1, "ended without a training batch that PANDA"),
        (["--panda-max-batches", 1, "--num-epochs", 0], 1, "ended without a training batch"),
        (["--panda-check-batches", 1, "--num-epochs", 0], 1, "ended without a training batch"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_the_launchers_status(
    native, capsys, words, status, message
):
    assert native(*words) == status
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("panda-icefall: ")]
    assert message in line
    assert not (native.recipe.folder / "exp/losses-0.txt").exists()


def test_a_loss_that_is_not_routed_is_one_line_and_status_one(native):
    done = native.recipe.subprocess("train.py", "--kind", "ctc", "--use-panda", 1, module=None)
    assert done.returncode == 1
    assert "panda-icefall: PANDA was asked for, but no loss was routed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_the_recipe_keeps_its_traceback(native):
    words = ["--fail-at", 1, "--use-panda", 1]
    done = native.recipe.subprocess("train.py", *words, module=None)
    assert done.returncode == 1
    assert "RuntimeError: the toy recipe fails on purpose" in done.stderr
    assert "PANDA summary" in done.stderr


@pytest.mark.parametrize("words", [[], ["--use-panda", "1"]])
def test_the_recipes_exit_status_stays(native, words):
    native.recipe.edit(("        run(0, 1, args)\n", "        exit(3)\n"))
    assert native(*words) == 3


def test_a_reached_bound_ends_the_process_where_it_was_reached(native, capsys):
    with native.recipe.train_py.open("a") as f:
        f.write("    print('main returned')\n")
    assert native("--use-panda", 1, "--panda-max-batches", 4, "--num-epochs", 2) == 0
    assert "main returned" not in capsys.readouterr().out
    assert native("--use-panda", 1) == 0
    assert "main returned" in capsys.readouterr().out


def test_a_recipe_without_the_functions_is_refused_before_it_starts(native, capsys):
    native.recipe.edit(("train_one_epoch", "something"))
    assert native("--use-panda", 1) == 2
    assert "defines no train_one_epoch()" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["native", "launched"])
def test_two_processes_train_routed_checked_and_logged(native, port, start):
    recipe = native.recipe
    words = ["--world-size", 2, "--master-port", port, "--num-epochs", 3, "--exp-dir", "exp"]
    words += ["--use-panda", 1, "--panda-check-batches", 1, "--panda-max-batches", 2]
    words += ["--panda-memory-log", "m.jsonl"]
    if start == "native":
        done = recipe.subprocess("train.py", *words, module=None)
    else:
        done = recipe.subprocess("run", "train.py", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("PANDA summary") == 1
    assert "The contract holds over 1 update(s)" in done.stderr
    assert "2, 2" in done.stderr  # batches per rank
    assert "8 / 0" in done.stderr  # two training and two validation losses on each rank
    for rank, suffix in ((0, ""), (1, ".rank1")):
        assert len(recipe.lines(f"exp/losses-{rank}.txt")) == 2
        assert recipe.rows(f"m{suffix}.jsonl")[-1]["reason"] == "bound"


def test_two_processes_give_the_losses_of_the_launcher(native, port):
    recipe = native.recipe
    words = ["--world-size", 2, "--master-port", port, "--use-panda", 1, "--exp-dir"]
    patched = recipe.subprocess("train.py", *words, "native", module=None)
    revert_patch(recipe.folder)
    launched = recipe.subprocess("run", "train.py", *words, "launched")
    assert (patched.returncode, launched.returncode) == (0, 0), patched.stderr
    for rank in (0, 1):
        name = f"losses-{rank}.txt"
        assert recipe.lines(f"native/{name}") == recipe.lines(f"launched/{name}")


def test_what_a_child_did_not_route_is_said_in_one_line(native, port):
    words = ["--world-size", 2, "--master-port", port, "--kind", "ctc", "--use-panda", 1]
    done = native.recipe.subprocess("train.py", *words, module=None)
    assert done.returncode == 1
    assert "panda-icefall: PANDA was asked for, but no loss was routed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_launcher_has_the_last_word_over_a_patched_recipe(native, capsys):
    recipe = native.recipe
    options = PandaOptions(use_panda=True)
    assert run_recipe(recipe.train_py, ["--exp-dir", "exp"], options) == 0
    assert capsys.readouterr().err.count("PANDA summary") == 1
    with pytest.raises(NotRoutedError, match="no loss was routed"):
        run_recipe(recipe.train_py, ["--kind", "ctc"], options)


def test_a_neighbour_imports_from_a_patched_recipe(native):
    (native.recipe.folder / "decode.py").write_text(
        "import sys\nfrom train import get_parser\n"
        "assert not get_parser().parse_args([]).__dict__.keys() & {'use_panda'}\n"
        "print('decoded', sys.argv[1:])\n"
    )
    done = native.recipe.subprocess("decode.py", "--use-panda", "1", module=None)
    assert (done.stdout, done.stderr) == ("decoded ['--use-panda', '1']\n", "")


def test_main_keeps_its_name_its_arguments_and_its_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])

    @with_panda
    def main(first, *, second):
        """Train."""
        return first, second, sys.argv

    assert (main.__name__, main.__doc__) == ("main", "Train.")
    assert main(1, second=2) == (1, 2, ["train.py", "--lr", "1"])
