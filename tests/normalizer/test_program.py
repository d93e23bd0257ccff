"""Row programs: gathered tables, shared parameters, several linears, against eager autograd."""

import pytest
import torch
import torch.nn.functional as F
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import (
    RowProgram,
    RowTable,
    Slot,
    Step,
    TileCounters,
    selected_log_probs,
)

D = torch.float64
FRAMES, SYMBOLS, X, HIDDEN, CLASSES, SITES = 11, 7, 5, 6, 23, 41


def joiner():
    """am, lm, inner weight and bias, scale, head; and the table rows each site reads."""
    g = torch.Generator().manual_seed(3)
    shapes = [
        (FRAMES, X),
        (SYMBOLS, X),
        (HIDDEN, X),
        (HIDDEN,),
        (X,),
        (CLASSES, HIDDEN),
        (CLASSES,),
    ]
    leaves = [torch.randn(s, generator=g, dtype=D).requires_grad_() for s in shapes]
    index = [torch.randint(0, n, (SITES,), generator=g) for n in (FRAMES, SYMBOLS)]
    ids = torch.randint(0, CLASSES, (SITES, 2), generator=g)
    return leaves, index, ids


def program(leaves, index):
    am, lm, w, b, scale, *_ = leaves
    return RowProgram(
        tables=[RowTable(am, index[0]), RowTable(lm, index[1])],
        parameters=[w, b, scale],
        steps=[
            Step(torch.add, (Slot(0), Slot(1)), {"alpha": 2.0}, X, D),
            Step(torch.mul, (Slot(5), Slot(4)), {}, X, D),
            Step(torch.tanh, (Slot(6),), {}, X, D),
            Step(F.linear, (Slot(7), Slot(2), Slot(3)), {}, HIDDEN, D),
            Step(torch.relu, (Slot(8),), {}, HIDDEN, D),
        ],
    )


def eager(leaves, index):
    am, lm, w, b, scale, *_ = leaves
    hidden = torch.tanh(torch.add(am[index[0]], lm[index[1]], alpha=2.0) * scale)
    return torch.relu(F.linear(hidden, w, b))


@pytest.mark.parametrize("workspace_bytes", [710, 4_000, 2**20])
def test_a_two_linear_program_equals_eager_autograd(workspace_bytes):
    leaves, index, ids = joiner()
    counters = TileCounters()
    ours, _ = selected_log_probs(
        program(leaves, index), leaves[5], leaves[6], ids,
        workspace_bytes=workspace_bytes, counters=counters,
    )  # fmt: skip
    truth, _ = dense_selected_log_probs(eager(leaves, index), leaves[5], leaves[6], ids)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    adjoints = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4), dtype=D)
    for x, y in zip(
        torch.autograd.grad((ours * adjoints).sum(), leaves),
        torch.autograd.grad((truth * adjoints).sum(), leaves),
    ):
        assert (x - y).norm() <= 1e-12 * y.norm()
    assert counters.totals.tiles_forward >= 1


def test_a_program_keeps_no_rows_for_backward():
    leaves, index, ids = joiner()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        selected_log_probs(program(leaves, index), leaves[5], leaves[6], ids)
    per_site = [tuple(t.shape) for t in saved if t.shape[:1] == (SITES,)]
    # log_z, the two tables' row numbers, ids: nothing H or C wide.
    assert sorted(per_site) == [(SITES,), (SITES,), (SITES,), (SITES, 2)]


def test_table_indices_outside_the_table_are_refused():
    leaves, index, ids = joiner()
    index[1] = index[1] + SYMBOLS
    with pytest.raises(ValueError, match="a table of 7 rows is read at"):
        selected_log_probs(program(leaves, index), leaves[5], leaves[6], ids)


def test_tables_of_different_numbers_of_sites_are_refused():
    with pytest.raises(ValueError, match=r"tables: got \[3, 4\] sites"):
        RowProgram(tables=[RowTable(torch.zeros(3, 2)), RowTable(torch.zeros(4, 2))])
    with pytest.raises(ValueError, match="tables: got none"):
        RowProgram(tables=[])


def test_row_tables_check_their_shapes():
    with pytest.raises(ValueError, match="values: got shape"):
        RowTable(torch.zeros(3))
    with pytest.raises(ValueError, match="index: got shape"):
        RowTable(torch.zeros(3, 2), torch.zeros(3))
