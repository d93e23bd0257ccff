"""Whether a checkout and a data folder are what a recipe needs, told before anything starts.

The first cuts of each manifest, as the JSON lines they are, and the vocabulary are read: neither
lhotse nor any features are needed to see that there is nothing to train on.
"""

import gzip
import itertools
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.data.catalog import FBANK, MUSAN, Corpus, Lang, find_corpus
from panda_icefall.runs.errors import UsageError, reading

__all__ = ["check_data", "check_icefall_root", "count_classes", "icefall_environment"]

_CHECKOUT_FILES = ("icefall/__init__.py", "egs")
_CUTS_LOOKED_AT = 8
# lhotse's writers of these kinds leave the features elsewhere than in a local file.
_NOT_IN_FILES = ("memory", "url", "msgpack", "shar")
# Symbols that icefall's Lexicon leaves out: they tell homophones apart in decoding graphs.
_DISAMBIGUATION = re.compile(r"^#\d+$")


def check_icefall_root(root: Path) -> Path:
    """The absolute path of an icefall checkout.

    Raises:
      UsageError: The folder is none.
    """
    found = root.expanduser().resolve()
    for name in _CHECKOUT_FILES:
        with reading("icefall_root", root):
            is_there = (found / name).exists()
        if not is_there:
            raise UsageError(
                f"icefall_root: got {str(root)!r}, which has no {name}, expected an icefall "
                "checkout; clone icefall and give its folder"
            )
    return found


def icefall_environment(*folders: Path) -> dict[str, str]:
    """This process's environment, with imports from ``folders`` first.

    The checkout is the user's: not even byte code is left in it.
    """
    search = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def check_data(
    corpus: str,
    lang: str,
    data: Path,
    vocab_size: int,
    corpus_folder: Path,
    train_arguments: Sequence[str] = (),
) -> None:
    """See that a data folder has all that a recipe opens, cuts in it and the right vocabulary.

    Args:
      corpus: A name in ``CORPORA``.
      lang: Kind of the vocabulary, as ``Corpus.langs`` has them.
      data: The data folder, in place of the recipe's ``data``.
      vocab_size: Classes C that the run was configured for.
      corpus_folder: ``egs/<corpus>/ASR`` of the checkout, where the recipe runs.
      train_arguments: The recipe's arguments; they choose the training subset and the noise.

    Raises:
      UsageError: What is missing or does not fit, with the recipe's own command that makes it.
    """
    layout = find_corpus(corpus)
    vocabulary = layout.lang(lang)
    given, data = data, data.expanduser().resolve()
    run = f"run in {corpus_folder}: "
    if not data.is_dir():
        raise UsageError(
            f"data: got {str(given)!r}, which is no folder, expected {layout.title} prepared by "
            f"icefall; {run}{layout.prepare_fbank}, or use synthetic data"
        )
    names = [layout.train_manifest(train_arguments), *layout.dev]
    wanted = dict.fromkeys(names, run + layout.prepare_fbank)
    if layout.opens_noise(train_arguments):
        wanted[MUSAN] = run + layout.prepare_musan
    for name, prepare in wanted.items():
        path = data / FBANK / name
        if not path.is_file():
            raise UsageError(
                f"data: got {data}, which has no {FBANK}/{name}, expected what {layout.title}'s "
                f"recipes open; {prepare}"
            )
        _check_manifest(path, prepare, corpus_folder, has_supervisions=name != MUSAN)
    _check_vocabulary(layout, vocabulary, data, vocab_size, run + vocabulary.prepare)


