"""The tiled simple loss of one projection and one tensor, and of two projections of two dtypes."""

import pytest
import torch
import torch.nn.functional as F
from gates import rms
from simple_losses import (
    NAMES,
    SCALES,
    TYPES,
    B,
    C,
    S,
    T,
    arguments_of,
    materialised,
    of_am_projection,
    of_lm_projection,
    run,
    structure_gate,
    symbols_and_boundary,
    tensors,
    tiled,
    workspace_of,
)

from panda_icefall.losses.simple_tiled import Logits, Projection

LOSSES = [of_am_projection, of_lm_projection]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tiles", [(1, 1), (2, 7), (5, 100)])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_loss_occupations_and_gradients_are_those_of_the_formula(
    rnnt_type, scales, tiles, loss, monkeypatch
):
    workspace_bytes = workspace_of(*tiles, monkeypatch)
    structure_gate(scales, rnnt_type, loss=loss, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["peaked", "shifted", "masked classes"])
def test_extreme_logits_change_nothing(kind, loss, monkeypatch):
    structure_gate(kind=kind, loss=loss, workspace_bytes=workspace_of(2, 7, monkeypatch))


@pytest.mark.parametrize("loss", LOSSES)
def test_so_they_are_where_an_utterance_is_cut_by_frames(loss, monkeypatch):
    workspace_bytes = workspace_of(1, 7, monkeypatch, frames=4)
    structure_gate(loss=loss, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, None), (None, torch.float16)])
def test_each_projection_rounds_its_own_operands(dtypes, monkeypatch):
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    workspace_bytes = workspace_of(2, 7, monkeypatch, casts_weight=True, itemsize=4)

    def ours(*data, **arguments):
        am, lm = (Projection.of(data[3 * i : 3 * i + 3], dtypes[i]) for i in range(2))
        return tiled(lm, am, workspace_bytes=workspace_bytes, **arguments)

    rounded = [t if dtypes[i // 3] is None else t.to(dtypes[i // 3]) for i, t in enumerate(data)]
    expected = run(materialised, [t.double() for t in rounded], **arguments)
    for name, x, ref in zip(NAMES, run(ours, data, **arguments), expected):
        assert rms(x - ref) <= 64 * 2**-23 * rms(ref), name


@pytest.mark.k2
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_loss_occupations_and_gradients_are_those_of_k2(kind, scales, loss, monkeypatch):
    import k2

    def dense(*data, **arguments):
        return k2.rnnt_loss_smoothed(am=F.linear(*data[:3]), lm=F.linear(*data[3:]), **arguments)

    data, arguments = tensors(kind), arguments_of(scales, "regular", 0.25)
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    ours = run(loss, data, **arguments, workspace_bytes=workspace_bytes)
    for name, x, ref in zip(NAMES, ours, run(dense, data, **arguments)):
        assert rms(x - ref) <= 1e-12 * rms(ref), name


@pytest.mark.parametrize(
    ("am", "lm", "symbols", "error", "message"),
    [
        (
            (B, T, C),
            (B - 1, S + 1, C),
            S,
            ValueError,
            r"lm: got shape \(4, 5, 37\), expected .*5, S",
        ),
        ((B, T, C), (B, S + 1, C - 1), S, ValueError, r"S\+1, 37\] for am of shape \(5, 11, 37\)"),
        (
            (B, T, C),
            (B, S, C),
            S,
            ValueError,
            r"symbols: got shape \(5, 4\), .* \[5, 3\] for lm of",
        ),
        ((B, 0, C), (B, S + 1, C), S, ValueError, r"am: got shape \(5, 0, 37\), .*T, C >= 1"),
        ((B, C), (B, S + 1, C), S, ValueError, r"am or lm: got shape \(5, 37\), expected \[B, T"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(am, lm, symbols, error, message):
    ids = symbols_and_boundary()[0]
    with pytest.raises(error, match=message):
        tiled(Logits.of((torch.zeros(lm),)), Logits.of((torch.zeros(am),)), ids, 0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lm": {"dtype": torch.float64}}, TypeError, "lm: got torch.float64, expected am's torch"),
        ({"am": {"dtype": torch.float16}}, TypeError, r"am: got torch.float16.*pass am.float\(\)"),
        ({"lm": {"device": "meta"}}, ValueError, "lm: got device meta, expected am's cpu"),
        ({"symbols": {"device": "meta"}}, ValueError, "symbols: got device meta, expected am's"),
    ],
)
def test_dtypes_and_devices_that_do_not_fit_are_refused(changed, error, message):
    given = {
        "am": torch.zeros(B, T, C),
        "lm": torch.zeros(B, S + 1, C),
        "symbols": symbols_and_boundary()[0],
    }
    for name, how in changed.items():
        given[name] = given[name].to(**how)
    am, lm = (Logits.of((given[name],)) for name in ("am", "lm"))
    with pytest.raises(error, match=message):
        tiled(lm, am, given["symbols"], 0)
