"""The tiled simple loss against its formula on materialised projections, and against k2."""

import pytest
import torch
import torch.nn.functional as F
from gates import rms

from panda_icefall.losses.simple_tiled import (
    gradients,
    plan,
    projection,
    selected_rnnt_loss_simple,
    selected_rnnt_loss_smoothed,
    terms,
)
from panda_icefall.losses.simple_tiled.arcs import smoothed_arcs
from panda_icefall.losses.smoothed import rnnt_loss_smoothed

B, T, S, C, AM_WIDTH, LM_WIDTH = 5, 11, 4, 37, 7, 6
BLANK = 3
TYPES = ["regular", "modified", "constrained"]
SCALES = [(0.1, 0.1), (0.25, 0.0), (0.0, 0.3), (0.0, 0.0)]
NAMES = ["loss", "px_grad", "py_grad", "d am_input", "d am_weight", "d am_bias"]
NAMES += ["d lm_input", "d lm_weight", "d lm_bias"]
# Utterances in a tile and classes in a tile: one, primes, an exact divisor, more than there are.
TILES = [(1, 1), (1, 5), (2, 37), (2, 7), (3, 36), (5, 100)]


def tensors(kind="flat", dtype=torch.float64, classes=C, seed=1):
    """`am_input, am_weight, am_bias, lm_input, lm_weight, lm_bias` of one kind of logits."""
    g = torch.Generator().manual_seed(seed)
    shapes = (B, T, AM_WIDTH), (classes, AM_WIDTH), (classes,)
    shapes += (B, S + 1, LM_WIDTH), (classes, LM_WIDTH), (classes,)
    data = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    if kind == "peaked":
        data[0], data[3] = data[0] * 6, data[3] * 6
    if kind == "shifted":
        data[2], data[5] = data[2] + 100, data[5] - 300
    if kind == "underflowing":  # am and lm insist on different classes
        data[2][5], data[5][9] = 60, 60
    if kind == "underflowing further":
        data[2][5], data[5][9] = 500, 500
    if kind == "masked classes":
        data[2][:3] = -torch.inf
        data[2][20] = -torch.inf
    return [t.to(dtype) for t in data]


def symbols_and_boundary(kind="flat", classes=C):
    """A ragged batch: an empty utterance, one that begins late, a symbol twice, padding blanks."""
    g = torch.Generator().manual_seed(2)
    symbols = torch.randint(classes, (B, S), generator=g)
    if kind == "masked classes":
        symbols = symbols % 10 + 8
        return symbols, torch.tensor([[0, 0, S, T]] * B)
    symbols[0, 1] = symbols[0, 0]
    symbols[4, 2] = classes - 1
    boundary = torch.tensor([[0, 0, S, T], [0, 0, 3, 9], [0, 0, 0, 5], [0, 0, 2, 7], [1, 1, S, 8]])
    symbols.masked_fill_(torch.arange(S) >= boundary[:, 2:3], BLANK)
    return symbols, boundary


def materialised(*data, **arguments):
    """The same loss on the projections as tensors."""
    am, lm = F.linear(*data[:3]), F.linear(*data[3:])
    return rnnt_loss_smoothed(lm, am, **arguments)


def arcs_by_formula(*data, symbols, termination_symbol, lm_only_scale, am_only_scale, **_):
    """Arcs `[B, S, T]`, `[B, S+1, T]` as k2 writes them: gradients flow through the maxima too."""
    am, lm = F.linear(*data[:3]), F.linear(*data[3:])
    tiny = torch.finfo(am.dtype).tiny
    am_max, lm_max = am.max(dim=2, keepdim=True).values, lm.max(dim=2, keepdim=True).values
    am_probs, lm_probs = (am - am_max).exp(), (lm - lm_max).exp()
    log_z = (torch.matmul(lm_probs, am_probs.transpose(1, 2)) + tiny).log()
    log_z = log_z + lm_max + am_max.transpose(1, 2)  # [B, S+1, T]
    lm_mass = lm_probs.sum(dim=2, keepdim=True)
    unigram = (lm_probs / lm_mass).mean(dim=(0, 1)) + tiny
    am_log_z = torch.matmul(am_probs, unigram).log() + am_max.squeeze(2)  # [B, T]
    joint = am[:, None] + lm[:, :, None] - log_z[..., None]  # [B, S+1, T, C]
    lm_only = (lm - (lm_mass.log() + lm_max))[:, :, None]
    am_only = (am + unigram.log() - am_log_z[..., None])[:, None]
    log_probs = joint * (1 - lm_only_scale - am_only_scale)
    log_probs = log_probs + lm_only * lm_only_scale + am_only * am_only_scale
    ids = symbols[:, :, None, None].expand(-1, -1, T, 1)
    return log_probs[:, :-1].gather(3, ids).squeeze(3), log_probs[..., termination_symbol]


