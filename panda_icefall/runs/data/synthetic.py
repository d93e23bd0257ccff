"""A whole synthetic data folder for a corpus, so that its recipes run without a download.

    panda-icefall synth aishell --out OUT --icefall-root ICEFALL
    cd ICEFALL/egs/aishell/ASR
    panda-icefall run zipformer/train.py \\
      --manifest-dir OUT/fbank --lang-dir OUT/lang_char --num-buckets 2 --enable-musan 0

``OUT`` takes the place of the recipe's ``data`` folder; ``catalog.py`` says what a recipe reads
there.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from panda_icefall.runs.data import fbank
from panda_icefall.runs.data.catalog import FBANK, Corpus, find_corpus
from panda_icefall.runs.data.check import check_icefall_root
from panda_icefall.runs.data.lang import PACKAGES, check_vocab_size, spoken_units, write_lang

__all__ = ["MissingBackendError", "synth_data"]

# The recipes' dev and test samplers keep lhotse's 10 buckets and refuse fewer cuts than buckets.
MIN_HELD_OUT_UTTERANCES = 10
NOISE_CUTS = 3

INSTALL = {
    "k2": "with Python 3.10, `pip install 'pip<26.3'` and then `pip install k2==1.23.4 'numpy<2'`",
    "lhotse": "`pip install lhotse==1.29.0` (torch 1.13) or `pip install lhotse` (torch >= 2)",
    "sentencepiece": "`pip install sentencepiece`",
}


class MissingBackendError(ModuleNotFoundError):
    """A package that only this command needs is not installed; the message says how to get it."""


def synth_data(
    corpus: str,
    out: Path,
    icefall_root: Path,
    utterances: int = 160,
    lang: str | None = None,
    vocab_size: int | None = None,
    seed: int = 42,
) -> None:
    """Write features, transcripts and vocabulary for the recipes of a corpus into ``out``.

    ``out`` appears at once and complete: everything is written into a hidden sibling folder that
    is renamed at the end, or removed when something fails. The features lie where the manifests
    say by absolute path, so ``out`` cannot be moved afterwards. The same arguments give the same
    features, transcripts and tokens.

    Args:
      corpus: ``aishell``, ``wenetspeech`` or ``librispeech``.
      out: Folder to create, the recipe's ``data``; it may exist if it is empty.
      icefall_root: An icefall checkout, for its ``local/`` scripts; only read.
      utterances: Training utterances, >= 1, of 5 to 18 characters or syllables and 1.4 to 9.3 s;
        every training subset that the recipes can choose holds all of them. Each dev and test set
        gets a tenth of it, at least 10. The recipe's ``--num-buckets`` must not exceed it.
      lang: Kind of vocabulary: ``char``, ``bbpe`` (AISHELL only) or ``bpe`` (LibriSpeech); by
        default the corpus' usual one.
      vocab_size: Classes C of the joiner, as the recipe itself computes them; by default those
        of the published recipes. A BPE vocabulary is limited by the text: sentencepiece says how.
      seed: Any int; names the data.

    Raises:
      UsageError: No such corpus or vocabulary, or ``icefall_root`` is no icefall checkout.
      ValueError: ``utterances`` or ``vocab_size`` out of range.
      FileExistsError: ``out`` is a file or a folder with something in it.
      MissingBackendError: k2, lhotse or sentencepiece is not installed, where it is needed.
      FileNotFoundError: The checkout lacks one of the recipe's own scripts.
      RuntimeError: One of them failed.
    """
    layout = find_corpus(corpus)
    lang = lang if lang is not None else next(iter(layout.langs))
    vocab_size = layout.lang(lang).published_classes if vocab_size is None else vocab_size
    out = out.expanduser().resolve()
    _check_request(out, utterances, lang, vocab_size)
    root = check_icefall_root(icefall_root)

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        spoken = spoken_units(lang, vocab_size, seed)
        transcripts = _write_fbank(layout, partial / FBANK, out / FBANK, utterances, spoken, seed)
        write_lang(
            corpus=layout,
            lang=lang,
            vocab_size=vocab_size,
            data=partial,
            spoken=spoken,
            transcripts=transcripts,
            seed=seed,
            icefall_root=root,
        )
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_request(out: Path, utterances: int, lang: str, vocab_size: int) -> None:
    if utterances < 1:
        raise ValueError(f"utterances: got {utterances}, expected at least 1; ask for more")
    check_vocab_size(lang, vocab_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"out: got {out}, which exists and is not empty, expected a new or empty folder; "
            "remove it or choose another"
        )
    for name in PACKAGES[lang]:
        if importlib.util.find_spec(name) is None:
            raise MissingBackendError(
                f"{name}: not installed in {sys.executable}, needed to write the recipe's data "
                f"layout; install it: {INSTALL[name]}"
            )


def _write_fbank(
    layout: Corpus, folder: Path, final_folder: Path, utterances: int, spoken: list[str], seed: int
) -> list[str]:
    """Write all cut manifests with their features; return the transcripts of all sets."""
    from rich.progress import Progress

    folder.mkdir()
    held_out = max(MIN_HELD_OUT_UTTERANCES, utterances // 10)
    sets = [(tuple(layout.train.values()), utterances)]
    sets += [((name,), held_out) for name in (*layout.dev, *layout.test)]
    patterns = fbank.unit_patterns(len(spoken), seed)
    transcripts: list[str] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("features", total=sum(size for _, size in sets))
        for manifests, size in sets:
            transcripts += fbank.write_cuts(
                manifests=manifests,
                utterances=size,
                patterns=patterns,
                units=spoken,
                language=layout.language,
                seed=seed,
                folder=folder,
                final_folder=final_folder,
                advance=lambda: progress.advance(task),
            )
    fbank.write_noise_cuts(NOISE_CUTS, seed, folder, final_folder)
    return transcripts
