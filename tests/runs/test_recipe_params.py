"""Numbers of a recipe's own get_params(), replaced for a run."""

import argparse
import inspect

import pytest

from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_calls import with_params

GET_PARAMS = "def get_params():\n    return {'nhead': 8, 'dropout': 0.1, 'is_wide': True}\n\n\n"
PRINT = "    print('PARAMS', get_params())\n"


def get_params(wanted=2):
    return {"nhead": 8, "dropout": 0.1, "is_wide": True, "folder": "exp", "wanted": wanted}


def params_with(given):
    bound = inspect.signature(get_params).bind(wanted=5)
    return with_params(given, get_params, bound)


def test_numbers_are_replaced_by_those_of_their_kind():
    given = params_with({"nhead": "2", "dropout": "1e-3"})
    assert given == {**get_params(5), "nhead": 2, "dropout": 1e-3}
    assert type(given["nhead"]) is int


@pytest.mark.parametrize(
    ("name", "text"), [("nheads", "2"), ("nhead", "2.5"), ("is_wide", "0"), ("folder", "3")]
)
def test_what_is_no_number_of_the_recipe_is_refused(name, text):
    message = (
        f"--panda-recipe-params: got {name}={text}, expected a number .*: nhead, dropout, wanted"
    )
    with pytest.raises(UsageError, match=message):
        params_with({name: text})


@pytest.mark.parametrize("text", ["nhead", "nhead=", "=3", "nhead=3,nhead=4", ""])
def test_what_is_no_list_of_names_and_values_is_refused(text):
    parse = PandaOptions.flags()["--panda-recipe-params"].metadata["parse"]
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=VALUE, each name once"):
        parse(text)


def test_a_run_trains_with_them(recipe, capsys):
    recipe.edit(
        ("def get_parser():", GET_PARAMS + "def get_parser():"),
        ("    params = AttributeDict(", PRINT + "    params = AttributeDict("),
    )
    given = PandaOptions(use_panda=True, recipe_params={"nhead": "2"})
    assert run_recipe(recipe.train_py, [], given) == 0
    assert "PARAMS {'nhead': 2, 'dropout': 0.1, 'is_wide': True}" in capsys.readouterr().out
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    assert "'nhead': 8" in capsys.readouterr().out


def test_a_recipe_without_get_params_is_refused(recipe):
    with pytest.raises(UsageError, match=r"defines no get_params\(\)"):
        run_recipe(recipe.train_py, [], PandaOptions(use_panda=True, recipe_params={"a": "2"}))
