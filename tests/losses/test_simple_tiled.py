"""The tiled simple loss, of projections and of tensors, against its formula and against k2."""

import pytest
import torch
import torch.nn.functional as F
from gates import rms
from simple_losses import (
    BLANK,
    NAMES,
    SCALES,
    TYPES,
    B,
    arcs_by_formula,
    arcs_of_projections,
    arcs_of_tensors,
    arguments_of,
    dense_arcs,
    of_projections,
    of_tensors,
    run,
    run_arcs,
    structure_gate,
    tensors,
    workspace_of,
)

LOSSES = [of_projections, of_tensors]
ARCS = [arcs_of_projections, arcs_of_tensors]
ARC_NAMES = ["px", "py", *NAMES[3:]]
# Utterances in a tile and classes in a tile: one, primes, an exact divisor, more than there are.
TILES = [(1, 1), (1, 5), (2, 37), (2, 7), (3, 36), (5, 100)]


def fp32_gate(seeds, kind, scales, ours, plain, truth, monkeypatch):
    """Error against float64 at most 1.5 of the formula's in float32, over many small batches.

    Of the arcs, as the recursion's own rounding would drown theirs.
    """
    arguments = arguments_of(scales)
    workspace_bytes = workspace_of(2, 7, monkeypatch, itemsize=4)
    errors, dense_errors = torch.zeros(2, 8, dtype=torch.float64)
    for seed in range(seeds):
        data = tensors(kind, torch.float32, seed=seed)
        x = run_arcs(ours, data, seed, **arguments, workspace_bytes=workspace_bytes)
        y = run_arcs(plain, data, seed, **arguments)
        ref = run_arcs(truth, [t.double() for t in data], seed, **arguments)
        errors += torch.tensor([(rms(a - r) / rms(r)) ** 2 / seeds for a, r in zip(x, ref)])
        dense_errors += torch.tensor([(rms(a - r) / rms(r)) ** 2 / seeds for a, r in zip(y, ref)])
    for name, e, d in zip(ARC_NAMES, errors.sqrt().tolist(), dense_errors.sqrt().tolist()):
        assert e <= max(1.5 * d, 4 * 2**-23), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("utterances", "tile_classes"), TILES)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_loss_occupations_and_gradients_are_those_of_the_formula(
    rnnt_type, scales, utterances, tile_classes, loss, monkeypatch
):
    workspace_bytes = workspace_of(utterances, tile_classes, monkeypatch)
    structure_gate(scales, rnnt_type, loss=loss, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("scales", SCALES)
def test_so_they_are_where_an_utterance_is_cut_by_frames(scales, frames, loss, monkeypatch):
    workspace_bytes = workspace_of(1, 7, monkeypatch, frames=frames)
    structure_gate(scales, loss=loss, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tiles", [(1, 1), (2, 7), (5, 100)])
@pytest.mark.parametrize("kind", ["peaked", "shifted", "masked classes"])
def test_extreme_logits_change_nothing(kind, tiles, loss, monkeypatch):
    structure_gate(kind=kind, loss=loss, workspace_bytes=workspace_of(*tiles, monkeypatch))


def test_a_class_masked_in_every_row_leaves_its_first_tile_without_a_maximum(monkeypatch):
    data = tensors("masked classes")
    assert F.linear(*data[:3])[..., :3].max() == -torch.inf
    structure_gate(kind="masked classes", workspace_bytes=workspace_of(5, 3, monkeypatch))


@pytest.mark.parametrize("ours", ARCS)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_fp32_is_as_exact_as_the_formula_in_fp32(kind, scales, ours, monkeypatch):
    fp32_gate(20, kind, scales, ours, arcs_by_formula, arcs_by_formula, monkeypatch)


@pytest.mark.parametrize("ours", ARCS)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(
    ("kind", "dtype"), [("underflowing", torch.float32), ("underflowing further", torch.float64)]
)
@pytest.mark.parametrize("tiles", [(1, 5), (5, 100)])
def test_am_and_lm_that_insist_on_different_classes_agree_with_k2s_formula(
    kind, dtype, tiles, scales, ours, monkeypatch
):
    data, arguments = tensors(kind, dtype), arguments_of(scales)
    workspace_bytes = workspace_of(*tiles, monkeypatch, itemsize=torch.finfo(dtype).bits // 8)
    results = run_arcs(ours, data, **arguments, workspace_bytes=workspace_bytes)
    theirs = run_arcs(arcs_by_formula, data, **arguments)
    for name, x, ref in zip(ARC_NAMES, results, theirs):
        assert rms(x - ref) <= 512 * torch.finfo(dtype).eps * rms(ref), name


@pytest.mark.parametrize("ours", [*ARCS, dense_arcs])
# A unigram would underflow as well, and what comes through its logarithm overflow, as in k2.
@pytest.mark.parametrize("scales", [(0.25, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("tiles", [(1, 5), (5, 100)])
@pytest.mark.parametrize("kind", ["underflowing", "underflowing further"])
def test_a_normaliser_that_underflows_is_k2s_tiny_with_its_gradient(
    kind, tiles, scales, ours, monkeypatch
):
    """Against k2's formula in float64 with the tiny of float32, which nothing underflows in."""
    data, arguments = tensors(kind, torch.float32), arguments_of(scales)
    workspace_bytes = workspace_of(*tiles, monkeypatch, itemsize=4)
    results = run_arcs(ours, data, **arguments, workspace_bytes=workspace_bytes)
    tiny = torch.finfo(torch.float32).tiny
    expected = run_arcs(arcs_by_formula, [t.double() for t in data], **arguments, tiny=tiny)
    for name, x, ref in zip(ARC_NAMES, results, expected):
        assert rms(x - ref) <= 512 * 2**-23 * rms(ref), name


@pytest.mark.parametrize("ours", [*ARCS, dense_arcs])
def test_what_goes_to_a_maximum_goes_to_the_first_of_equal_ones(ours, monkeypatch):
    data, arguments = tensors("underflowing further", torch.float32), arguments_of((0.25, 0.0))
    for weight, bias, first, twin in ((data[1], data[2], 5, 25), (data[4], data[5], 9, 19)):
        weight[twin], bias[twin] = weight[first], bias[first]
    workspace_bytes = workspace_of(2, 7, monkeypatch, itemsize=4)
    results = run_arcs(ours, data, **arguments, workspace_bytes=workspace_bytes)
    tiny = torch.finfo(torch.float32).tiny
    expected = run_arcs(arcs_by_formula, [t.double() for t in data], **arguments, tiny=tiny)
    for name, x, ref in zip(ARC_NAMES, results, expected):
        assert rms(x - ref) <= 512 * 2**-23 * rms(ref), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("boundary", [True, False])
def test_gradients_are_those_of_finite_differences(boundary, loss):
    g = torch.Generator().manual_seed(4)
    shapes = (2, 3, 2), (5, 2), (5,), (2, 3, 3), (5, 3), (5,)
    data = [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]
    symbols = torch.tensor([[1, 1], [4, 0]])
    rows = torch.tensor([[0, 0, 2, 3], [0, 0, 1, 2]]) if boundary else None
    assert torch.autograd.gradcheck(
        lambda *data: loss(
            *data, symbols=symbols, termination_symbol=0, boundary=rows, workspace_bytes=900
        ),
        data,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_single_class_a_missing_bias_and_no_symbols(loss):
    data = tensors(classes=1)
    data[2] = None
    data[3] = data[3][:, :1]
    symbols = torch.zeros(B, 0, dtype=torch.int64)
    result = loss(*data, symbols=symbols, termination_symbol=0)
    torch.testing.assert_close(result, torch.zeros_like(result), rtol=0, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_of_one_empty_utterance_costs_its_blanks(loss):
    data = [t[:1] if t.dim() == 3 else t for t in tensors()]
    data[3] = data[3][:, :1]
    symbols = torch.zeros(1, 0, dtype=torch.int64)
    ours = run(loss, data, symbols=symbols, termination_symbol=BLANK)
    logits = F.linear(*data[:3]) + F.linear(*data[3:])
    blanks = -logits.log_softmax(2)[..., BLANK].sum()
    lm_only = -F.linear(*data[3:]).log_softmax(2)[..., BLANK].sum() * logits.shape[1]
    unigram = F.linear(*data[3:]).softmax(2)
    am_only = -(F.linear(*data[:3]) + unigram.log()).log_softmax(2)[..., BLANK].sum()
    torch.testing.assert_close(ours[0][0], 0.8 * blanks + 0.1 * lm_only + 0.1 * am_only)


@pytest.mark.parametrize("loss", LOSSES)
def test_non_contiguous_inputs_are_read_in_place(loss):
    data, arguments = tensors(), arguments_of()
    expected = run(loss, data, **arguments)
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in data]
    for x, ref in zip(run(loss, turned, **arguments), expected):
        torch.testing.assert_close(x, ref, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_reduced_over_the_batch(reduction, loss):
    data, arguments = tensors(), arguments_of()
    losses = loss(*data, **arguments, reduction="none")
    reduced = loss(*data, **arguments, reduction=reduction)
    torch.testing.assert_close(reduced, getattr(losses, reduction)())


@pytest.mark.parametrize("loss", LOSSES)
def test_two_runs_agree_in_every_bit_and_need_no_undeterministic_algorithm(loss):
    data, arguments = tensors(dtype=torch.float32), arguments_of()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(loss, data, **arguments) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, second))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_utterances_does_not_matter(loss, monkeypatch):
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    data, arguments = tensors(), arguments_of()
    turn = torch.tensor([3, 0, 4, 2, 1])
    expected = run(loss, data, **arguments, workspace_bytes=workspace_bytes)
    for name in ("symbols", "boundary"):
        arguments[name] = arguments[name][turn]
    data[0], data[3] = data[0][turn], data[3][turn]
    turned = loss(*data, **arguments, workspace_bytes=workspace_bytes, reduction="none")
    torch.testing.assert_close(turned, expected[0][turn], rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_nan_stays_in_its_utterance(loss):
    data, arguments = tensors(), arguments_of((0.1, 0.0))
    expected = loss(*data, **arguments, reduction="none")
    data[0][1, 2, 0] = torch.nan
    losses = loss(*data, **arguments, reduction="none")
    assert losses.isnan().tolist() == [False, True, False, False, False]
    assert torch.equal(losses[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


@pytest.mark.parametrize("wanted", range(6))
def test_a_single_part_gets_the_gradient_that_it_gets_among_all(wanted):
    data, arguments = tensors(), arguments_of()
    expected = run(of_projections, data, **arguments)[3 + wanted]
    data[wanted].requires_grad_()
    losses = of_projections(*data, **arguments, reduction="none")
    (losses * torch.arange(1, B + 1)).sum().backward()
    torch.testing.assert_close(data[wanted].grad, expected, rtol=1e-12, atol=1e-14)
    assert all(t.grad is None for i, t in enumerate(data) if i != wanted)


@pytest.mark.k2
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted", "underflowing further"])
def test_loss_occupations_and_gradients_are_those_of_k2(kind, rnnt_type, scales, loss, monkeypatch):
    import k2

    def dense(*data, **arguments):
        return k2.rnnt_loss_smoothed(am=F.linear(*data[:3]), lm=F.linear(*data[3:]), **arguments)

    data, arguments = tensors(kind), arguments_of(scales, rnnt_type, 0.25)
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    ours = run(loss, data, **arguments, workspace_bytes=workspace_bytes)
    for name, x, ref in zip(NAMES, ours, run(dense, data, **arguments)):
        assert rms(x - ref) <= 1e-12 * rms(ref), name


@pytest.mark.k2
@pytest.mark.parametrize("ours", ARCS)
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_fp32_is_as_exact_as_k2_in_fp32(kind, scales, ours, monkeypatch):
    import k2

    def theirs(*data, delay_penalty, boundary, **arguments):
        am, lm = F.linear(*data[:3]), F.linear(*data[3:])
        px, py = k2.get_rnnt_logprobs_smoothed(am=am, lm=lm, **arguments)
        return px[:, :, :-1], py

    fp32_gate(20, kind, scales, ours, theirs, arcs_by_formula, monkeypatch)
