"""Every icefall recipe with a transducer loss: one ragged batch through its model, both ways.

ICEFALL_ROOT=<icefall> pytest tests/icefall/test_recipe_matrix.py --write-matrix

writes the outcomes into egs/README.md.
"""

import re

import pytest
from recipe_matrix.isolation import egs
from recipe_matrix.measure import MATERIALISED, REFUSED, measure
from recipe_matrix.rows import ROWS

pytestmark = [pytest.mark.k2, pytest.mark.icefall]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace("/", "-"))
def test_routed_losses_and_gradients_are_the_dense_ones(row, outcomes):
    outcome = measure(row)
    outcomes[row.name] = outcome
    assert outcome.kind not in (MATERIALISED, REFUSED), outcome.reason
    assert outcome.violations == []


CALLED = ("k2.rnnt_loss", "torchaudio.functional.rnnt_loss", "optimized_transducer.transducer_loss")


def training_scripts():
    """`(folder below egs, script)` next to a model file that calls a transducer loss."""
    for model in egs().rglob("model*.py"):
        text = model.read_text()
        if not any(f"{name}(" in text for name in ("rnnt_loss_pruned", *CALLED)):
            continue
        for script in model.parent.glob("*.py"):
            if (
                re.match("train|finetune", script.name)
                and "def compute_loss(" in script.read_text()
            ):
                yield str(script.parent.relative_to(egs())), script.stem


def test_no_recipe_with_a_transducer_loss_is_left_out():
    found = set(training_scripts())
    assert len(found) > 75
    assert found - {(row.folder, row.train) for row in ROWS} == set()
