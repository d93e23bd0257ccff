"""The hosts' losses in the contract's dense passes: HAT on any k2, and others rounded anew."""

import json

import pytest
import torch
import toy

from panda_icefall import routing
from panda_icefall.losses import dense
from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.contract import dense_losses
from panda_icefall.runs.contract.dense_losses import pruned_losses_with_hat, rerounded_losses


@pytest.fixture
def k2():
    return routing.patched_module()


@pytest.fixture
def old_k2(k2, monkeypatch):
    """One whose pruned loss knows no HAT."""

    def rnnt_loss_pruned(
        logits, symbols, ranges, termination_symbol, boundary=None, rnnt_type="regular",
        delay_penalty=0.0, reduction="mean",
    ):  # fmt: skip
        return dense.rnnt_loss_pruned(
            logits, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty,
            reduction,
        )  # fmt: skip

    monkeypatch.setattr(k2, "rnnt_loss_pruned", rnnt_loss_pruned)
    return k2


def pruned(k2, dtype, module=None, **options):
    """The gradient of the logits that a module's pruned loss, k2's or another's, gives."""
    data = toy.batch(k2)
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(*data.ranges.shape, toy.C, generator=generator)
    leaf = logits.to(dtype).requires_grad_()
    loss = (module or k2).rnnt_loss_pruned(
        logits=leaf, symbols=data.symbols, ranges=data.ranges, termination_symbol=0,
        boundary=data.boundary, reduction="sum", **options,
    )  # fmt: skip
    return torch.autograd.grad(loss, leaf)[0]


def rel(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_pruned_losses_are_the_same_but_for_rounding(k2):
    plain = {dtype: pruned(k2, dtype) for dtype in (torch.float32, torch.float64)}
    original = k2.rnnt_loss_pruned
    with rerounded_losses():
        anew = {dtype: pruned(k2, dtype) for dtype in plain}
    assert k2.rnnt_loss_pruned is original
    assert rel(anew[torch.float64], plain[torch.float64]) < 1e-13
    assert 1e-9 < rel(anew[torch.float32], plain[torch.float32]) < 1e-5


def test_hat_has_no_normaliser_to_shift_and_stays_as_it_is(old_k2):
    with pruned_losses_with_hat():
        plain = pruned(old_k2, torch.float64, use_hat_loss=True)
        with rerounded_losses():
            assert torch.equal(pruned(old_k2, torch.float64, use_hat_loss=True), plain)


def test_a_k2_without_hat_has_it_in_the_block_and_its_own_loss_beside_it(old_k2):
    original, plain = old_k2.rnnt_loss_pruned, pruned(old_k2, torch.float64)
    with pruned_losses_with_hat():
        hat = pruned(old_k2, torch.float64, use_hat_loss=True)
        assert torch.equal(pruned(old_k2, torch.float64, use_hat_loss=False), plain)
        assert torch.equal(pruned(old_k2, torch.float64), plain)
    assert old_k2.rnnt_loss_pruned is original
    assert torch.equal(hat, pruned(old_k2, torch.float64, dense, use_hat_loss=True))
    with pytest.raises(TypeError, match="use_hat_loss"):
        pruned(old_k2, torch.float64, use_hat_loss=True)


def test_a_recipe_with_hat_is_checked_on_a_k2_without_it(recipe, old_k2):
    recipe.edit(
        ('boundary=boundary, reduction="sum",\n            )\n        if kind == "skewed"',
         'boundary=boundary, reduction="sum", use_hat_loss=True,\n            )\n'
         '        if kind == "skewed"'),
        name="toy_model.py",
    )  # fmt: skip
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True, check_batches=2)) == 0
    found = json.loads((recipe.folder / "exp/panda-check.json").read_text())
    assert found["violations"] == []
    assert all(batch["log_probs"][0]["dense_norm"] > 0 for batch in found["batches"])


def test_a_rerounded_pass_that_does_not_fit_rerounds_the_simple_loss_alone(
    recipe, monkeypatch, caplog
):
    """A copy more of the pruned loss's logits, on a device that holds just the dense ones."""
    shifted = dense_losses._shifted

    def out_of_memory(logits):
        if logits.dim() == 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return shifted(logits)

    monkeypatch.setattr(dense_losses, "_shifted", out_of_memory)
    options = PandaOptions(use_panda=True, check_batches=2, check_update_steps=2)
    assert run_recipe(recipe.train_py, [], options) == 0
    assert "once more with other rounding in the simple loss alone" in caplog.text
    found = json.loads((recipe.folder / "exp/panda-check.json").read_text())
    assert found["violations"] == []
    assert found["parameters_twin"]
