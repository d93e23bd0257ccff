"""CTC from the log-probs of each utterance's own labels, against torch's and a sum over paths."""

import itertools

import ctc_batch
import pytest
import torch
import torch.nn.functional as F
from dispatch import LargestTensor
from gates import rms

from panda_icefall.losses.ctc import CtcTargets, selected_ctc_loss
from panda_icefall.normalizer import RowLogits, RowProgram, TileCounters, TileOptions

B, T, C = ctc_batch.B, ctc_batch.T, ctc_batch.C
NAMES = ["loss", "d rows", "d weight", "d bias"]
BLANKS = [0, 7, C - 1]


def targets_of(data, *, is_padded=False, **changed):
    batch, max_frames = data.rows.shape[:2]
    given = {
        "targets": data.targets if is_padded else data.concatenated,
        "input_lengths": data.frames, "target_lengths": data.counts, "blank": data.blank,
        "batch": batch, "max_frames": max_frames, "classes": data.weight.shape[0],
        **changed,
    }  # fmt: skip
    return CtcTargets.of(**given)


def selected(data, *, is_padded=False, workspace_bytes=None, counters=None, **options):
    logits = RowLogits(RowProgram.of(data.rows.flatten(0, 1)), data.weight, data.bias)
    return selected_ctc_loss(
        logits, targets_of(data, is_padded=is_padded), TileOptions(workspace_bytes, 0.0),
        counters=counters, **{"reduction": "sum", **options},
    )  # fmt: skip


def assert_structure(ours, truth):
    for name, x, ref in zip(NAMES, ours, truth, strict=True):
        assert x.dtype == torch.float64
        assert rms(x - ref) <= 1e-12 * rms(ref), name


@pytest.mark.parametrize("is_padded", [False, True], ids=["concatenated", "padded"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_values_and_gradients_are_those_of_the_log_softmax(kind, blank, reduction, is_padded):
    data = ctc_batch.batch(kind, blank)
    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data, reduction=reduction)
    ours = ctc_batch.with_gradients(selected, data, reduction=reduction, is_padded=is_padded)
    assert_structure(ours, truth)


@pytest.mark.parametrize("workspace_bytes", [400, 1000, 4096, 2**20])
def test_nothing_depends_on_the_tiles(workspace_bytes):
    data = ctc_batch.batch()
    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data)
    counters = TileCounters()
    ours = ctc_batch.with_gradients(
        selected, data, workspace_bytes=workspace_bytes, counters=counters
    )
    assert_structure(ours, truth)
    assert (counters.totals.tiles_forward == 1) is (workspace_bytes == 2**20)


def test_the_lattice_is_computed_for_as_many_utterances_as_the_workspace_holds(monkeypatch):
    data, batches, original = ctc_batch.batch(), [], torch.ctc_loss

    def noting(log_probs, *args, **kwargs):
        batches.append(log_probs.shape[1])
        return original(log_probs, *args, **kwargs)

    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data, reduction="none")
    monkeypatch.setattr(torch, "ctc_loss", noting)
    for workspace_bytes, expected in ((1000, [1] * 6), (2**14, [4, 2]), (2**20, [6])):
        batches.clear()
        ours = ctc_batch.with_gradients(
            selected, data, workspace_bytes=workspace_bytes, reduction="none"
        )
        assert_structure(ours, truth)
        assert batches == expected


@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_rounding_is_that_of_the_log_softmax(kind):
    data = ctc_batch.batch(kind, dtype=torch.float32, classes=211, width=32)
    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data.to(torch.float64))
    dense = ctc_batch.with_gradients(ctc_batch.dense_loss, data)
    ours = ctc_batch.with_gradients(selected, data)
    for name, x, y, ref in zip(NAMES, ours, dense, truth, strict=True):
        assert x.dtype == torch.float32
        assert rms(x - ref) <= max(1.5 * rms(y - ref), 4 * 2**-23 * rms(ref)), name