def _check_manifest(
    path: Path, prepare: str, corpus_folder: Path, *, has_supervisions: bool
) -> None:
    """See that the first cuts are something a recipe can load; noise has no supervisions."""
    cuts = _first_cuts(path, prepare)
    if not cuts:
        raise UsageError(f"{path}: got no cuts, expected cuts to train on; {prepare}")
    for cut in cuts:
        name = f"{path}: got cut {cut.get('id')!r}"
        features = cut.get("features")
        if not features:
            raise UsageError(f"{name} without features, expected precomputed ones; {prepare}")
        stored = _stored_features(features, corpus_folder)
        if stored is not None and not stored.exists():
            raise UsageError(
                f"{name} with features in {stored}, which does not exist, expected them where the "
                f"manifest says; restore that file or {prepare}"
            )
        texts = [str(one.get("text") or "") for one in cut.get("supervisions") or []]
        if has_supervisions and not any(text.strip() for text in texts):
            raise UsageError(f"{name} without a transcript, expected a supervision; {prepare}")


def _first_cuts(path: Path, prepare: str) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            cuts = [json.loads(line) for line in itertools.islice(lines, _CUTS_LOOKED_AT)]
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path}: got a file that does not read as gzipped JSON lines ({error}), expected a "
            f"lhotse cut manifest; {prepare}"
        ) from error
    if not all(map(_is_cut, cuts)):
        raise UsageError(f"{path}: got lines that are not cuts, expected one per line; {prepare}")
    return cuts


def _is_cut(cut: Any) -> bool:
    if not isinstance(cut, dict) or not isinstance(cut.get("features") or {}, dict):
        return False
    supervisions = cut.get("supervisions") or []
    return isinstance(supervisions, list) and all(isinstance(one, dict) for one in supervisions)


def _stored_features(features: dict[str, Any], corpus_folder: Path) -> Path | None:
    """The file of one cut's features; the archive where many share one; None if not in files."""
    kind = str(features.get("storage_type", ""))
    if any(word in kind for word in _NOT_IN_FILES):
        return None
    path = corpus_folder / str(features.get("storage_path", ""))
    is_one_file_each = kind.endswith("_files")
    return path / str(features.get("storage_key", "")) if is_one_file_each else path


def _check_vocabulary(
    layout: Corpus, vocabulary: Lang, data: Path, vocab_size: int, prepare: str
) -> None:
    folder = vocabulary.folder_in(data, vocab_size)
    for name in vocabulary.opened:
        if not (folder / name).is_file():
            raise UsageError(
                f"data: got {data}, which has no {folder.name}/{name}, expected the vocabulary of "
                f"{vocab_size} classes; {prepare}"
            )
    counted = folder / vocabulary.counted
    found = count_classes(counted)
    if found != vocab_size:
        raise UsageError(
            f"vocab_size: got {vocab_size} for data whose {counted} has {found} classes, expected "
            f"the two to agree ({layout.title} as published: {vocabulary.published_classes}); set "
            f"vocab_size to {found} or, for other data, {prepare}"
        )


def count_classes(path: Path) -> int:
    """Number of classes, blank included, that a recipe trains with on a vocabulary file.

    Args:
      path: ``tokens.txt`` (lines of a symbol and its number: one more than the largest number,
        disambiguation symbols left out, as ``max(lexicon.tokens) + 1``), or a sentencepiece
        model (its number of pieces, as ``sp.get_piece_size()``).

    Raises:
      UsageError: The file is not of that form, or sentencepiece is not installed.
    """
    return _pieces(path) if path.suffix == ".model" else _tokens(path)


def _tokens(path: Path) -> int:
    largest = -1
    lines = path.read_text("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdecimal():
            raise UsageError(
                f"{path}: got {line!r} in line {number}, expected a symbol and its number; make "
                "the vocabulary again"
            )
        if not _DISAMBIGUATION.match(fields[0]):
            largest = max(largest, int(fields[1]))
    if largest < 0:
        raise UsageError(
            f"{path}: got no symbols, expected one per line; make the vocabulary again"
        )
    return largest + 1


def _pieces(path: Path) -> int:
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: cannot be read without sentencepiece, which is not installed; "
            "pip install sentencepiece"
        ) from error
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.Load(str(path))
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{path}: got a file that sentencepiece cannot load, expected a BPE model; make the "
            "vocabulary again"
        ) from error
    return int(model.GetPieceSize())
