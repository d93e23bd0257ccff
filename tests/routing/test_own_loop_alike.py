"""What ``transducer_loss`` takes and refuses, ``pruned_transducer_loss`` takes and refuses."""

import numpy as np
import pytest
import torch
import transducer_cases as cases
from transducer_cases import KINDS, B, C, S, T

import panda_icefall
from panda_icefall import pruned_transducer_loss, transducer_loss

# Names of the same argument: of the full loss, and of the pruned one.
NAMES = {
    "targets": "symbols", "blank": "termination_symbol", "logit_lengths": "boundary",
    "encoder_out": "am", "decoder_out": "lm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def counters():
    panda_icefall.routing.reset_counters()


class NoClasses(cases.PlacingJoiner):
    def __init__(self):
        super().__init__()
        self.output.weight = torch.nn.Parameter(self.output.weight[:0])
        self.output.bias = torch.nn.Parameter(self.output.bias[:0])


def at_sites(joiner):
    return lambda am, lm: joiner.output(torch.tanh(am + lm)) * joiner.scale


def full(inputs, options):
    return transducer_loss(
        inputs["joiner"], inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
        inputs["target_lengths"], **options,
    )  # fmt: skip


def pruned(inputs, options):
    """Of ranges that hold all states."""
    frames, states = inputs["logit_lengths"].long(), inputs["target_lengths"].long()
    b, t = inputs["am"].shape[:2]
    ranges = torch.arange(inputs["lm"].shape[1]).expand(b, t, -1).to(frames.dtype)
    options = {NAMES.get(name, name): value for name, value in options.items()}
    boundary = torch.stack((0 * frames, 0 * frames, states, frames), dim=1)
    joiner = at_sites(inputs["joiner"])
    return pruned_transducer_loss(
        joiner, inputs["am"], inputs["lm"], inputs["targets"], ranges,
        boundary=boundary.to(inputs["logit_lengths"].dtype), **options,
    )  # fmt: skip


def batch_of(name="regular", **changed):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    inputs = {**cases.batch(kind), "joiner": cases.PlacingJoiner().double(), **changed}
    return inputs, {"reduction": "none", **options}


TAKEN = {
    "int32": ({"targets": torch.int32, "logit_lengths": torch.int32}, {}),
    "int16": ({"targets": torch.int16, "target_lengths": torch.int16}, {}),
    "a blank of numpy": ({}, {"blank": np.int64(0)}),
    "a blank in a tensor": ({}, {"blank": torch.tensor(0)}),
    "the blank of the end": ({}, {"blank": -C}),
}


@pytest.mark.parametrize("what", TAKEN)
def test_both_take_integers_of_any_kind_and_padding_of_any_value(what):
    dtypes, options = TAKEN[what]
    inputs, given = batch_of()
    assert inputs["targets"].min() == -1, "padding"
    expected, _ = cases.oracle(inputs["joiner"], inputs, KINDS["regular"][1])
    inputs |= {name: inputs[name].to(dtype) for name, dtype in dtypes.items()}
    for loss_of in full, pruned:
        cases.assert_close([loss_of(inputs, given | options)], [expected], 1e-12)
    assert panda_icefall.status().losses_routed == 2


def test_what_is_said_before_an_utterance_begins_is_not_read():
    inputs, _ = batch_of()
    boundary = torch.tensor([[2, 1, S, T], [3, 0, 3, 6], [0, 0, 0, 1], [1, 1, 3, 3]])
    ranges = torch.arange(S + 1).expand(B, T, S + 1)
    s = torch.arange(S)
    is_read = (s >= boundary[:, :1]) & (s < boundary[:, 2:3])
    symbols = torch.where(is_read, s + 1, torch.zeros_like(s))
    found = []
    for padding in 0, -7, 99:
        inputs["joiner"].zero_grad()
        costs = pruned_transducer_loss(
            at_sites(inputs["joiner"]), inputs["am"], inputs["lm"],
            symbols.masked_fill(~is_read, padding), ranges, boundary=boundary, reduction="none",
        )  # fmt: skip
        found.append([costs, *cases.gradients(costs, inputs, inputs["joiner"])])
    assert found[0][0].isfinite().all()
    for again in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], again, strict=True))


REFUSED = {
    "a blank among the targets": (
        {"targets": torch.zeros(B, S).long()}, {},
        r"targets: got id 0 for utterance b=0 at s=0, expected 0 <= id < 13, and not 0, the blank",
    ),
    "a big blank among the targets": (
        {"targets": torch.full((B, S), 10)}, {"big_blank_durations": [2, 4], "blank": -1},
        "targets: got id 10 .*, and not 10 to 12, the blanks",
    ),
    "no class": ({"targets": torch.full((B, S), C)}, {}, "targets: got id 13 for utterance b=0"),
    "floats": ({"targets": torch.ones(B, S)}, {}, r"targets: got torch\.float32, expected integ"),
    "a list": ({"targets": [[1] * S] * B}, {}, "targets: got list, expected a tensor of integers"),
    "no frames": (
        {"logit_lengths": torch.tensor([T, 6, 0, 3])}, {},
        "logit_lengths: got 0 frames for utterance b=2, expected 1 to T=9; drop utterances",
    ),
    "too few frames": (
        {"logit_lengths": torch.tensor([4, 4, 4, 4])}, {"rnnt_type": "constrained"},
        "logit_lengths: got 4 frames for utterance b=0 with 5 symbols, expected at least 5",
    ),
    "too few frames of durations": (
        {"logit_lengths": torch.tensor([4, 4, 4, 4]), "targets": torch.full((B, S), 7)},
        {"durations": [1, 2]},
        "logit_lengths: got 4 frames for utterance b=0 with 5 symbols, expected at least 6",
    ),
    "a blank that is no class": (
        {}, {"blank": -20}, "blank: got -20, expected a class, -13 <= it < 13",
    ),
    "half a blank": ({}, {"blank": 1.5}, "blank: got 1.5, expected an integer"),
    "a type": ({}, {"rnnt_type": "funny"}, "rnnt_type: got 'funny'"),
    "a reduction": ({}, {"reduction": "max"}, "reduction: got 'max'"),
    "no floats": (
        {"am": torch.ones(B, T, 7).long()}, {},
        r"encoder_out: got torch\.int64, expected a floating point tensor \[B, T, D\]",
    ),
    "no classes": (
        {"joiner": NoClasses().double()}, {},
        r"joiner: got no classes \(C=0\), expected 1 or more",
    ),
    "a batch without frames": (
        {"am": torch.ones(B, 0, 7).double()}, {},
        r"logit_lengths: got no frames at all \(T=0\), expected 1 or more for each utterance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("loss_of", [full, pruned])
@pytest.mark.parametrize("what", REFUSED)
def test_both_refuse_the_same_by_their_own_names(what, loss_of):
    changed, options, message = REFUSED[what]
    inputs, given = batch_of(**changed)
    if loss_of is pruned:
        name, _, rest = message.partition(":")
        message = f"{NAMES.get(name, name)}:{rest}"
    with pytest.raises((ValueError, TypeError), match=message):
        loss_of(inputs, given | options)
    status = panda_icefall.status()
    assert (status.losses_routed, status.materialised) == (0, {})