def loss_by_paths(log_probs, labels, blank):
    """Negated log-prob `[T, C]` of all the ways to say the labels: no recursion, no lattice."""
    found = []
    for path in itertools.product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        said = [c for c, _ in itertools.groupby(path) if c != blank]
        if said == labels:
            found.append(sum(log_probs[t, c] for t, c in enumerate(path)))
    return -torch.stack(found).logsumexp(dim=0)


@pytest.mark.parametrize("labels", [[2, 2], [0, 3], [], [3], [0, 2, 0]])
def test_it_is_the_sum_over_all_paths(labels):
    g = torch.Generator().manual_seed(1)
    rows, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 5, 3), (4, 3), (4,))
    )
    numbers = (torch.tensor(n) for n in ([labels], [5], [len(labels)]))
    targets, frames, counts = numbers
    data = ctc_batch.Batch(rows, weight, bias, targets.long(), frames, counts, 1)

    def by_paths(data):
        log_probs = F.linear(data.rows[0], data.weight, data.bias).log_softmax(dim=1)
        return loss_by_paths(log_probs, labels, blank=1)

    assert_structure(
        ctc_batch.with_gradients(selected, data), ctc_batch.with_gradients(by_paths, data)
    )
    assert torch.autograd.gradcheck(
        lambda *leaves: selected(ctc_batch.Batch(*leaves, targets.long(), frames, counts, 1)),
        data.leaves,
    )


def test_torchs_gradient_of_log_probs_that_do_not_sum_to_one_would_not_do():
    """It is that of a softmax over the classes that it sees: the reason for a gradient of ours."""
    data = ctc_batch.batch()
    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data)

    def naive(data):
        log_probs = F.linear(data.rows, data.weight, data.bias).log_softmax(dim=2)
        classes = data.concatenated.unique()
        at = torch.cat([torch.tensor([data.blank]), classes])
        compact = torch.searchsorted(classes, data.concatenated) + 1
        few = log_probs[..., at].transpose(0, 1)
        return F.ctc_loss(few, compact, data.frames, data.counts, reduction="sum")

    found = ctc_batch.with_gradients(naive, data)
    assert rms(found[0] - truth[0]) <= 1e-12 * rms(truth[0])
    assert rms(found[1] - truth[1]) > 1e-2 * rms(truth[1])


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_too_few_frames_are_infinite_or_zero_as_torch_has_it(reduction, zero_infinity):
    data = ctc_batch.batch()
    data.frames[4] = 6  # of seven that four equal labels take
    options = {"reduction": reduction, "zero_infinity": zero_infinity}
    truth = ctc_batch.with_gradients(ctc_batch.dense_loss, data, **options)
    ours = ctc_batch.with_gradients(selected, data, **options)
    assert truth[0].isinf().any() != zero_infinity
    for x, ref in zip(ours, truth, strict=True):
        torch.testing.assert_close(x, ref, rtol=1e-11, atol=1e-14, equal_nan=True)
    assert ours[1][0].isfinite().all()
    assert ours[1][4, :6].isnan().all() != zero_infinity


def test_a_label_that_is_the_blank_is_treated_as_by_torch():
    data = ctc_batch.batch()
    data.targets[1, 1] = data.blank
    assert_structure(
        ctc_batch.with_gradients(selected, data),
        ctc_batch.with_gradients(ctc_batch.dense_loss, data),
    )


def test_frames_beyond_the_lengths_are_not_evaluated():
    data = ctc_batch.batch()
    with torch.no_grad():
        for row, frames in zip(data.rows, ctc_batch.FRAMES):
            row[frames:] = torch.nan
    counters = TileCounters()
    found = ctc_batch.with_gradients(selected, data, counters=counters)
    assert all(tensor.isfinite().all() for tensor in found)
    assert (
        counters.totals.sites_evaluated == counters.totals.sites_backward == sum(ctc_batch.FRAMES)
    )


