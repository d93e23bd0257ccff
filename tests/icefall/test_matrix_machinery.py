"""The recipe matrix without icefall: what counts as which outcome, and how folders stay apart."""

import argparse
import importlib
import math
import re
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from recipe_matrix import arms
from recipe_matrix import measure as measuring
from recipe_matrix.arms import Arms, Pass
from recipe_matrix.building import make_params
from recipe_matrix.isolation import mended, on_path, recipe_folder_first, stand_in_modules
from recipe_matrix.measure import MATERIALISED, OWN_FAILURE, REFUSED, ROUTED, measure
from recipe_matrix.row import ABSENT, Adaptation, Row

from panda_icefall.lattice import exact_recursion
from panda_icefall.routing import PandaError

ROW = Row("corpus/ASR/recipe", {}, own_failure="no such file")


def a_pass(loss=2.0, gradient=1.0, losses=1, is_training=True, **changes):
    gradients = {"joiner.weight": torch.tensor([gradient, 3.0])} if is_training else {}
    return Pass([torch.tensor(loss)], gradients, "model.py", losses, **changes)


@pytest.fixture
def run(monkeypatch):
    """Measure a row with given arms: functions of `is_training`, or exceptions."""

    def run(dense, routed, reference=None, row=ROW):
        def arm(result):
            def pass_(*, is_training):
                if isinstance(result, Exception):
                    raise result
                return result(is_training)

            return pass_

        @contextmanager
        def passes(row):
            yield Arms(arm(dense), arm(routed), arm(reference))

        monkeypatch.setattr(measuring, "recipe_passes", passes)
        return measure(row)

    return run


def dense_pass(is_training):
    return a_pass(is_training=is_training)


def routed_pass(**changes):
    made = {"joiners": ("add, linear",), "materialised": {}, **changes}
    return lambda is_training: a_pass(is_training=is_training, **made)


def test_equal_arms_are_routed_without_violations(run):
    outcome = run(dense_pass, routed_pass())
    assert (outcome.kind, outcome.violations) == (ROUTED, [])
    assert (outcome.joiner, outcome.losses) == ("add, linear", 1)


def test_dense_losses_of_k2_run_the_exact_recursion(monkeypatch):
    module, own, seen = ModuleType("k2.rnnt_loss"), object(), []
    module.mutual_information_recursion = own
    monkeypatch.setitem(sys.modules, "k2.rnnt_loss", module)

    def pass_(*_, **__):
        seen.append(module.mutual_information_recursion)
        return [], {}, "model.py"

    monkeypatch.setattr(arms, "_run", pass_)
    arms._dense(ROW, None, None, is_training=True)
    assert seen == [exact_recursion]
    assert module.mutual_information_recursion is own


def test_a_recipe_fails_by_itself_only_with_the_error_the_row_names(run):
    outcome = run(OSError("no such file x"), routed_pass())
    assert (outcome.kind, outcome.reason) == (OWN_FAILURE, "OSError: no such file x")
    with pytest.raises(ValueError, match="something else"):
        run(ValueError("something else"), routed_pass())


def test_an_error_of_the_routed_arm_is_never_the_recipes(run):
    outcome = run(dense_pass, PandaError("cannot"))
    assert (outcome.kind, outcome.violations) == (REFUSED, ["cannot"])
    with pytest.raises(OSError, match="no such file"):
        run(dense_pass, OSError("no such file x"))


@pytest.mark.parametrize(
    ("routed", "message"),
    [
        ({"loss": 2.0 * (1 + 3e-6)}, "losses: off by"),
        ({"loss": math.nan}, "losses: off by inf"),
        ({"gradient": 1.001}, "gradient of joiner: off by"),
        ({"gradient": 1 + 2e-5}, "gradient of joiner: off by 6.3"),
        ({"gradient": math.nan}, "gradient of joiner: off by inf"),
        ({"losses": 0, "losses_dense": 1}, "got \\(0, 1, {}\\), expected \\(1, 0, {}\\)"),
    ],
)
def test_what_the_contract_forbids_is_named(run, routed, message):
    outcome = run(dense_pass, routed_pass(**routed))
    assert any(re.search(message, v) for v in outcome.violations)


HALF = replace(ROW, precision=torch.bfloat16)


@pytest.mark.parametrize(("gradient", "holds"), [(1.1, True), (1.4, False), (math.nan, False)])
def test_below_float32_the_routed_arm_may_err_as_the_dense_one_does(run, gradient, holds):
    """Exact 1, dense 0.95, so the routed one may be off by 0.1 and the rounding of the joiner."""
    outcome = run(
        lambda t: a_pass(is_training=t, gradient=0.95),
        routed_pass(gradient=gradient),
        reference=dense_pass,
        row=HALF,
    )
    assert (outcome.violations == []) == holds


@pytest.mark.parametrize(("gradient", "holds"), [(1 + 1e-6, True), (1.05, False)])
def test_in_float32_each_parameter_is_compared_with_the_exact_loss(run, gradient, holds):
    """Of a host's loss that rounds more than ours: the dense arm's error allows none of ours."""
    exact = replace(ROW, adaptations=(Adaptation(around_reference=nullcontext),))
    outcome = run(
        lambda t: a_pass(is_training=t, gradient=0.95),
        routed_pass(gradient=gradient),
        reference=dense_pass,
        row=exact,
    )
    assert (outcome.violations == []) == holds


