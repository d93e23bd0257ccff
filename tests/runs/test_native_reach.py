"""How far PANDA reaches into a recipe that is started by itself, and that nothing of it stays."""

import runpy
import sys
import textwrap

import pytest

import panda_icefall
from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.patching.recipe_file import apply_patch

UNWRAPPED = """
    def record(function):
        def inner(*args, **kwargs):
            return function(*args, **kwargs)
        return inner
"""
WRAPPED = UNWRAPPED.replace(
    "        def inner", "        @functools.wraps(function)\n        def inner"
)


@pytest.fixture
def start(recipe, monkeypatch):
    """Patches the recipe as it is by then, and runs it as `./train.py words`, in process."""

    def run(*words):
        if "with_panda" not in recipe.train_py.read_text():
            apply_patch(recipe.folder)
        monkeypatch.setattr(sys, "argv", [str(recipe.train_py), *map(str, words)])
        try:
            runpy.run_path(str(recipe.train_py), run_name="__main__")
        except SystemExit as error:
            return error.code
        return 0

    monkeypatch.syspath_prepend(recipe.folder)
    yield run
    sys.modules.pop("decorators", None)


@pytest.fixture
def imported(recipe, monkeypatch):
    """The patched recipe as a module that another script may import; words for its main()."""
    apply_patch(recipe.folder)
    monkeypatch.syspath_prepend(recipe.folder)
    import train

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        try:
            return train.main()
        except SystemExit as error:
            return error.code

    main.module = train
    yield main
    sys.modules.pop("train", None)


def bind_spawn_by_name(recipe, statement="from torch.multiprocessing import spawn"):
    recipe.edit(("import torch.multiprocessing as mp", statement), ("mp.spawn", "spawn"))


def test_children_of_a_spawn_bound_by_name_train_with_panda(recipe, port):
    bind_spawn_by_name(recipe)
    apply_patch(recipe.folder)
    words = ["--world-size", 2, "--master-port", port, "--use-panda", 1]
    words += ["--panda-max-batches", 1, "--exp-dir", "exp"]
    done = recipe.subprocess("train.py", *words, module=None)
    assert done.returncode == 0, done.stderr
    assert "1, 1" in done.stderr  # batches per rank
    for rank in (0, 1):
        assert len(recipe.lines(f"exp/losses-{rank}.txt")) == 1


def test_children_that_panda_cannot_reach_are_no_success(recipe, port):
    (recipe.folder / "started.py").write_text("from torch.multiprocessing import spawn\n")
    recipe.edit(
        ("import torch.multiprocessing as mp", "import started"), ("mp.spawn", "started.spawn")
    )
    apply_patch(recipe.folder)
    words = ["--world-size", 2, "--master-port", port, "--panda-max-batches", 1]
    done = recipe.subprocess("train.py", *words, module=None)
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("panda-icefall: ")]
    assert "train.py ended without a training batch that PANDA saw" in line
    assert "torch.multiprocessing.spawn" in line


def test_names_bound_to_spawn_are_the_recipes_own_again_afterwards(recipe, imported):
    from torch.multiprocessing import spawn

    imported.module.started_with = spawn
    assert imported("--use-panda", 1) is None
    assert imported.module.started_with is spawn


@pytest.mark.parametrize(
    "words",
    [
        ["--use-panda", 1, "--panda-max-batches", 4],
        ["--panda-max-batches", 1, "--fail-at", 0],
    ],
)
def test_a_second_main_in_the_same_process_is_untouched_by_the_first(recipe, imported, words):
    module = imported.module
    own = module.compute_loss, module.train_one_epoch
    if "--fail-at" in words:
        with pytest.raises(RuntimeError, match="fails on purpose"):
            imported(*words, "--exp-dir", "first")
    else:
        assert imported(*words, "--num-epochs", 2, "--exp-dir", "first") == 0
    assert (module.compute_loss, module.train_one_epoch) == own
    assert imported("--num-batches", 2, "--exp-dir", "second") is None
    assert len(recipe.lines("second/losses-0.txt")) == 2


