"""A recipe's own parser is asked what it takes, in a process of its own that never trains."""

import os

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded.recipe_options import check_recipe_options

RECIPE = """
import argparse
{before}

def main():
    print("a recipe may print")
    argparse.ArgumentParser().parse_args([])  # another parser, of other words
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-duration", type=float)
    parser.add_argument("--num-workers", type=int, choices=(0, 2))
    parser.add_argument("--start-epoch", type=int)
    args = parser.{parse}
    open("trained", "w").close()

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def ask(tmp_path):
    def ask(words, before="", parse="parse_args()", configured=("max-duration", "num-workers")):
        train_py = tmp_path / "ASR" / "recipe" / "train.py"
        train_py.parent.mkdir(parents=True)
        train_py.write_text(RECIPE.format(before=before, parse=parse))
        configured = [*configured, *(w[2:] for w in words.split() if w.startswith("--max-d"))]
        check_recipe_options(train_py, words.split(), configured, os.environ)

    yield ask
    assert not list(tmp_path.rglob("trained"))


def test_what_the_parser_takes_is_taken(ask):
    ask("--max-duration 15 --num-w 2")  # argparse takes abbreviations


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--max-duratoin 15 --num-workers 0",
            r"^train_args\.max-duratoin: .* no such option; did you mean max-duration\?$",
        ),
        ("--max-duration much", r"^train_args\.max-duration: invalid float value: 'much'$"),
        ("--num-workers 1", r"^train_args\.num-workers: invalid choice: 1 \(choose from 0, 2\)$"),
        ("--max-duration", r"^train_args\.max-duration: expected one argument$"),
        ("--start-batch 1", "^recipe: its parser has no option --start-batch, which a bounded run"),
        (
            "--max-de 1 --start-batch 1",
            r"^train_args\.max-de: .*; recipe: its parser has no option",
        ),
    ],
)
def test_what_it_does_not_take_is_named(ask, words, message):
    with pytest.raises(UsageError, match=message):
        ask(words)


def test_a_recipe_that_leaves_unknown_words_alone_may_have_them(ask):
    ask("--max-duratoin 15", parse="parse_known_args()")


def test_what_the_parser_says_of_no_option_is_said_in_its_words(ask):
    needing = "add_argument('--tokens', required=True) and parser.parse_args()"
    with pytest.raises(UsageError, match=r"^train_args: the recipe's parser says: .*--tokens$"):
        ask("--max-duration 15", parse=needing)


def test_a_value_is_checked_there_too(ask):
    with pytest.raises(UsageError, match=r"train_args\.max-duration: invalid float"):
        ask("--max-duration much", parse="parse_known_args()")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("import no_such_module", "ended with status 1 before .*No module named 'no_such_module'"),
        (
            "raise SystemExit(3)",
            "ended with status 3 before it parsed its command line: it printed",
        ),
    ],
)
def test_a_recipe_that_does_not_come_to_its_parser(ask, before, message):
    with pytest.raises(UsageError, match=message):
        ask("--max-duration 15", before=before)


def test_a_recipe_that_never_parses(ask, monkeypatch):
    monkeypatch.setattr("panda_icefall.runs.bounded.recipe_options._MINUTES", 0.05)
    with pytest.raises(UsageError, match=r"did not parse its command line within 0\.05 minutes"):
        ask("--max-duration 15", before="import time; time.sleep(60)")
