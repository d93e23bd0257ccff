"""What the first screen of a report says: the state, the verdicts, memory and time."""

import bounded_content as made
import pytest

from panda_icefall.runs.report import first_screen


def label_of(content):
    return first_screen.state(made.record(content))[0]


def headline(content):
    return first_screen.headline(made.record(content))


def facts(content):
    return first_screen.facts(made.record(content))


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"state": "complete", "passed": True}, "HOLDS"),
        ({"state": "complete", "passed": False}, "VIOLATED"),
        ({"state": "complete", "passed": None}, "COMPLETE, NOT JUDGED"),
        ({"state": "partial", "passed": None}, "PARTIAL"),
        ({"state": "partial", "passed": False}, "PARTIAL"),
        ({"state": "running", "passed": None}, "RUNNING"),
    ],
)
def test_the_label_follows_state_and_outcome(changes, label):
    assert label_of({**made.complete(), **changes}) == label


def test_one_violated_verdict_outweighs_a_run_marked_as_passed():
    content = {**made.complete(), "passed": True}
    content["verdicts"][2]["holds"] = False
    assert label_of(content) == "VIOLATED"


def test_the_words_of_the_tables_are_explained_above_them():
    text = "\n".join(first_screen.first_screen(made.record(made.complete()), "HOLDS", "all hold"))
    before, _, _ = text.partition("| verdict |")
    assert "Dense: the transducer losses as the recipe computes them" in before
    assert "Dense twin: a second dense run" in before


def test_a_partial_run_without_a_reason_says_that_none_was_recorded():
    content = {"state": "partial"}
    assert "no reason was recorded." in first_screen.state(made.record(content))[2]


def test_only_an_incomplete_run_lists_verdicts_that_were_not_given():
    names = [v.name for v in first_screen.all_verdicts(made.record({"state": "partial"}))]
    assert names == [
        "contract",
        "transducer loss",
        "trajectory",
        "final parameters",
        "finite",
        "resume",
    ]
    ended = made.record({"state": "complete", "verdicts": []})
    assert first_screen.all_verdicts(ended) == []


def test_memory_and_time_are_compared_over_the_steps_that_both_runs_have():
    content = made.complete()
    content["arms"]["routed"]["steps"] = content["arms"]["routed"]["steps"][:4]
    late = content["arms"]["dense"]["steps"][20]
    late["peak_bytes"] = 99_000 * made.MIB
    late["seconds"] = 1e6
    rows, caption = headline(content)
    cells = " ".join(" ".join(row) for row in rows)
    assert "99,000" not in cells
    assert "Over the 4 training steps that both runs have (dense 30, routed 4)" in caption
    assert rows[-1][0] == "loss per frame, step 4"


def test_the_median_time_leaves_out_the_first_step():
    content = made.complete(steps=3)
    for name, seconds in (("dense", (90.0, 2.0, 4.0)), ("routed", (80.0, 1.0, 2.0))):
        for row, value in zip(content["arms"][name]["steps"], seconds):
            row["seconds"] = value
    (row,) = [row for row in headline(content)[0] if row[0] == "median time per step"]
    assert row[1:] == ("3.00 s", "1.50 s", "0.50\u00d7")


def test_memory_above_the_start_is_left_out_where_the_start_was_not_measured():
    content = made.complete()
    for arm in content["arms"].values():
        arm["base_bytes"] = None
    assert [row[0] for row in headline(content)[0]] == [
        "peak memory (process RSS)",
        "added by the losses in forward (share of the peak)",
        "median time per step",
        "loss per frame, step 30",
    ]


def test_the_share_of_the_losses_in_the_peak():
    content = made.complete(steps=2)
    for name, added, peak in (("dense", 300, 1000), ("routed", 60, 800)):
        for row in content["arms"][name]["steps"]:
            row.update(losses_bytes=added * made.MIB, peak_bytes=peak * made.MIB)
    (row,) = [row for row in headline(content)[0] if row[0].startswith("added by the losses")]
    assert row[1:] == ("300 MiB (30%)", "60 MiB (8%)", "0.20\u00d7")
    for name in ("dense", "routed"):
        for step in content["arms"][name]["steps"]:
            del step["losses_bytes"]
    assert not any("losses" in row[0] for row in headline(content)[0])


def test_where_panda_was_on_and_with_which_options():
    content = made.complete()
    assert facts(content)["PANDA"] == (
        "on in routed, stopped, resumed; workspace chosen for the device, adjoint tolerance by "
        "default, engine auto; off in dense, twin"
    )
    options = {"workspace_mib": 4.0, "adjoint_tolerance": 1e-6, "engine": "torch"}
    content["arms"] = {"routed": content["arms"]["routed"]}
    content["arms"]["routed"]["options"].update(options)
    told = facts(content)["PANDA"]
    assert told == "on in routed; workspace 4 MiB, adjoint tolerance 1e-06, engine torch"
    assert facts({**content, "arms": {"dense": made.arm("dense")}})["PANDA"] == "off in dense"
    del content["arms"]["routed"]["options"]
    assert "PANDA" not in facts(content)


def test_one_arm_alone_has_no_ratio():
    content = made.complete()
    del content["arms"]["routed"]
    assert {row[3] for row in headline(content)[0]} == {"\u2013"}
    assert headline({"arms": {"dense": {"steps": []}}}) is None


def test_facts_name_machine_data_and_commit_and_leave_out_what_is_unknown():
    told = facts(made.complete())
    assert told["machine"] == "a processor with two cores, cpu"
    assert told["icefall"] == "36e0420c7e3e (clean)"
    assert "icefall 36e" not in told["versions"]
    assert told["data"] == "synthetic (made by panda-icefall synth), out/aishell/data"
    assert facts({}) == {}


def test_the_threads_are_those_of_the_training_processes():
    content = made.complete()
    content["arms"]["dense"]["threads"] = 1
    assert facts(content)["machine"].endswith(", cpu, 1 thread in training")
    content["arms"]["routed"]["threads"] = 4
    assert facts(content)["machine"].endswith(", cpu, 1 or 4 threads in training")


def test_the_last_words_on_a_console_are_memory_speed_and_the_verdict():
    lines = first_screen.closing_lines(made.record(made.complete()))
    memory, seconds = (next(x for x in lines if x.startswith(n)) for n in ("peak mem", "median ti"))
    assert " MiB, routed " in memory
    assert " s, routed " in seconds
    assert lines[-1] == "HOLDS: 6 of 6 verdicts hold."
    (only,) = first_screen.closing_lines(made.record(made.young()))
    assert only.startswith("RUNNING: ")
