"""A step of icefall's losses makes the host wait for the device four times at most."""

import dataclasses
from collections import Counter

import counted
import pytest
import torch
import torch.nn.functional as F
import toy
import toy_full
import toy_simple
from benchmarks.syncs import Syncs

import panda_icefall

CHECKED = "losses/host_values.py: on_host"


class Model(toy_simple.Transducer):
    """Both losses of a recipe, in its order."""

    def __init__(self):
        super().__init__()
        self.joiner = toy.TanhJoiner()

    def step(self, k2, data, am_only_scale=0.0, rnnt_type="regular", use_hat_loss=False):
        am, lm = self.projections(data)
        simple, (px_grad, py_grad) = toy_simple.smoothed_loss(
            k2, am, lm, data, am_only_scale=am_only_scale, rnnt_type=rnnt_type, return_grad=True
        )
        ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, data.boundary, toy.S_RANGE)
        logits = self.joiner(*k2.do_rnnt_pruning(data.am, data.lm, ranges))
        pruned = k2.rnnt_loss_pruned(
            logits=logits.float(), symbols=data.symbols, ranges=ranges, termination_symbol=0,
            boundary=data.boundary, rnnt_type=rnnt_type, reduction="sum",
            use_hat_loss=use_hat_loss,
        )  # fmt: skip
        return simple + pruned


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"am_only_scale": 0.2},
        {"rnnt_type": "modified"},
        {"use_hat_loss": True},
    ],
    ids=["plain", "am_only", "modified", "hat"],
)
def test_a_step_waits_no_oftener_than_it_must(newer_k2, options):
    data, model = toy.batch(newer_k2), Model()
    with panda_icefall.patched(model, strict=True):
        with Syncs() as forward:
            loss = model.step(newer_k2, data, **options)
        with Syncs() as backward:
            loss.backward()
        status = panda_icefall.status()
    assert (status.losses_routed, status.simple_losses_deferred) == (1, 1)
    places = Counter(wait.place for wait in forward.waits)
    # All of the simple loss's lattice, and all of the pruned one's that is new.
    assert places.pop(CHECKED) == 2
    assert sum(places.values()) <= 1, places
    assert len(backward.waits) == 1, backward.waits


def test_no_loss_depends_on_what_another_batch_had(newer_k2):
    model = Model()

    def loss_of(data):
        with counted.deferred(model):
            return model.step(newer_k2, data).detach()

    first = toy.batch(newer_k2)
    expected = loss_of(first)
    other = dataclasses.replace(toy.batch(newer_k2, seed=1), boundary=first.boundary)
    loss_of(other)
    first.boundary.add_(0)  # as a loader that fills the same tensor again
    assert torch.equal(loss_of(first), expected)
    # Written past the counter of changes, as through a shared array: read again in the next step.
    shorter = first.boundary.clone()
    shorter[0, 3] -= 1
    first.boundary.data.copy_(shorter)
    assert torch.equal(loss_of(first), loss_of(dataclasses.replace(first, boundary=shorter)))


def test_a_boundary_that_is_changed_between_the_losses_is_checked_again(newer_k2):
    data, model = toy.batch(newer_k2), Model()
    with counted.deferred(model):
        toy_simple.smoothed_loss(newer_k2, *model.projections(data), data)
        logits = model.joiner(*newer_k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        data.boundary[1, 3] = toy.T + 1
        with pytest.raises(ValueError, match=r"boundary: got \[0, 0, 3, 12\] for utterance b=1"):
            newer_k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
        with pytest.raises(ValueError, match=r"boundary: got \[0, 0, 3, 12\] for utterance b=1"):
            newer_k2.get_rnnt_prune_ranges(
                torch.zeros(toy.B, toy.S, toy.T + 1), torch.zeros(toy.B, toy.S + 1, toy.T),
                data.boundary, toy.S_RANGE,
            )  # fmt: skip


def test_symbols_that_are_changed_between_the_losses_are_checked_again(newer_k2):
    data, model = toy.batch(newer_k2), Model()
    with counted.deferred(model):
        toy_simple.smoothed_loss(newer_k2, *model.projections(data), data)
        logits = model.joiner(*newer_k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        data.symbols[2, 1] = toy.C
        with pytest.raises(ValueError, match=r"symbols: got id 31 for utterance b=2 at s=1"):
            newer_k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)


def test_a_joint_of_other_ranges_than_the_losss_is_checked_before_it_is_read(newer_k2):
    data, model = toy.batch(newer_k2), Model()
    with panda_icefall.patched(model):
        beyond = data.ranges + toy.S
        logits = model.joiner(*newer_k2.do_rnnt_pruning(data.am, data.lm, beyond))
        with pytest.raises(ValueError, match="rows: a table of 21 rows is read at -1"):
            newer_k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)


def test_a_full_lattice_waits_once_forward_and_once_backward(newer_k2):
    data, model = toy_full.batch(torch.float32), toy_full.Transducer("torchaudio")
    decoder_out = model.decoder(F.pad(data.y.long(), (1, 0)))
    with Syncs() as forward:
        loss = panda_icefall.transducer_loss(
            model.joiner, model.encoder(data.x), decoder_out, data.y, data.x_lens, data.y_lens
        )
    with Syncs() as backward:
        loss.backward()
    assert [wait.place for wait in forward.waits] == [CHECKED]
    assert len(backward.waits) == 1
