"""Synthetic AISHELL data: what is refused, what is drawn, and what lhotse and icefall read back."""

import os
import sys
from pathlib import Path

import pytest
import torch

from panda_icefall.runs.synth import aishell as synth
from panda_icefall.runs.synth import fbank
from panda_icefall.runs.synth.aishell import MissingBackendError, synth_aishell

VOCAB_SIZE = 53
UTTERANCES = 12


@pytest.fixture
def checkout(tmp_path):
    """A folder that passes for an icefall checkout; its script fails when it is reached."""
    script = tmp_path / "icefall" / synth.PREPARE_CHAR
    script.parent.mkdir(parents=True)
    script.write_text("raise SystemExit('the script was reached')\n")
    return tmp_path / "icefall"


@pytest.mark.parametrize("utterances", [0, -3])
def test_a_request_without_utterances_is_refused(tmp_path, checkout, utterances):
    with pytest.raises(ValueError, match=rf"utterances: got {utterances}, expected at least 1"):
        synth_aishell(tmp_path / "data", utterances, VOCAB_SIZE, 1, checkout)


@pytest.mark.parametrize("vocab_size", [3, 0, -1, synth.MAX_VOCAB_SIZE + 1])
def test_a_vocabulary_outside_the_possible_sizes_is_refused(tmp_path, checkout, vocab_size):
    expected = rf"vocab_size: got {vocab_size}, expected 4 to 70198 .*<blk>, <sos/eos> and <unk>"
    with pytest.raises(ValueError, match=expected):
        synth_aishell(tmp_path / "data", 1, vocab_size, 1, checkout)


def test_a_folder_that_is_no_icefall_checkout_is_refused_by_the_file_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"egs/aishell/ASR/local/prepare_char\.py"):
        synth_aishell(tmp_path / "data", 1, VOCAB_SIZE, 1, tmp_path)


def test_an_icefall_root_left_out_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"icefall_root: got ''.* clone icefall"):
        synth_aishell(tmp_path / "data", 1, VOCAB_SIZE, 1)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_holds_something_is_refused_and_left_alone(tmp_path, checkout, kind):
    out = tmp_path / "data"
    kept = out / "kept.txt" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        synth_aishell(out, 1, VOCAB_SIZE, 1, checkout)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("module", ["k2", "lhotse"])
def test_a_missing_package_is_named_with_its_install_line(tmp_path, checkout, monkeypatch, module):
    monkeypatch.setattr(synth, "INSTALL", {module: synth.INSTALL[module]})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingBackendError, match=rf"{module}: got no such module.*pip install"):
        synth_aishell(tmp_path / "data", 1, VOCAB_SIZE, 1, checkout)


