"""The lattice of a loss: what is refused, and that it is checked once."""

import pytest
import torch
from pruned_losses import selected_pruned
from simple_losses import tiled

from panda_icefall.lattice import validation
from panda_icefall.losses import (
    check_lattice_inputs,
    host_values,
    rnnt_loss_pruned,
    rnnt_loss_smoothed,
    spec,
)

B, T, S, C, S_RANGE = 3, 5, 4, 7, 3
RANGES = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]).unsqueeze(2)
RANGES = RANGES + torch.arange(S_RANGE)
BOUNDARY = torch.tensor([[0, 0, 4, 5], [0, 0, 3, 4], [0, 0, 0, 2]])
SYMBOLS = torch.ones(B, S, dtype=torch.int64)


def check(**changed):
    arguments = {
        "symbols": torch.randint(C, (B, S), generator=torch.Generator().manual_seed(0)),
        "ranges": RANGES,
        "termination_symbol": 0,
        "boundary": BOUNDARY,
        "rnnt_type": "regular",
        "reduction": "mean",
        "num_classes": C,
    }
    check_lattice_inputs(**(arguments | changed))


def with_entry(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"boundary": None},
        {"ranges": None, "T": T},
        {"rnnt_type": "modified"},
        {"symbols": torch.full((B, S), C - 1), "termination_symbol": C - 1},
        {"symbols": SYMBOLS[:, :0], "ranges": RANGES[:, :, :1] * 0, "boundary": None},
        {"ranges": None, "T": S - 1, "boundary": None},
    ],
)
def test_fit_inputs_pass(changed):
    check(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"symbols": SYMBOLS[0]}, r"symbols: got shape \(4,\), expected \[B, S\]"),
        ({"symbols": with_entry(SYMBOLS, (1, 2), C)}, r"symbols: got id 7 .*b=1 at s=2.*C=7"),
        ({"symbols": with_entry(SYMBOLS, (2, 0), -1)}, r"symbols: got id -1 .*b=2 at s=0"),
        ({"ranges": RANGES[:, :, 0]}, r"ranges: got shape \(3, 5\), expected \[B, T, s_range\]"),
        ({"ranges": RANGES[:2]}, r"ranges: got shape \(2, 5, 3\), expected .*\[3, T, 1..5\]"),
        ({"ranges": torch.arange(6).expand(B, T, 6)}, r"ranges: got shape \(3, 5, 6\)"),
        ({"ranges": RANGES.to("meta")}, r"ranges: got device meta"),
        ({"ranges": RANGES + 1}, r"ranges: got \[3, 4, 5\] .*b=0 at t=4.* states in 0..S=4"),
        ({"ranges": RANGES - 1}, r"ranges: got \[-1, 0, 1\] .*b=0 at t=0"),
        ({"ranges": with_entry(RANGES, (2, 3, 1), 0)}, r"ranges: got \[0, 0, 2\] .*b=2 at t=3"),
        ({"ranges": RANGES.flip(2)}, r"ranges: got \[2, 1, 0\]"),
        ({"boundary": BOUNDARY[:, :3]}, r"boundary: got shape \(3, 3\), expected \[B, 4\] = \[3"),
        ({"boundary": BOUNDARY[:2]}, r"boundary: got shape \(2, 4\)"),
        ({"boundary": with_entry(BOUNDARY, (1, 3), 6)}, r"boundary: got \[0, 0, 3, 6\].*b=1.*T=5"),
        ({"boundary": with_entry(BOUNDARY, (2, 2), 5)}, r"boundary: got \[0, 0, 5, 2\].*b=2.*S=4"),
        ({"boundary": BOUNDARY.to("meta")}, r"boundary: got device meta, expected cpu"),
        ({"rnnt_type": "monotonic"}, r"rnnt_type: got 'monotonic', expected one of regular"),
        ({"reduction": "batchmean"}, r"reduction: got 'batchmean', expected one of none"),
        ({"termination_symbol": C}, r"termination_symbol: got 7, expected 0 <= id < C=7"),
        ({"termination_symbol": -1}, r"termination_symbol: got -1"),
        (
            {"ranges": RANGES[:, :3], "boundary": None, "rnnt_type": "modified"},
            r"rnnt_type: got 'modified' with T=3 < S=4, expected T >= S",
        ),
        (
            {"ranges": None, "T": 3, "boundary": None, "rnnt_type": "constrained"},
            r"rnnt_type: got 'constrained' with T=3 < S=4",
        ),
    ],
)
def test_unfit_values_are_refused_saying_what_and_where(changed, message):
    with pytest.raises(ValueError, match=message):
        check(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"symbols": SYMBOLS.int()}, r"symbols: got torch.int32, expected torch.int64"),
        ({"ranges": RANGES.int()}, r"ranges: got torch.int32, expected torch.int64"),
        ({"boundary": BOUNDARY.float()}, r"boundary: got torch.float32, expected torch.int64"),
        ({"termination_symbol": 0.0}, r"termination_symbol: got float, expected int"),
    ],
)
def test_unfit_dtypes_are_refused(changed, message):
    with pytest.raises(TypeError, match=message):
        check(**changed)


def test_a_single_class_leaves_only_the_blank():
    check(symbols=torch.zeros(B, S, dtype=torch.int64), num_classes=1)
    with pytest.raises(ValueError, match=r"symbols: got id 1 .* C=1"):
        check(symbols=SYMBOLS, num_classes=1)


def of_logits():
    logits = torch.zeros(B, T, S_RANGE, C)
    return rnnt_loss_pruned(logits, SYMBOLS, RANGES, 0, BOUNDARY)


def of_rows():
    return selected_pruned(
        torch.zeros(B * T * S_RANGE, 2), torch.zeros(C, 2), None, SYMBOLS, RANGES, 0, BOUNDARY
    )


def of_am_and_lm():
    return rnnt_loss_smoothed(torch.zeros(B, S + 1, C), torch.zeros(B, T, C), SYMBOLS, 0,
                              boundary=BOUNDARY)  # fmt: skip


def of_am_and_lm_in_tiles():
    return tiled(torch.zeros(B, S + 1, C), torch.zeros(B, T, C), SYMBOLS, 0, boundary=BOUNDARY)


@pytest.mark.parametrize("loss", [of_logits, of_rows, of_am_and_lm, of_am_and_lm_in_tiles])
def test_a_loss_checks_its_boundary_once(loss, monkeypatch):
    checked = []
    monkeypatch.setattr(host_values._step, "read", None)  # of another loss of these tensors
    is_inside = validation.is_inside_lattice
    for module in (host_values, validation):
        monkeypatch.setattr(
            module,
            "is_inside_lattice",
            lambda *row, **sizes: checked.append(row) or is_inside(*row, **sizes),
        )
    loss()
    assert checked == [tuple(row) for row in BOUNDARY.tolist()]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_k2s_arguments_are_taken_as_k2_takes_them(dtype):
    arguments = {
        "symbols": SYMBOLS.to(dtype),
        "termination_symbol": torch.tensor(2),
        "boundary": BOUNDARY,
        "rnnt_type": "modified",
        "delay_penalty": 0.5,
        "reduction": "sum",
        "logits": None,
    }
    found = spec.LatticeSpec.of(arguments)
    assert found.symbols.dtype == torch.int64
    assert type(found.termination_symbol) is int
    assert (found.ranges, found.rnnt_type, found.reduction) == (None, "modified", "sum")
    assert spec.LatticeSpec.of({**arguments, "ranges": RANGES}).band is RANGES
