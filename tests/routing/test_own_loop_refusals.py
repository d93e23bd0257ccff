"""What ``transducer_loss`` refuses: batches, options and joiners, each by name."""

import pytest
import torch
import transducer_cases as cases
from transducer_cases import B, C, S, T, batch, full

import panda_icefall
from panda_icefall import transducer_loss

BAD = {
    "frames": (
        {"logit_lengths": torch.tensor([T, 0, 1, 3])},
        "logit_lengths: got 0 frames for utterance b=1",
    ),
    "long": (
        {"logit_lengths": torch.tensor([T + 1, 6, 1, 3])},
        "utterance b=0, expected 1 to T=9",
    ),
    "symbols": (
        {"target_lengths": torch.tensor([S, 0, 0, 6])},
        "target_lengths: got 6 for utterance b=3",
    ),
    "shape": ({"targets": torch.ones(B, S + 1).long()}, r"targets: got shape \(4, 6\)"),
    "id": ({"targets": torch.full((B, S), C)}, "targets: got id 13 for utterance b=0 at s=0"),
    "blank": ({"targets": torch.zeros(B, S).long()}, "and not 0, the blank"),
    "floats": ({"targets": torch.ones(B, S)}, r"targets: got torch\.float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_are_refused(name):
    changed, message = BAD[name]
    inputs = {**batch(cases.LossKind()), **changed}
    before = panda_icefall.status()
    with pytest.raises((ValueError, TypeError), match=message):
        full(cases.PlacingJoiner().double(), inputs)
    assert (panda_icefall.status() - before).materialised == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"one_sym_per_frame": True}, "expected at least 6, as its arcs pass whole frames"),
        ({"rnnt_type": "modified"}, "expected at least 5"),
        ({"durations": [1, 2]}, "expected at least 6"),
        ({"rnnt_type": "funny"}, "rnnt_type: got 'funny'"),
        ({"reduction": "max"}, "reduction: got 'max'"),
        ({"one_sym_per_frame": True, "rnnt_type": "modified"}, "one_sym_per_frame: got True with"),
        ({"durations": [0, 1], "big_blank_durations": [2]}, "durations: got it with big_blank"),
        ({"durations": [1, 0]}, r"durations: got \[1, 0\], expected .* ascending"),
        ({"big_blank_durations": [1]}, "big_blank_durations: got"),
        ({"big_blank_durations": [2, 3], "blank": 1}, "blank: got 1, expected at least 2"),
        ({"durations": [0, 1], "rnnt_type": "modified"}, "expected 'regular'"),
        ({"durations": [0, 1], "one_sym_per_frame": True}, "one_sym_per_frame: got True with dur"),
        ({"durations": [0, 3]}, "expected at least 6, as its arcs pass whole frames"),
        ({"blank": -20}, "blank: got -20, expected a class, -13 <= it < 13"),
        ({"durations": [0]}, r"durations: got \[0\], expected .* one of them 1 or more"),
        ({"blank": 13}, "blank: got 13, expected a class"),
        ({"clamp": float("nan")}, "clamp: got nan, expected a number"),
        ({"sigma": 0.1}, "sigma: got 0.1 without"),
        ({"omega": 0.1}, "omega: got 0.1 without"),
        ({"durations": [0, 1], "omega": 2}, "omega: got 2"),
        ({"use_hat_loss": True, "clamp": 0.1}, "clamp: got 0.1, expected 0 or less with"),
        ({"use_hat_loss": True, "blank": 3}, "expected 0 with use_hat_loss"),
        ({"fastemit_lambda": -0.1}, "fastemit_lambda: got -0.1"),
        ({"workspace_mib": 0}, "workspace_mib: got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    inputs = batch(cases.LossKind())
    inputs["logit_lengths"] = torch.tensor([4, 4, 4, 4])
    inputs["targets"] = torch.full((B, S), 7)
    before = panda_icefall.status()
    with pytest.raises(ValueError, match=message):
        full(cases.PlacingJoiner().double(), inputs, **options)
    assert (panda_icefall.status() - before).materialised == {}


def test_a_joiner_of_another_shape_is_refused():
    inputs = batch(cases.LossKind())
    with pytest.raises(
        ValueError, match=r"joiner: got \(3, 5\) .*, expected logits \[4, 9, 6, C\]"
    ):
        full(lambda e, d: (e.sum() + d.sum()).reshape(1, 1).expand(3, 5), inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joiner": torch.zeros(1, 2, 2, 5)}, "joiner: got Tensor, expected a module or function"),
        ({"joiner": None}, "joiner: got NoneType, expected a module or function"),
        ({"blank": 1.5}, "blank: got 1.5, expected an integer"),
        ({"durations": [1.5]}, r"durations: got \[1.5\], expected a sequence of integers"),
        ({"durations": 3}, "durations: got 3, expected a sequence of integers"),
        ({"clamp": None}, "clamp: got None, expected a number"),
        ({"delay_penalty": "x"}, "delay_penalty: got 'x', expected a number"),
        ({"fastemit_lambda": "x"}, "fastemit_lambda: got 'x', expected a number"),
        ({"sigma": "x", "durations": [0, 1]}, "sigma: got 'x', expected a number"),
        ({"workspace_mib": "x"}, "workspace_mib: got 'x', expected a number"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(options, message, caplog):
    joiner = options.get("joiner", cases.PlacingJoiner())
    others = {name: value for name, value in options.items() if name != "joiner"}
    inputs = cases.batch(cases.KINDS["regular"][1])
    with pytest.raises(TypeError, match=message):
        transducer_loss(
            joiner, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
            inputs["target_lengths"], **others,
        )  # fmt: skip
    assert caplog.text == ""


def test_a_pruned_loss_without_ranges_is_refused_by_name():
    with pytest.raises(TypeError, match="ranges: got NoneType, expected a tensor of integers"):
        panda_icefall.pruned_transducer_loss(
            cases.PlacingJoiner(), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3),
            torch.ones(1, 1).long(), None, 0,
        )  # fmt: skip
