"""The PANDA group in the help of a recipe."""

import argparse

from panda_icefall.runs import PandaOptions
from panda_icefall.runs.panda_arguments import add_panda_arguments


def test_every_argument_explains_itself():
    parser = argparse.ArgumentParser()
    add_panda_arguments(parser)
    text = parser.format_help()
    for flag, option in PandaOptions.flags().items():
        assert flag in text
        assert option.metadata["help"].endswith(".")


def test_the_group_is_not_added_twice():
    parser = argparse.ArgumentParser()
    add_panda_arguments(parser)
    text = parser.format_help()
    add_panda_arguments(parser)
    assert parser.format_help() == text


def test_the_group_leaves_out_what_a_patched_recipe_already_defines():
    parser = argparse.ArgumentParser()
    parser.add_argument("--use-panda", help="the recipe's own")
    add_panda_arguments(parser)
    text = parser.format_help()
    assert text.count("--use-panda USE_PANDA") == 2  # usage line and description
    assert "--panda-max-batches" in text
    assert "the recipe's own" in text
