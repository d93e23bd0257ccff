"""The committed table of the recipe matrix, and how outcomes are put into it."""

import math

import pytest
import torch
from recipe_matrix import table
from recipe_matrix.comparison import (
    bad_parameters,
    group_differences,
    largest_relative_difference,
)
from recipe_matrix.measure import MATERIALISED, OWN_FAILURE, ROUTED, Outcome
from recipe_matrix.rows import ROWS


def test_the_committed_table_lists_exactly_the_rows():
    assert table.names() == [row.name for row in ROWS]


def test_row_names_are_unique_and_fit_a_table_cell():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert not any("|" in name or "\n" in name for name in names)


def test_the_table_replaces_what_stood_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{table.BEGIN}\nstale text\n{table.END}\n\nAfter\n")
    outcomes = [
        Outcome(
            "a/b", "", ROUTED, "", "add, tanh, linear", 2, "2 deferred", 30, 1, "a/b/model.py", 1e-7
        ),
        Outcome(
            *("a/b: odd", "k2 stand-in", MATERIALISED, "softmax", "add", 1),
            *("1 of tensors (simple_am_proj: sum)", 10, 0, "a/b/model.py", 0.0, 2e-7),
        ),
        Outcome("c/d finetune.py", "", OWN_FAILURE, "ImportError: no x"),
    ]
    table.write(outcomes, "icefall 1234", readme)
    text = readme.read_text()
    assert text.startswith("# Before\n\n")
    assert text.endswith("After\n")
    assert "stale text" not in text
    assert (
        "3 rows, 2 recipe folders, 1 model files: 1 routed, 1 materialised, 0 refused, 1 fail"
        in text
    )
    assert "Simple losses: 2 deferred, 1 of tensors. For 1 of 40 frames" in text
    assert "| a/b | add, tanh, linear | 2 | 2 deferred | routed | 1.0e-07 | 0.0e+00 |  |" in text
    odd = "| a/b: odd | add | 1 | 1 of tensors (simple_am_proj: sum) | materialised: softmax |"
    assert f"{odd} 0.0e+00 | 2.0e-07 | k2 stand-in |" in text
    assert (
        "| c/d finetune.py |  |  |  | recipe fails by itself: ImportError: no x |  |  |  |" in text
    )
    assert table.names(readme) == ["a/b", "a/b: odd", "c/d finetune.py"]
    table.write(outcomes, "icefall 1234", readme)
    assert readme.read_text() == text


@pytest.mark.parametrize(
    ("value", "expected", "difference"),
    [
        (2.0, 2.0, 0.0),
        (0.0, 0.0, 0.0),
        (3.0, 2.0, 0.5),
        (1.0, 0.0, math.inf),
        (math.nan, 1.0, math.inf),
        (math.nan, math.nan, math.inf),
    ],
)
def test_differences_of_losses_are_relative_and_never_hide_a_nan(value, expected, difference):
    found = largest_relative_difference(
        [torch.ones(3), torch.tensor([1.0, value])], [torch.ones(3), torch.tensor([1.0, expected])]
    )
    assert found == difference


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_on_both_sides_do_not_agree(bad):
    gradients = {"encoder.weight": torch.tensor([1.0, bad]), "joiner.weight": torch.ones(2)}
    found = group_differences(gradients, gradients)
    assert found == {"encoder": math.inf, "joiner": 0.0}


def test_a_group_without_gradient_must_stay_without():
    expected = {"joiner.weight": torch.zeros(2)}
    assert group_differences(expected, expected) == {"joiner": 0.0}
    assert group_differences({"joiner.weight": torch.ones(2)}, expected) == {"joiner": math.inf}


def test_a_parameter_that_is_off_is_named():
    expected = {"joiner.weight": torch.full((4,), 100.0), "joiner.bias": torch.zeros(4)}
    assert bad_parameters(expected, expected) == {}
    off = {**expected, "joiner.bias": torch.full((4,), 0.01)}
    assert list(bad_parameters(off, expected)) == ["joiner.bias"]
