"""The rows of the report's contract: those that a check's JSON holds, each under its own bound."""

from bounded_content import contract, distance

from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import validated
from panda_icefall.runs.report.contract_rows import contract_rows


def rows_of(content):
    return contract_rows(validated(ContractRecord, content, "panda-check.json"))


def test_an_older_check_without_values_or_single_elements_has_no_rows_of_them():
    rows = rows_of(contract())
    names = [row.name for row in rows if not row.is_gradient]
    assert not [name for name in names if name.startswith(("transducer loss", "worst"))]


def test_values_and_worst_elements_have_rows_under_the_bounds_they_are_judged_by():
    found = contract(updates=2)
    found["tolerances"] = {**found["tolerances"], "loss_rel": 1e-6, "log_prob_elementwise": 1e-5}
    for batch in found["batches"]:
        batch["pruned_losses"] = [distance("pruned loss 1", 3e-7)]
        batch["log_z"] = [{**distance("pruned loss 1", 2e-8), "max_scaled": 4e-6}]
    rows = rows_of(found)
    by_name = {row.name: row for row in rows}
    value, worst = by_name["transducer loss"], by_name["worst log_z"]
    assert (value.bound, [cell.value for cell in value.cells]) == (1e-6, [3e-7] * 2)
    assert (worst.bound, [cell.value for cell in worst.cells]) == (1e-5, [4e-6] * 2)
    assert not value.is_gradient
    assert by_name["log_z"].cells[0].value == 2e-8


def test_a_gradient_that_rounding_moves_has_the_bound_of_its_batch():
    found = contract(updates=2)
    found["batches"][1]["gradient_bounds"] = {"encoder": 4e-5}
    rows = rows_of(found)
    encoder = next(row for row in rows if row.name == "encoder")
    assert encoder.bound == 1e-5
    assert [cell.bound for cell in encoder.cells] == [1e-5, 4e-5]


def test_without_a_compared_batch_there_are_no_rows():
    assert rows_of({**contract(), "batches": []}) == []
