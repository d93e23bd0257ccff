"""How a command ends that was interrupted, typed wrongly, has no torch, or hands on a status."""

import json
import sys
from types import SimpleNamespace

import pytest

from panda_icefall.runs import doctor
from panda_icefall.runs.bounded import request as bounded_request
from panda_icefall.runs.bounded import run as bounded_run
from panda_icefall.runs.planning import request as plan_request

PLAN = ("plan", "--vocab", 500, "--gpu-mem", "4GiB")


@pytest.fixture
def failing(monkeypatch):
    """Has a plan end with an error."""

    def fail_with(error):
        def gather_inputs(*_, **__):
            raise error

        monkeypatch.setattr(plan_request, "gather_inputs", gather_inputs)

    return fail_with


def test_ctrl_c_is_one_line_and_status_130(command, failing):
    failing(KeyboardInterrupt())
    status, text, error = command(*PLAN)
    assert (status, text) == (130, "")
    assert error.strip() == "panda-icefall: interrupted"


@pytest.mark.parametrize("has_routing", [True, False])
def test_an_error_that_is_nobodys_keeps_its_traceback(command, failing, monkeypatch, has_routing):
    failing(KeyError("a mistake of ours"))
    if not has_routing:
        monkeypatch.delitem(sys.modules, "panda_icefall.routing.errors")
    with pytest.raises(KeyError, match="a mistake of ours"):
        command(*PLAN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--vocab", "many"], "'many' is not a valid integer"),
        (["plan"], "Missing option '--gpu-mem'"),
        (["plan", "--gpu-memory", "4GiB"], "No such option"),
        (["plane"], "No such command 'plane'"),
    ],
)
def test_what_was_typed_wrongly_is_said_with_how_to_get_help(command, words, said):
    status, text, error = command(*words)
    assert (status, text) == (2, "")
    assert error.startswith("Usage: panda-icefall ")
    assert said in error
    assert "Try 'panda-icefall" in error


class Missing:
    """Finds a torch whose library does not load."""

    def find_spec(self, name, *_):
        if name == "torch":
            raise OSError("libcudart.so.11:\n cannot open")


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_torch_that_cannot_be_imported_is_one_line(command, monkeypatch, is_broken):
    if is_broken:
        monkeypatch.delitem(sys.modules, "torch")
        monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
        said = "torch cannot be imported: OSError: libcudart.so.11: cannot open (Python 3."
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
        said = "torch is not installed (Python 3."
    status, text, error = command("doctor")
    assert (status, text) == (2, "")
    assert error.startswith(f"panda-icefall: {said}")
    assert error.count("\n") == 1


def test_a_diagnosis_is_for_a_program_or_for_a_bug_report(command, monkeypatch):
    found = doctor.Diagnosis((doctor.Finding("torch", "ok", "2.13"),))
    monkeypatch.setattr(doctor, "examine", lambda *_: found)
    assert json.loads(command("doctor", "--json")[1])["findings"][0]["subject"] == "torch"
    status, text, _ = command("doctor", "--report")
    assert (status, text.splitlines()[0]) == (0, "```")
    status, _, error = command("doctor", "--report", "--json")
    assert status == 2
    assert "--json, --report: got both; expected one of them" in error


def test_completion_needs_no_torch(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command("completion", "zsh")[0] == 0


def test_the_configurations_are_listed_one_a_line(command):
    status, text, _ = command("bounded", "--list")
    assert status == 0
    assert "aishell/zipformer/cpu" in text.splitlines()


@pytest.mark.parametrize("is_json", [False, True])
def test_a_bounded_run_ends_with_its_status_and_its_report_where_asked(
    command, monkeypatch, tmp_path, is_json
):
    given = {}

    def check_request(config, root, **options):
        given.update(options, config=config.name, root=root)
        return SimpleNamespace(out=tmp_path)

    def run_bounded(request):
        (request.out / "report.json").write_text('{"state": "partial"}')
        return 1

    monkeypatch.setattr(bounded_request, "check_request", check_request)
    monkeypatch.setattr(bounded_run, "run_bounded", run_bounded)
    words = ["mine.yaml", "--icefall-root", tmp_path, "--synthetic", "--max-minutes", 3]
    status, text, _ = command("bounded", *words, *(["--json"] if is_json else []))
    assert status == 1
    assert (json.loads(text) if is_json else text) == ({"state": "partial"} if is_json else "")
    assert given == {
        "config": "mine.yaml", "root": tmp_path, "synthetic": True, "max_minutes": 3.0,
        "data": None, "device": None, "out": None,
    }  # fmt: skip


RECIPE = """
def compute_loss(params, model, batch): pass
def train_one_epoch(params, model, optimizer, train_dl): pass
if __name__ == "__main__":
    {}
"""
FAILURES = {
    'open("data/lang_char/tokens.txt")': (
        "FileNotFoundError above: data/lang_char/tokens.txt: No such file or directory; "
        "prepare the recipe's data, by the prepare.sh of its corpus, or name its folders"
    ),
    'raise OSError("Not found: bpe.model")': "OSError above: Not found: bpe.model; prepare the",
    'raise OSError(28, "No space left on device")': (
        "OSError above: [Errno 28] No space left on device; see whether `python train.py` trains"
    ),
    # What spawn() raises holds a child's traceback.
    """Raised = type("ProcessRaisedException", (Exception,), {}); raise Raised(
        "\\n\\n-- Process 1 terminated with the following error:\\nTraceback (most recent ...):\\n"
        "FileNotFoundError: [Errno 2] No such file or directory: 'tokens.txt'\\n")""": (
        "ProcessRaisedException above: FileNotFoundError: [Errno 2] No such file or directory: "
        "'tokens.txt'; prepare the recipe's data"
    ),
    'raise ValueError("no\\n\\ncuts")': (
        "ValueError above: no cuts; see whether `python train.py` trains with the same arguments, "
        "and what `panda-icefall doctor train.py` says"
    ),
}


@pytest.mark.parametrize("statement", FAILURES)
def test_a_check_whose_recipe_fails_ends_with_one_line_below_its_traceback(
    command, tmp_path, monkeypatch, statement
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(RECIPE.format(statement))
    status, _, error = command("check", "train.py", "--exp-dir", "exp")
    *above, last = error.splitlines()
    assert status == 1
    assert "Traceback (most recent call last):" in above
    assert last.startswith("panda-icefall: check: not finished, train.py ended with the ")
    assert FAILURES[statement] in last
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
