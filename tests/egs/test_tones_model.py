"""The embedded recipe's model, and what its scripts compute with it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tones import small_transducer


def test_encoder_output_does_not_depend_on_the_padding(recipe):
    torch.manual_seed(0)
    encoder = small_transducer(recipe).encoder.double().eval()
    x = torch.randn(2, 61, 80, dtype=torch.float64)
    lens = torch.tensor([61, 34])
    together, out_lens = encoder(x, lens)
    alone, alone_lens = encoder(x[1:, :34], lens[1:])
    assert out_lens.tolist() == [14, 7]
    assert alone_lens.tolist() == [7]
    torch.testing.assert_close(together[1:, :7], alone, rtol=0, atol=1e-12)


def test_an_utterance_too_short_for_the_subsampling_is_refused(recipe):
    encoder = small_transducer(recipe).encoder
    with pytest.raises(ValueError, match="x_lens: got an utterance of 6 frames"):
        encoder(torch.zeros(1, 9, 80), torch.tensor([6]))


def test_an_even_kernel_size_is_refused(recipe):
    with pytest.raises(ValueError, match="kernel_size: got 4"):
        recipe.encoder.Encoder(kernel_size=4)


def test_decoder_sees_only_its_context(recipe):
    torch.manual_seed(0)
    decoder = recipe.decoder.Decoder(11, 8, context_size=2)
    y = torch.tensor([[0, 3, 7, 2, 9]])
    whole = decoder(y)
    torch.testing.assert_close(whole[:, 3:4], decoder(y[:, 2:4], need_pad=False))
    changed = decoder(torch.tensor([[0, 5, 7, 2, 9]]))
    assert torch.equal(whole[:, 3:], changed[:, 3:])
    assert not torch.equal(whole[:, 2], changed[:, 2])


def test_pruned_loss_with_every_symbol_kept_is_the_sum_over_all_alignments(recipe):
    torch.manual_seed(0)
    model = small_transducer(recipe).double()
    x = torch.randn(1, 19, 80, dtype=torch.float64)  # T = 4
    y, y_lens = torch.tensor([[3, 5]]), torch.tensor([2])
    _, pruned = model(x, torch.tensor([19]), y, y_lens, prune_range=3)

    frames, _ = model.encoder(x, torch.tensor([19]))
    context = model.decoder(torch.tensor([[0, 3, 5]]))
    joint = model.joiner(frames[0, :, None], context[0, None]).log_softmax(-1)  # [T, S + 1, C]
    scores = []
    # An alignment says at which frame each of the two symbols comes.
    for first, second in product(range(4), repeat=2):
        if first <= second:
            score = joint[first, 0, 3] + joint[second, 1, 5]
            for t in range(4):
                score = score + joint[t, int(t >= first) + int(t >= second), 0]
            scores.append(score)
    expected = -torch.logsumexp(torch.stack(scores), 0)
    # The recipe's losses are computed from fp32 logits.
    torch.testing.assert_close(pruned.double(), expected, rtol=2e-6, atol=0)


def test_texts_become_padded_class_ids(recipe):
    class Letters:
        def encode(self, texts, out_type):
            assert out_type is int
            return [[ord(c) - 96 for c in text] for text in texts]

    y, y_lens = recipe.tokens.encode_texts(Letters(), ["ab", "", "cda"])
    assert y.tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 1]]
    assert y_lens.tolist() == [2, 0, 3]


def test_metrics_are_summed_decayed_and_divided_by_the_frames(recipe):
    tracker = recipe.metrics.MetricsTracker
    total = tracker(loss=8.0, frames=4.0) * 0.5 + tracker(loss=2.0, frames=1.0)
    assert total == {"loss": 6.0, "frames": 3.0}
    assert str(total) == "loss=2, over 3.00 frames."


def test_learning_rate_rises_to_its_peak_and_falls_after_it(recipe):
    factors = [recipe.train.learning_rate_factor(step, 10) for step in (0, 4, 9, 39)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], (0, 0, 0)),
        ([], [], (0, 0, 0)),
        ([], [4, 4], (2, 0, 0)),
        ([1, 2], [], (0, 2, 0)),
        ([1, 2, 3, 4], [1, 9, 3, 4, 5], (1, 0, 1)),
        ([1, 2, 3, 4], [2, 3, 4], (0, 1, 0)),
    ],
)
def test_errors_are_counted_along_a_best_alignment(recipe, reference, hypothesis, expected):
    errors = recipe.decode.count_errors(reference, hypothesis)
    assert (errors.insertions, errors.deletions, errors.substitutions) == expected
    assert errors.num_tokens == len(reference)


def test_greedy_search_stops_at_the_symbol_limit_of_a_frame(recipe):
    model = small_transducer(recipe).eval()
    with torch.no_grad():
        model.joiner.output_linear.bias[5] = 1e4
    assert recipe.decode.greedy_search(model, torch.zeros(4, 24), 2) == [5] * 8
    with torch.no_grad():
        model.joiner.output_linear.bias[0] = 1e5
    assert recipe.decode.greedy_search(model, torch.zeros(4, 24), 2) == []


def test_an_unknown_parameter_is_named_with_those_that_exist(recipe):
    params = recipe.params.AttributeDict(seed=1)
    assert params.seed == 1
    with pytest.raises(AttributeError, match="got no 'sed', expected one of"):
        params.sed  # noqa: B018


@pytest.mark.parametrize("has_gpus", [True, False])
def test_each_rank_trains_on_a_gpu_of_its_own(recipe, monkeypatch, has_gpus):
    current = []
    monkeypatch.setattr(recipe.process.torch.cuda, "is_available", lambda: has_gpus)
    monkeypatch.setattr(recipe.process.torch.cuda, "set_device", current.append)
    device = recipe.process.training_device(3)
    assert str(device) == ("cuda:3" if has_gpus else "cpu")
    assert current == ([device] if has_gpus else [])
