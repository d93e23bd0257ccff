"""Sections of a report of which a part is not there, and a page of which a picture is not."""

from bounded_content import contract, record

from panda_icefall.runs.report import sections
from panda_icefall.runs.report.page import as_page


def test_a_contract_says_how_much_of_it_was_compared():
    found = contract(updates=3)
    whole = " ".join(sections.contract(record({"contract": found})))
    assert "batches were compared" not in whole
    part = {**found, "batches": found["batches"][:1]}
    assert sections.contract(record({"contract": part}))[0] == (
        "**Only 1 of 3 batches were compared.**"
    )
    none = {**found, "batches": []}
    assert sections.contract(record({"contract": none})) == ["No batch was compared."]


def test_curves_without_a_step_have_no_step_of_the_largest_difference():
    curves = {"steps": 0, "largest_relative_difference": float("nan")}
    (table,) = sections.training(record({"trajectory": curves}))
    assert "(step" not in table
    curves = {"steps": 3, "largest_relative_difference": 0.1, "step_of_largest": 2}
    assert "1.0e-01 (step 2)" in sections.training(record({"trajectory": curves}))[0]


def test_equal_parameters_have_no_table_of_the_largest_differences():
    parameters = {"rel_l2": 0.0, "bulk_rel_l2": 0.0}
    assert len(sections.final_parameters(record({"final_parameters": parameters}))) == 1
    parameters["largest_parameters"] = [{"name": "w", "share": 1.0, "rel_l2": 0.1}]
    assert len(sections.final_parameters(record({"final_parameters": parameters}))) == 2


def test_a_resumed_run_that_is_not_bit_identical_has_its_distance():
    resumed = {"stopped_after": 2, "steps": 4, "is_bitwise": False, "rel_l2": 3e-7}
    (text,) = sections.resume(record({"resume": resumed}))
    assert "the parameters are at rel-L2 3.0e-07 from those" in text


def test_stages_without_a_command_have_no_list_of_commands():
    stage = {"name": "dense", "state": "running"}
    assert len(sections.stages(record({"stages": [stage]}))) == 1
    assert len(sections.stages(record({"stages": [{**stage, "command": "train"}]}))) == 2


def test_a_picture_that_is_not_there_is_its_text():
    markdown = "# a run \\* of two\n\nIt runs.\n\n![the losses](gone.png)\n"
    page = as_page(markdown, "title", "kind", "open", {})
    assert "the losses" in page
    assert "<img" not in page
    assert "a run * of two" in page
