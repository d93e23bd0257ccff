"""A recipe file runs as ``__main__``, in two steps, and leaves the interpreter as it was."""

import pickle
import sys
import traceback

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.recipe_module import RecipeFile


def write(tmp_path, text):
    path = tmp_path / "train.py"
    path.write_text(text)
    return path


def test_the_guard_is_not_run_with_the_definitions(tmp_path):
    path = write(tmp_path, "a = 1\nif '__main__' == __name__:\n    b = a + 1\nc = 3\n")
    recipe = RecipeFile(path)
    recipe.require_guard()
    with recipe.as_main(["--x"]) as module:
        flags = recipe.define(module)
        assert (module.a, hasattr(module, "b"), hasattr(module, "c")) == (1, False, False)
        module.a = 41
        recipe.start(module, flags)
        assert (module.b, module.c) == (42, 3)


def test_the_module_looks_like_main_and_everything_is_put_back(tmp_path):
    recipe = RecipeFile(write(tmp_path, "def f():\n    return 1\n"))
    before = sys.modules["__main__"], sys.argv, list(sys.path)
    with recipe.as_main(["--x", "1"]) as module:
        recipe.define(module)
        assert sys.modules["__main__"] is module
        assert module.__name__ == "__main__"
        assert module.__file__ == str(recipe.path)
        assert module.__spec__ is None
        assert sys.argv == [str(recipe.path), "--x", "1"]
        assert sys.path[0] == str(tmp_path)
        assert pickle.loads(pickle.dumps(module.f)) is module.f
    assert (sys.modules["__main__"], sys.argv, sys.path) == before


def test_future_imports_hold_after_the_guard_and_docstrings_are_kept(tmp_path):
    text = (
        '"""Doc."""\nfrom __future__ import annotations\n'
        "if __name__ == '__main__':\n    def f(x: not_a_name): ...\n"
    )
    recipe = RecipeFile(write(tmp_path, text))
    with recipe.as_main([]) as module:
        recipe.start(module, recipe.define(module))
        assert module.__doc__ == "Doc."
        assert module.f.__annotations__ == {"x": "not_a_name"}


def test_tracebacks_show_the_line_of_the_recipe(tmp_path):
    path = write(tmp_path, "x = 1\nif __name__ == '__main__':\n    x = 2\n    raise KeyError(x)\n")
    recipe = RecipeFile(path)
    with pytest.raises(KeyError) as caught, recipe.as_main([]) as module:
        recipe.start(module, recipe.define(module))
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.filename, frame.lineno, frame.line) == (str(path), 4, "raise KeyError(x)")


def test_a_missing_file_a_folder_and_other_content_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"TRAIN_PY: .*gone.py does not exist"):
        RecipeFile(tmp_path / "gone.py")
    with pytest.raises(UsageError, match="options go after TRAIN_PY"):
        RecipeFile("--use-panda")
    with pytest.raises(UsageError, match="TRAIN_PY: got the folder"):
        RecipeFile(tmp_path)
    with pytest.raises(UsageError, match="is not Python source"):
        RecipeFile(write(tmp_path, "def f(:\n"))


def test_a_file_without_guard_is_refused_where_one_is_needed(tmp_path):
    recipe = RecipeFile(write(tmp_path, "if True:\n    x = 1\n"))
    with pytest.raises(UsageError, match='no top-level `if __name__ == "__main__":`'):
        recipe.require_guard()
