"""The joiner matrix as a markdown table in `egs/README.md`, written by running this file."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import toy
from joiners import LOGITS, ROWS, Joiner, Row
from recipe_matrix import table
from recipe_matrix.comparison import largest_relative_difference
from recipe_matrix.joiner_kind import joiner_kind

import panda_icefall
from panda_icefall.routing import hosts, routed_loss
from panda_icefall.routing.heads import linear_head

BEGIN = "<!-- joiner matrix: written by tests/support/joiner_table.py -->"
END = "<!-- joiner matrix: end -->"


def run(k2: Any, joiner: Joiner, data: toy.Batch, **arguments: Any) -> Any:
    """Loss and gradients, from one random state, which dropout draws from."""
    torch.manual_seed(5)
    return toy.loss_and_gradients(k2, joiner, data, **arguments)


def line(row: Row, k2: Any) -> str:
    """A row of the table, measured in float64."""
    joiner = Joiner(row).double()
    data = toy.batch(k2, torch.float64, width=row.width)
    dense = run(k2, joiner, data)
    seen = []
    compute = routed_loss.compute

    def noting(logits: Any, *args: Any, **kwargs: Any) -> Any:
        head = linear_head(logits.node, is_shift_free=True)
        seen.append((joiner_kind(logits.node), "rows" if head is None else "linear"))
        return compute(logits, *args, **kwargs)

    with panda_icefall.patched(adjoint_tolerance=0):
        with mock.patch.object(routed_loss, "compute", noting):
            routed = run(k2, joiner, data)
        status = panda_icefall.status()
    (recorded, head), *_ = seen or [("", "")]
    names = ", ".join(dict.fromkeys(row.operations))
    made = f"{names}: logits, {row.why}" if row.outcome == LOGITS else names and f"{names}: H-wide"
    differences = [
        f"{largest_relative_difference([ours], [ref]):.0e}"
        for ours, ref in ((routed[0], dense[0]), (_norms(routed[1], dense[1]), torch.tensor(1.0)))
    ]
    columns = [row.name, recorded, head, made, str(status.losses_dense), *differences]
    return "| " + " | ".join(columns) + " |"


def _norms(routed: Any, dense: Any) -> torch.Tensor:
    """1 plus the largest relative L2 difference of a gradient."""
    return 1 + max((x - y).norm() / y.norm() for x, y in zip(routed, dense))


def render(k2: Any, rows: list[Row]) -> str:
    """The head of the table and a line for each row."""
    return "\n".join(
        [
            "| joiner | recorded | head | materialised | dense losses | loss | gradients |",
            "|---|---|---|---|---|---|---|",
            *(line(row, k2) for row in rows),
        ]
    )


if __name__ == "__main__":
    usable = [row for row in ROWS if not row.needs or hasattr(torch.nn.functional, row.needs)]
    table.put(render(hosts.patched_module(), usable), BEGIN, END)
