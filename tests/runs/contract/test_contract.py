"""The contract check finds what differs, and changes nothing of the training beside it."""

import dataclasses
import json
import math
import re

import pytest
import torch

from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.runs import NotRoutedError, PandaOptions, run_recipe
from panda_icefall.runs.contract import check
from panda_icefall.runs.contract.tolerances import tolerances_for


def report(recipe, folder="exp"):
    return json.loads((recipe.folder / folder / "panda-check.json").read_text())


def test_a_right_loss_passes_with_every_group_compared(recipe, capsys):
    options = PandaOptions(use_panda=True, check_batches=3)
    assert run_recipe(recipe.train_py, [], options) == 0
    found = report(recipe)
    assert found["has_passed"] is True
    assert found["violations"] == []
    assert (found["precision"], found["dense_recursion"]) == ("float32", "exact")
    assert found["tolerances"]["gradient_rel_l2"] == 1e-6
    assert [b["update"] for b in found["batches"]] == [1, 2, 3]
    groups = ["encoder", "decoder", "joiner", "simple_am_proj", "simple_lm_proj"]
    for batch in found["batches"]:
        assert batch["loss_rel"] <= 1e-6
        assert [g["group"] for g in batch["gradients"]] == groups
        assert all(g["dense_norm"] > 0 and g["rel_l2"] <= 1e-6 for g in batch["gradients"])
        # Two different computations: equal to the last bit everywhere would mean one arm ran twice.
        assert any(g["max_abs"] > 0 for g in batch["gradients"])
        assert batch["peak_bytes_dense"] >= 0
        assert batch["log_prob_problems"] == []
        assert batch["gradients_twin"] == []
        assert batch["prune_ranges"]["problems"] == []
        assert 0 <= batch["prune_ranges"]["frames_differing"] < batch["prune_ranges"]["frames"]
        assert (batch["simple_losses_routed"], batch["simple_losses_dense"]) == (1, 0)
        assert (batch["has_pruned_gradient"], batch["has_same_draws"]) == (True, True)
        for quantity in ("pruned_losses", "log_probs", "log_z"):
            (distance,) = batch[quantity]
            assert distance["group"] == "pruned loss 1"
            assert distance["dense_norm"] > 0
            assert distance["rel_l2"] <= 1e-6
            assert distance["max_scaled"] <= 1e-5
    for arm in ("parameters", "parameters_twin"):
        assert [p["group"] for p in found[arm]] == groups
    assert all(p["rel_l2"] > 0 for p in found["parameters_twin"])
    printed = capsys.readouterr().err
    assert "The contract holds over 3 update(s), 3 batch(es) compared" in printed
    assert "selected log-probs" in printed
    assert "but those of k2 over the exact recursion in float64" in " ".join(printed.split())


