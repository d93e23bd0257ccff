"""The command: exit statuses, one clear line for what the user can mend."""

import os
import subprocess
import sys
import types

import click
import pytest

import panda_icefall
from panda_icefall import cli, runs
from panda_icefall.cli import bounded as bounded_commands
from panda_icefall.runs.data.catalog import CORPORA

TRAIN_PY = """
import sys

def compute_loss(model, batch, is_training): ...
def train_one_epoch(model, train_dl): ...

if __name__ == "__main__":
    print("argv", sys.argv[1:])
    {end}
"""


@pytest.fixture
def train_py(tmp_path):
    def write(end="sys.exit(0)"):
        path = tmp_path / "train.py"
        path.write_text(TRAIN_PY.format(end=end))
        return str(path)

    return write


def test_the_version_is_the_packages(command):
    assert command("--version")[:2] == (0, f"panda-icefall, version {panda_icefall.__version__}\n")


def test_help_names_every_command(command):
    status, text, _ = command("--help")
    assert status == 0
    for name in ("run", "check", "fit", "bounded", "synth", "doctor", "patch", "completion"):
        assert name in text


def test_the_recipe_gets_its_own_words_only(command, train_py):
    words = ["--lr", "-1", "--use-panda", "0", "-x", "--", "y", "--panda-workspace-mib=4"]
    status, text, _ = command("run", train_py(), *words)
    assert (status, text) == (0, "argv ['--lr', '-1', '-x', '--', 'y']\n")


def test_the_recipes_exit_status_is_the_commands(command, train_py):
    assert command("run", train_py("sys.exit(7)"))[0] == 7


