"""A loss that is not finite: which utterance, which quantity, where, and why."""

import dataclasses
import types
import weakref

import pytest
import torch
import toy
import toy_simple

import panda_icefall
from panda_icefall import transducer_loss
from panda_icefall.routing import after_losses, diagnosed, followed_losses, non_finite

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def counters():
    panda_icefall.routing.reset_counters()
    yield
    panda_icefall.routing.reset_counters()


def findings(compute):
    """What is said of the losses that a function computes where PANDA is applied."""
    losses = []
    with panda_icefall.patched(), followed_losses(losses.append):
        compute()
    assert losses
    return [finding for found in losses for finding in diagnosed(found)]


def summing(am, lm):
    return am + lm


def of_pruned(k2, data, joiner=None, **options):
    joiner = joiner or toy.TanhJoiner()
    return findings(lambda: toy.pruned_loss(k2, joiner, data, **options))


def test_a_finite_loss_has_nothing_to_say_and_is_not_computed_again(k2, monkeypatch):
    monkeypatch.setattr(non_finite, "diagnosed", None)  # would raise
    assert of_pruned(k2, toy.batch(k2)) == []
    assert panda_icefall.status().non_finite == ()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nan_of_the_encoder_is_told_by_utterance_and_frame(k2, reduction):
    data = toy.batch(k2)
    with torch.no_grad():
        data.am[1, 4, 3] = NAN
        data.am[2, 8] = NAN  # beyond its 5 frames
    (finding,) = of_pruned(k2, data, reduction=reduction)
    assert (finding.utterance, finding.frames, finding.symbols) == (1, 7, 3)
    assert (finding.quantity, finding.at[0]) == ("encoder output", 4)
    assert (finding.loss, finding.loss_value) == ("pruned loss", "nan")
    assert "NaN already in am" in finding.reason
    text = "the pruned loss of utterance b=1 (T=7, S=3) is nan: encoder output at t=4, s="
    assert str(finding).startswith(text)


def test_nan_of_the_predictor_is_told_by_state(k2):
    data = toy.batch(k2)
    with torch.no_grad():
        data.lm[0, 2] = NAN
    (finding,) = of_pruned(k2, data)
    assert (finding.utterance, finding.quantity, finding.at[1]) == (0, "decoder output", 2)


def test_half_overflow_names_the_dtype_and_its_largest_number(k2):
    data = toy.batch(k2)
    am = data.am.detach().bfloat16()
    am[2, 0] = INF
    data = toy.Batch(am.requires_grad_(), data.lm.detach().bfloat16(), *_others(data))
    joiner = toy.HiddenJoiner(summing).bfloat16()
    (finding,) = of_pruned(k2, data, joiner)
    assert (finding.utterance, finding.symbols) == (2, 0)
    assert "half overflow: am, as the joiner reads it is torch.bfloat16" in finding.reason
    assert "3.38953e+38" in finding.reason
    assert "S=0, an empty transcript" in str(finding)


def _others(data):
    return data.ranges, data.symbols, data.boundary


def test_logits_that_overflow_are_told_from_what_they_are_made_of(k2):
    joiner, data = toy.HiddenJoiner(summing), toy.batch(k2)
    with torch.no_grad():
        data.am[0, 6] = 1e30
        joiner.output_linear.weight.fill_(1e20)
        joiner.output_linear.weight[:, 0] *= -1
    (finding,) = of_pruned(k2, data, joiner)
    assert (finding.utterance, finding.quantity, finding.at[0]) == (0, "logits", 6)
    assert "what the joiner reads is finite" in finding.reason


def test_parameters_that_are_not_finite_concern_every_utterance(k2):
    joiner = toy.TanhJoiner()
    with torch.no_grad():
        joiner.output_linear.weight[3, 2] = NAN
    found = of_pruned(k2, toy.batch(k2), joiner)
    assert [finding.utterance for finding in found] == [0, 1, 2]
    assert {finding.quantity for finding in found} == {"parameters of the joiner"}
    assert found[0].at is None
    assert "a parameter of shape (31, 7)" in found[0].reason