def tiled_arcs(
    *data, symbols, termination_symbol, lm_only_scale, am_only_scale, workspace_bytes, **_
):
    am, lm = (projection.Projection(*data[i : i + 3], None, data[0].dtype) for i in (0, 3))
    return smoothed_arcs(
        am, lm, symbols, termination_symbol, [T] * B, lm_only_scale, am_only_scale,
        workspace_bytes=workspace_bytes,
    )  # fmt: skip


def run_arcs(op, data, seed=0, **arguments):
    """Arcs and the gradients of all six tensors under random adjoints."""
    g = torch.Generator().manual_seed(seed)
    leaves = [t.clone().requires_grad_() for t in data]
    arcs = op(*leaves, **arguments)
    adjoints = [torch.randn(a.shape, generator=g, dtype=torch.float64).to(a.dtype) for a in arcs]
    return [*(a.detach() for a in arcs), *torch.autograd.grad(arcs, leaves, adjoints)]


def run(op, data, **arguments):
    """Loss, occupations and the gradients of all six tensors, by `NAMES`."""
    leaves = [t.clone().requires_grad_() for t in data]
    losses, occupations = op(*leaves, **arguments, reduction="none", return_grad=True)
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    grads = torch.autograd.grad((losses * weights).sum(), leaves)
    return [losses.detach(), *occupations, *grads]


def arguments_of(scales=(0.1, 0.1), rnnt_type="regular", delay_penalty=0.0, kind="flat"):
    symbols, boundary = symbols_and_boundary(kind)
    return {
        "symbols": symbols,
        "termination_symbol": BLANK,
        "lm_only_scale": scales[0],
        "am_only_scale": scales[1],
        "boundary": boundary,
        "rnnt_type": rnnt_type,
        "delay_penalty": delay_penalty,
    }


def workspace_of(utterances, tile_classes, patch, casts_weight=False, itemsize=8):
    """A workspace that gives these tiles."""
    patch.setattr(plan, "USEFUL_CLASSES", min(tile_classes, C))
    rows = utterances * 2 * itemsize * (T * AM_WIDTH + (S + 1) * LM_WIDTH)
    weight = 2 * itemsize * (AM_WIDTH + LM_WIDTH) if casts_weight else 0
    return rows + tile_classes * (utterances * 2 * itemsize * (T + S + 1) + weight)


def structure_gate(scales=(0.1, 0.1), rnnt_type="regular", delay_penalty=0.25, kind="flat", **op):
    """float64, relative RMS error at most 1e-12 on loss, occupations and gradients."""
    data, arguments = tensors(kind), arguments_of(scales, rnnt_type, delay_penalty, kind)
    ours = run(selected_rnnt_loss_smoothed, data, **arguments, **op)
    truth = run(materialised, data, **arguments)
    for name, x, ref in zip(NAMES, ours, truth):
        assert rms(x - ref) <= 1e-12 * rms(ref), name


