"""How many classes C a recipe makes of a vocabulary file, by the recipes' own formulas."""

import re
from pathlib import Path

from panda_icefall.runs.errors import UsageError

__all__ = ["count_classes"]

# Symbols that icefall's Lexicon leaves out: they tell homophones apart in decoding graphs.
_DISAMBIGUATION = re.compile(r"^#\d+$")


def count_classes(path: Path) -> int:
    """Number of classes, blank included, that a recipe trains with on a vocabulary file.

    Args:
      path: ``tokens.txt`` (lines of a symbol and its number: one more than the largest number,
        disambiguation symbols left out, as ``max(lexicon.tokens) + 1``), or a sentencepiece
        model (its number of pieces, as ``sp.get_piece_size()``).

    Raises:
      UsageError: the file is not of that form, or sentencepiece is not installed.
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
        raise UsageError(f"{path}: got no symbol, expected one a line; make the vocabulary again")
    return largest + 1


def _pieces(path: Path) -> int:
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{path}: got no module sentencepiece to read it with, expected it for a BPE recipe; "
            "install it: pip install sentencepiece"
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