def test_a_recipe_that_lacks_compute_loss_keeps_its_own_training_loop(imported, capsys):
    module = imported.module
    own = module.train_one_epoch
    del module.compute_loss
    assert imported("--use-panda", 1) == 2
    assert "defines no compute_loss()" in capsys.readouterr().err
    assert module.train_one_epoch is own


@pytest.mark.parametrize("decorator", [UNWRAPPED, WRAPPED], ids=["unwrapped", "wrapped"])
def test_a_decorator_of_main_from_another_module_hides_nothing(recipe, start, capsys, decorator):
    code = "import functools\n" + textwrap.dedent(decorator)
    (recipe.folder / "decorators.py").write_text(code)
    recipe.edit(
        ("from toy_model", "from decorators import record\nfrom toy_model"),
        ("def main():", "@record\ndef main():"),
    )
    assert start("--use-panda", 1, "--panda-max-batches", 2, "--exp-dir", "exp") == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 2
    assert "PANDA summary" in capsys.readouterr().err
    assert panda_icefall.status().replaced == ()


def test_a_decorated_function_of_children_is_reached(recipe, port):
    code = "import functools\n" + textwrap.dedent(WRAPPED)
    (recipe.folder / "decorators.py").write_text(code)
    recipe.edit(
        ("from toy_model", "from decorators import record\nfrom toy_model"),
        ("def main():", "@record\ndef main():"),
        ("def run(rank", "@record\ndef run(rank"),
    )
    apply_patch(recipe.folder)
    words = ["--world-size", 2, "--master-port", port, "--use-panda", 1]
    done = recipe.subprocess("train.py", *words, "--panda-max-batches", 1, module=None)
    assert done.returncode == 0, done.stderr
    assert "1, 1" in done.stderr


def test_a_recipe_is_found_where_with_panda_is_applied_by_another_script(recipe, start):
    (recipe.folder / "other.py").write_text(
        "import sys\nimport train\nfrom panda_icefall.runs.native import with_panda\n"
        "with_panda(train.main)()\n"
    )
    words = ["--panda-max-batches", 1, "--exp-dir", "exp"]
    done = recipe.subprocess("other.py", *words, module=None)
    assert done.returncode == 0, done.stderr
    assert len(recipe.lines("exp/losses-0.txt")) == 1


LEAVES = """        torch.distributed.destroy_process_group()
    if rank == 0:
        raise SystemExit({code})
"""


def leave_with(recipe, code):
    old = "        torch.distributed.destroy_process_group()\n"
    recipe.edit((old, LEAVES.format(code=code)))


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [("3", 3, "exit 3"), ("'words'", 1, "exit 1"), ("", 0, "complete")],
)
def test_the_memory_log_says_the_status_that_the_recipe_ended_with(
    recipe, start, code, status, reason
):
    leave_with(recipe, code)
    options = PandaOptions(memory_log=recipe.folder / "launched.jsonl")
    assert run_recipe(recipe.train_py, ["--num-batches", "1"], options) == status
    assert start("--num-batches", 1, "--panda-memory-log", "native.jsonl") == status
    for log in ("launched.jsonl", "native.jsonl"):
        assert recipe.rows(log)[-1]["reason"] == reason


def test_a_bound_that_ends_in_a_clean_exit_is_still_the_bound(recipe, start):
    leave_with(recipe, "0")
    assert start("--panda-max-batches", 2, "--panda-memory-log", "m.jsonl") == 0
    assert recipe.rows("m.jsonl")[-1]["reason"] == "bound"


@pytest.mark.parametrize("command", [[], ["run"]], ids=["native", "launched"])
def test_the_memory_log_of_a_child_says_its_status_too(recipe, port, command):
    leave_with(recipe, "3")
    if not command:
        apply_patch(recipe.folder)
    words = ["--num-batches", 1, "--panda-memory-log", "m.jsonl"]
    words += ["--world-size", 2, "--master-port", port]
    module = "panda_icefall" if command else None
    done = recipe.subprocess(*command, "train.py", *words, module=module)
    assert done.returncode != 0
    assert recipe.rows("m.jsonl")[-1]["reason"] == "exit 3"
