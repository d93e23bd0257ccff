"""Which loss a recipe calls, and what the patch would not reach."""

import re

import pytest

from panda_icefall.runs.doctor.recipe import examine_losses
from panda_icefall.runs.doctor.recipe_sources import RecipeSources

CALLS = "k2.rnnt_loss_pruned(k2.do_rnnt_pruning(1))"


@pytest.fixture
def findings(tmp_path):
    """The findings on a ``model.py`` that ``train.py`` imports."""

    def examine(model):
        (tmp_path / "train.py").write_text("import model\n")
        (tmp_path / "model.py").write_text(model)
        (tmp_path / "unused.py").write_text("import k2\nk2.rnnt_loss_pruned()\n")
        return examine_losses(RecipeSources(tmp_path / "train.py"))

    return examine


@pytest.mark.parametrize(
    "call",
    [
        "import k2\nk2.rnnt_loss_pruned(k2.do_rnnt_pruning(1))",
        "import k2 as engine\nengine.rnnt_loss_pruned(engine.do_rnnt_pruning(1))",
        "try:\n  import k2; k2.rnnt_loss_pruned(k2.do_rnnt_pruning(1))\nexcept OSError:\n  pass",
        "def f():\n  import k2; loss = k2.rnnt_loss_pruned; loss(k2.do_rnnt_pruning(1))",
        "import k2\ndef f(): return partial(k2.rnnt_loss_pruned)(k2.do_rnnt_pruning)",
        f"from panda_icefall import rnnt as k2\n{CALLS}",
        f"import panda_icefall.rnnt as k2\n{CALLS}",
    ],
)
def test_the_use_of_the_pruned_loss_is_found(findings, call):
    (finding,) = findings(call)
    assert finding.level == "ok"
    assert "rnnt_loss_pruned (model.py:" in finding.text


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("import torchaudio\ntorchaudio.rnnt_loss(1)", "torchaudio.rnnt_loss (model.py:2)"),
        ("import k2\nk2.ctc_loss(1)", "k2.ctc_loss (model.py:2)"),
        ("from icefall.mmi import LFMMILoss\nLFMMILoss(1)", "icefall.mmi.LFMMILoss"),
        ("import other as k2\nk2.rnnt_loss_pruned(1)", "other.rnnt_loss_pruned"),
    ],
)
def test_a_recipe_without_a_loss_to_route_is_a_problem_naming_its_own(findings, model, name):
    (finding,) = findings(model)
    assert finding.level == "problem"
    assert "none that PANDA routes is called in the recipe's files; it calls" in finding.text
    assert name in finding.text
    assert "without --use-panda" in finding.advice


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (
            "import torchaudio\ntorchaudio.functional.rnnt_loss(1)",
            "torchaudio.functional.rnnt_loss",
        ),
        ("import torchaudio.functional as F\nF.rnnt_loss(1)", "torchaudio.functional.rnnt_loss"),
        (
            "def f():\n  import optimized_transducer as ot\n  ot.transducer_loss(1)",
            "optimized_transducer.transducer_loss",
        ),
        ("import k2\nk2.rnnt_loss(1)", "k2.rnnt_loss"),
        ("import fast_rnnt\nfast_rnnt.rnnt_loss(1)", "fast_rnnt.rnnt_loss"),
    ],
)
def test_the_use_of_a_full_lattice_loss_is_found_and_needs_a_joiner(findings, model, name):
    used, joiner = findings(f"{model}\nself.combiner = 1")
    assert (used.subject, used.level) == ("full-lattice loss", "ok")
    assert f"it calls {name} (model.py:" in used.text
    assert (joiner.subject, joiner.level) == ("joiner", "problem")
    assert "one of another name is not recorded" in joiner.text
    for attribute in "joiner", "joiner_giga":
        assert [f.level for f in findings(f"{model}\nself.{attribute} = 1")] == ["ok"]


def test_a_folder_that_is_imported_as_a_package_is_read(tmp_path, monkeypatch):
    """As `from transducer.model import Transducer`, with the folder above on the path."""
    folder = tmp_path / "transducer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text("from transducer.model import Transducer\n")
    (folder / "model.py").write_text("import k2\nself.joiner = k2.rnnt_loss(1)\n")
    sources = RecipeSources(folder / "train.py")
    (used,) = examine_losses(sources)
    assert (used.level, used.text) == ("ok", "it calls k2.rnnt_loss (model.py:2)")
    assert "transducer" in sources.missing
    monkeypatch.syspath_prepend(tmp_path)
    assert "transducer" not in RecipeSources(folder / "train.py").missing


def test_a_full_lattice_loss_imported_by_name_is_a_warning(findings):
    used, named = findings(
        "from torchaudio.functional import rnnt_loss\nself.joiner = rnnt_loss(1)\n"
    )
    assert (used.subject, used.level) == ("full-lattice loss", "ok")
    assert (named.subject, named.level) == ("import by name", "warning")
    assert "as `import torchaudio.functional`, and call torchaudio.functional.rnnt" in named.advice


