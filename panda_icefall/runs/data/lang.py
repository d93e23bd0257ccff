"""Lang folders over synthetic transcripts, their tokens made by the recipes' own scripts.

lang_char/         text, words.txt   local/prepare_char.py: tokens.txt, lexicon.txt, L.pt
lang_bbpe_<C>/     text, words.txt   local/train_bbpe_model.py: bbpe.model
                                     local/prepare_lang_bbpe.py: tokens.txt, lexicon.txt, L.pt
lang_bpe_<C>/  transcript_words.txt  local/train_bpe_model.py: bpe.model, tokens.txt
"""

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from panda_icefall.runs.data import fbank
from panda_icefall.runs.data.catalog import Corpus
from panda_icefall.runs.data.check import count_classes, icefall_environment

__all__ = [
    "MAX_CHARACTERS",
    "PACKAGES",
    "characters",
    "check_vocab_size",
    "spoken_units",
    "syllables",
    "write_lang",
]

# <blk>, <sos/eos> and <unk>: the scripts put them before the first character or piece.
SPECIAL_TOKENS = 3
# What AISHELL's 4336 classes are made of; pieces of bytes are learnt over as many characters.
BBPE_CHARACTERS = 4333
# A longer line is left out by sentencepiece, which counts bytes.
CHARACTERS_PER_LINE = 100
# Enough words that the pieces asked for occur more than once.
SENTENCES_PER_PIECE = 8

# What the scripts import, beside lhotse, which writes the cuts.
PACKAGES = {
    "char": ("k2", "lhotse"),
    "bbpe": ("k2", "lhotse", "sentencepiece"),
    "bpe": ("lhotse", "sentencepiece"),
}

# Ideographs, the ordinary ones first: first and past-the-last code point of each block.
_IDEOGRAPH_BLOCKS = ((0x4E00, 0x9FA6), (0x3400, 0x4DB6), (0x20000, 0x2A6D7))
MAX_CHARACTERS = sum(end - start for start, end in _IDEOGRAPH_BLOCKS)

_ONSETS = ("B", "D", "F", "G", "H", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "CH", "ST")
_VOWELS = ("A", "E", "I", "O", "U")
_CODAS = ("L", "M", "N", "R", "S", "T")

_LINES_QUOTED = 8


def check_vocab_size(lang: str, vocab_size: int) -> None:
    """Refuse a number of classes that a kind of vocabulary cannot have.

    Raises:
      ValueError: It is out of range.
    """
    largest = SPECIAL_TOKENS + MAX_CHARACTERS
    if not SPECIAL_TOKENS < vocab_size <= largest:
        raise ValueError(
            f"vocab_size: got {vocab_size}, expected {SPECIAL_TOKENS + 1} to {largest} (the "
            f"recipe's own <blk>, <sos/eos> and <unk>, and 1 to {MAX_CHARACTERS} "
            f"{'characters' if lang == 'char' else 'pieces'}); choose one in between"
        )


def spoken_units(lang: str, vocab_size: int, seed: int) -> list[str]:
    """What the utterances of a kind of vocabulary are made of: characters, or syllables."""
    if lang == "bpe":
        return syllables(seed)
    return characters(vocab_size - SPECIAL_TOKENS if lang == "char" else BBPE_CHARACTERS)


def characters(count: int) -> list[str]:
    """Distinct ideographs, at most ``MAX_CHARACTERS`` of them."""
    points = (point for start, end in _IDEOGRAPH_BLOCKS for point in range(start, end))
    return [chr(point) for point in itertools.islice(points, count)]


def syllables(seed: int) -> list[str]:
    """The syllables of a made-up language in capital letters, the frequent ones first.

    A syllable that ends in a consonant ends its word and has the space in itself, an open one
    goes on: drawn syllables make words of one and more of them, and frequent words come again.

    Args:
      seed: The data's seed; which syllables are frequent depends on it.

    Returns:
      595 distinct syllables of 2 to 4 letters.
    """
    openings = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    closed = [f"{opening}{coda} " for opening in openings for coda in _CODAS]
    chosen = openings + closed
    random.Random(f"{seed}/syllables").shuffle(chosen)
    return chosen


