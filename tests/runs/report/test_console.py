"""What a run prints at its end, beside its usual rows."""

import io

from bounded_content import contract
from rich.console import Console

from panda_icefall.routing import LossTotals
from panda_icefall.runs import PandaOptions
from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import RunOutcome, validated
from panda_icefall.runs.report.console import LOG_WIDTH, print_contract, print_summary

PANDA = PandaOptions(use_panda=True)


def printed(print_on):
    console = Console(file=io.StringIO(), width=LOG_WIDTH)
    print_on(console)
    return console.file.getvalue()


def test_tiles_that_ran_out_of_memory_have_a_row_where_there_were_any():
    for retries in (0, 3):
        counters = LossTotals(losses_routed=2, out_of_memory_retries=retries)
        outcome = RunOutcome(rank=0, batches=2, seconds=1.0, counters=counters)
        text = printed(lambda console, o=outcome: print_summary([o], console, PANDA))
        assert ("tiles retried at half size" in text) == (retries > 0)


def test_a_run_without_a_batch_has_no_table():
    outcome = RunOutcome(rank=0, batches=0, seconds=1.0)
    text = printed(lambda console: print_summary([outcome], console, PandaOptions()))
    assert text == "PANDA summary: no batch was trained.\n"


def test_updates_whose_transducer_loss_had_no_gradient_are_named():
    content = contract()
    for batch in content["batches"]:
        batch["has_pruned_gradient"] = batch["update"] != 2
    record = validated(ContractRecord, content, "panda-check.json")
    text = printed(lambda console: print_contract(record, None, console))
    assert "details: not written" in text
    assert "not compared in backward: update(s) 2:" in text


def test_only_gradients_with_a_wider_bound_are_explained():
    content = contract()
    content["tolerances"]["gradient_rel_l2"] = 1e-6
    moved = {"encoder": 1e-6, "decoder": 6e-6}  # by what rounding in the loss allows each
    for batch in content["batches"]:
        batch["gradients_twin"] = [
            {**batch["gradients"][0], "group": group, "rel_l2": bound / 4}
            for group, bound in moved.items()
        ]
        batch["gradient_bounds"] = moved
    record = validated(ContractRecord, content, "panda-check.json")
    lines = printed(lambda console: print_contract(record, None, console)).splitlines()
    said = [line for line in lines if "rounding in the loss alone" in line]
    assert len(said) == len(content["batches"])
    assert all("of decoder by rel-L2 1.50e-06: " in line for line in said)
    assert all(line.endswith("the routed one may differ by 6.00e-06") for line in said)