@pytest.mark.parametrize(("utterances", "tile_classes"), TILES)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_loss_occupations_and_gradients_are_those_of_the_materialised_projections(
    rnnt_type, scales, utterances, tile_classes, monkeypatch
):
    workspace_bytes = workspace_of(utterances, tile_classes, monkeypatch)
    structure_gate(scales, rnnt_type, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("tiles", [(1, 1), (2, 7), (5, 100)])
@pytest.mark.parametrize("kind", ["peaked", "shifted", "masked classes"])
def test_extreme_logits_change_nothing(kind, tiles, monkeypatch):
    structure_gate(kind=kind, workspace_bytes=workspace_of(*tiles, monkeypatch))


def test_a_class_masked_in_every_row_leaves_its_first_tile_without_a_maximum(monkeypatch):
    data = tensors("masked classes")
    assert F.linear(*data[:3])[..., :3].max() == -torch.inf
    structure_gate(kind="masked classes", workspace_bytes=workspace_of(5, 3, monkeypatch))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_fp32_is_as_exact_as_the_materialised_projections_in_fp32(kind, scales, monkeypatch):
    # Of the arcs, as the recursion's own rounding would drown theirs, over many small batches.
    arguments = arguments_of(scales)
    workspace_bytes = workspace_of(2, 7, monkeypatch, itemsize=4)
    errors, dense_errors = torch.zeros(2, 8, dtype=torch.float64)
    for seed in range(20):
        data = tensors(kind, torch.float32, seed=seed)
        ours = run_arcs(tiled_arcs, data, seed, **arguments, workspace_bytes=workspace_bytes)
        plain = run_arcs(arcs_by_formula, data, seed, **arguments)
        truth = run_arcs(arcs_by_formula, [t.double() for t in data], seed, **arguments)
        for i, (x, y, ref) in enumerate(zip(ours, plain, truth)):
            errors[i] += (rms(x - ref) / rms(ref)) ** 2 / 20
            dense_errors[i] += (rms(y - ref) / rms(ref)) ** 2 / 20
    names = ["px", "py", *NAMES[3:]]
    for name, e, d in zip(names, errors.sqrt().tolist(), dense_errors.sqrt().tolist()):
        assert e <= max(1.5 * d, 4 * 2**-23), name


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("underflowing", torch.float32), ("underflowing further", torch.float64)]
)
@pytest.mark.parametrize("tiles", [(1, 5), (5, 100)])
def test_where_the_normaliser_underflows_the_maxima_get_the_gradient_that_k2_gives_them(
    kind, dtype, tiles, scales, monkeypatch
):
    data, arguments = tensors(kind, dtype), arguments_of(scales)
    workspace_bytes = workspace_of(*tiles, monkeypatch, itemsize=torch.finfo(dtype).bits // 8)
    ours = run_arcs(tiled_arcs, data, **arguments, workspace_bytes=workspace_bytes)
    theirs = run_arcs(arcs_by_formula, data, **arguments)
    for name, x, ref in zip(["px", "py", *NAMES[3:]], ours, theirs):
        assert rms(x - ref) <= 512 * torch.finfo(dtype).eps * rms(ref), name
    am_bias_grad = ours[4]
    assert am_bias_grad[5].abs() > 1e-2 * am_bias_grad.abs().max()  # at the maximum's class


@pytest.mark.parametrize("boundary", [True, False])
def test_gradients_are_those_of_finite_differences(boundary):
    g = torch.Generator().manual_seed(4)
    shapes = (2, 3, 2), (5, 2), (5,), (2, 3, 3), (5, 3), (5,)
    data = [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    symbols = torch.tensor([[1, 1], [4, 0]])
    rows = torch.tensor([[0, 0, 2, 3], [0, 0, 1, 2]]) if boundary else None
    assert torch.autograd.gradcheck(
        lambda *t: selected_rnnt_loss_smoothed(*t, symbols, 0, rows, workspace_bytes=700), data
    )


def test_a_single_class_a_missing_bias_and_no_symbols():
    data = tensors(classes=1)
    data[2] = None
    symbols = torch.zeros(B, 0, dtype=torch.int64)
    data[3] = data[3][:, :1]
    loss = selected_rnnt_loss_smoothed(*data, symbols, 0)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-14)


def test_non_contiguous_inputs_are_read_in_place():
    data, arguments = tensors(), arguments_of()
    expected = run(selected_rnnt_loss_smoothed, data, **arguments)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in data]
    for x, ref in zip(run(selected_rnnt_loss_smoothed, turned, **arguments), expected):
        torch.testing.assert_close(x, ref, rtol=1e-13, atol=1e-14)


def test_the_simple_loss_is_the_smoothed_one_without_smoothing():
    data, arguments = tensors(), arguments_of((0.0, 0.0))
    del arguments["lm_only_scale"], arguments["am_only_scale"]
    simple = selected_rnnt_loss_simple(*data, **arguments)
    smoothed = selected_rnnt_loss_smoothed(*data, **arguments, lm_only_scale=0.0, am_only_scale=0.0)
    assert torch.equal(simple, smoothed)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_reduced_over_the_batch(reduction):
    data, arguments = tensors(), arguments_of()
    losses = selected_rnnt_loss_smoothed(*data, **arguments, reduction="none")
    loss = selected_rnnt_loss_smoothed(*data, **arguments, reduction=reduction)
    torch.testing.assert_close(loss, getattr(losses, reduction)())