def test_no_frame_at_all_says_nothing_with_certainty_and_something_never():
    data = ctc_batch.batch()
    data.frames[:] = 0
    losses = selected(data, reduction="none")
    assert losses.tolist() == [0.0 if n == 0 else torch.inf for n in ctc_batch.LABELS]


def test_nothing_of_the_size_of_the_log_softmax_is_made():
    classes = 1501
    data = ctc_batch.batch(classes=classes, dtype=torch.float32)
    with LargestTensor() as largest:
        ctc_batch.with_gradients(ctc_batch.dense_loss, data)
    assert largest.elements == B * T * classes
    with LargestTensor() as largest:
        ctc_batch.with_gradients(selected, data, workspace_bytes=32 * 1024)
    assert largest.elements <= max(32 * 1024 / 4, classes * ctc_batch.D) < B * T * classes / 8


def test_without_gradients_there_are_none():
    data = ctc_batch.batch()
    with torch.no_grad():
        assert not selected(data).requires_grad
    data.weight.requires_grad_(False)
    data.bias.requires_grad_(False)
    (grad,) = torch.autograd.grad(selected(data), [data.rows])
    (truth,) = torch.autograd.grad(ctc_batch.dense_loss(data), [data.rows])
    torch.testing.assert_close(grad, truth, rtol=1e-11, atol=1e-14)


def test_lengths_may_be_lists_and_targets_of_few_bits():
    data = ctc_batch.batch()
    expected = targets_of(data)
    found = targets_of(
        data, targets=data.concatenated.int(), input_lengths=ctc_batch.FRAMES,
        target_lengths=tuple(ctc_batch.LABELS),
    )  # fmt: skip
    for name in ("labels", "frames", "counts"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"blank": C}, ValueError, r"blank: got 23, expected 0 <= blank < 23 \(C\)"),
        ({"input_lengths": [1, 2]}, ValueError, r"input_lengths: got shape \(2,\), expected \[6\]"),
        (
            {"input_lengths": [9, 12, 9, 9, 9, 9]},
            ValueError,
            "input_lengths: got 12 for utterance 1, expected 0 to 11",
        ),
        ({"input_lengths": [9.0] * 6}, TypeError, "input_lengths: got torch.float32, expected int"),
        (
            {"target_lengths": [5, 3, 0, -2, 4, 1]},
            ValueError,
            "target_lengths: got -2 for utterance 3, expected 0 to",
        ),
        (
            {"target_lengths": [1] * 6},
            ValueError,
            "target_lengths: got a sum of 6, expected the 15",
        ),
        (
            {"targets": torch.zeros(4, 5).long()},
            ValueError,
            r"targets: got shape \(4, 5\), expected",
        ),
        ({"targets": torch.zeros(15)}, TypeError, "targets: got torch.float32, expected integers"),
        (
            {"targets": torch.arange(6, 66).view(6, 10)},
            ValueError,
            "targets: got label 26 in utterance 2, expected 0 <= label < 23",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed, error, message):
    data = ctc_batch.batch()
    if "targets" in changed and changed["targets"].shape == (6, 10):
        changed = {**changed, "target_lengths": [2] * 6}
    with pytest.raises(error, match=message):
        targets_of(data, **changed)


def test_utterances_without_any_frame_are_refused():
    data = ctc_batch.batch()
    data.rows, data.frames = data.rows[:, :0], data.frames * 0
    with pytest.raises(ValueError, match=r"logits: got no frames at all \(T=0\) for 6 utterances"):
        selected(data)


def test_other_reductions_and_rows_are_refused():
    data = ctc_batch.batch()
    with pytest.raises(ValueError, match="reduction: got 'max', expected one of"):
        selected(data, reduction="max")
    data.rows = data.rows[:, :3].flatten(0, 1)[:-1].view(1, -1, ctc_batch.D)
    logits = RowLogits(RowProgram.of(data.rows[0]), data.weight, data.bias)
    with pytest.raises(ValueError, match="logits: got 17 rows for 6 utterances"):
        selected_ctc_loss(logits, targets_of(ctc_batch.batch()), TileOptions())