def test_with_a_ctc_head_the_reference_is_more_exact_than_the_dense_arm(run):
    row = replace(ROW, options={"use-ctc": 1})
    inexact = lambda t: a_pass(is_training=t, gradient=1.00003)  # noqa: E731
    for gradient, holds in ((1.000001, True), (1.0001, False)):
        outcome = run(inexact, routed_pass(gradient=gradient), reference=dense_pass, row=row)
        assert (outcome.violations == []) == holds


def test_below_float32_a_dense_arm_that_is_not_finite_allows_nothing(run):
    outcome = run(
        lambda t: a_pass(is_training=t, gradient=math.inf),
        routed_pass(gradient=math.inf),
        reference=dense_pass,
        row=HALF,
    )
    assert any("gradient of joiner: off by" in violation for violation in outcome.violations)


def test_a_projection_that_became_a_tensor_is_said_of_the_simple_loss_only(run):
    operation = "simple_am_proj: backward hook"
    outcome = run(
        lambda t: a_pass(is_training=t, simple={"dense": 1}),
        routed_pass(materialised={operation: 1}, simple={"of tensors": 1}),
    )
    assert (outcome.kind, outcome.violations) == (ROUTED, [])
    assert outcome.simple == f"1 of tensors ({operation})"


def test_a_simple_loss_that_went_missing_is_a_violation(run):
    outcome = run(lambda t: a_pass(is_training=t, simple={"dense": 1}), routed_pass(simple={}))
    assert "simple losses: got 0, expected 1" in outcome.violations
    assert outcome.simple == "none"


def test_a_ctc_loss_that_went_missing_is_a_violation(run):
    outcome = run(lambda t: a_pass(is_training=t, ctc_losses=2), routed_pass(ctc_losses=1))
    assert "CTC losses: got 1, expected 2" in outcome.violations


def test_a_ctc_head_that_became_a_tensor_is_not_the_joiners_doing(run):
    outcome = run(dense_pass, routed_pass(materialised={"ctc_output: detach": 1}))
    assert (outcome.kind, outcome.violations, outcome.simple) == (ROUTED, [], "none")


def test_materialised_operations_are_the_outcome(run):
    outcome = run(dense_pass, routed_pass(losses=0, losses_dense=1, materialised={"softmax": 2}))
    assert (outcome.kind, outcome.reason) == (MATERIALISED, "softmax")
    assert outcome.violations


@pytest.mark.parametrize("dense", [{"losses": 0}, {"loss": math.inf}])
def test_a_dense_arm_that_shows_nothing_is_a_violation(run, dense):
    same = {**dense, "joiners": (), "materialised": {}}
    outcome = run(lambda t: a_pass(is_training=t, **dense), lambda t: a_pass(is_training=t, **same))
    assert any("the dense arm" in violation for violation in outcome.violations)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two recipe folders of a checkout, each with its own `model`."""
    monkeypatch.setenv("ICEFALL_ROOT", str(tmp_path))
    made = []
    for name in "one", "two":
        folder = tmp_path / "egs" / name
        (folder / "local").mkdir(parents=True)
        (folder / "local" / "text.py").touch()
        (folder / "model.py").write_text(f"import local.text\nNAME = {name!r}\n")
        made.append(folder)
    return made


def test_recipes_get_their_own_modules_and_leave_none(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "model", ModuleType("model"))
    before, path = dict(sys.modules), list(sys.path)
    for folder in folders:
        with recipe_folder_first(folder):
            name = importlib.import_module("model").NAME
            assert name == folder.name
            sys.path.append("somewhere")
    assert sys.modules == before
    assert sys.path == path
    assert not list(folders[0].rglob("__pycache__"))


def test_a_mended_file_is_imported_from_the_folder_as_if_it_were_right(folders):
    (folders[0] / "train.py").write_text("IS_SHORT = 1 =< 2\n")
    with mended("train", "one/train.py", "=<", "<="), recipe_folder_first(folders[0]):
        assert importlib.import_module("train").IS_SHORT
    with recipe_folder_first(folders[0]), pytest.raises(SyntaxError):
        importlib.import_module("train")


def test_a_folder_on_the_path_supplies_only_what_the_recipe_lacks(folders):
    (folders[1] / "scaling.py").touch()
    with on_path("two"), recipe_folder_first(folders[0]):
        assert importlib.import_module("scaling").__file__ == str(folders[1] / "scaling.py")
        assert importlib.import_module("model").NAME == "one"


def test_stand_ins_give_way_to_installed_packages():
    made = ModuleType("not_installed")
    with stand_in_modules({"not_installed": made, "torch": ModuleType("torch")}):
        assert importlib.import_module("not_installed") is made
        assert importlib.import_module("torch") is torch
    assert "not_installed" not in sys.modules


def test_sizes_go_to_the_parser_or_the_params_that_know_them():
    train = ModuleType("train")
    parser = argparse.ArgumentParser()
    parser.add_argument("--encoder-dim", type=int)
    parser.add_argument("--pretrained-dir")
    train.get_parser = lambda: parser
    train.get_params = lambda: {"nhead": 8}
    sizes = {"encoder-dim": 32, "nhead": 2, "joiner-dim": 64}
    row = Row("a", sizes, options={"encoder-dim": 16}, params={"pretrained_dir": ABSENT})
    params = make_params(row, train)
    assert (params["encoder_dim"], params["nhead"], params["vocab_size"]) == (16, 2, 500)
    assert "joiner_dim" not in params
    assert "pretrained_dir" not in params