def test_a_recipe_without_any_known_loss_says_so(findings):
    (finding,) = findings("x = [f()() for f in ()]\nx[0].rnnt_loss_pruned()\n")
    assert "no known loss is called either" in finding.text


@pytest.mark.parametrize("module", ["k2", "panda_icefall.rnnt"])
def test_names_imported_from_the_patched_module_are_a_warning(findings, module):
    model = (
        f"from {module} import do_rnnt_pruning, rnnt_loss_pruned as loss, ragged\n"
        "loss(do_rnnt_pruning(1))\n"
    )
    call, named = findings(model)
    assert call.level == "ok"
    assert (named.subject, named.level) == ("import by name", "warning")
    assert f"`from {module} import do_rnnt_pruning, rnnt_loss_pruned`" in named.text
    assert "in processes spawned for --world-size above 1, and in any process of a" in named.text
    assert "train.py with the lines of `panda-icefall patch`" in named.text
    assert "k2.do_rnnt_pruning(), k2.rnnt_loss_pruned()" in named.advice


def test_names_imported_past_the_patched_module_are_a_problem(findings):
    call, named = findings("from k2.rnnt_loss import rnnt_loss_pruned\nrnnt_loss_pruned(1)\n")
    assert call.level == "problem"
    assert "it calls k2.rnnt_loss.rnnt_loss_pruned (model.py:2)" in call.text
    assert named.level == "problem"
    assert "does not reach k2.rnnt_loss" in named.text


def test_other_names_of_k2_and_of_others_are_no_matter(findings):
    model = (
        "import k2\nfrom k2 import SymbolTable\nfrom other import rnnt_loss_pruned\n"
        f"from . import x\n{CALLS}\n"
    )
    assert [finding.level for finding in findings(model)] == ["ok"]


@pytest.mark.parametrize(
    "scripted",
    [
        "import torch\nj = torch.jit.script(self.joiner)",
        "import torch\nj = torch.jit.script(Joiner(1, 2))",
        "from torch import jit\nj = jit.script(Joiner)",
        "import torch\nclass Joiner(torch.jit.ScriptModule): pass",
        "from torch.jit import script\n@script\nclass Joiner: pass",
    ],
)
def test_a_scripted_joiner_is_a_problem(findings, scripted):
    call, joiner = findings(f"import k2\n{CALLS}\n{scripted}\n")
    assert call.level == "ok"
    assert (joiner.subject, joiner.level) == ("scripted joiner", "problem")
    assert "refuses a recorded joiner" in joiner.text


def test_other_scripted_parts_are_no_matter(findings):
    model = (
        f"import k2, torch\n{CALLS}\ntorch.jit.script(encoder)\n"
        "class Joiner(torch.nn.Module): pass\n"
    )
    assert [finding.level for finding in findings(model)] == ["ok"]


@pytest.mark.parametrize(
    "kept",
    [
        "loss = k2.rnnt_loss_pruned",
        "class Model:\n  loss = staticmethod(k2.rnnt_loss_pruned)",
        "def compute(loss=k2.rnnt_loss_pruned): ...",
        "def compute(*, prune=k2.do_rnnt_pruning): ...",
        "compute = lambda loss=k2.rnnt_loss_pruned: loss",
        "TABLE = {'pruned': k2.rnnt_loss_pruned}",
    ],
)
def test_a_function_that_is_kept_at_import_is_a_warning(findings, kept):
    used, finding = findings(f"import k2\n{kept}\ndef f(): return {CALLS}\n")
    assert used.level == "ok"
    assert (finding.subject, finding.level) == ("kept at import", "warning")
    assert re.match(r"model\.py:[23] keeps k2\.(do_rnnt_pruning|rnnt_loss_pruned), ", finding.text)
    assert "--world-size above 1, and in any process of a train.py with" in finding.text
    assert "where it is used; or start the unpatched recipe by" in finding.advice


def test_an_alias_counts_as_a_use(findings):
    used, kept = findings(
        "import k2\n_loss = k2.rnnt_loss_pruned\ndef f(): _loss(k2.do_rnnt_pruning(1))\n"
    )
    assert (used.level, used.text) == ("ok", "it calls k2.rnnt_loss_pruned (model.py:2)")
    assert kept.subject == "kept at import"


def test_a_recipe_with_a_pruning_of_its_own_is_a_problem(findings):
    used, pruning = findings("import k2\ndef f(x): return k2.rnnt_loss_pruned(x.gather(1, x))\n")
    assert used.level == "ok"
    assert (pruning.subject, pruning.level) == ("pruning", "problem")
    assert "k2.do_rnnt_pruning is called in none of the recipe's files" in pruning.text
    assert "no loss will be routed" in pruning.text
