"""Joiners as people write them: what is recorded, what is kept, and the dense values of all."""

import dataclasses
from collections import Counter

import counted
import pytest
import torch
import toy
from dispatch import LargestTensor
from joiner_table import BEGIN, END, line, render, run
from joiners import LOGITS, RECORDED, ROWS, Joiner
from recipe_matrix import table

import panda_icefall

NEEDED = [row for row in ROWS if not row.needs or hasattr(torch.nn.functional, row.needs)]
TORCH = int(torch.__version__.split(".")[0])


def counted_as(row, materialised=None, **options):
    """A block with one loss, of this row."""
    is_routed = row.outcome != LOGITS
    options.update(materialised=materialised, adjoint_tolerance=0)
    return counted.routed(int(is_routed), dense=int(not is_routed), **options)


def assert_not_less_accurate(routed, dense, exact):
    """Errors of at most 1.25 times the dense ones and one rounding to bfloat16."""
    for x, y, ref in zip([routed[0], *routed[1]], [dense[0], *dense[1]], [exact[0], *exact[1]]):
        assert x.dtype == y.dtype
        assert (x - ref).norm() <= 1.25 * (y - ref).norm() + 2**-8 * ref.norm()


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_values_gradients_and_counters(k2, row):
    joiner, data = Joiner(row).double(), toy.batch(k2, torch.float64, width=row.width)
    dense = run(k2, joiner, data)
    assert dense[0].isfinite()
    state = torch.get_rng_state()
    with counted_as(row, dict(Counter(row.operations)), workspace_mib=0.02):
        routed = run(k2, joiner, data)
    assert torch.equal(torch.get_rng_state(), state)
    toy.assert_same(routed, dense, 1e-11)
    assert bool(row.operations) == (row.outcome != RECORDED)


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_the_hat_loss_of_every_joiner(newer_k2, row):
    joiner, data = Joiner(row).double(), toy.batch(newer_k2, torch.float64, width=row.width)
    dense = run(newer_k2, joiner, data, use_hat_loss=True)
    with counted_as(row, workspace_mib=0.02):
        routed = run(newer_k2, joiner, data, use_hat_loss=True)
    toy.assert_same(routed, dense, 1e-11)


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_under_autocast_no_joiner_is_less_accurate(k2, row):
    joiner, data = Joiner(row), toy.batch(k2, width=row.width)
    exact = run(k2, joiner, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = run(k2, joiner, data)
        with counted_as(row):
            routed = run(k2, joiner, data)
    assert routed[0].dtype == dense[0].dtype
    assert_not_less_accurate(routed, dense, exact)


@pytest.mark.parametrize(
    "row", [row for row in NEEDED if row.half_needs_torch <= TORCH], ids=lambda row: row.name
)
def test_a_half_precision_joiner_is_not_less_accurate(newer_k2, row):
    joiner = Joiner(row).bfloat16()
    data = toy.batch(newer_k2, torch.bfloat16, width=row.width)
    dense = run(newer_k2, joiner, data)
    with counted_as(row):
        routed = run(newer_k2, joiner, data)
    wide = dataclasses.replace(
        data, **{n: getattr(data, n).detach().double().requires_grad_() for n in ("am", "lm")}
    )
    assert_not_less_accurate(routed, dense, run(newer_k2, joiner.double(), wide))


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_only_where_the_row_says_so_do_logits_exist(k2, row):
    joiner, data = Joiner(row), toy.batch(k2, width=row.width)
    logits = toy.B * toy.T * toy.S_RANGE * toy.C
    with panda_icefall.patched(workspace_mib=0.008), LargestTensor() as largest:
        run(k2, joiner, data)
    assert (largest.elements >= logits) == (row.outcome == LOGITS)


LINES = {}


def measured_line(row, k2):
    """A row of the table, measured once for all tests."""
    if row.name not in LINES:
        LINES[row.name] = line(row, k2)
    return LINES[row.name]


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_the_table_says_where_the_logits_come_from(k2, row):
    _, name, recorded, head, made, dense, loss, gradients, _ = measured_line(row, k2).split("|")
    assert name.strip() == row.name
    assert head.strip() == ("" if row.outcome == LOGITS else row.head)
    assert bool(recorded.strip()) == (row.outcome != LOGITS)
    assert all(operation in made for operation in row.operations)
    assert bool(row.why) == (row.outcome == LOGITS) == (dense.strip() == "1")
    assert row.why in made
    assert max(float(loss), float(gradients)) <= 1e-11


def test_the_table_has_one_line_for_each_row(k2):
    table = render(k2, ROWS[:3]).splitlines()
    assert table[0].count("|") == table[1].count("|") == table[2].count("|")
    assert [row.split(" | ")[0][2:] for row in table[2:]] == [row.name for row in ROWS[:3]]
    assert [row.split(" | ")[4] for row in table[2:]] == ["0"] * 3  # dense losses


def test_row_names_are_unique_and_fit_a_table_cell():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) > 40
    assert not any("|" in name for name in names)


def test_the_committed_table_says_what_happens_now(k2):
    committed = {row.split(" | ")[0][2:]: row for row in table.lines(BEGIN, END)}
    assert list(committed) == [row.name for row in ROWS]
    for row in NEEDED:
        # The last two columns are rounding.
        assert measured_line(row, k2).split(" | ")[:5] == committed[row.name].split(" | ")[:5]
