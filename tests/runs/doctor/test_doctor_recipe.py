"""Recipe folders: the training script, what the launcher wraps, the modules it imports."""

import sys
from types import ModuleType

import pytest

from panda_icefall.runs.doctor.recipe import examine_recipe, find_train_py
from panda_icefall.runs.doctor.recipe_sources import RecipeSources
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.session import TrainingSession

TRAIN = """
import math
import torch.nn as nn
from model import Model
{imports}
def compute_loss({loss}): ...
def train_one_epoch({train}): ...
if __name__ == "__main__":
    pass
"""
MODEL = """
try:
    import k2
except ImportError:
    import panda_icefall.rnnt as k2
class Model:
    def forward(self):
        return k2.rnnt_loss_pruned(k2.do_rnnt_pruning(1))
"""


@pytest.fixture
def write(tmp_path):
    """Writes a recipe folder; gives it."""
    folder = tmp_path.resolve() / "ASR" / "recipe"
    folder.mkdir(parents=True)

    def write_files(
        imports="", loss="model, batch", train="model, optimizer, train_dl", model=MODEL, **files
    ):
        files.setdefault("train", TRAIN.format(imports=imports, loss=loss, train=train))
        for stem, text in {"model": model, **files}.items():
            if text is not None:
                (folder / f"{stem}.py").write_text(text)
        return folder

    return write_files


def examined(recipe, root=None):
    return examine_recipe(RecipeSources(find_train_py(recipe), root))


def not_ok(recipe, root=None):
    return [finding for finding in examined(recipe, root) if finding.level != "ok"]


def test_a_recipe_with_all_it_needs_has_nothing_to_fix(write):
    recipe = write()
    findings = {finding.subject: finding.text for finding in examined(recipe)}
    assert not_ok(recipe) == []
    assert findings["recipe"].endswith("has a main guard; its files: train.py, model.py")
    assert findings["train_one_epoch()"] == "train.py:7 takes model, train_dl"


def test_the_training_script_itself_may_be_named(write):
    recipe = write()
    (recipe / "train.py").rename(recipe / "train_char.py")
    assert not_ok(recipe / "train_char.py") == []
    (finding,) = examined(recipe)
    assert finding.level == "problem"
    assert "train.py does not exist" in finding.text
    assert finding.advice == "name one of its training scripts instead: train_char.py"


def test_a_folder_without_any_training_script_is_a_problem(tmp_path):
    (finding,) = examined(tmp_path)
    assert "train.py does not exist" in finding.text
    assert "an icefall recipe with compute_loss()" in finding.advice
    (finding,) = examined(tmp_path / "gone")
    assert "gone does not exist" in finding.text


def test_a_script_without_a_guard_or_without_sense_is_a_problem(write):
    (finding,) = examined(write() / "model.py")
    assert "has no top-level `if __name__" in finding.text
    recipe = write()
    (recipe / "train.py").write_text("def broken(:\n")
    (finding,) = examined(recipe)
    assert "is not Python source" in finding.text


PARAMETERS = {
    "compute_loss": ("loss", "model, batch"),
    "train_one_epoch": ("train", "model, train_dl"),
}


@pytest.mark.parametrize(
    ("function", "missing"),
    [
        ("compute_loss", "model"),
        ("compute_loss", "batch"),
        ("train_one_epoch", "model"),
        ("train_one_epoch", "train_dl"),
    ],
)
def test_what_the_launcher_refuses_is_a_problem(write, function, missing):
    key, given = PARAMETERS[function]
    given = ", ".join(name for name in given.split(", ") if name != missing)
    recipe = write(**{key: f"{given}, optimizer"})
    (finding,) = not_ok(recipe)
    assert (finding.subject, finding.level) == (f"{function}()", "problem")
    assert f"none named {missing}" in finding.text

    def compute_loss(model, batch): ...
    def train_one_epoch(model, train_dl, optimizer): ...

    namespace = {"compute_loss": compute_loss, "train_one_epoch": train_one_epoch}
    exec(f"def {function}({given}, optimizer): ...", namespace)
    namespace["train_one_epoch"].__globals__.update(namespace)
    with pytest.raises(UsageError, match=f"expected one named {missing}"):
        TrainingSession(PandaOptions(use_panda=True)).install(namespace, "train.py")


def test_keyword_only_parameters_count(write):
    assert not_ok(write(loss="model, *, batch")) == []


def test_a_loop_without_optimizer_cannot_be_checked(write):
    (finding,) = not_ok(write(train="model, train_dl"))
    assert finding.level == "warning"
    assert "panda-icefall check needs one" in finding.advice


@pytest.mark.parametrize("gone", ["compute_loss", "train_one_epoch"])
def test_a_missing_function_is_a_problem(write, gone):
    recipe = write()
    source = (recipe / "train.py").read_text()
    (recipe / "train.py").write_text(source.replace(f"def {gone}", "def other"))
    assert [finding.text for finding in not_ok(recipe)] == [
        f"train.py defines no {gone}() at its top level"
    ]


def test_an_imported_training_loop_is_followed_to_its_file(write):
    loop = "def compute_loss(model, batch): ...\ndef epoch(model, train_dl, optimizer): ...\n"
    train = (
        "import k2loss\nfrom loop import epoch as train_one_epoch\n"
        "if __name__ == '__main__':\n    pass\n"
    )
    recipe = write(loop=loop, k2loss=MODEL)
    (recipe / "train.py").write_text(train)
    assert not_ok(recipe) == []
    texts = {finding.subject: finding.text for finding in examined(recipe)}
    assert texts["train_one_epoch()"] == "loop.py:2 takes model, train_dl"
    assert texts["compute_loss()"] == "loop.py:1 takes model, batch"


