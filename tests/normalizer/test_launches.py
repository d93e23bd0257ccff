"""How many operations a tile takes: each costs the host some microseconds on a GPU.

Counted by what one more tile adds, so that what a call does once does not matter. Before the
figures below were pinned, one more row tile took 42 and 51 (torch, forward and backward, half
head), with Triton 29 and 39.
"""

import importlib.util

import pytest
import torch
from dispatch import Launches

from panda_icefall.normalizer import (
    RowProgram,
    RowTable,
    Slot,
    Step,
    TileCounters,
    selected_log_probs,
)

HIDDEN, ROWS = 8, 32
ENGINES = ["torch", "triton"] if importlib.util.find_spec("triton") else ["torch"]
# In the interpreter numpy tells of -inf minus -inf.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)


def joiner(sites, has_steps):
    """Rows ``[sites, H]``: those of a table, or ``tanh(am + lm)``."""
    am = torch.randn(sites, HIDDEN, requires_grad=True)
    if not has_steps:
        return RowProgram((RowTable(am),)), [am]
    lm = torch.randn(7, HIDDEN, requires_grad=True)
    index = torch.arange(sites)
    steps = (
        Step(torch.add, (Slot(0), Slot(1)), {}, HIDDEN, torch.float32),
        Step(torch.tanh, (Slot(2),), {}, HIDDEN, torch.float32),
    )
    return RowProgram((RowTable(am, index), RowTable(lm, index % 7)), (), steps), [am, lm]


def count(engine, sites, classes, workspace_bytes, head_dtype=None, has_steps=False):
    """Launches and tiles of forward and of backward."""
    program, leaves = joiner(sites, has_steps)
    weight = torch.randn(classes, HIDDEN, requires_grad=True)
    bias = torch.randn(classes, requires_grad=True)
    counters = TileCounters()
    found = []
    with Launches() as launches:
        logp, _ = selected_log_probs(
            program, weight, bias, torch.zeros(sites, 2, dtype=torch.int64), engine=engine,
            head_dtype=head_dtype, workspace_bytes=workspace_bytes, counters=counters,
        )  # fmt: skip
        found.append(launches.total)
        total = logp.sum()
        before = launches.total
        torch.autograd.grad(total, [*leaves, weight, bias])
        found.append(launches.total - before)
    totals = counters.totals
    return [*zip(found, (totals.tiles_forward, totals.tiles_backward))]


def per_tile(*args, classes=96, workspace_bytes=20_000, **kwargs):
    """What one tile adds, forward and backward."""
    few, many = (
        count(*args, sites, classes, workspace_bytes, **kwargs) for sites in (20 * ROWS, 40 * ROWS)
    )
    return [(b - a) / (tiles - less) for (a, less), (b, tiles) in zip(few, many)]


@pytest.mark.parametrize("has_steps", [False, True])
@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES)
def test_print(engine, head_dtype, has_steps):
    for classes, workspace in ((96, 40_000), (960, 40_000)):
        found = per_tile(
            engine,
            classes=classes,
            workspace_bytes=workspace,
            head_dtype=head_dtype,
            has_steps=has_steps,
        )
        print(engine, head_dtype, "joiner" if has_steps else "rows", classes, found)