def test_a_band_that_reaches_no_end_is_told_with_its_width(k2):
    data = toy.batch(k2)
    data.ranges = torch.arange(2).expand(toy.B, toy.T, 2).contiguous()
    data.boundary[0, 2:] = torch.tensor([toy.S, 4])
    found = of_pruned(k2, data)
    assert (found[0].utterance, found[0].quantity) == (0, "score")
    assert "no path: s_range=2 reaches 4 symbols" in found[0].reason


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_simple_loss_tells_the_projections_input_from_the_projection(k2, is_recorded):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with torch.no_grad():
        data.am[1, 2] = NAN
    losses = []
    with (
        panda_icefall.patched(model if is_recorded else None),
        followed_losses(losses.append),
    ):
        model(k2, data)
    (finding,) = diagnosed(losses[0])
    expected = "encoder output" if is_recorded else "projection"
    assert (finding.loss, finding.utterance, finding.quantity) == ("simple loss", 1, expected)
    assert finding.at == (2, 0)


def own_loop(nan_at=None, **options):
    """``transducer_loss`` of two utterances."""
    g = torch.Generator().manual_seed(0)
    am, lm = torch.randn(2, 6, toy.X, generator=g), torch.randn(2, 4, toy.X, generator=g)
    if nan_at is not None:
        am[nan_at] = NAN
    joiner = torch.nn.Linear(toy.X, toy.C)
    before = panda_icefall.status()
    loss = transducer_loss(
        lambda am, lm: joiner(torch.tanh(am[:, :, None] + lm[:, None])),
        am.requires_grad_(), lm, torch.ones(2, 3).long(), torch.tensor([6, 4]),
        torch.tensor([3, 2]), **options,
    )  # fmt: skip
    found = panda_icefall.status() - before
    assert (found.losses_routed, found.materialised) == (1, {})
    return loss


def test_status_tells_it_in_a_loop_of_ones_own_and_the_first_one_stays(caplog):
    own_loop()
    assert panda_icefall.status().non_finite == ()
    own_loop(nan_at=(1, 3))
    (text,) = panda_icefall.status().non_finite
    assert text.startswith(
        "the full-lattice loss of utterance b=1 (T=4, S=2) is nan: encoder output at t=3, s=0"
    )
    own_loop(nan_at=(0, 0))
    assert panda_icefall.status().non_finite == (text,)
    assert caplog.text.count("is nan: encoder output") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"durations": [0, 1, 2]},
        {"big_blank_durations": [2], "blank": 4},
        {"use_hat_loss": True},
        {"rnnt_type": "modified"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_loss_of_the_field_is_looked_into(options):
    own_loop(nan_at=(0, 5), **options)
    (text,) = panda_icefall.status().non_finite
    assert "utterance b=0" in text
    assert "encoder output at t=5" in text


def rolled(logits):
    return logits.roll(1, dims=-1).roll(-1, dims=-1)  # cannot be recorded


def of_all_states(logits):
    return rolled(logits) + logits.mean(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("unrecorded", "quantity"), [(rolled, "encoder output at t=3"), (of_all_states, "logits at t=")]
)
def test_joiners_that_cannot_be_recorded_are_looked_into_too(unrecorded, quantity):
    joiner = torch.nn.Linear(toy.X, toy.C)
    am, lm = torch.randn(2, 6, toy.X), torch.randn(2, 4, toy.X)
    am[1, 3] = NAN
    transducer_loss(
        lambda am, lm: unrecorded(joiner(torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)))),
        am.requires_grad_(), lm, torch.ones(2, 3).long(), torch.tensor([6, 4]),
        torch.tensor([3, 2]),
    )  # fmt: skip
    (text,) = panda_icefall.status().non_finite
    assert f"utterance b=1 (T=4, S=2) is nan: {quantity}" in text


