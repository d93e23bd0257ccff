"""What apply and revert meet in a long-lived process: any order, errors, threads, other patches.

Models around a loss are in test_models_while_applied.py.
"""

import contextlib
import copy
import functools
import threading

import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_both import Model, batch, train

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import suspended

NAMES = ("do_rnnt_pruning", "rnnt_loss_pruned", "rnnt_loss_smoothed", "rnnt_loss_simple")


class Expected:
    """What should be in place, step by step; blocks are left in the order of a stack."""

    def __init__(self):
        self.is_applied, self.generation, self.blocks = False, 0, []

    def apply(self, *given, **options):
        panda_icefall.apply(*given, **options)
        self.generation += not self.is_applied
        self.is_applied = True

    def revert(self):
        panda_icefall.revert()
        self.is_applied = False

    def enter(self, kind, block):
        block.__enter__()
        self.blocks.append((kind, block, self.is_applied, self.generation))
        if kind == "patched":
            self.generation += not self.is_applied
            self.is_applied = True

    def leave(self, error=None):
        if not self.blocks:
            return
        kind, block, was_applied, _ = self.blocks.pop()
        with contextlib.suppress(KeyError):
            block.__exit__(error and type(error), error, None)
        if kind == "patched" and not was_applied:
            self.is_applied = False

    @property
    def is_in_place(self):
        return self.is_applied and not any(
            kind == "suspended" and was_applied and generation == self.generation
            for kind, _, was_applied, generation in self.blocks
        )


STEPS = "apply apply_model options revert patched suspended leave raise train".split()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(STEPS), max_size=14))
def test_apply_and_revert_in_any_order_and_number(steps):
    originals = {name: getattr(rnnt, name) for name in NAMES}
    model, data, expected = Model(), batch(), Expected()
    dense = model(rnnt, data).item()
    actions = {
        "apply": expected.apply,
        "apply_model": lambda: expected.apply(model),
        "options": lambda: expected.apply(workspace_mib=1.0),
        "revert": expected.revert,
        "patched": lambda: expected.enter("patched", panda_icefall.patched(model)),
        "suspended": lambda: expected.enter("suspended", suspended()),
        "leave": expected.leave,
        "raise": lambda: expected.leave(KeyError("mine")),
    }
    try:
        for step in steps:
            if step == "train":
                before = panda_icefall.status()
                loss = model(rnnt, data)
                loss.backward()
                assert abs(loss.item() - dense) <= 1e-10 * abs(dense)
                found = panda_icefall.status() - before
                assert found.losses_routed == int(expected.is_in_place)
                assert (found.simple_losses_dense, found.materialised) == (0, {})
            else:
                actions[step]()
            assert bool(panda_icefall.status().replaced) == expected.is_in_place
            assert (rnnt.rnnt_loss_pruned is originals["rnnt_loss_pruned"]) == (
                not expected.is_in_place
            )
        while expected.blocks:
            expected.leave()
    finally:
        panda_icefall.revert()
    assert {name: getattr(rnnt, name) for name in NAMES} == originals
    assert panda_icefall.status().replaced == ()
    assert type(model.transducer.projections(data)[0]) is torch.Tensor


@pytest.mark.parametrize("where", ["joiner", "between", "loss", "backward"])
def test_an_exception_in_the_middle_of_a_step_leaves_the_next_one_as_it_was(k2, where):
    model, data = Model(), batch()
    expected = toy.loss_and_gradients(k2, model.joiner, data)

    class Broken(nn.Module):
        def forward(self, am, lm):
            model.joiner(am, lm)
            raise RuntimeError("mine")

    def step():
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        logits = (Broken() if where == "joiner" else model.joiner)(am, lm)
        if where == "between":
            raise RuntimeError("mine")
        symbols = data.symbols[:, :-1] if where == "loss" else data.symbols
        loss = k2.rnnt_loss_pruned(logits, symbols, data.ranges, 0, data.boundary)
        if where == "backward":
            loss.register_hook(lambda grad: 1 / 0)
        loss.backward()

    panda_icefall.apply(model)
    with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
        step()
    before = panda_icefall.status()
    found = toy.loss_and_gradients(k2, model.joiner, data)
    assert (panda_icefall.status() - before).losses_routed == 1
    toy.assert_same(found, expected, 1e-12)


