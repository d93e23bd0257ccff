"""What synthetic speech is made of."""

from panda_icefall.runs.data.lang import MAX_CHARACTERS, characters, syllables


def test_every_possible_vocabulary_has_distinct_printable_characters():
    found = characters(MAX_CHARACTERS)
    assert len(set(found)) == len(found) == MAX_CHARACTERS
    assert not any(character.isspace() for character in found)
    assert characters(5) == found[:5]


def test_syllables_are_distinct_short_and_of_both_kinds():
    found = syllables(3)
    assert len(set(found)) == len(found) == 595
    assert all(2 <= len(syllable.strip()) <= 4 for syllable in found)
    assert all(syllable.strip().isalpha() and syllable.isupper() for syllable in found)
    assert 0 < sum(syllable.endswith(" ") for syllable in found) < len(found)


def test_which_syllables_are_frequent_depends_on_the_seed_alone():
    assert syllables(3) == syllables(3)
    assert syllables(3) != syllables(4)
    assert set(syllables(3)) == set(syllables(4))
