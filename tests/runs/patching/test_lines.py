"""PANDA's lines are placed by what the source is, whatever its bytes look like."""

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.patching.lines import DECORATOR, IMPORT, add_lines

SHAPE = b'''"""A recipe."""
import argparse
from other import (
    compute_loss,
    train_one_epoch,
)

SETTING = 1


def get_parser():
    import late

    return argparse.ArgumentParser()


def main():
    get_parser().parse_args()


if __name__ == "__main__":
    main()
'''


def lines_of(source):
    return add_lines(source).splitlines(keepends=True)


def test_the_import_follows_the_last_import_and_the_decorator_precedes_main():
    lines = lines_of(SHAPE)
    at = lines.index(IMPORT + b"\n")
    assert lines[at - 1] == b")\n"
    assert lines[lines.index(DECORATOR + b"\n") + 1] == b"def main():\n"
    assert len(lines) == len(SHAPE.splitlines()) + 2


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_the_lines_end_as_their_neighbours_do(ending):
    source = SHAPE.replace(b"\n", ending)
    assert add_lines(source) == add_lines(SHAPE).replace(b"\n", ending)


def test_mixed_endings_stay_as_they_are():
    source = SHAPE.replace(b")\n\nSETTING", b")\r\n\nSETTING")
    lines = lines_of(source)
    assert IMPORT + b"\r\n" in lines
    assert DECORATOR + b"\n" in lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"    main()\n", b"    main()"),  # no newline at the end
        (b'"""A recipe."""', b"\xef\xbb\xbf# BOM"),
        (b'"""A recipe."""', b"# -*- coding: latin-1 -*-\n# caf\xe9"),
        (b'"""A recipe."""', b'"""A form feed \x0c and \xe2\x80\xa8 are no line ends."""'),
        (b'"""A recipe."""', b"from __future__ import annotations"),
        (b"def main():", b"@functools.wraps(\n    get_parser\n)\n@other\ndef main():"),
        (b"def main():\n    get", b"def main(): get"),
        (b"SETTING = 1", b"try:\n    import k2\nexcept ImportError:\n    k2 = None"),
    ],
)
def test_other_ways_to_write_a_recipe_are_taken(old, new):
    assert old in SHAPE
    source = SHAPE.replace(old, new)
    lines = lines_of(source)
    assert lines[lines.index(IMPORT + b"\n") - 1] == b")\n"
    at = lines.index(DECORATOR + b"\n")
    assert lines[at - 1] == b"\n"
    assert b"".join(x for x in lines if not x.startswith((IMPORT, DECORATOR))) == source


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"def main():", b"def start():", r"looked for one `def main\(\):`.*found no main"),
        (b"def main():", b"async def main():", r"looked for one `def main\(\):`.*found line 17"),
        (b"def main():", b"def main(args=None):", r"found main\(args=None\) in line 17"),
        (b"SETTING = 1", b"def main():\n    pass", "found line 8, line 18"),
        (
            b"    compute_loss,\n",
            b"",
            "looked for compute_loss and train_one_epoch.*no compute_loss",
        ),
        (b"from other import", b"class main:\n  from other import", "found line 3, line 18"),
        (
            b"    main()\n",
            b"    pass\n",
            r"looked for a call of main\(\) at the top level, found none",
        ),
        (b"SETTING = 1", b"SETTING = = 1", "not Python source: .*line 8"),
        (b"SETTING = 1", b"SETTING = '\x00'", "not Python source: "),
        (b")\n\nSETTING = 1", b'); SETTING = """\n"""', "sharing a line with other statements"),
    ],
)
def test_an_unknown_shape_is_refused_with_what_was_looked_for(old, new, message):
    assert old in SHAPE
    with pytest.raises(UsageError, match=message):
        add_lines(SHAPE.replace(old, new))


def test_a_recipe_without_imports_is_refused():
    source = (
        b"def compute_loss(): ...\ndef train_one_epoch(): ...\n"
        b"def main(): ...\nmain()\nimport late\n"
    )
    with pytest.raises(UsageError, match=r"looked for an import .* ahead of main\(\), found none"):
        add_lines(source)