@pytest.mark.parametrize("use_panda", [False, True])
def test_training_goes_on_as_if_no_check_had_happened(recipe, use_panda):
    arguments = ["--num-batches", "5", "--num-epochs", "2", "--exp-dir"]
    plain = PandaOptions(use_panda=use_panda)
    checked = PandaOptions(use_panda=use_panda, check_batches=3)
    assert run_recipe(recipe.train_py, [*arguments, "plain"], plain) == 0
    assert run_recipe(recipe.train_py, [*arguments, "checked"], checked) == 0
    for name in ("losses-0.txt", "valid-0.txt"):
        assert recipe.lines(f"checked/{name}") == recipe.lines(f"plain/{name}")
    states = [torch.load(recipe.folder / f"{arm}/epoch-1.pt") for arm in ("plain", "checked")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_check_is_not_counted_as_the_recipes_own_losses(recipe, capsys):
    options = PandaOptions(use_panda=True, check_batches=2)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert "6 / 0" in capsys.readouterr().err  # four training batches, two of validation


def test_a_wrong_routed_loss_is_a_violation_and_training_still_ends(recipe, capsys):
    options = PandaOptions(use_panda=True, check_batches=2)
    assert run_recipe(recipe.train_py, ["--kind", "skewed"], options) == 1
    found = report(recipe)
    assert found["has_passed"] is False
    text = "\n".join(found["violations"])
    assert "update 1: loss relative difference" in text
    assert "gradient of joiner: rel-L2" in text
    assert "gradient of simple_am_proj" not in text
    assert (recipe.folder / "exp/done-0").exists()
    assert "contract violated (rank 0)" in capsys.readouterr().err


def test_a_wrong_gradient_behind_a_right_loss_is_a_violation(recipe):
    same_value = "pruned + 0.01 * (pruned - pruned.detach())"
    recipe.edit(("1.001 * pruned", same_value), name="toy_model.py")
    options = PandaOptions(use_panda=True, check_batches=2)
    assert run_recipe(recipe.train_py, ["--kind", "skewed"], options) == 1
    text = "\n".join(report(recipe)["violations"])
    assert "update 1: loss relative" not in text
    assert "update 1: gradient of encoder" in text
    assert report(recipe)["batches"][0]["loss_rel"] <= 1e-6


def test_rounding_in_the_losses_widens_the_bounds_of_what_it_moves(recipe, capsys):
    options = PandaOptions(check_batches=1, check_tolerances={"gradient_rel_l2": 1e-12})
    status = run_recipe(recipe.train_py, [], options)
    found = report(recipe)
    (batch,) = found["batches"]
    twin = {d["group"]: d["rel_l2"] for d in batch["gradients_twin"]}
    assert set(twin) == {"encoder", "decoder", "joiner", "simple_am_proj", "simple_lm_proj"}
    assert all(1e-12 < distance < 1e-6 for distance in twin.values())
    assert batch["gradient_bounds"] == {group: 4 * distance for group, distance in twin.items()}
    beyond = [g["group"] for g in batch["gradients"] if g["rel_l2"] > 4 * twin[g["group"]]]
    assert len(found["violations"]) == len(beyond)
    assert status == bool(beyond)
    assert "moves the dense gradient of encoder by rel-L2" in capsys.readouterr().err


def test_a_wrong_simple_gradient_is_no_rounding(recipe):
    wrong = "simple = simple + 1e-4 * (simple - simple.detach())"
    recipe.edit(
        (
            '        if kind == "skewed"',
            f'        if kind == "skewed-simple" and type(am_pruned).__name__ != "Tensor":\n'
            f'            {wrong}\n        if kind == "skewed"',
        ),
        name="toy_model.py",
    )
    options = PandaOptions(check_batches=1)
    assert run_recipe(recipe.train_py, ["--kind", "skewed-simple"], options) == 1
    found = report(recipe)
    assert found["batches"][0]["gradients_twin"]
    (distance,) = re.findall(r"simple_am_proj: rel-L2 (\S+),", "\n".join(found["violations"]))
    assert float(distance) == pytest.approx(1e-4, rel=0.01)


def test_a_routed_joiner_that_says_something_else_is_a_violation_of_its_log_probs(recipe):
    shifted = (
        "shift = 1e-4 * (type(am).__name__ != 'Tensor')\n"
        "        return self.output_linear(torch.tanh(am + lm + shift))"
    )
    recipe.edit(("return self.output_linear(torch.tanh(am + lm))", shifted), name="toy_model.py")
    loose = {
        "loss_rel": 1, "gradient_rel_l2": 1, "gradient_cosine": 1e-9, "parameter_rel_l2": 1
    }  # fmt: skip
    options = PandaOptions(check_batches=1, check_tolerances=loose)
    assert run_recipe(recipe.train_py, [], options) == 1
    found = report(recipe)
    assert found["tolerances"]["loss_rel"] == 1
    assert found["tolerances"]["log_prob_rel_l2"] == 1e-6
    first, second, third = found["violations"]
    assert first.startswith("update 1: selected log-probs of pruned loss 1: rel-L2")
    assert second.startswith("update 1: log_z of pruned loss 1: rel-L2")
    assert third.startswith("update 1: one selected log-prob of pruned loss 1: difference over")
    more = {"log_prob_rel_l2": 1, "log_z_rel_l2": 1, "log_prob_elementwise": 1}
    looser = PandaOptions(check_batches=1, check_tolerances={**loose, **more})
    assert run_recipe(recipe.train_py, [], looser) == 0


def test_every_pruned_loss_of_a_batch_is_compared(recipe):
    twice = "return model(batch, kind) + model(batch, kind)"
    recipe.edit(("return model(batch, kind)", twice), name="toy_model.py")
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=2)) == 0
    for batch in report(recipe)["batches"]:
        groups = [distance["group"] for distance in batch["log_probs"]]
        assert groups == ["pruned loss 1", "pruned loss 2"]
        # Dropout draws anew: two losses, not one reported twice.
        assert batch["log_probs"][0]["dense_norm"] != batch["log_probs"][1]["dense_norm"]


