"""The `panda-icefall patch` commands: what they print and their exit statuses."""

import functools

import pytest

from panda_icefall.runs.patching.lines import DECORATOR

SOURCE = (
    "import os\nfrom other import compute_loss, train_one_epoch\n"
    "def main(): k2.rnnt_loss_pruned(k2.do_rnnt_pruning())\n"
    "if __name__ == '__main__':\n    main()\n"
)


@pytest.fixture
def patch(command):
    """Runs `panda-icefall patch words`; gives its exit status, stdout and stderr."""
    return functools.partial(command, "patch")


def test_a_recipe_goes_through_all_states(patch, tmp_path):
    train_py = tmp_path / "train.py"
    train_py.write_text(SOURCE)
    name = train_py.resolve()
    status, text, _ = patch("check", tmp_path)
    assert status == 0
    assert text.splitlines()[:2] == [str(name), "  unpatched, applicable: lines 3 and 4"]
    assert text.splitlines()[2].startswith("  not compared with a known commit")
    assert patch("revert", tmp_path) == (0, f"not patched: {name}\n", "")
    assert patch("apply", tmp_path) == (0, f"applied to {name}: lines 3 and 4\n", "")
    assert patch("apply", tmp_path) == (0, f"already applied to {name}: lines 3 and 4\n", "")
    assert patch("check", train_py)[:2][1].splitlines()[1] == "  applied: lines 3 and 4"
    assert patch("revert", train_py) == (0, f"taken out of {name}\n", "")
    assert train_py.read_text() == SOURCE


def test_check_ends_with_status_one_where_the_patch_cannot_be_applied(patch, tmp_path):
    assert patch("check", tmp_path)[0] == 1
    (tmp_path / "train.py").write_text("import os\n")
    status, text, _ = patch("check", tmp_path)
    assert status == 1
    assert "unpatched, not applicable: looked for one `def main():`" in text
    (tmp_path / "train.py").write_text(SOURCE.replace("def", f"{DECORATOR.decode()}\ndef"))
    status, text, _ = patch("check", tmp_path)
    assert status == 1
    assert "partly applied: the patch is incomplete" in text


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_what_cannot_be_done_is_one_line_and_status_two(patch, tmp_path, verb):
    status, text, error = patch(verb, tmp_path)
    assert (status, text) == (2, "")
    assert error.startswith("panda-icefall: RECIPE_DIR: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (
            "k2.ctc_loss()",
            "transducer loss: none that PANDA routes is called in the recipe's files",
        ),
        ("k2.rnnt_loss_pruned()", "pruning: k2.do_rnnt_pruning is called in none"),
    ],
)
def test_a_recipe_that_the_doctor_cannot_route_is_refused_unless_forced(
    patch, tmp_path, loss, reason
):
    train_py = tmp_path / "train.py"
    source = SOURCE.replace("k2.rnnt_loss_pruned(k2.do_rnnt_pruning())", loss)
    train_py.write_text(source)
    status, text, error = patch("apply", tmp_path)
    assert (status, text, train_py.read_text()) == (2, "", source)
    assert error.startswith(f"panda-icefall: RECIPE_DIR: {train_py.resolve()}: {reason}")
    assert "train this recipe without --use-panda" in error
    assert error.count("\n") == 1
    status, text, _ = patch("check", tmp_path)
    assert status == 1
    assert f"unpatched, not applicable: {reason}" in text
    assert patch("apply", "--force", tmp_path)[0] == 0
    assert patch("check", tmp_path)[0] == 0
    assert patch("revert", tmp_path)[0] == 0
    assert train_py.read_text() == source