def test_an_error_of_the_recipe_keeps_its_traceback(train_py):
    done = subprocess.run(
        [sys.executable, "-m", "panda_icefall", "run", train_py("open('/gone')")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FileNotFoundError" in done.stderr


@pytest.mark.parametrize("name", ["run", "check"])
def test_what_the_user_can_mend_is_one_line_and_status_two(command, train_py, tmp_path, name):
    cases = [
        ([str(tmp_path / "gone.py")], "gone.py does not exist"),
        ([str(tmp_path)], "got the folder"),
        ([train_py(), "--use-pandas", "1"], "unknown PANDA option --use-pandas"),
        ([train_py(), "--panda-max-batches", "none"], "got 'none'"),
    ]
    for words, message in cases:
        status, text, error = command(name, *words)
        assert (status, text) == (2, "")
        assert message in error
        assert error.startswith("panda-icefall: ")
        assert error.count("\n") == 1


def test_a_recipe_without_optimizer_cannot_be_checked(command, train_py):
    status, _, error = command("check", train_py())
    assert status == 2
    assert "expected one named optimizer" in error


def test_updates_may_stand_before_the_recipe_or_after_it(command, train_py, monkeypatch):
    seen = []
    monkeypatch.setattr(runs, "run_recipe", lambda *given, **_: seen.append(given) or 0)
    assert command("check", "--updates", "5", train_py(), "--a")[0] == 0
    assert command("check", train_py(), "--a", "--updates", "5")[0] == 0
    assert command("check", train_py(), "--a")[0] == 0
    assert [options.check_batches for _, _, options in seen] == [5, 5, 3]
    assert all(rest == ["--a"] and options.stop_after_check for _, rest, options in seen)
    assert "--updates: got 'x'" in command("check", "--updates", "x", train_py())[2]


COMMANDS = [
    *([name] for name in ("plan", "run", "check", "fit", "bounded", "report", "synth", "doctor")),
    ["completion"],
    *(["patch", name] for name in ("apply", "revert", "check")),
]


GROUPS = [[], ["patch"]]
# Whose output is a table.
WITH_TABLES = {"plan", "run", "check", "fit", "bounded", "report", "doctor"}


@pytest.mark.parametrize("words", [*GROUPS, *COMMANDS], ids=" ".join)
def test_every_help_ends_with_examples_and_exit_statuses(command, words):
    status, text, _ = command(*words, "--help")
    assert status == 0
    _, _, end = text.partition("Examples:\n")
    examples, _, statuses = end.partition("Exit status:\n")
    assert f"  {' '.join(['panda-icefall', *words])}" in examples or words == ["completion"]
    assert "  0  " in statuses
    assert "  1  " in statuses or "  2  " in statuses


def walked(group, *names):
    """Names and command of all that a group has, groups within it among them."""
    for name, found in group.commands.items():
        yield [*names, name], found
        if isinstance(found, click.Group):
            yield from walked(found, *names, name)


def test_every_command_is_among_those_whose_help_is_looked_at():
    listed = [words for words, _ in walked(cli.cli)]
    assert sorted([[], *listed]) == sorted([*GROUPS, *COMMANDS])


def test_whatever_prints_a_table_prints_json_as_well():
    with_json = {
        " ".join(words)
        for words, found in walked(cli.cli)
        if any("--json" in parameter.opts for parameter in found.params)
    }
    assert with_json == WITH_TABLES


HELP = """
import sys
from panda_icefall import cli
sys.argv[1:] = {words}
try:
    cli.main()
except SystemExit:
    print([name for name in {heavy} if name in sys.modules])
"""
HEAVY = ("torch", "numpy", "pydantic", "yaml", "rich", "lhotse", "matplotlib")


@pytest.mark.parametrize("words", [["-h"], ["--version"], ["bounded", "--list"], *COMMANDS])
def test_help_loads_nothing_that_takes_long(words):
    is_command = words in COMMANDS
    program = HELP.format(words=[*words, *(["--help"] if is_command else [])], heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_names_on_the_command_line_are_those_of_the_catalog():
    assert list(bounded_commands.CORPUS_NAMES) == sorted(CORPORA)
    langs = {kind for corpus in CORPORA.values() for kind in corpus.langs}
    assert list(bounded_commands.LANG_NAMES) == sorted(langs)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_options(command, shell):
    status, script, _ = command("completion", shell)
    assert status == 0
    assert "_PANDA_ICEFALL_COMPLETE" in script
    asked = {"COMP_WORDS": "panda-icefall doctor --rep", "COMP_CWORD": "2"}
    if shell == "fish":
        asked["COMP_CWORD"] = "--rep"
    done = subprocess.run(
        [sys.executable, "-m", "panda_icefall"],
        env={**os.environ, **asked, "_PANDA_ICEFALL_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--report" in done.stdout


def test_synth_hands_its_options_to_the_generator(command, monkeypatch, tmp_path):
    seen = []
    fake = types.ModuleType("panda_icefall.runs.data.synthetic")
    fake.synth_data = lambda *given: seen.append(given)
    monkeypatch.setitem(sys.modules, "panda_icefall.runs.data.synthetic", fake)
    where = f"--out {tmp_path} --icefall-root {tmp_path}"
    words = f"{where} --utterances 7 --lang bbpe --vocab 50 --seed 3"
    status, text, _ = command("synth", "aishell", *words.split())
    assert status == 0
    assert text.splitlines() == [
        f"wrote {tmp_path}",
        "train on it, for 10 batches:",
        f"  cd {tmp_path}/egs/aishell/ASR",
        f"  export PYTHONPATH={tmp_path}",
        f"  panda-icefall run zipformer/train_bbpe.py --manifest-dir {tmp_path}/fbank --bpe-model "
        f"{tmp_path}/lang_bbpe_50/bbpe.model --exp-dir {tmp_path}-exp --enable-musan 0 "
        "--num-buckets 2 --max-duration 40 --use-panda 1 --panda-max-batches 10",
    ]
    for corpus in ("wenetspeech", "librispeech"):
        assert command("synth", corpus, *where.split())[0] == 0
    assert seen == [
        ("aishell", tmp_path, tmp_path, 7, "bbpe", 50, 3),
        ("wenetspeech", tmp_path, tmp_path, 160, None, None, 42),
        ("librispeech", tmp_path, tmp_path, 160, None, None, 42),
    ]


def test_what_the_generator_refuses_is_one_line(command, tmp_path):
    words = ["--out", str(tmp_path / "data"), "--icefall-root", str(tmp_path)]
    status, _, error = command("synth", "aishell", *words)
    assert status == 2
    assert error.startswith("panda-icefall: ")
    assert error.count("\n") == 1


CONFIG = """
recipe: egs/aishell/ASR/zipformer/train.py
train_args: {world-size: 1}
data: {corpus: aishell, lang: char, vocab_size: 4336}
bounds: {max_batches: 4, max_minutes: 5}
contract: {batches: 2}
"""


@pytest.fixture
def bounded(command, tmp_path, monkeypatch):
    """Runs `bounded` on CONFIG with a fake checkout; nothing may be started by it."""
    monkeypatch.setattr("subprocess.Popen", None)
    root = tmp_path / "icefall"
    recipe = root / "egs/aishell/ASR/zipformer/train.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(TRAIN_PY.format(end="pass"))
    (root / "icefall").mkdir()
    (root / "icefall/__init__.py").write_text("")
    config = tmp_path / "config.yaml"

    def run(*words, text=CONFIG, icefall_root=root):
        config.write_text(text)
        where = ("--icefall-root", str(icefall_root), "--device", "cpu")
        return command("bounded", str(config), *where, "--out", str(tmp_path / "out"), *words)

    run.out = tmp_path / "out"
    return run


def test_a_bounded_run_with_a_typo_in_its_configuration(bounded):
    text = CONFIG.replace("max_minutes", "max_minuts")
    status, _, error = bounded("--synthetic", text=text)
    assert status == 2
    assert "bounds.max_minuts: unknown key" in error
    assert "did you mean max_minutes?" in error
    assert "Traceback" not in error
    assert not bounded.out.exists()


def test_a_bounded_run_on_a_folder_that_is_no_checkout(bounded, tmp_path):
    status, _, error = bounded("--synthetic", icefall_root=tmp_path)
    assert status == 2
    assert "has no icefall/__init__.py, expected an icefall checkout" in error
    assert not bounded.out.exists()


def test_a_bounded_run_on_data_without_cuts(bounded, tmp_path):
    (tmp_path / "data" / "fbank").mkdir(parents=True)
    status, _, error = bounded("--data", str(tmp_path / "data"))
    assert status == 2
    assert "aishell_cuts_train.jsonl.gz" in error
    assert "./prepare.sh" in error
    assert not bounded.out.exists()


def test_a_bounded_run_of_a_configuration_that_does_not_exist(command, tmp_path):
    where = ("--icefall-root", tmp_path, "--synthetic", "--device", "cpu")
    status, _, error = command("bounded", "aishell/zipfromer", *where)
    assert status == 2
    assert "CONFIG: got aishell/zipfromer, expected a YAML file or one of aishell/" in error
    assert "did you mean aishell/zipformer/cpu?" in error
    # A name that there is gets as far as the checkout.
    assert "expected an icefall checkout" in command("bounded", "aishell/zipformer", *where)[2]


def test_a_bounded_run_without_data(bounded):
    status, _, error = bounded()
    assert status == 2
    assert "--data, --synthetic: got neither" in error


NO_TORCH = """
import sys, runpy
class Broken:
    def find_spec(self, name, *_):
        if name == "torch":
            raise {error}
sys.meta_path.insert(0, Broken())
sys.argv[1:] = {words}
runpy.run_module("panda_icefall", run_name="__main__")
"""


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"], ["run", "train.py"]])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ModuleNotFoundError(\"No module named 'torch'\", name='torch')", "is not installed"),
        (
            "OSError('libcudart.so.11: cannot open')",
            "cannot be imported: OSError: libcudart.so.11: cannot open",
        ),
    ],
)
def test_without_a_working_torch_every_command_says_so(words, error, said):
    program = NO_TORCH.format(error=error, words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"panda-icefall: torch {said} (Python 3.")
    assert "install the torch for your GPU or CPU first" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_package_knows_its_names_and_no_others():
    assert panda_icefall.apply.__module__.startswith("panda_icefall.routing")
    with pytest.raises(AttributeError, match="has no attribute 'aply'"):
        panda_icefall.aply  # noqa: B018