def test_threads_that_train_two_models_at_once_disturb_nothing(k2):
    """Of one process, as in a server of several models; counters miss no loss."""
    models = [Model(seed) for seed in (1, 2)]
    expected = []
    for model in models:
        copied = copy.deepcopy(model)
        expected.append(train(k2, copied, torch.optim.SGD(copied.parameters(), 1e-3), range(4)))
    for model in models:
        panda_icefall.apply(model, adjoint_tolerance=0)
    found, start = {}, threading.Barrier(2)

    def run(number):
        model = models[number]
        start.wait(timeout=60)
        found[number] = train(k2, model, torch.optim.SGD(model.parameters(), 1e-3), range(4))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense, status.materialised) == (8, 0, {})
    assert (status.simple_losses_deferred, status.simple_losses_dense) == (8, 0)
    for number, losses in enumerate(expected):
        torch.testing.assert_close(found[number], losses, rtol=1e-9, atol=0)


class Other:
    """Another library that wraps the pruned loss and counts its calls."""

    def __init__(self, k2):
        self.k2, self.calls = k2, 0

    def install(self):
        self.original = original = self.k2.rnnt_loss_pruned

        @functools.wraps(original)
        def wrapped(*args, **kwargs):
            self.calls += 1
            return original(*args, **kwargs)

        self.ours = self.k2.rnnt_loss_pruned = wrapped

    def remove(self):
        self.k2.rnnt_loss_pruned = self.original


@pytest.mark.parametrize("leaves_first", ["panda", "other"])
def test_a_library_that_patched_before_keeps_its_wrapper(k2, leaves_first):
    """It sees the losses that PANDA leaves to it, and gets its own function back."""
    original, data = k2.rnnt_loss_pruned, batch()
    other, joiner = Other(k2), toy.TanhJoiner().double()
    expected = toy.loss_and_gradients(k2, joiner, data)
    other.install()
    try:
        panda_icefall.apply(adjoint_tolerance=0)
        found = toy.loss_and_gradients(k2, joiner, data)
        assert (panda_icefall.status().losses_routed, other.calls) == (1, 0)
        logits = torch.randn(toy.B, toy.T, toy.S_RANGE, toy.C)
        k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
        assert (panda_icefall.status().losses_dense, other.calls) == (1, 1)
        if leaves_first == "panda":
            panda_icefall.revert()
            assert k2.rnnt_loss_pruned is other.ours
            other.remove()
        else:
            other.remove()
            panda_icefall.revert()
        toy.assert_same(found, expected, 1e-12)
        assert k2.rnnt_loss_pruned is original
    finally:
        k2.rnnt_loss_pruned = original


@pytest.mark.parametrize("leaves_first", ["panda", "other"])
def test_a_library_that_patches_later_is_called_and_left_alone(k2, leaves_first, caplog):
    """PANDA routes below its wrapper. Where PANDA goes first, its function under that is plain."""
    original, data = k2.rnnt_loss_pruned, batch()
    other, joiner = Other(k2), toy.TanhJoiner().double()
    expected = toy.loss_and_gradients(k2, joiner, data)
    try:
        panda_icefall.apply(adjoint_tolerance=0)
        other.install()
        found = toy.loss_and_gradients(k2, joiner, data)
        assert (panda_icefall.status().losses_routed, other.calls) == (1, 1)
        toy.assert_same(found, expected, 1e-12)
        if leaves_first == "other":
            other.remove()
            panda_icefall.revert()
            assert k2.rnnt_loss_pruned is original
        else:
            panda_icefall.revert()
            assert k2.rnnt_loss_pruned is other.ours
            assert "rnnt_loss_pruned was replaced by something else" in caplog.text
        toy.assert_same(toy.loss_and_gradients(k2, joiner, data), expected, 1e-12)
    finally:
        k2.rnnt_loss_pruned = original