def test_a_routed_arm_with_fewer_pruned_losses_is_a_violation(recipe):
    again = (
        "        if type(am_pruned).__name__ == 'Tensor':\n"
        "            k2.rnnt_loss_pruned(logits.float(), symbols, ranges, 0, boundary)\n"
        '        if kind == "nan":\n'
    )
    recipe.edit(('        if kind == "nan":\n', again), name="toy_model.py")
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    assert report(recipe)["violations"] == [
        "update 1: the dense arm computed 2 loss(es), the routed arm 1"
    ]


@pytest.mark.parametrize(("batches", "steps"), [(1, 3), (3, 1)])
def test_steps_and_compared_batches_may_differ(recipe, capsys, batches, steps):
    options = PandaOptions(
        check_batches=batches, check_update_steps=steps, stop_after_check=True, use_panda=True
    )
    assert run_recipe(recipe.train_py, ["--num-batches", "9"], options) == 0
    found = report(recipe)
    assert (found["updates"], found["update_steps"], found["steps"]) == (batches, steps, steps)
    assert len(found["batches"]) == batches
    assert all(p["rel_l2"] > 0 for p in found["parameters_twin"])
    assert len(recipe.lines("exp/losses-0.txt")) == 3  # training ends with the longer of both
    printed = capsys.readouterr().err
    assert f"holds over {steps} update(s), {batches} batch(es) compared" in printed


def test_a_run_that_ends_before_the_last_step_does_not_pass(recipe, capsys):
    options = PandaOptions(check_batches=2, check_update_steps=9)
    assert run_recipe(recipe.train_py, [], options) == 1
    assert "saw 4 of 9 training batches" in capsys.readouterr().err


def test_only_rounding_excuses_parameters_that_part(recipe):
    # The optimizer's step depends on which arm's model it updates, behind equal gradients.
    drifting = (
        "class Drifting(torch.optim.Adam):\n"
        "    def step(self, closure=None):\n"
        "        super().step(closure)\n"
        "        import panda_icefall.runs.contract.check as contract\n"
        "        with torch.no_grad():\n"
        "            contract.steps = getattr(contract, 'steps', 0) + 1\n"
        "            if contract.steps == 3:  # dense, twin, then routed\n"
        "                self.param_groups[0]['params'][0].mul_(1.01)\n"
        "\n\ndef run(rank"
    )
    recipe.edit(("torch.optim.Adam(model", "Drifting(model"), ("def run(rank", drifting))
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    (violation,) = report(recipe)["violations"]
    assert violation.startswith("parameters of encoder after 1 update(s): rel-L2")


def test_the_twin_of_the_updates_rounds_its_losses_differently(recipe, monkeypatch):
    rerounded, steps = check.rerounded_losses, []

    def counted():
        steps.append(1)
        return rerounded()

    monkeypatch.setattr(check, "perturb_by_one_ulp", lambda model: None)
    monkeypatch.setattr(check, "rerounded_losses", counted)
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=3)) == 0
    assert len(steps) == 3
    assert all(twin["rel_l2"] < 1e-4 for twin in report(recipe)["parameters_twin"])


def test_the_twin_rounds_its_ctc_loss_differently_where_that_is_routed(recipe, monkeypatch):
    recipe.add_ctc_head()
    in_float64, steps = check.ctc_losses_in_float64, []

    def counted():
        steps.append(1)
        return in_float64()

    monkeypatch.setattr(check, "ctc_losses_in_float64", counted)
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=2)) == 0
    assert steps == []
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=2, ctc=True)) == 0
    assert len(steps) == 2


def test_a_check_of_a_ctc_loss_that_is_not_there_says_so(recipe):
    with pytest.raises(NotRoutedError, match=r"no CTC loss was routed .* the model has no ctc_out"):
        run_recipe(recipe.train_py, [], PandaOptions(check_batches=1, ctc=True))


def test_a_loss_that_is_not_finite_is_a_violation_in_strict_json(recipe):
    options = PandaOptions(check_batches=1)
    assert run_recipe(recipe.train_py, ["--kind", "nan"], options) == 1
    found = report(recipe)
    assert "update 1: loss is not finite: dense nan, routed nan" in found["violations"]
    assert found["batches"][0]["loss_dense"] == "nan"