def test_two_runs_agree_in_every_bit_and_need_no_undeterministic_algorithm():
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(selected_rnnt_loss_smoothed, data, **arguments) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, second))


def test_a_nan_stays_in_its_utterance():
    data, arguments = tensors(), arguments_of((0.1, 0.0))
    expected = selected_rnnt_loss_smoothed(*data, **arguments, reduction="none")
    data[0][1, 2, 0] = torch.nan
    losses = selected_rnnt_loss_smoothed(*data, **arguments, reduction="none")
    assert losses.isnan().tolist() == [False, True, False, False, False]
    assert torch.equal(losses[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiles", [(2, 7), (5, 100)])
def test_a_head_dtype_rounds_what_the_linear_layers_read_and_nothing_else(
    head_dtype, tiles, monkeypatch
):
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    op = {"workspace_bytes": workspace_of(*tiles, monkeypatch, casts_weight=True, itemsize=4)}
    rounded = [t.to(head_dtype).float() for t in data]
    expected = run(selected_rnnt_loss_smoothed, rounded, **arguments, **op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(selected_rnnt_loss_smoothed, data, **arguments, **op, head_dtype=head_dtype)
    for name, x, ref in zip(NAMES, got, expected):
        assert rms(x - ref) <= 64 * 2**-23 * rms(ref), name


def test_half_inputs_with_a_head_dtype_get_half_gradients():
    data, arguments = tensors(dtype=torch.bfloat16), arguments_of()
    got = run(selected_rnnt_loss_smoothed, data, **arguments, head_dtype=torch.bfloat16)
    assert {x.dtype for x in got[:3]} == {torch.float32}
    assert {x.dtype for x in got[3:]} == {torch.bfloat16}
    expected = run(selected_rnnt_loss_smoothed, [t.float() for t in data], **arguments)
    for x, ref in zip(got, expected):
        torch.testing.assert_close(x.float(), ref, rtol=2**-7, atol=1e-5)


def test_autocast_does_not_lower_the_precision():
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    expected = run(selected_rnnt_loss_smoothed, data, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(selected_rnnt_loss_smoothed, data, **arguments)
    assert all(torch.equal(x, ref) for x, ref in zip(got, expected))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"am_input": torch.zeros(5, 7)}, ValueError, r"am_input: got .*\[B, T, D_am\]"),
        ({"am_input": torch.zeros(5, 0, 7)}, ValueError, r"am_input: .*none of them 0"),
        ({"lm_input": torch.zeros(5, 0, 6)}, ValueError, r"lm_input: got .*\[B, S\+1, D_lm\]"),
        ({"am_weight": torch.zeros(37, 8)}, ValueError, r"am_weight: got .*expected \[C, 7\]"),
        ({"lm_weight": torch.zeros(6)}, ValueError, r"lm_weight: got shape \(6,\)"),
        ({"am_bias": torch.zeros(36)}, ValueError, r"am_bias: got shape \(36,\), expected \[37\]"),
        ({"am_weight": torch.zeros(37, 7).double()}, TypeError, r"am_weight: got torch.float64"),
        ({"lm_input": torch.zeros(5, 5, 6).double()}, TypeError, r"lm_input: .*am_input's torch"),
        ({"lm_bias": torch.zeros(37).half()}, TypeError, r"lm_bias: got torch.float16.*head_dtype"),
        ({"head_dtype": torch.int64}, TypeError, r"head_dtype: got torch.int64, expected None or"),
        ({"head_dtype": torch.float64}, TypeError, r"head_dtype: got torch.float64"),
        (
            {"lm_input": torch.zeros(5, 5, 6).double(), "head_dtype": torch.bfloat16},
            TypeError,
            r"lm_input: got torch.float64 with head_dtype=torch.bfloat16.*leave head_dtype out",
        ),
        ({"lm_input": torch.zeros(4, 5, 6)}, ValueError, r"lm_input: got 4 utterances, .* 5"),
        (
            {"lm_weight": torch.zeros(36, 6), "lm_bias": None},
            ValueError,
            r"lm_weight: got 36 classes, expected am_weight's 37",
        ),
        ({"lm_input": torch.zeros(5, 4, 6)}, ValueError, r"symbols: got .*\[5, 3\] for lm_input"),
        ({"lm_weight": torch.zeros(37, 6, device="meta")}, ValueError, r"lm_weight: got device"),
        ({"symbols": torch.full((5, 4), 37)}, ValueError, r"symbols: got id 37"),
        ({"termination_symbol": 37}, ValueError, r"termination_symbol: got 37"),
        ({"rnnt_type": "strict"}, ValueError, r"rnnt_type: got 'strict'"),
        ({"reduction": "max"}, ValueError, r"reduction: got 'max'"),
        ({"boundary": torch.tensor([[0, 0, 4, 12]] * 5)}, ValueError, r"boundary: .*T=11"),
        ({"workspace_bytes": 900}, ValueError, r"workspace_bytes: got 900, expected at least"),
    ],
)
@pytest.mark.parametrize("function", [selected_rnnt_loss_smoothed, selected_rnnt_loss_simple])
def test_unfit_inputs_are_refused(function, changed, error, message):
    names = "am_input am_weight am_bias lm_input lm_weight lm_bias".split()
    arguments = dict(zip(names, tensors(dtype=torch.float32)))
    arguments["symbols"], arguments["boundary"] = symbols_and_boundary()
    with pytest.raises(error, match=message):
        function(**{"termination_symbol": BLANK, **arguments, **changed})


