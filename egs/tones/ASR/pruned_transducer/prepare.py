#!/usr/bin/env python3
"""Make the data of the tones recipe: no download, the same for the same --seed.

Usage:

  ./pruned_transducer/prepare.py --data-dir data --vocab-size 100

writes

  data/wav/{train,dev,test}/*.wav                              16 kHz mono
  data/manifests/tones_{recordings,supervisions}_{split}.jsonl.gz
  data/fbank/tones_cuts_{split}.jsonl.gz, data/fbank/feats_{split}/   80-dim log-mel at 100 Hz
  data/text/{lexicon,transcripts_train,transcripts_dev,transcripts_test}.txt
  data/lang_bpe_100/bpe.{model,vocab}                          sentencepiece BPE, <blk> is class 0

A second call with another --vocab-size keeps the audio and only trains another BPE model. Each of
the two parts ends by writing a marker; what lies there without its marker is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm
import soundfile
from lhotse import (
    CutSet,
    Fbank,
    FbankConfig,
    MonoCut,
    NumpyFilesWriter,
    Recording,
    RecordingSet,
    SupervisionSegment,
    SupervisionSet,
)
from rich.progress import track
from speech import SAMPLE_RATE, Speaker, make_lexicon, make_speakers, synthesise

SPLITS = ("train", "dev", "test")
SPEAKERS = {"train": 24, "dev": 4, "test": 6}
CORPUS_FOLDERS = ("wav", "manifests", "fbank", "text")
ZIPF_OFFSET = 30.0


class DataError(RuntimeError):
    """The data folder cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Utterance:
    """What to synthesise: `key` is the random seed, distinct for every utterance."""

    name: str
    split: str
    words: tuple[str, ...]
    speaker: Speaker
    key: tuple[int, ...]


def get_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Synthesise the tones corpus, its features and its BPE model.",
    )
    parser.add_argument("--data-dir", type=str, default="data", help="Where everything goes.")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=100,
        help="Classes of the BPE model, blank included: 100 learns in minutes, 4336 shows memory.",
    )
    parser.add_argument("--num-words", type=int, default=4000, help="Words in the lexicon.")
    parser.add_argument("--num-train", type=int, default=2000, help="Training utterances.")
    parser.add_argument("--num-dev", type=int, default=80, help="Validation utterances.")
    parser.add_argument("--num-test", type=int, default=160, help="Test utterances.")
    parser.add_argument("--num-jobs", type=int, default=1, help="Processes that synthesise.")
    parser.add_argument("--seed", type=int, default=42, help="Same seed, same data.")
    return parser


def is_complete(marker: Path, folders: list[Path], options: dict[str, Any]) -> bool:
    """Whether the part that ends with `marker` is there, made with the same `options`.

    Raises:
      DataError: one of its `folders` is there without the marker, or the options differ.
    """
    if not marker.is_file():
        for folder in folders:
            if folder.exists():
                raise DataError(
                    f"{folder}: got a half-written folder ({marker.name} is missing), expected a "
                    "finished or an absent one; delete it and run prepare.py again"
                )
        return False
    made_with = json.loads(marker.read_text())
    if made_with != options:
        raise DataError(
            f"{marker.parent}: got data made with {made_with}, expected {options}; choose another "
            "--data-dir or delete this one"
        )
    return True


def plan_corpus(lexicon: list[str], counts: dict[str, int], seed: int) -> list[Utterance]:
    """Two to six words per utterance, Zipf-distributed; no speaker is in two splits."""
    weights = 1.0 / (np.arange(len(lexicon)) + ZIPF_OFFSET)
    weights /= weights.sum()
    plan = []
    for split_index, split in enumerate(SPLITS):
        rng = np.random.default_rng([seed, 1, split_index])
        speakers = make_speakers(split, SPEAKERS[split], rng)
        for i in range(counts[split]):
            picks = rng.choice(len(lexicon), size=rng.integers(2, 7), p=weights)
            words = tuple(lexicon[k] for k in picks)
            speaker = speakers[rng.integers(len(speakers))]
            name = f"{speaker.name}-{i:05d}"
            plan.append(Utterance(name, split, words, speaker, (seed, 2, split_index, i)))
    return plan


def make_cut(utterance: Utterance, data_dir: Path, extractor: Fbank) -> MonoCut:
    """Synthesise one utterance, write its wav and its features, and describe both."""
    rng = np.random.default_rng(utterance.key)
    samples = synthesise(list(utterance.words), utterance.speaker, rng)
    path = data_dir / "wav" / utterance.split / f"{utterance.name}.wav"
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    recording = Recording.from_file(path, recording_id=utterance.name)
    supervision = SupervisionSegment(
        id=utterance.name,
        recording_id=utterance.name,
        start=0.0,
        duration=recording.duration,
        text=" ".join(utterance.words),
        speaker=utterance.speaker.name,
    )
    with NumpyFilesWriter(data_dir / "fbank" / f"feats_{utterance.split}") as storage:
        features = extractor.extract_from_recording_and_store(recording, storage, channels=0)
    return MonoCut(
        id=utterance.name,
        start=0.0,
        duration=recording.duration,
        channel=0,
        supervisions=[supervision],
        features=features,
        recording=recording,
    )


