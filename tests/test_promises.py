"""The table of promises in panda_icefall/README.md names tests that are there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "panda_icefall" / "README.md"
SECTION = "## What is promised, and which test shows it\n"
CITED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of every promise."""
    text = PAGE.read_text().split(SECTION)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "promise"]


@functools.cache
def functions_of(file: Path) -> set[str]:
    """Its tests, and the checks that its tests run on several ranks."""
    body = ast.parse(file.read_text()).body
    return {
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("test_", "check_"))
    }


def test_there_are_promises_and_each_is_made_once():
    promises = [row[0] for row in rows()]
    assert len(promises) == len(set(promises)) >= 40
    assert all(len(row) == 3 for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_promise_names_tests_that_are_there(row):
    cited = CITED.findall(row[1])
    assert cited
    assert CITED.sub("", row[1]).strip(" ,") == ""  # nothing else stands for a test
    for file, name in cited:
        assert name in functions_of(TESTS / file), f"{file}: no {name}"


def test_a_test_that_is_not_there_would_be_noticed():
    assert "test_there_are_promises_and_each_is_made_once" in functions_of(Path(__file__))
    assert "rows" not in functions_of(Path(__file__))