def test_a_check_command_stops_after_its_updates_without_a_checkpoint(recipe):
    options = PandaOptions(check_batches=2, stop_after_check=True)
    assert run_recipe(recipe.train_py, ["--num-batches", "9"], options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 2
    assert sorted(p.name for p in (recipe.folder / "exp").iterdir()) == [
        "losses-0.txt",
        "panda-check.json",
        "params-0.json",
    ]


def test_a_check_goes_on_over_short_epochs_with_one_validation_batch_each(recipe):
    options = PandaOptions(check_batches=3, stop_after_check=True)
    arguments = ["--num-batches", "2", "--num-epochs", "4"]
    assert run_recipe(recipe.train_py, arguments, options) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 3
    assert len(recipe.lines("exp/valid-0.txt")) == 1


def test_a_run_too_short_for_its_check_does_not_pass(recipe, capsys):
    options = PandaOptions(check_batches=9)
    assert run_recipe(recipe.train_py, [], options) == 1
    assert "saw 4 of 9 training batches" in capsys.readouterr().err


def test_a_check_in_which_nothing_was_routed_does_not_pass(recipe):
    options = PandaOptions(check_batches=1, stop_after_check=True)
    with pytest.raises(NotRoutedError, match="ctc_loss"):
        run_recipe(recipe.train_py, ["--kind", "ctc"], options)
    assert report(recipe)["has_passed"] is False


def test_an_error_inside_the_check_is_a_violation_and_not_the_end_of_the_run(recipe):
    keeping = "    model.kept = model.encoder[0].weight * 2\n    model.train()\n"
    recipe.edit(("    model.train()\n", keeping))
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    assert "the check could not go on: RuntimeError" in report(recipe)["violations"][0]
    assert (recipe.folder / "exp/done-0").exists()
    assert not (recipe.folder / "exp/bad-model-0.pt").exists()


def test_the_loss_scale_of_the_recipe_is_used_and_divided_out(recipe):
    options = PandaOptions(check_batches=2)
    assert run_recipe(recipe.train_py, ["--exp-dir", "plain"], options) == 0
    scaler = (
        "class Scaler:\n"
        "    def is_enabled(self):\n        return True\n\n"
        "    def get_scale(self):\n        return 1024.0\n\n\n"
        "def run(rank"
    )
    recipe.edit(
        ("tb_writer=None, world_size=1", "scaler=None, tb_writer=None, world_size=1"),
        ("valid_dl=Loader(2),", "valid_dl=Loader(2), scaler=Scaler(),"),
        ("def run(rank", scaler),
    )
    assert run_recipe(recipe.train_py, ["--exp-dir", "scaled"], options) == 0
    plain, scaled = report(recipe, "plain"), report(recipe, "scaled")
    for one, other in zip(plain["batches"], scaled["batches"]):
        assert one["loss_dense"] == other["loss_dense"]  # the second one after a dense step
        for first, second in zip(one["gradients"], other["gradients"]):
            assert second["dense_norm"] == pytest.approx(first["dense_norm"], rel=1e-6)


def test_under_autocast_the_check_runs_in_the_recipes_precision(recipe):
    assert run_recipe(recipe.train_py, ["--autocast", "1"], PandaOptions(check_batches=2)) == 0
    found = report(recipe)
    assert found["precision"] == "bfloat16"
    assert found["tolerances"]["gradient_rel_l2"] == 16 * 2**-7


def test_tolerances_grow_with_the_eps_of_the_precision():
    single, half = tolerances_for(torch.float32), tolerances_for(torch.float16)
    assert (single.loss_rel, single.gradient_rel_l2) == (1e-6, 1e-5)
    assert (single.gradient_cosine, single.parameter_rel_l2) == (0.999999, 1e-5)
    assert single.log_prob_rel_l2 == single.log_z_rel_l2 == 1e-6
    exact = tolerances_for(torch.float32, is_recursion_exact=True)
    tighter = {"gradient_rel_l2": 1e-6, "parameter_rel_l2": 1e-6}
    assert exact == dataclasses.replace(single, **tighter)
    assert tolerances_for(torch.float16, is_recursion_exact=True) == half
    assert half.log_prob_rel_l2 == half.log_z_rel_l2 == 4 * 2**-10
    assert (single.log_prob_elementwise, half.log_prob_elementwise) == (1e-5, 32 * 2**-10)
    assert half.loss_rel == 2 * 2**-10
    assert math.isclose(1 - half.gradient_cosine, (16 * 2**-10) ** 2 / 2, rel_tol=1e-6)


def test_the_dtype_of_autocast_is_known_only_inside_of_it():
    cpu = torch.device("cpu")
    assert autocast_dtype(cpu) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_dtype(cpu) == torch.bfloat16