def write_lang(
    corpus: Corpus,
    lang: str,
    vocab_size: int,
    data: Path,
    spoken: Sequence[str],
    transcripts: Sequence[str],
    seed: int,
    icefall_root: Path,
) -> None:
    """Write a lang folder of exactly C classes, as the recipe itself counts them.

    Args:
      corpus: Whose scripts make it.
      lang: ``char``, ``bpe`` or ``bbpe``.
      vocab_size: Classes C.
      data: The data folder.
      spoken: The units of the utterances.
      transcripts: Of all utterances.
      seed: The data's seed.
      icefall_root: A checkout of icefall.

    Raises:
      FileNotFoundError: The checkout has no such script.
      RuntimeError: A script failed, or made another number of classes.
    """
    vocabulary = corpus.lang(lang)
    folder = vocabulary.folder_in(data, vocab_size)
    folder.mkdir()
    local = Path(corpus.folder) / "local"

    def run(script: str, *arguments: str) -> None:
        where = ("--lang-dir", str(folder))
        _run_recipe_script(icefall_root, local / script, *where, *arguments)

    def train(script: str, text: Path) -> None:
        run(script, "--vocab-size", str(vocab_size), "--transcript", str(text))

    if lang != "char":
        transcripts = [*transcripts, *_more_text(spoken, vocab_size, seed)]
    if lang == "bpe":
        text = folder / "transcript_words.txt"
        _write_lines(text, transcripts)
        train("train_bpe_model.py", text)
    else:
        _write_characters(folder, spoken, transcripts)
        if lang == "bbpe":
            train("train_bbpe_model.py", folder / "text")
            run("prepare_lang_bbpe.py")
        else:
            run("prepare_char.py")
    found = count_classes(folder / vocabulary.counted)
    if found != vocab_size:
        raise RuntimeError(
            f"vocab_size: got {found} classes from the scripts in {local}, expected {vocab_size}; "
            "this icefall commit numbers tokens in an unknown way; check out the commit that the "
            "README names"
        )


def _write_characters(folder: Path, spoken: Sequence[str], transcripts: Sequence[str]) -> None:
    """Write ``text`` and ``words.txt``.

    The inventory comes first in ``text``: a small corpus does not use every character, and
    ``prepare_char.py`` numbers tokens in order of appearance, so token id = 3 + character index.
    """
    starts = range(0, len(spoken), CHARACTERS_PER_LINE)
    inventory = [" ".join(spoken[start : start + CHARACTERS_PER_LINE]) for start in starts]
    _write_lines(folder / "text", [*inventory, *(" ".join(text) for text in transcripts)])
    words = ["<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>", *spoken, "#0", "<s>", "</s>"]
    _write_lines(folder / "words.txt", [f"{word} {number}" for number, word in enumerate(words)])


def _more_text(spoken: Sequence[str], vocab_size: int, seed: int) -> list[str]:
    """Sentences that nobody says, for a vocabulary larger than a few utterances would give."""
    generator = fbank.named_generator(seed, "text")
    return [
        fbank.transcript(spoken, fbank.draw_units(len(spoken), generator))
        for _ in range(SENTENCES_PER_PIECE * vocab_size)
    ]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _run_recipe_script(icefall_root: Path, script: Path, *arguments: str) -> None:
    """Run a ``local/`` script of a checkout in its corpus folder; the checkout is only read."""
    path = icefall_root / script
    if not path.is_file():
        raise FileNotFoundError(
            f"icefall_root: got {icefall_root}, which has no {script}, expected the recipe's own "
            "script; check out the commit that the README names"
        )
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=path.parents[1],
        env=icefall_environment(icefall_root),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last_words = "\n".join(done.stderr.splitlines()[-_LINES_QUOTED:])
        raise RuntimeError(
            f"{script}: got exit status {done.returncode}, expected 0; run it by hand, or "
            f"install what it needs. Its output ended with:\n{last_words}"
        )
