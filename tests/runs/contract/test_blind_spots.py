"""What the contract check must not miss although losses and gradients agree."""

import json

import pytest
import torch

from panda_icefall.normalizer import tile_loop
from panda_icefall.routing import routed_loss
from panda_icefall.runs import PandaOptions, run_recipe

WEIGHED = "return 0.5 * simple + pruned"
LOOSE = {
    "loss_rel": 1, "gradient_rel_l2": 1, "gradient_cosine": 1e-9, "parameter_rel_l2": 1
}  # fmt: skip


def report(recipe):
    return json.loads((recipe.folder / "exp/panda-check.json").read_text())


@pytest.fixture
def changed_loss(monkeypatch):
    """Puts a function of the routed pruned loss in its place."""

    def change(function):
        compute = routed_loss.compute
        monkeypatch.setattr(
            routed_loss, "compute", lambda *args, **kwargs: function(compute(*args, **kwargs))
        )

    return change


@pytest.mark.parametrize("instead", ["0.0 * pruned", "pruned.detach()"])
def test_a_pruned_loss_without_a_gradient_in_every_batch_is_a_violation(recipe, capsys, instead):
    recipe.edit((WEIGHED, f"return 0.5 * simple + {instead}"), name="toy_model.py")
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=2)) == 1
    found = report(recipe)
    (violation,) = found["violations"]
    assert "the transducer loss had no gradient in the 2 batch(es) compared" in violation
    assert "nothing of its backward was compared" in violation
    assert "--model-warm-step" in violation
    assert [b["has_pruned_gradient"] for b in found["batches"]] == [False, False]
    assert "not compared in backward" not in capsys.readouterr().err


def test_batches_of_a_warm_up_are_named_as_not_compared_in_backward(recipe, capsys):
    recipe.edit(("batch, params.kind)", "batch, params.kind, params.batch_idx_train)"))
    recipe.edit(
        (WEIGHED, "return 0.5 * simple + self.weight * pruned"),
        ("batch, kind):\n    return", "batch, kind, seen):\n"
         "    model.weight = 0.0 if seen < 2 else 1.0\n    return"),
        name="toy_model.py",
    )  # fmt: skip
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=3)) == 0
    found = report(recipe)
    assert [b["has_pruned_gradient"] for b in found["batches"]] == [False, True, True]
    printed = " ".join(capsys.readouterr().err.split())
    assert "not compared in backward: update(s) 1: the transducer loss had no gradient" in printed


@pytest.mark.parametrize("weight", [1.0, 0.1, 1e-6])
def test_a_wrong_value_shows_whatever_weight_the_recipe_gives_it(recipe, changed_loss, weight):
    recipe.edit((WEIGHED, f"return simple + {weight} * pruned"), name="toy_model.py")
    changed_loss(lambda loss: loss + 3e-6 * loss.detach())
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    found = report(recipe)
    (told,) = [v for v in found["violations"] if "value of" in v]
    assert told.startswith("update 1: value of pruned loss 1: rel-L2")
    assert told.endswith("e-06, expected at most 1e-06")
    (distance,) = found["batches"][0]["pruned_losses"]
    assert distance["rel_l2"] == pytest.approx(3e-6, rel=0.2)


def test_values_without_a_reduction_are_compared_utterance_by_utterance(recipe, changed_loss):
    recipe.edit(
        ('boundary=boundary, reduction="sum",\n            )\n        if kind == "skewed"',
         'boundary=boundary, reduction="none",\n            ).sum()\n        if kind == "skewed"'),
        name="toy_model.py",
    )  # fmt: skip
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 0
    # The sum, and so the recipe's loss, stays as it is.
    changed_loss(lambda loss: loss + torch.tensor([1e-3, -1e-3, 0.0]))
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    (violation,) = report(recipe)["violations"]
    assert violation.startswith("update 1: value of pruned loss 1")


def test_a_routed_pass_that_draws_random_numbers_is_a_violation(recipe, changed_loss):
    changed_loss(lambda loss: loss + 0 * torch.rand(1).sum())
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    found = report(recipe)
    assert found["violations"] == [
        "update 1: the routed pass drew other random numbers than the dense one"
    ]
    assert found["batches"][0]["has_same_draws"] is False


def test_one_wrong_normaliser_among_many_is_a_violation(recipe, monkeypatch):
    forward = tile_loop.forward

    def off_at_one_site(*args):
        log_probs, log_z = forward(*args)
        log_z = log_z.clone()
        log_z[5] += 1e-3
        return log_probs, log_z

    monkeypatch.setattr(tile_loop, "forward", off_at_one_site)
    diluted = {**LOOSE, "log_prob_rel_l2": 1, "log_z_rel_l2": 1}  # as with many more sites
    options = PandaOptions(check_batches=1, check_tolerances=diluted)
    assert run_recipe(recipe.train_py, [], options) == 1
    found = report(recipe)
    (violation,) = found["violations"]
    assert violation.startswith("update 1: one log_z of pruned loss 1: difference over 1 + |dense|")
    assert found["tolerances"]["log_prob_elementwise"] == 1e-5
    looser = PandaOptions(
        check_batches=1, check_tolerances={**diluted, "log_prob_elementwise": 0.01}
    )
    assert run_recipe(recipe.train_py, [], looser) == 0
