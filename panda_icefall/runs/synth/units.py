"""What synthetic speech is made of: Chinese characters, or syllables of English-like words."""

import itertools
import random

__all__ = ["MAX_CHARACTERS", "characters", "syllables"]

# Ideographs, the ordinary ones first: first and past-the-last code point of each block.
_IDEOGRAPH_BLOCKS = ((0x4E00, 0x9FA6), (0x3400, 0x4DB6), (0x20000, 0x2A6D7))
MAX_CHARACTERS = sum(end - start for start, end in _IDEOGRAPH_BLOCKS)

_ONSETS = ("B", "D", "F", "G", "H", "K", "L", "M", "N", "P", "R", "S", "T", "V", "W", "CH", "ST")
_VOWELS = ("A", "E", "I", "O", "U")
_CODAS = ("L", "M", "N", "R", "S", "T")


def characters(count: int) -> list[str]:
    """Distinct ideographs, at most `MAX_CHARACTERS` of them."""
    points = (point for start, end in _IDEOGRAPH_BLOCKS for point in range(start, end))
    return [chr(point) for point in itertools.islice(points, count)]


def syllables(seed: int) -> list[str]:
    """The syllables of a made-up language in capital letters, the frequent ones first.

    A syllable that ends in a consonant ends its word and has the space in itself, an open one
    goes on: drawn syllables make words of one and more of them, and frequent words come again.

    Args:
      seed: the data's seed; which syllables are frequent depends on it.

    Returns:
      595 distinct syllables of 2 to 4 letters.
    """
    openings = [onset + vowel for onset in _ONSETS for vowel in _VOWELS]
    closed = [f"{opening}{coda} " for opening in openings for coda in _CODAS]
    chosen = openings + closed
    random.Random(f"{seed}/syllables").shuffle(chosen)
    return chosen