def test_a_loop_imported_from_elsewhere_is_not_found(write):
    recipe = write()
    train = "from math import sqrt as train_one_epoch\nimport model\nif __name__ == '__main__': ..."
    (recipe / "train.py").write_text(train)
    assert {f.subject for f in not_ok(recipe)} == {"train_one_epoch()", "compute_loss()"}


def test_a_module_that_is_nowhere_is_a_problem_with_its_importer(write):
    (finding,) = not_ok(write(imports="import no_such_module.sub\nfrom no_such_module import x"))
    assert finding.text == (
        "train.py imports no_such_module, which is neither beside it nor installed"
    )
    assert "install no_such_module, or fix the checkout" in finding.advice


def test_a_module_that_was_loaded_without_a_spec_is_there(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    assert not_ok(write(imports="import made_by_hand")) == []


def test_imports_that_may_fail_are_left_alone(write):
    imports = (
        "try:\n    import no_such_module\nexcept ImportError:\n    pass\n"
        "def later():\n    import no_such_other\n"
    )
    assert not_ok(write(imports=imports)) == []


def test_a_module_of_the_folder_above_needs_pythonpath(write):
    recipe = write(imports="from local_parts.text import norm")
    (recipe.parent / "local_parts").mkdir()
    (recipe.parent / "local_parts" / "text.py").write_text("")
    (finding,) = not_ok(recipe)
    assert finding.advice.startswith(f"export PYTHONPATH={recipe.parent}:$PYTHONPATH")


@pytest.mark.parametrize("statement", ["from local_parts import text", "import local_parts.text"])
def test_a_module_of_the_folder_above_is_found_by_pythonpath(write, monkeypatch, statement):
    recipe = write(imports=statement)
    (recipe.parent / "local_parts").mkdir()
    (recipe.parent / "local_parts" / "text.py").write_text("")
    monkeypatch.syspath_prepend(recipe.parent)
    assert not_ok(recipe) == []


@pytest.mark.parametrize("is_in_path", [False, True])
def test_a_recipes_folder_is_not_the_package_that_it_is_called_after(
    write, monkeypatch, is_in_path
):
    # As egs/aishell/ASR/whisper, whose train.py imports the package whisper.
    recipe = write(imports="import no_such_whisper\nfrom no_such_whisper import load_model")
    other = recipe.parent / "no_such_whisper"
    other.mkdir()
    (other / "train.py").write_text("")
    if is_in_path:  # `python -m panda_icefall doctor whisper` from the corpus' folder
        monkeypatch.syspath_prepend(recipe.parent)
    (finding,) = not_ok(recipe)
    assert finding.level == "problem"
    assert finding.advice.startswith("install no_such_whisper, or fix the checkout")


def test_packages_beside_the_script_are_followed_with_relative_imports(write):
    recipe = write(imports="from parts.inner import a\nimport parts.lone", model="")
    parts = recipe / "parts"
    parts.mkdir()
    (parts / "__init__.py").write_text("from . import inner\n")
    (parts / "inner.py").write_text("from .lossy import a\nfrom ..train import b\n")
    (parts / "lossy.py").write_text(MODEL + "a = 1\n")
    (parts / "lone.py").write_text("")
    findings = {finding.subject: finding for finding in examined(recipe)}
    made_of = findings["recipe"].text.rpartition("its files: ")[2].split(", ")
    assert set(made_of) == {
        "train.py",
        "model.py",
        *(f"parts/{name}.py" for name in ("__init__", "inner", "lossy", "lone")),
    }
    assert findings["pruned loss"].level == "ok"


def test_a_link_to_nowhere_and_a_link_as_text_are_named(write):
    recipe = write(imports="import optim\nimport scaling", scaling="../../other/scaling.py")
    (recipe / "optim.py").symlink_to("../../gone/optim.py")
    texts = sorted(finding.text for finding in not_ok(recipe))
    assert texts[0] == (
        "optim.py cannot be read: a link to ../../gone/optim.py, which does not exist"
    )
    assert "a link of git checked out as text (../../other/scaling.py)" in texts[1]


def test_a_broken_neighbour_is_a_problem(write):
    (finding,) = not_ok(write(imports="import optim", optim="x = (\ny = 2\n"))
    assert finding.subject == "imports"
    assert "optim.py cannot be read" in finding.text


def test_what_icefall_itself_imports_is_looked_for_too(write, tmp_path):
    root = tmp_path / "root"
    (root / "icefall").mkdir(parents=True)
    (root / "icefall" / "__init__.py").write_text("from . import utils\n")
    (root / "icefall" / "utils.py").write_text("import no_such_align\n")
    recipe = write(imports="from icefall.utils import str2bool")
    assert RecipeSources(recipe / "train.py", root).imports_icefall
    (finding,) = not_ok(recipe, root)
    assert finding.text.startswith("utils.py imports no_such_align")


def test_icefall_and_k2_that_are_nowhere_have_their_own_advice(write, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    hidden = ("icefall", "k2")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else real(name)
    )
    advice = [f.advice for f in not_ok(write(imports="import k2\nfrom icefall.dist import x"))]
    assert advice == [
        "install the k2 wheel that the finding on k2 names",
        "clone icefall, and export PYTHONPATH=<its folder>:$PYTHONPATH",
    ]
