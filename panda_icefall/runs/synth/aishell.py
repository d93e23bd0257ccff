"""Synthetic data in the AISHELL recipe's own layout, so that the recipe runs without a download.

    panda-icefall synth aishell --out OUT --icefall-root ICEFALL
    cd ICEFALL/egs/aishell/ASR
    PYTHONPATH=ICEFALL python zipformer/train.py \\
      --manifest-dir OUT/fbank --lang-dir OUT/lang_char --num-buckets 2 --enable-musan 0

`OUT` takes the place of the recipe's `data` folder:

    OUT/fbank/aishell_cuts_{train,dev,test}.jsonl.gz, aishell_feats_{train,dev,test}/
    OUT/fbank/musan_cuts.jsonl.gz, musan_feats/
    OUT/lang_char/{text,words.txt}                                    written here
    OUT/lang_char/{tokens.txt,lexicon.txt,L.pt,...}                   by local/prepare_char.py
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Union

__all__ = ["MissingBackendError", "synth_aishell"]

# <blk>, <sos/eos> and <unk>: local/prepare_char.py puts them before the first character.
SPECIAL_TOKENS = 3
# Ideographs, the ordinary ones first: first and past-the-last code point of each block.
IDEOGRAPH_BLOCKS = ((0x4E00, 0x9FA6), (0x3400, 0x4DB6), (0x20000, 0x2A6D7))
MAX_VOCAB_SIZE = SPECIAL_TOKENS + sum(end - start for start, end in IDEOGRAPH_BLOCKS)

# The recipe's dev and test samplers keep lhotse's 10 buckets and refuse fewer cuts than buckets.
MIN_HELD_OUT_UTTERANCES = 10
NOISE_CUTS = 3

RECIPE = Path("egs/aishell/ASR")
PREPARE_CHAR = RECIPE / "local/prepare_char.py"
INSTALL = {
    "k2": "with Python 3.10, `pip install pip==23.2.1` and then `pip install k2==1.23.4 'numpy<2'`",
    "lhotse": "`pip install lhotse==1.29.0` (torch 1.13) or `pip install lhotse` (torch >= 2)",
}


class MissingBackendError(ModuleNotFoundError):
    """A package that only this command needs is not installed; the message says how to get it."""


def synth_aishell(
    out: Union[str, Path],
    utterances: int,
    vocab_size: int = 4336,
    seed: int = 42,
    icefall_root: Union[str, Path] = "",
) -> None:
    """Write features, transcripts and lexicon for icefall's AISHELL recipes into `out`.

    `out` appears at once and complete: everything is written into a hidden sibling folder that is
    renamed at the end, or removed when something fails. The features lie where the manifests say
    by absolute path, so `out` cannot be moved afterwards. The same arguments give the same
    features and transcripts.

    Args:
      out: folder to create, the recipe's `data`; it may exist if it is empty.
      utterances: training utterances, >= 1, of 5 to 18 characters and 1.4 to 9.3 s. dev and test
        get a tenth of it each, at least 10. The recipe's `--num-buckets` must not exceed it.
      vocab_size: classes C of the joiner, what the recipe computes as
        `max(lexicon.tokens) + 1`, in [4, 70198].
      seed: any int; names the data.
      icefall_root: an icefall checkout, for its `local/prepare_char.py`; only read.

    Raises:
      ValueError: `utterances` or `vocab_size` out of range.
      FileNotFoundError: `icefall_root` is not an icefall checkout.
      FileExistsError: `out` is a file or a folder with something in it.
      MissingBackendError: k2 or lhotse is not installed.
      RuntimeError: the recipe's own lexicon script failed.
    """
    out = Path(out).expanduser().resolve()
    root = Path(icefall_root).expanduser().resolve()
    _check_request(out, utterances, vocab_size, root, str(icefall_root))

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        characters = _characters(vocab_size - SPECIAL_TOKENS)
        transcripts = _write_fbank(partial / "fbank", out / "fbank", utterances, characters, seed)
        _write_lang(partial / "lang_char", characters, transcripts, root)
        _check_vocab_size(partial / "lang_char" / "tokens.txt", vocab_size)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_request(out: Path, utterances: int, vocab_size: int, root: Path, given: str) -> None:
    if utterances < 1:
        raise ValueError(f"utterances: got {utterances}, expected at least 1; ask for more")
    if not SPECIAL_TOKENS < vocab_size <= MAX_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size: got {vocab_size}, expected {SPECIAL_TOKENS + 1} to {MAX_VOCAB_SIZE} "
            f"(the recipe's own <blk>, <sos/eos> and <unk>, and 1 to "
            f"{MAX_VOCAB_SIZE - SPECIAL_TOKENS} characters); choose one in between"
        )
    if not given or not (root / PREPARE_CHAR).is_file():
        raise FileNotFoundError(
            f"icefall_root: got {given!r}, which has no {PREPARE_CHAR}, expected an icefall "
            "checkout; clone icefall and give its folder"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"out: got {out}, which exists and is not empty, expected a new or empty folder; "
            "remove it or choose another"
        )
    for module, install in INSTALL.items():
        if importlib.util.find_spec(module) is None:
            raise MissingBackendError(
                f"{module}: got no such module in {sys.executable}, expected it for the recipe's "
                f"layout; install it: {install}"
            )


def _characters(count: int) -> str:
    points = (point for start, end in IDEOGRAPH_BLOCKS for point in range(start, end))
    return "".join(chr(point) for _, point in zip(range(count), points))


def _write_fbank(
    folder: Path, final_folder: Path, utterances: int, characters: str, seed: int
) -> "list[str]":
    """Write all cut manifests with their features; return the transcripts of all splits."""
    from rich.progress import Progress

    from panda_icefall.runs.synth import fbank

    folder.mkdir()
    held_out = max(MIN_HELD_OUT_UTTERANCES, utterances // 10)
    sizes = {"train": utterances, "dev": held_out, "test": held_out}
    patterns = fbank.character_patterns(len(characters), seed)
    transcripts: list[str] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("features", total=sum(sizes.values()))
        for split, size in sizes.items():
            transcripts += fbank.write_cuts(
                split=split,
                utterances=size,
                patterns=patterns,
                characters=characters,
                seed=seed,
                folder=folder,
                final_folder=final_folder,
                advance=lambda: progress.advance(task),
            )
    fbank.write_noise_cuts(NOISE_CUTS, seed, folder, final_folder)
    return transcripts


def _write_lang(folder: Path, characters: str, transcripts: "list[str]", root: Path) -> None:
    """Write `text` and `words.txt`, then have the recipe's own script make the rest.

    The inventory is the first line of `text`: a small corpus does not use every character, and
    the script numbers tokens in order of appearance, so token id = 3 + character index.
    """
    folder.mkdir()
    lines = [characters, *transcripts]
    (folder / "text").write_text("".join(f"{' '.join(line)}\n" for line in lines), "utf-8")
    words = ["<eps>", "!SIL", "<SPOKEN_NOISE>", "<UNK>", *characters, "#0", "<s>", "</s>"]
    numbered = "".join(f"{word} {number}\n" for number, word in enumerate(words))
    (folder / "words.txt").write_text(numbered, "utf-8")

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        # The checkout is the user's: not even byte code is left in it.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, str(root / PREPARE_CHAR), "--lang-dir", str(folder)]
    done = subprocess.run(
        command, cwd=root / RECIPE, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last_words = "\n".join(done.stderr.splitlines()[-8:])
        raise RuntimeError(
            f"{PREPARE_CHAR}: got exit status {done.returncode}, expected 0; run it by hand or "
            f"install what it misses. It said:\n{last_words}"
        )


def _check_vocab_size(tokens_txt: Path, vocab_size: int) -> None:
    """Read the class count back as the recipe does: disambiguation symbols (#0) do not count."""
    rows = (line.split() for line in tokens_txt.read_text("utf-8").splitlines())
    found = 1 + max(int(number) for token, number in rows if not re.match(r"^#\d+$", token))
    if found != vocab_size:
        raise RuntimeError(
            f"vocab_size: got {found} classes from {PREPARE_CHAR}, expected {vocab_size}; this "
            "icefall numbers tokens in a way not known here, use the checkout in the README"
        )
