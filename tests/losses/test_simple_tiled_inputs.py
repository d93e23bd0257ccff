"""What the tiled simple loss takes: dtypes, autocast, counters, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from gates import rms
from simple_losses import (
    BLANK,
    NAMES,
    B,
    arguments_of,
    of_projections,
    run,
    symbols_and_boundary,
    tensors,
    tiled,
    workspace_of,
)

from panda_icefall.losses.simple_tiled import Projection
from panda_icefall.normalizer import TileCounters


@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiles", [(2, 7), (5, 100)])
def test_a_head_dtype_rounds_what_the_linear_layers_read_and_nothing_else(
    head_dtype, tiles, monkeypatch
):
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    op = {"workspace_bytes": workspace_of(*tiles, monkeypatch, casts_weight=True, itemsize=4)}
    rounded = [t.to(head_dtype).float() for t in data]
    expected = run(of_projections, rounded, **arguments, **op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(of_projections, data, **arguments, **op, head_dtype=head_dtype)
    for name, x, ref in zip(NAMES, got, expected):
        assert rms(x - ref) <= 64 * 2**-23 * rms(ref), name


def test_half_inputs_with_a_head_dtype_get_half_gradients():
    data, arguments = tensors(dtype=torch.bfloat16), arguments_of()
    got = run(of_projections, data, **arguments, head_dtype=torch.bfloat16)
    assert {x.dtype for x in got[:3]} == {torch.float32}
    assert {x.dtype for x in got[3:]} == {torch.bfloat16}
    expected = run(of_projections, [t.float() for t in data], **arguments)
    for x, ref in zip(got, expected):
        torch.testing.assert_close(x.float(), ref, rtol=2**-7, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    expected = run(of_projections, data, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(of_projections, data, **arguments)
    assert all(torch.equal(x, ref) for x, ref in zip(got, expected))


@pytest.mark.parametrize("am_only_scale", [0.0, 0.1])
def test_tiles_and_seconds_are_counted(am_only_scale, monkeypatch):
    workspace_bytes = workspace_of(1, 10, monkeypatch)
    data, arguments = tensors(), arguments_of((0.25, am_only_scale))
    counters = TileCounters()
    arguments.update(workspace_bytes=workspace_bytes, counters=counters)
    run(of_projections, data, **arguments)
    found = counters.totals
    forward, backward = found.tiles_forward, found.tiles_backward
    assert forward == backward >= B * 4
    assert (forward > B * 4) == (am_only_scale > 0)
    assert min(found.forward_seconds, found.backward_seconds) > 0
    with torch.no_grad():
        of_projections(*data, **arguments)
    found = counters.totals
    assert (found.tiles_forward, found.tiles_backward) == (2 * forward, backward)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"symbols": torch.full((5, 4), 37)}, r"symbols: got id 37"),
        ({"termination_symbol": 37}, r"termination_symbol: got 37"),
        ({"rnnt_type": "strict"}, r"rnnt_type: got 'strict'"),
        ({"reduction": "max"}, r"reduction: got 'max'"),
        ({"boundary": torch.tensor([[0, 0, 4, 12]] * 5)}, r"boundary: .*T=11"),
        ({"workspace_bytes": 800}, r"workspace_bytes: got 800, expected at least 864"),
    ],
)
def test_unfit_arguments_of_projections_are_refused(changed, message):
    arguments = arguments_of() | changed
    with pytest.raises(ValueError, match=message):
        of_projections(*tensors(dtype=torch.float32), **arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"input": torch.zeros(5, 7)}, ValueError, r"input: got .*\[B, R, D\]"),
        ({"input": torch.zeros(5, 0, 7)}, ValueError, r"input: got .*, R >= 1"),
        ({"weight": torch.zeros(37, 8)}, ValueError, r"weight: got .*expected \[C, 7\]"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight: got shape \(7,\)"),
        ({"bias": torch.zeros(1)}, ValueError, r"bias: got shape \(1,\), expected \[37\]"),
        ({"weight": torch.zeros(37, 7).double()}, TypeError, r"weight: got torch.float64, .*32"),
        ({"bias": torch.zeros(37).half()}, TypeError, r"bias: got torch.float16"),
        ({"input": torch.zeros(5, 11, 7).half()}, TypeError, r"input: got torch.float16"),
        ({"head_dtype": torch.float64}, TypeError, r"head_dtype: got torch.float64"),
        (
            {"input": torch.zeros(5, 11, 7).double(), "head_dtype": torch.bfloat16},
            TypeError,
            r"input: got torch.float64, .*head_dtype=torch.bfloat16",
        ),
        ({"weight": torch.zeros(37, 7, device="meta")}, ValueError, r"weight: got device meta"),
    ],
)
def test_parts_that_make_no_projection_are_refused(changed, error, message):
    parts = {"input": torch.zeros(5, 11, 7), "weight": torch.zeros(37, 7), "bias": None}
    head_dtype = changed.get("head_dtype")
    parts |= {name: value for name, value in changed.items() if name != "head_dtype"}
    with pytest.raises(error, match=message):
        Projection.of(tuple(parts.values()), head_dtype)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"am": torch.zeros(5, 37)}, ValueError, r"am: got shape \(5, 37\), expected \[B, T, C\]"),
        ({"am": torch.zeros(5, 11, 36)}, ValueError, r"lm: got .* = \[5, S\+1, 36\] for am"),
        (
            {"lm": torch.zeros(5, 5, 37).double()},
            TypeError,
            r"am: got torch.float32, expected lm's",
        ),
        ({"am": torch.zeros(5, 11, 37).half()}, TypeError, r"am: got torch.float16.*am.float\(\)"),
        ({"lm": torch.zeros(5, 5, 37).bfloat16()}, TypeError, r"lm: .*pass lm.float\(\)"),
        ({"lm": torch.zeros(5, 4, 37)}, ValueError, r"symbols: got .* = \[5, 3\] for lm"),
        ({"am": torch.zeros(5, 11, 37, device="meta")}, ValueError, r"am: got device meta"),
        ({"symbols": torch.full((5, 4), 37)}, ValueError, r"symbols: got id 37"),
        ({"termination_symbol": 37}, ValueError, r"termination_symbol: got 37"),
        ({"boundary": torch.tensor([[0, 0, 4, 12]] * 5)}, ValueError, r"boundary: .*T=11"),
        ({"workspace_bytes": 40}, ValueError, r"workspace_bytes: got 40, expected at least 48"),
    ],
)
def test_unfit_tensors_are_refused(changed, error, message):
    data = tensors(dtype=torch.float32)
    arguments = {"am": F.linear(*data[:3]), "lm": F.linear(*data[3:])}
    arguments["symbols"], arguments["boundary"] = symbols_and_boundary()
    with pytest.raises(error, match=message):
        tiled(**{"termination_symbol": BLANK, **arguments, **changed})