def _make_cuts(utterances: list[Utterance], data_dir: Path) -> list[MonoCut]:
    extractor = Fbank(FbankConfig(sampling_rate=SAMPLE_RATE, num_mel_bins=80))
    return [make_cut(utterance, data_dir, extractor) for utterance in utterances]


def _make_all(plan: list[Utterance], data_dir: Path, num_jobs: int) -> Iterator[list[MonoCut]]:
    """The cuts of `plan` in its order, in chunks of 20."""
    chunks = [plan[i : i + 20] for i in range(0, len(plan), 20)]
    if num_jobs == 1:
        for chunk in chunks:
            yield _make_cuts(chunk, data_dir)
        return
    # spawn: forking a process that holds torch's thread pool can hang the children.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_jobs, mp_context=context) as pool:
        yield from pool.map(_make_cuts, chunks, [data_dir] * len(chunks))


def prepare_corpus(
    data_dir: Path, counts: dict[str, int], num_words: int, seed: int, num_jobs: int = 1
) -> None:
    """Write audio, manifests, features and text, unless they are there.

    Args:
      data_dir: the data folder, made if absent.
      counts: utterances by split.
      num_words: size of the lexicon.
      seed: everything is drawn from it.
      num_jobs: processes; the result does not depend on it.

    Raises:
      DataError: the folder holds something half written or made otherwise.
    """
    options = {"num_words": num_words, "seed": seed, **{f"num_{s}": counts[s] for s in SPLITS}}
    marker = data_dir / ".corpus_complete.json"
    if is_complete(marker, [data_dir / name for name in CORPUS_FOLDERS], options):
        logging.info("%s: audio and features are there, skipped", data_dir)
        return
    for name in CORPUS_FOLDERS:
        (data_dir / name).mkdir(parents=True)
    for split in SPLITS:
        (data_dir / "wav" / split).mkdir()

    lexicon = make_lexicon(num_words, np.random.default_rng([seed, 0]))
    (data_dir / "text" / "lexicon.txt").write_text("\n".join(lexicon) + "\n")
    plan = plan_corpus(lexicon, counts, seed)
    chunks = _make_all(plan, data_dir, num_jobs)
    total = (len(plan) + 19) // 20
    cuts = [c for chunk in track(chunks, "audio and features", total) for c in chunk]
    for split in SPLITS:
        of_split = [c for c, u in zip(cuts, plan) if u.split == split]
        recordings = RecordingSet.from_recordings(c.recording for c in of_split)
        supervisions = SupervisionSet.from_segments(c.supervisions[0] for c in of_split)
        recordings.to_file(data_dir / "manifests" / f"tones_recordings_{split}.jsonl.gz")
        supervisions.to_file(data_dir / "manifests" / f"tones_supervisions_{split}.jsonl.gz")
        CutSet.from_cuts(of_split).to_file(data_dir / "fbank" / f"tones_cuts_{split}.jsonl.gz")
        lines = "".join(c.supervisions[0].text + "\n" for c in of_split)
        (data_dir / "text" / f"transcripts_{split}.txt").write_text(lines)
    hours = sum(c.duration for c in cuts) / 3600
    logging.info("%s: %d utterances, %.2f hours", data_dir, len(cuts), hours)
    marker.write_text(json.dumps(options))


def prepare_lang(data_dir: Path, vocab_size: int) -> Path:
    """Train a BPE model of exactly `vocab_size` classes, unless it is there.

    It is trained on the lexicon and the training transcripts; the lexicon makes word pieces out of
    words that no training utterance has, which is where a large vocabulary comes from.

    Returns:
      The folder of the model.

    Raises:
      DataError: the folder is half written, or the text has too few pieces for `vocab_size`.
    """
    lang_dir = data_dir / f"lang_bpe_{vocab_size}"
    marker = lang_dir / ".lang_complete.json"
    options = {"vocab_size": vocab_size}
    if is_complete(marker, [lang_dir], options):
        logging.info("%s: BPE model is there, skipped", lang_dir)
        return lang_dir
    text = [data_dir / "text" / f"{name}.txt" for name in ("lexicon", "transcripts_train")]
    sentences = [line for path in text for line in path.read_text().splitlines()]
    lang_dir.mkdir()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_prefix=str(lang_dir / "bpe"),
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            user_defined_symbols=["<blk>"],
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            minloglevel=1,
        )
    except (RuntimeError, OSError) as error:
        lang_dir.rmdir()
        raise DataError(
            f"vocab_size: got {vocab_size}, which sentencepiece refuses for this text ({error}); "
            "choose another --vocab-size, or more --num-words in another --data-dir"
        ) from error
    marker.write_text(json.dumps(options))
    return lang_dir


def main() -> None:
    """Prepare what the command line asks for."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    args = get_parser().parse_args()
    data_dir = Path(args.data_dir).resolve()
    counts = {"train": args.num_train, "dev": args.num_dev, "test": args.num_test}
    try:
        prepare_corpus(data_dir, counts, args.num_words, args.seed, args.num_jobs)
        prepare_lang(data_dir, args.vocab_size)
    except DataError as error:
        raise SystemExit(f"prepare.py: {error}") from None


if __name__ == "__main__":
    main()
