"""A recipe that lacks a module: `run`, `check` and `bounded` give the doctor's remedy."""

import importlib.util
import re
import sys

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.doctor.imports import explained_imports, require_imports

TRAIN = """
{imports}

def compute_loss(model, batch): ...
def train_one_epoch(model, train_dl): ...

if __name__ == "__main__":
    print("started")
"""


@pytest.fixture
def train_py(tmp_path):
    """Writes a training script with these imports; gives its path."""
    path = tmp_path.resolve() / "egs" / "corpus" / "ASR" / "recipe" / "train.py"
    path.parent.mkdir(parents=True)

    def write(imports):
        path.write_text(TRAIN.format(imports=imports))
        return path

    return write


class Hiding:
    """A finder that has none of some modules, whatever comes after it."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, *_):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def hidden(monkeypatch):
    """Hides installed modules from this process."""

    def hide(*names):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else real(name)
        )
        monkeypatch.setattr(sys, "meta_path", [Hiding(names), *sys.meta_path])
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)

    return hide


VERBS = [("run",), ("run", "--use-panda", "1"), ("check",)]


def words(verb, path):
    return (verb[0], path, *verb[1:])


@pytest.mark.parametrize("verb", VERBS)
def test_without_icefall_its_folder_is_named(command, train_py, hidden, verb):
    path = train_py("from icefall.utils import str2bool")
    hidden("icefall")
    status, text, error = command(*words(verb, path))
    assert (status, text) == (2, "")
    assert error == (
        f"panda-icefall: {path}:2 imports icefall, which is not found; clone icefall, and "
        "export PYTHONPATH=<its folder>:$PYTHONPATH; "
        f"`panda-icefall doctor {path}` says more\n"
    )
    root = path.parents[4]
    (root / "icefall").mkdir()
    (root / "icefall" / "__init__.py").touch()
    error = command(*words(verb, path))[2]
    assert f"which is not found; export PYTHONPATH={root}:$PYTHONPATH; " in error


@pytest.mark.parametrize("verb", VERBS)
def test_without_k2_the_wheel_is_named(command, train_py, hidden, verb):
    path = train_py("import k2")
    hidden("k2")
    status, _, error = command(*words(verb, path))
    assert status == 2
    assert error.startswith(f"panda-icefall: {path} imports k2: k2 is not installed; ")
    assert "look for the wheel named k2-<version>+" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_with_a_k2_for_another_python_the_doctors_finding_is_given(
    command, train_py, fake_package, monkeypatch, hidden, verb
):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    folder = fake_package("k2", "1.23.4", __init__="from _k2 import something\n")
    (folder.parent / "_k2.cpython-37m-x86_64-linux-gnu.so").touch()
    hidden("_k2")
    status, _, error = command(*words(verb, train_py("import k2")))
    assert status == 2
    assert f"imports k2: k2 1.23.4 at {folder} was built for Python 3.7 (_k2.cpython" in error
    assert "pip install --no-deps --force-reinstall" in error
    assert error.count("\n") == 1


def test_a_k2_that_breaks_inside_is_named_with_its_error(
    command, train_py, fake_package, monkeypatch
):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    code = "raise ImportError('k2 was built using PyTorch 1.2.3\\nBut you use another')\n"
    folder = fake_package("k2", "1.23.4", __init__=code)
    status, _, error = command("run", train_py("import k2"))
    assert status == 2
    said = f"k2 1.23.4 at {folder} cannot be imported: ImportError: k2 was built using PyTorch"
    assert said in error


def test_any_other_module_is_named_with_the_line_that_imports_it(command, train_py):
    path = train_py("import helper_of_toy")
    (path.parent / "helper_of_toy.py").write_text("\nimport no_such_module.sub\n")
    try:
        status, _, error = command("run", path)
    finally:
        sys.modules.pop("helper_of_toy", None)
    assert status == 2
    assert f"{path.parent / 'helper_of_toy.py'}:2 imports no_such_module" in error
    assert "install no_such_module, or fix the checkout" in error


@pytest.mark.parametrize(
    "error", [ImportError("cannot import name 'x' from 'k2'", name="k2"), ImportError("no name")]
)
def test_what_the_doctor_has_no_word_for_keeps_its_traceback(train_py, error):
    with pytest.raises(ImportError) as caught, explained_imports(train_py("")):
        raise error
    assert caught.value is error


def test_a_recipe_is_refused_before_anything_is_made(train_py, hidden, tmp_path):
    hidden("k2")
    path = train_py("import k2")
    with pytest.raises(UsageError, match=re.escape(f"{path} imports k2: k2 is not installed")):
        require_imports(path, tmp_path)
    path = train_py("import no_such_module")
    with pytest.raises(UsageError, match="imports no_such_module, which is neither beside it nor"):
        require_imports(path, tmp_path)


def test_a_broken_k2_is_refused_where_the_recipe_needs_it(
    train_py, fake_package, monkeypatch, tmp_path
):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    fake_package("k2", "1.23.4", __init__="raise ImportError('broken')\n")
    with pytest.raises(UsageError, match=r"k2 1\.23\.4 at .* cannot be imported: .*broken"):
        require_imports(train_py("import k2"), tmp_path)
    require_imports(train_py("try:\n    import k2\nexcept ImportError:\n    pass"), tmp_path)
