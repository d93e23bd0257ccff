"""Half projections whose matrices are multiplied in half precision into float32, as on CUDA.

A CPU has no such product: here it is made of widened operands.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from gates import rms
from half_gemms import emulate
from simple_losses import (
    AM_WIDTH,
    LM_WIDTH,
    NAMES,
    S,
    T,
    arguments_of,
    materialised,
    of_projections,
    run,
    tensors,
    workspace_of,
)

from panda_icefall.losses.simple_tiled import Projection, plan, source
from panda_icefall.losses.smoothed import rnnt_loss_smoothed

# Of the gates for half gradients: e <= max(1.25 d, 1 ulp).
ULP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
every_dtype = pytest.mark.parametrize("dtype", ULP)


@pytest.fixture(params=[True, False], ids=["addmm widens", "addmm does not"])
def half_gemms(request, monkeypatch):
    """Half projections are multiplied in half precision, and rows of tiles are padded."""
    monkeypatch.setattr(source, "ALIGNMENT", 4)
    monkeypatch.setattr(source.LogitSource, "pads_rows", True)
    return emulate(monkeypatch, request.param)


def half_workspace(utterances, tile_classes, monkeypatch):
    """As ``workspace_of`` in float32, with half gradients beside each tile."""
    least = workspace_of(utterances, tile_classes, monkeypatch, itemsize=4)
    monkeypatch.setattr(plan, "ALIGNMENT", 1)
    return least + 2 * utterances * tile_classes * (T + S + 1)


def dense(dtype):
    """Both projections in half precision, as under autocast, and the loss of them in float32.

    With sums in float32 and results in half precision, forward and backward, on every torch.
    """

    def projected(parts):
        return F.linear(*(t.to(dtype).float() for t in parts)).to(dtype).float()

    def loss(*data, **arguments):
        return rnnt_loss_smoothed(projected(data[3:]), projected(data[:3]), **arguments)

    return loss


@every_dtype
@pytest.mark.parametrize("tiles", [(2, 7), (5, 100)])
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_gradients_are_as_exact_as_those_of_the_dense_path(
    half_gemms, kind, tiles, dtype, monkeypatch
):
    workspace_bytes = half_workspace(*tiles, monkeypatch)
    arguments = arguments_of()
    errors = {name: [0.0, 0.0, 0.0] for name in NAMES}
    for seed in range(8):
        data = [t.to(dtype).float() for t in tensors(kind, torch.float32, seed=seed)]
        ours = run(
            of_projections, data, **arguments, head_dtype=dtype, workspace_bytes=workspace_bytes
        )
        plain = run(dense(dtype), data, **arguments)
        exact = run(materialised, [t.double() for t in data], **arguments)
        for name, x, y, ref in zip(NAMES, ours, plain, exact):
            for i, value in enumerate((x - ref, y - ref, ref)):
                errors[name][i] += rms(value) ** 2
    for name, (e, d, ref) in errors.items():
        e, d, ref = e**0.5, d**0.5, ref**0.5
        if name.startswith("d "):
            assert e <= max(1.25 * d, ULP[dtype] * ref), name
        else:
            # Products of half values are exact in float32, so nothing was lost before the masses.
            assert e <= max(1.5 * d, 64 * 2**-23 * ref), name


@every_dtype
def test_the_loss_and_the_occupations_are_those_of_float32(half_gemms, dtype, monkeypatch):
    workspace_bytes = half_workspace(2, 7, monkeypatch)
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    rounded = [t.to(dtype).double() for t in data]
    exact = run(materialised, rounded, **arguments)
    got = run(of_projections, data, **arguments, head_dtype=dtype, workspace_bytes=workspace_bytes)
    for name, x, ref in zip(NAMES[:3], got, exact):
        assert rms(x - ref) <= 64 * 2**-23 * rms(ref), name


@every_dtype
def test_what_is_left_of_a_class_that_is_almost_certain_survives_the_rounding(
    half_gemms, dtype, monkeypatch
):
    """One symbol everywhere, of probability 1 - 1e-4: its gradient is what is left of two ones."""
    workspace_bytes = half_workspace(5, 100, monkeypatch)
    data, arguments = tensors(dtype=torch.float32), arguments_of((0.0, 0.0))
    data[2][3] += 14
    arguments["symbols"] = torch.full_like(arguments["symbols"], 3)
    data = [t.to(dtype).float() for t in data]
    exact = run(materialised, [t.double() for t in data], **arguments)
    got = run(of_projections, data, **arguments, head_dtype=dtype, workspace_bytes=workspace_bytes)
    plain = run(dense(dtype), data, **arguments)
    for name, x, y, ref in zip(NAMES[3:], got[3:], plain[3:], exact[3:]):
        assert rms(x - ref) <= max(1.25 * rms(y - ref), ULP[dtype] * rms(ref)), name


def test_it_notices_gradients_that_are_rounded_apart(half_gemms, monkeypatch):
    original = Projection.of.__func__

    def apart(cls, parts, head_dtype=None):
        return dataclasses.replace(original(cls, parts, head_dtype), merges_selected=False)

    monkeypatch.setattr(Projection, "of", classmethod(apart))
    with pytest.raises(AssertionError):
        test_what_is_left_of_a_class_that_is_almost_certain_survives_the_rounding(
            half_gemms, torch.float16, monkeypatch
        )


def test_every_product_with_a_weight_is_one_of_half_operands(half_gemms, monkeypatch):
    workspace_bytes = half_workspace(5, 100, monkeypatch)
    data, arguments = tensors(dtype=torch.float32), arguments_of((0.0, 0.0))
    run(
        of_projections, data, **arguments, head_dtype=torch.float16, workspace_bytes=workspace_bytes
    )
    # Forward, its repetition in backward, and the gradients of rows and weight; am and lm each.
    assert len(half_gemms) == 2 * 4
    assert {dtype for _, dtype, *_ in half_gemms} == {torch.float16}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")
def test_the_row_kernels_of_triton_round_alike(monkeypatch):
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    emulate(monkeypatch)
    dtype = torch.float16  # the interpreter cuts bfloat16 off
    workspace_bytes = half_workspace(5, 20, monkeypatch)
    data, arguments = tensors("peaked", torch.float32), arguments_of()
    got, expected = (
        run(
            of_projections, data, **arguments, head_dtype=dtype,
            workspace_bytes=workspace_bytes, engine=engine, recursion="exact",
        )
        for engine in ("triton", "torch")
    )  # fmt: skip
    for name, x, ref in zip(NAMES, got, expected):
        bound = ULP[dtype] if name.startswith("d ") else 64 * 2**-23
        assert rms(x - ref) <= bound * rms(ref), name


def test_half_rows_are_not_widened_and_the_weight_is_cast_once(half_gemms):
    data = tensors(dtype=torch.float32)
    am = Projection.of(data[:3], torch.bfloat16)
    block = am.open(torch.tensor([1, 0]), am.all_rows)
    for name in ("weight", "bias"):
        assert am.head_tile(name, 0, 8).data_ptr() == am.head_tile(name, 0, 37).data_ptr()
        assert am.head_tile(name, 0, 8).dtype == torch.bfloat16
    assert block.tile(0, 8).dtype == torch.float32
    assert block.bias(0, 8).dtype == torch.bfloat16
    logits = block.tile(3, 20) + block.bias(3, 20)
    rounded = [t.bfloat16().float() for t in data[:3]]
    torch.testing.assert_close(logits, F.linear(*rounded)[[1, 0], :, 3:20])
    torch.testing.assert_close(
        block.at(torch.tensor([[3], [9]]))[:, 0],
        torch.stack([F.linear(*rounded)[1, :, 3], F.linear(*rounded)[0, :, 9]]),
    )


@pytest.mark.parametrize("am_only_scale", [0.0, 0.25])
def test_copies_of_weights_that_do_not_fit_the_workspace_are_made_by_tiles(
    half_gemms, am_only_scale, monkeypatch
):
    classes, of_classes = 2_003, []
    operand = Projection.operand

    def noted(projection, tensor):
        if tensor.dim() == 2 and tensor.shape[1] in (AM_WIDTH, LM_WIDTH):  # a weight's classes
            of_classes.append(len(tensor))
        return operand(projection, tensor)

    monkeypatch.setattr(Projection, "operand", noted)
    data = tensors(dtype=torch.float32, classes=classes)
    arguments = arguments_of((0.1, am_only_scale))
    found, casts = [], []
    for workspace_bytes in (2**20, 100_000):
        of_classes.clear()
        found.append(
            run(
                of_projections, data, **arguments, head_dtype=torch.bfloat16,
                workspace_bytes=workspace_bytes,
            )
        )  # fmt: skip
        casts.append((len(of_classes), max(of_classes)))
    # Of both weights forward and backward; and again after and before the passes for the unigram.
    assert casts[0] == (6 if am_only_scale else 4, classes)
    (_, most), bytes_of_a_class = casts[1], 2 * (AM_WIDTH + LM_WIDTH)
    assert most * bytes_of_a_class <= 100_000 // 4 < classes * bytes_of_a_class
    for x, y in zip(*found):
        assert rms(x - y) <= ULP[torch.bfloat16] * rms(y)


@pytest.mark.parametrize(("classes", "tile"), [(4_336, 1_472), (5_537, 1_856), (130, 130)])
def test_tiles_are_of_a_multiple_of_64_classes(classes, tile):
    t_ends = [150] * 4
    bytes_of = plan.SimpleTilePlan.make(t_ends, 15, classes, (8, 8), 4, 2**30).tile_bytes
    cut = plan.SimpleTilePlan.make(t_ends, 15, classes, (8, 8), 4, bytes_of * 3 // 8)
    assert cut.tile_classes == tile or classes == 130
    assert cut.tile_classes % 64 == 0 or cut.tile_classes == classes
    assert cut.tile_bytes <= bytes_of * 3 // 8
