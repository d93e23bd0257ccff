"""A recipe folder's own modules, and one batch through its model dense and routed."""

import contextlib
import copy
import importlib
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

import panda_icefall


@dataclass(frozen=True)
class Batch:
    """What a recipe's model is called with; `y` is a k2.RaggedTensor [utterance][symbol]."""

    x: torch.Tensor  # [B, T, 80]
    x_lens: torch.Tensor  # [B]
    y: object


@dataclass(frozen=True)
class Outcome:
    simple_loss: torch.Tensor
    pruned_loss: torch.Tensor
    pruned_losses: int
    gradients: dict


@contextlib.contextmanager
def recipe_folder_first(folder):
    """Import as if started in `folder`; afterwards no module of it answers to its short name.

    Recipes call their files `model`, `decoder`, `train`...: two of them would otherwise get each
    other's.
    """
    names = {file.stem for file in folder.glob("*.py")}
    displaced = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    path, dont_write_bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path[:0] = [str(folder), os.environ["ICEFALL_ROOT"]]
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, dont_write_bytecode
        for name in names & set(sys.modules):
            del sys.modules[name]
        sys.modules.update(displaced)


@pytest.fixture(scope="module")
def train(request):
    """The `train` module of the recipe that the test file names as `RECIPE`."""
    folder = Path(os.environ["ICEFALL_ROOT"]) / request.module.RECIPE
    with recipe_folder_first(folder):
        yield importlib.import_module("train")


@pytest.fixture
def make_batch():
    """Random features with ragged transcripts: full, one symbol, none, and a repeated symbol."""
    import k2

    def make(vocab_size):
        generator = torch.Generator().manual_seed(vocab_size)
        x_lens = torch.tensor([131, 97, 63, 118])
        x = torch.randn(4, 131, 80, generator=generator)
        full = torch.randint(1, vocab_size, (13,), generator=generator).tolist()
        y = k2.RaggedTensor([full, [vocab_size - 1], [], [7, 7, 3, 7, 1]])
        return Batch(x, x_lens, y)

    return make


def _run(model, batch, *, is_training):
    """One pass from a fixed RNG state, on a copy: modules keep state between passes."""
    model = copy.deepcopy(model)
    model.train(is_training)
    # Zipformer draws from both generators, in backward too.
    random.seed(20)
    torch.manual_seed(20)
    with torch.set_grad_enabled(is_training):
        simple_loss, pruned_loss = model(batch.x, batch.x_lens, batch.y, prune_range=5)[:2]
        loss = 0.5 * simple_loss + pruned_loss
    if is_training:
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return simple_loss.detach(), pruned_loss.detach(), gradients


@pytest.fixture
def run_dense():
    """Run a model with k2 as it is, counting its pruned losses."""
    import k2

    def run(model, batch, *, is_training):
        original = k2.rnnt_loss_pruned
        with mock.patch.object(k2, "rnnt_loss_pruned", wraps=original) as counted:
            simple_loss, pruned_loss, gradients = _run(model, batch, is_training=is_training)
        return Outcome(simple_loss, pruned_loss, counted.call_count, gradients)

    return run


def group_norms(gradients):
    """L2 norm of the gradients of each top-level module: encoder, decoder, joiner..."""
    groups = {}
    for name, gradient in gradients.items():
        groups.setdefault(name.split(".")[0], []).append(gradient.norm())
    return {group: torch.stack(norms).norm().item() for group, norms in groups.items()}


def bad_groups(gradients, expected):
    """Groups whose gradient is further than 1e-5 from the expected one (relative L2)."""
    errors = group_norms({name: gradients[name] - expected[name] for name in expected})
    norms = group_norms(expected)
    return {group: errors[group] for group in norms if not errors[group] <= 1e-5 * norms[group]}


def bad_parameters(gradients, expected):
    """Parameters further off than 1e-5 of their own gradient plus 1e-6 of their group's.

    The second term is for gradients that nearly cancel, such as a bias ahead of a softmax: there
    the dense loss in fp32 is itself 1e-3 (relative) away from the one in fp64.
    """
    norms = group_norms(expected)
    allowed = {
        name: 1e-5 * gradient.norm().item() + 1e-6 * norms[name.split(".")[0]]
        for name, gradient in expected.items()
    }
    errors = {name: (gradients[name] - expected[name]).norm().item() for name in expected}
    return {name: error for name, error in errors.items() if not error <= allowed[name]}


@pytest.fixture
def assert_routed_equals_dense(run_dense):
    """Run a model dense and routed from one RNG state; compare losses, gradients, counts."""

    def check(model, batch, *, is_training):
        dense = run_dense(model, batch, is_training=is_training)
        with panda_icefall.patched():
            panda_icefall.routing.reset_counters()
            simple_loss, pruned_loss, gradients = _run(model, batch, is_training=is_training)
            status = panda_icefall.status()

        assert dense.pruned_losses > 0
        assert status.losses_routed == dense.pruned_losses
        assert status.losses_dense == 0
        assert status.materialised == {}
        torch.testing.assert_close(simple_loss, dense.simple_loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(pruned_loss, dense.pruned_loss, rtol=1e-6, atol=0)
        assert gradients.keys() == dense.gradients.keys()
        assert bool(gradients) is is_training
        assert bad_groups(gradients, dense.gradients) == {}
        assert bad_parameters(gradients, dense.gradients) == {}

    return check