class OnDevice:
    """What routing tells of a loss, as if it lay on a device."""

    name, is_whole = "loss", True

    def __init__(self):
        self.looks = 0

    @property
    def loss(self):
        device = types.SimpleNamespace(type="cuda")
        return types.SimpleNamespace(device=device, isfinite=self.isfinite)

    def isfinite(self):
        self.looks += 1
        return torch.tensor(True)


def a_result():
    return torch.zeros((), requires_grad=True) * 1


def test_on_a_device_the_loss_is_looked_at_where_status_is_asked_until_backward_begins():
    there, result = OnDevice(), a_result()
    after_losses.tell(there, result)
    assert there.looks == 0  # nothing was waited for
    result.backward()
    panda_icefall.status()
    assert there.looks == 0
    result = a_result()
    after_losses.tell(there, result)
    panda_icefall.status()
    assert there.looks == 1


@pytest.mark.parametrize("end", ["backward", "dropped"])
def test_on_a_device_nothing_is_held_after_backward_began_or_without_the_graph(end):
    there, result = OnDevice(), a_result()
    held = weakref.ref(there)
    after_losses.tell(there, result)
    del there
    assert held() is not None
    if end == "backward":
        result.backward()
    else:  # as in a step that was skipped
        del result
    assert held() is None
    assert panda_icefall.status().non_finite == ()


def test_of_two_losses_on_a_device_the_later_one_is_looked_at():
    first, later = OnDevice(), OnDevice()
    results = [a_result(), a_result()]
    for found, result in zip((first, later), results):
        after_losses.tell(found, result)
    results[0].backward()
    panda_icefall.status()
    assert (first.looks, later.looks) == (0, 1)


def test_where_hooks_see_no_tensor_every_loss_is_read_at_once_on_a_device_too(caplog):
    losses = []
    with followed_losses(losses.append):
        own_loop(nan_at=(1, 3))
    (found,) = losses
    device = types.SimpleNamespace(type="cuda")
    loss = types.SimpleNamespace(device=device, isfinite=found.loss.isfinite)
    there = types.SimpleNamespace(loss=loss, name="loss", is_whole=False, log_probs=None)
    non_finite.watch_for("joiner")
    try:
        for _ in range(2):
            after_losses.tell(there, torch.zeros((), requires_grad=True) * 1)
    finally:
        non_finite.forget_watched()
    said = "a routed loss is not finite (hooks see no tensor of joiner)"
    assert caplog.text.count(said) == 2


@pytest.mark.parametrize(
    ("name", "value", "is_live", "expected"),
    [
        ("log_z", NAN, True, False),
        ("log_z", -INF, True, False),
        ("blank", NAN, True, False),
        ("target", INF, True, False),
        ("target", -INF, True, True),  # a class with a logit of -inf
        ("log_z", NAN, False, True),
    ],
)
def test_log_probs_count_where_they_are_asked_for_and_read(k2, name, value, is_live, expected):
    data, losses = toy.batch(k2), []
    with panda_icefall.patched(), followed_losses(losses.append, log_probs=True):
        toy.pruned_loss(k2, toy.TanhJoiner(), data)
    seen = losses[0].log_probs
    values = getattr(seen, name).clone()
    values[tuple((seen.live == is_live).nonzero()[0])] = value
    found = dataclasses.replace(losses[0], log_probs=dataclasses.replace(seen, **{name: values}))
    assert non_finite.is_finite(found, log_probs=True) == expected
    assert non_finite.is_finite(found)  # the loss is


def test_what_cannot_be_looked_into_ends_no_training(k2, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise MemoryError("no room")

    data = toy.batch(k2)
    with torch.no_grad():
        data.am[0] = NAN
    monkeypatch.setattr("panda_icefall.routing.diagnosis._of_tables", fail)
    with panda_icefall.patched():
        assert toy.pruned_loss(k2, toy.TanhJoiner(), data).isnan()
    assert "a pruned loss that is not finite could not be looked into: no room" in caplog.text
