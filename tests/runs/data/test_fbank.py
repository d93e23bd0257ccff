"""Drawn utterances: lengths, independence of streams, and that a unit can be told from another."""

import pytest
import torch

from panda_icefall.runs.data import fbank


def draw(seed, name="train", num_units=31):
    patterns = fbank.unit_patterns(num_units, seed)
    return fbank.draw_utterance(patterns, fbank.named_generator(seed, name))


def test_utterances_keep_within_what_the_recipes_do_not_filter_out():
    patterns = fbank.unit_patterns(31, 5)
    generator = fbank.named_generator(5, "train")
    for _ in range(200):
        indices, features = fbank.draw_utterance(patterns, generator)
        num_frames = features.size(0)
        assert features.shape == (num_frames, 80)
        assert 5 <= len(indices) <= 18
        assert 0 <= int(indices.min()) <= int(indices.max()) < 31
        assert 100 <= num_frames <= 1000
        assert ((num_frames - 7) // 2 + 1) // 2 >= 4 * len(indices)


def test_a_draw_depends_on_the_seed_and_the_set_alone():
    for one, other in zip(draw(7), draw(7)):
        assert torch.equal(one, other)
    assert not torch.equal(draw(7)[1][:100], draw(8)[1][:100])
    assert not torch.equal(draw(7)[1][:100], draw(7, "dev")[1][:100])


def test_a_unit_can_be_told_from_its_frames():
    """The nearest pattern to a unit's noisy middle frame is its own."""
    num_units = 31
    patterns = fbank.unit_patterns(num_units, 3)
    middle = patterns[:, 1]  # [num_units, 80]
    noisy = middle + 0.7 * torch.randn(middle.shape, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(noisy, middle).argmin(dim=1)
    assert (nearest == torch.arange(num_units)).all()


def test_one_unit_is_a_vocabulary_too():
    indices, features = draw(1, num_units=1)
    assert (indices == 0).all()
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("units", "text"),
    [(["一", "丁"], "一丁一"), (["BA", "TAN "], "BATAN BA"), (["O ", "N "], "O N O")],
)
def test_a_transcript_has_spaces_where_a_unit_ends_a_word(units, text):
    assert fbank.transcript(units, torch.tensor([0, 1, 0])) == text
