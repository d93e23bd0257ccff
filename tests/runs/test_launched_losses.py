"""Which losses of a toy recipe are routed: the simple one by its projections, and CTC."""

import re
from pathlib import Path

import pytest

from panda_icefall.runs import NotRoutedError, PandaOptions, UsageError, run_recipe

PANDA = PandaOptions(use_panda=True)
PANDA_CTC = PandaOptions(use_panda=True, ctc=True)


def test_the_simple_loss_is_deferred_in_training_and_validation(recipe, capsys):
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    printed = capsys.readouterr().err
    assert re.search(r"simple losses recorded / on tensors / dense\W+6 / 0 / 0", printed)


CALLS = [f"{name}=self.simple_{name}_proj({name}.float())" for name in ("am", "lm")]


@pytest.mark.parametrize(("used", "counts"), [(1, "6 / 0 / 0"), (2, "0 / 6 / 0")])
def test_a_projection_that_is_used_elsewhere_is_said_and_trains(
    recipe, capsys, caplog, used, counts
):
    recipe.edit(*((call, f"{call}.exp()") for call in CALLS[:used]), name="toy_model.py")
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    assert "simple_am_proj: exp needs the projection's tensor" in caplog.text
    all_of_tensors = "was given tensors (simple_am_proj: exp, simple_lm_proj: exp)"
    assert (all_of_tensors in caplog.text) == (used == 2)
    printed = capsys.readouterr().err
    assert re.search(rf"simple losses recorded / on tensors / dense\W+{counts}", printed)


def test_projections_of_other_names_are_deferred_where_they_are_named(recipe, capsys, caplog):
    names = {"am": "am_head", "lm": "lm_head"}
    recipe.edit(*((f"simple_{k}_proj", n) for k, n in names.items()), name="toy_model.py")
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    assert caplog.text.count("am_head, lm_head, ") == 1
    assert re.search(r"on tensors / dense\W+0 / 6 / 0", capsys.readouterr().err)
    named = PandaOptions(use_panda=True, memory_log=Path("m.jsonl"), projections=names)
    assert run_recipe(recipe.train_py, [], named) == 0
    assert re.search(r"on tensors / dense\W+6 / 0 / 0", capsys.readouterr().err)
    unknown = PandaOptions(use_panda=True, projections={"am": "simple_am_proj"})
    with pytest.raises(
        UsageError,
        match=r"--panda-projections: got am='simple_am_proj', .* such as .*am_head, lm_he",
    ):
        run_recipe(recipe.train_py, [], unknown)


def test_a_contract_holds_for_projections_of_other_names(recipe):
    recipe.edit(("simple_am_proj", "am_proj"), ("simple_lm_proj", "lm_proj"), name="toy_model.py")
    names = {"am": "am_proj", "lm": "lm_proj"}
    options = PandaOptions(use_panda=True, check_batches=2, projections=names)
    assert run_recipe(recipe.train_py, [], options) == 0


CTC_ALONE = (
    (
        "self.simple_am_proj(am).transpose(0, 1).log_softmax(-1)",
        "self.ctc_output(am).transpose(0, 1)",
    ),
    ("logp[:, symbol_lens > 0], targets, lens[symbol_lens > 0],", "logp, symbols, lens,"),
    ("symbol_lens[symbol_lens > 0], reduction=", "symbol_lens, reduction="),
)


def test_the_ctc_loss_is_routed_where_it_is_asked_for(recipe, capsys):
    recipe.add_ctc_head()
    for arm, options in (("dense", PandaOptions()), ("off", PANDA), ("routed", PANDA_CTC)):
        assert run_recipe(recipe.train_py, ["--exp-dir", arm], options) == 0
        printed = capsys.readouterr().err
        assert ("CTC losses" in printed) == (arm == "routed")
    assert re.search(r"CTC losses routed / dense\W+6 / 0", printed)
    for name in ("losses-0.txt", "valid-0.txt"):
        dense, routed = (recipe.floats(f"{arm}/{name}") for arm in ("dense", "routed"))
        assert routed == pytest.approx(dense, rel=1e-5)
    checked = PandaOptions(use_panda=True, ctc=True, strict=True, check_batches=2)
    assert run_recipe(recipe.train_py, [], checked) == 0


def test_a_ctc_loss_that_was_asked_for_and_is_not_there_ends_the_run(recipe):
    with pytest.raises(
        NotRoutedError, match=r"no CTC loss was routed .*: the model has no ctc_outp"
    ):
        run_recipe(recipe.train_py, [], PANDA_CTC)


def test_a_recipe_of_ctc_alone_trains_where_that_is_asked_for(recipe, capsys):
    recipe.add_ctc_head()
    recipe.edit(*CTC_ALONE, name="toy_model.py")
    with pytest.raises(NotRoutedError, match=r"called instead: torch\.nn\.functional\.ctc_loss"):
        run_recipe(recipe.train_py, ["--kind", "ctc"], PANDA)
    assert run_recipe(recipe.train_py, ["--kind", "ctc"], PANDA_CTC) == 0
    assert re.search(r"CTC losses routed / dense\W+6 / 0", capsys.readouterr().err)
