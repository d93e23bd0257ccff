"""The embedded recipe's data: speech, corpus, vocabulary."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tones import COUNTS, RECIPE, SMALL_DATA, run_script


def test_the_same_seed_gives_the_same_audio_and_another_seed_does_not(recipe):
    import numpy as np

    def speak(seed: int):
        rng = np.random.default_rng(seed)
        speaker = recipe.speech.make_speakers("x", 1, rng)[0]
        return recipe.speech.synthesise(["bada", "fo"], speaker, rng)

    assert np.array_equal(speak(1), speak(1))
    assert len(speak(1)) != len(speak(2)) or not np.array_equal(speak(1), speak(2))
    assert speak(1).dtype == np.float32
    assert 0.1 < np.abs(speak(1)).max() <= 1.0


def test_no_two_letters_have_the_same_pattern(recipe):
    patterns = {(v.start, v.end, v.voice, v.band) for v in recipe.speech.LETTERS.values()}
    assert len(patterns) == len(recipe.speech.LETTERS)


def test_a_word_with_an_unknown_letter_is_refused(recipe):
    speaker = recipe.speech.Speaker("x", 120.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"words: got letters \['z'\]"):
        recipe.speech.synthesise(["zoo"], speaker, None)


@pytest.mark.parametrize("num_words", [0, 20001])
def test_a_lexicon_of_impossible_size_is_refused(recipe, num_words):
    with pytest.raises(ValueError, match=f"num_words: got {num_words}"):
        recipe.speech.make_lexicon(num_words, None)


def test_the_corpus_is_valid_and_no_speaker_is_in_two_splits(data_dir):
    from lhotse import load_manifest, validate

    speakers = []
    for split, count in COUNTS.items():
        cuts = load_manifest(data_dir / "fbank" / f"tones_cuts_{split}.jsonl.gz")
        validate(cuts, read_data=True)
        assert len(cuts) == count
        for cut in cuts:
            assert cut.load_features().shape == (cut.num_frames, 80)
            assert cut.supervisions[0].recording_id == cut.recording.id == cut.features.recording_id
        speakers.append({cut.supervisions[0].speaker for cut in cuts})
    assert not any(a & b for i, a in enumerate(speakers) for b in speakers[:i])


def test_the_result_does_not_depend_on_the_number_of_jobs(data_dir, tmp_path):
    done = run_script(RECIPE / "prepare.py", "--data-dir", tmp_path, "--num-jobs=2", *SMALL_DATA)
    assert done.returncode == 0, done.stderr
    for wav in (data_dir / "wav").rglob("*.wav"):
        again = tmp_path / wav.relative_to(data_dir)
        assert again.read_bytes() == wav.read_bytes()


def test_preparing_again_skips_and_another_vocabulary_keeps_the_audio(data_dir, recipe):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.wav")}
    recipe.prepare.prepare_corpus(data_dir, COUNTS, num_words=80, seed=42)
    lang_dir = recipe.prepare.prepare_lang(data_dir, 70)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*.wav")} == before
    assert len((lang_dir / "bpe.vocab").read_text().splitlines()) == 70


def test_data_made_with_other_options_is_refused(data_dir, recipe):
    with pytest.raises(recipe.prepare.DataError, match=r"got data made with .*'seed': 42"):
        recipe.prepare.prepare_corpus(data_dir, COUNTS, num_words=80, seed=43)


@pytest.mark.parametrize("folder", ["wav", "manifests", "fbank", "text"])
def test_a_half_written_corpus_is_refused(tmp_path, recipe, folder):
    (tmp_path / folder).mkdir()
    with pytest.raises(recipe.prepare.DataError, match=f"{folder}: got a half-written folder"):
        recipe.prepare.prepare_corpus(tmp_path, COUNTS, num_words=80, seed=42)


def test_a_half_written_bpe_model_is_refused(data_dir, recipe):
    (data_dir / "lang_bpe_61").mkdir()
    with pytest.raises(recipe.prepare.DataError, match="lang_bpe_61: got a half-written folder"):
        recipe.prepare.prepare_lang(data_dir, 61)


@pytest.mark.parametrize("vocab_size", [5, 30000])
def test_a_vocabulary_the_text_cannot_fill_is_refused_and_leaves_nothing(
    data_dir, recipe, vocab_size
):
    with pytest.raises(recipe.prepare.DataError, match=f"vocab_size: got {vocab_size}"):
        recipe.prepare.prepare_lang(data_dir, vocab_size)
    assert not (data_dir / f"lang_bpe_{vocab_size}").exists()


def test_data_without_its_marker_is_not_trained_on(data_dir, recipe, tmp_path):
    module = recipe.asr_datamodule.TonesAsrDataModule(SimpleNamespace(data_dir=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"data_dir: got .* run prepare.py"):
        module.cuts("train")


def test_the_marker_holds_the_options(data_dir):
    marker = json.loads((data_dir / ".corpus_complete.json").read_text())
    assert marker["num_train"] == 24
    assert marker["num_words"] == 80