def forget_the_last_class_tile(patch):
    tiles = plan.SimpleTilePlan.class_tiles
    patch.setattr(plan.SimpleTilePlan, "class_tiles", lambda self: tiles(self)[:-1])


def forget_to_rescale(patch):
    raised_by = projection.Peaks.raised_by
    patch.setattr(
        projection.Peaks,
        "raised_by",
        lambda self, tile, block, low: raised_by(self, tile, block, low).clamp(min=float(low > 0)),
    )


def forget_the_bias_in_backward(patch):
    tile, add_gradients = projection.Projection.tile, terms.add_gradients
    flags = []

    def without_bias(self, block, length, low, high):
        result = tile(self, block, length, low, high)
        return result - self.bias[low:high] if flags else result

    patch.setattr(projection.Projection, "tile", without_bias)
    patch.setattr(terms, "add_gradients", lambda *a: (flags.append(1), add_gradients(*a))[1])


def forget_repeated_symbols(patch):
    index_put_ = torch.Tensor.index_put_
    patch.setattr(
        torch.Tensor,
        "index_put_",
        lambda self, at, values, accumulate=False: (
            self.copy_(index_put_(self.clone(), at, values + self[at]))
            if accumulate
            else index_put_(self, at, values)
        ),
    )


def forget_the_unigram_in_backward(patch):
    patch.setattr(gradients, "unigram_backward", lambda *_: None)


def round_the_masses(patch):
    sum_over_classes = terms.sum_over_classes

    def rounded(*args):
        sums = sum_over_classes(*args)
        sums.mass.copy_(sums.mass.bfloat16())
        return sums

    patch.setattr(terms, "sum_over_classes", rounded)


@pytest.mark.parametrize(
    "plant",
    [
        forget_the_last_class_tile,
        forget_to_rescale,
        forget_the_bias_in_backward,
        forget_repeated_symbols,
        forget_the_unigram_in_backward,
        round_the_masses,
    ],
)
def test_the_structure_gate_catches(plant, monkeypatch):
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    structure_gate(workspace_bytes=workspace_bytes)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        structure_gate(workspace_bytes=workspace_bytes)


@pytest.mark.k2
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("kind", ["flat", "shifted", "underflowing further"])
def test_loss_occupations_and_gradients_are_those_of_k2(kind, rnnt_type, scales, monkeypatch):
    import k2

    def dense(*data, **arguments):
        return k2.rnnt_loss_smoothed(am=F.linear(*data[:3]), lm=F.linear(*data[3:]), **arguments)

    data, arguments = tensors(kind), arguments_of(scales, rnnt_type, 0.25)
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    ours = run(selected_rnnt_loss_smoothed, data, **arguments, workspace_bytes=workspace_bytes)
    for name, x, ref in zip(NAMES, ours, run(dense, data, **arguments)):
        assert rms(x - ref) <= 1e-12 * rms(ref), name