def test_nothing_is_written_when_a_request_is_refused(tmp_path, checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(MissingBackendError):
        synth_aishell(tmp_path / "deep" / "data", 1, VOCAB_SIZE, 1, checkout)
    assert [path.name for path in tmp_path.iterdir()] == ["icefall"]


def test_a_failing_lexicon_script_is_quoted_and_leaves_nothing(tmp_path, checkout, monkeypatch):
    monkeypatch.setattr(synth, "INSTALL", {})
    with pytest.raises(RuntimeError, match=r"exit status 1(?s:.)*the script was reached"):
        synth_aishell(tmp_path / "data", 1, VOCAB_SIZE, 1, checkout)
    assert [path.name for path in tmp_path.iterdir()] == ["icefall"]


def test_a_lexicon_of_another_size_is_refused(tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("<blk> 0\n<sos/eos> 1\n<unk> 2\na 3\n#0 4\n#1 5\n")
    synth._check_vocab_size(tokens, 4)
    with pytest.raises(RuntimeError, match=r"vocab_size: got 4 classes .* expected 6"):
        synth._check_vocab_size(tokens, 6)


def test_every_possible_vocabulary_has_distinct_printable_characters():
    characters = synth._characters(synth.MAX_VOCAB_SIZE - synth.SPECIAL_TOKENS)
    assert len(set(characters)) == synth.MAX_VOCAB_SIZE - synth.SPECIAL_TOKENS
    assert not any(character.isspace() for character in characters)


def draw(seed, name="train", num_characters=31):
    patterns = fbank.character_patterns(num_characters, seed)
    return fbank.draw_utterance(patterns, fbank.named_generator(seed, name))


def test_utterances_keep_within_what_the_recipe_does_not_filter_out():
    patterns = fbank.character_patterns(31, 5)
    generator = fbank.named_generator(5, "train")
    for _ in range(200):
        indices, features = fbank.draw_utterance(patterns, generator)
        num_frames = features.size(0)
        assert features.shape == (num_frames, 80)
        assert 5 <= len(indices) <= 18
        assert 0 <= int(indices.min()) <= int(indices.max()) < 31
        assert 100 <= num_frames <= 1200
        assert ((num_frames - 7) // 2 + 1) // 2 >= len(indices)


def test_a_draw_depends_on_the_seed_and_the_split_alone():
    for one, other in zip(draw(7), draw(7)):
        assert torch.equal(one, other)
    assert not torch.equal(draw(7)[1][:100], draw(8)[1][:100])
    assert not torch.equal(draw(7)[1][:100], draw(7, "dev")[1][:100])


def test_a_character_can_be_told_from_its_frames():
    """The nearest pattern to a character's noisy middle frame is its own."""
    num_characters = 31
    patterns = fbank.character_patterns(num_characters, 3)
    middle = patterns[:, 1]  # [num_characters, 80]
    noisy = middle + 0.7 * torch.randn(middle.shape, generator=torch.Generator().manual_seed(0))
    nearest = torch.cdist(noisy, middle).argmin(dim=1)
    assert (nearest == torch.arange(num_characters)).all()


def test_one_character_is_a_vocabulary_too():
    indices, features = draw(1, num_characters=1)
    assert (indices == 0).all()
    assert torch.isfinite(features).all()


@pytest.fixture(scope="module")
def made_twice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth")
    (folder / "first").mkdir()
    for name in ("first", "second"):
        synth_aishell(folder / name, UTTERANCES, VOCAB_SIZE, 17, os.environ["ICEFALL_ROOT"])
    return folder


@pytest.mark.k2
@pytest.mark.icefall
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_lhotse_validates_the_cuts_with_their_features(made_twice, split):
    from lhotse import load_manifest, validate

    cuts = load_manifest(made_twice / "first" / "fbank" / f"aishell_cuts_{split}.jsonl.gz")
    validate(cuts, read_data=True)
    assert len(cuts) == (UTTERANCES if split == "train" else 10)
    for cut in cuts:
        assert cut.load_features().shape == (cut.num_frames, 80)
        assert cut.duration == pytest.approx(cut.num_frames / 100)
        assert 5 <= len(cut.supervisions[0].text) <= 18


@pytest.mark.k2
@pytest.mark.icefall
def test_the_noise_manifest_opens_as_the_recipe_opens_it(made_twice):
    from lhotse import load_manifest, validate

    cuts = load_manifest(made_twice / "first" / "fbank" / "musan_cuts.jsonl.gz")
    validate(cuts, read_data=True)
    assert len(cuts) > 0


@pytest.mark.k2
@pytest.mark.icefall
def test_the_recipe_counts_the_requested_classes_and_knows_every_character(made_twice, monkeypatch):
    from lhotse import load_manifest

    monkeypatch.syspath_prepend(os.environ["ICEFALL_ROOT"])
    from icefall.lexicon import Lexicon

    lexicon = Lexicon(made_twice / "first" / "lang_char")
    assert max(lexicon.tokens) + 1 == VOCAB_SIZE
    assert lexicon.token_table["<blk>"] == 0
    for split in ("train", "dev", "test"):
        cuts = load_manifest(made_twice / "first" / "fbank" / f"aishell_cuts_{split}.jsonl.gz")
        for cut in cuts:
            for character in cut.supervisions[0].text:
                assert character in lexicon.token_table
                assert character in lexicon.word_table


def relative_files(folder, pattern):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob(pattern))


@pytest.mark.k2
@pytest.mark.icefall
def test_the_same_request_gives_the_same_features_and_transcripts(made_twice):
    first, second = made_twice / "first", made_twice / "second"
    compared = relative_files(first, "*.npy") + relative_files(first, "*.txt")
    assert len(compared) > UTTERANCES
    assert compared == relative_files(second, "*.npy") + relative_files(second, "*.txt")
    for path in [*compared, Path("lang_char/text")]:
        assert (first / path).read_bytes() == (second / path).read_bytes()


@pytest.mark.k2
@pytest.mark.icefall
def test_nothing_but_the_finished_folders_is_left(made_twice):
    assert sorted(path.name for path in made_twice.iterdir()) == ["first", "second"]
