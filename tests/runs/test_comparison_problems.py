"""`panda-icefall report` where something is missing, empty or broken: named, and the rest shown."""

import json

import pytest
from locked import lock
from run_folders import write_contract, write_log

from panda_icefall.runs.comparison import read_runs


@pytest.fixture
def good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "good", [9.0, 8.0])
    return tmp_path


def make_nothing(folder):
    pass


def make_empty(folder):
    folder.mkdir()


def make_without_log(folder):
    folder.mkdir()
    (folder / "train.log").write_text("epoch 1")


def make_other_lines(folder):
    folder.mkdir()
    (folder / "cuts.jsonl").write_text('{"id": 1}\n')


def make_half_header(folder):
    folder.mkdir()
    (folder / "memory.jsonl").write_text('{"row": "hea')


def make_empty_log(folder):
    folder.mkdir()
    (folder / "memory.jsonl").touch()


def make_folder_for_log(folder):
    (folder / "memory.jsonl").mkdir(parents=True)


def make_file(folder):
    folder.write_text("epoch 1")


def make_half_contract(folder):
    folder.mkdir()
    (folder / "panda-check.json").write_text('{"has_passed": tr')


def make_other_contract(folder):
    folder.mkdir()
    (folder / "panda-check.json").write_text('{"has_passed": "perhaps"}')


def make_contract_that_is_a_list(folder):
    folder.mkdir()
    (folder / "panda-check.json").write_text("[1, 2]")


def make_wrong_row(folder):
    write_log(folder, [1.0])
    path = folder / "memory.jsonl"
    path.write_text(path.read_text().replace('"seconds": 0.5', '"seconds": "long"'))


NO_LOG = "expected a file that --panda-memory-log wrote; run the recipe with --panda-memory-log"
NO_HEADER = "whose first line is no header of a memory log"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_nothing, f"bad: does not exist, {NO_LOG}"),
        (make_empty, f"bad: an empty folder, {NO_LOG}"),
        (make_without_log, f"bad: got no memory log in it, no *.jsonl there or one folder below, "
         f"{NO_LOG}"),
        (make_other_lines, f"bad: got cuts.jsonl, {NO_HEADER}, {NO_LOG}"),
        (make_half_header, f"bad: got memory.jsonl, {NO_HEADER}, {NO_LOG}"),
        (make_empty_log, f"bad: got memory.jsonl, {NO_HEADER}, {NO_LOG}"),
        (make_folder_for_log, f"bad: got memory.jsonl, {NO_HEADER}, {NO_LOG}"),
        (make_file, f"bad: its first line is no header of a memory log, {NO_LOG}"),
        (make_half_contract, "bad/panda-check.json: cannot be read: Expecting value"),
        (make_other_contract, "bad/panda-check.json: has_passed: "),
        (make_contract_that_is_a_list, "bad/panda-check.json: the whole: "),
        (make_wrong_row, "bad/memory.jsonl: seconds: "),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(command, good, make, said):
    make(good / "bad")
    status, text, error = command("report", "good", "bad")
    assert status == 1
    assert error.startswith(f"panda-icefall: EXP_DIR: {said}")
    assert error.count("\n") == 1
    assert text.splitlines()[-1] == "report: panda-report/report.html"
    markdown = (good / "panda-report/report.md").read_text()
    assert "| run | good |" in markdown
    not_read = markdown.partition("## Not read")[2].partition("##")[0]
    assert "- EXP" in not_read
    assert "bad" in not_read
    (problem,) = json.loads((good / "panda-report/report.json").read_text())["not_read"]
    assert problem.startswith(f"EXP_DIR: {said}")
    # Alone it makes no report.
    (good / "panda-report/report.md").unlink()
    status, text, alone = command("report", "bad")
    assert (status, text, alone) == (2, "", error)
    assert not (good / "panda-report/report.md").exists()


def test_all_that_cannot_be_read_is_named(command, good):
    make_empty(good / "bad")
    status, _, error = command("report", "bad", "gone", "--out", "there")
    assert status == 2
    assert [line.split(":")[2].strip() for line in error.splitlines()] == ["bad", "gone"]
    assert not (good / "there").exists()


def test_where_all_is_read_there_is_nothing_to_say(command, good):
    status, _, error = command("report", "good")
    assert (status, error) == (0, "")
    assert "## Not read" not in (good / "panda-report/report.md").read_text()


def test_a_run_whose_contract_is_broken_is_shown_without_it(command, good):
    write_log(good / "run", [7.0])
    (good / "run/panda-check.json").write_text("{")
    status, _, error = command("report", "good", "run")
    assert status == 1
    assert "EXP_DIR: run/panda-check.json: cannot be read: " in error
    assert "run is shown without it" in error
    assert "| run | good | run |" in (good / "panda-report/report.md").read_text()


def test_lines_that_are_no_rows_are_counted_and_left_out(command, good):
    path = good / "good/memory.jsonl"
    first, *rows = path.read_text().splitlines()
    broken = ["\x00\x00", "[1, 2]", "17", '{"a": 1}', '{"row": "pha']
    path.write_text("\n".join([first, *broken, *rows]) + "\n")
    status, _, error = command("report", "good")
    assert status == 1
    assert "EXP_DIR: good/memory.jsonl: got 5 line(s) that are no rows, which are left" in error
    assert "| steps | 2 |" in (good / "panda-report/report.md").read_text()


def test_bytes_that_are_no_text_are_lines_that_are_no_rows(good):
    path = good / "good/memory.jsonl"
    first, _, rest = path.read_bytes().partition(b"\n")
    path.write_bytes(first + b"\n\xff\xfe\n" + rest)
    problems = []
    (run,) = read_runs([good / "good"], problems.append)
    assert len(run.arm.steps) == 2
    assert len(problems) == 1


def test_a_killed_run_is_shown_as_far_as_it_came_and_said_to_have_no_end(command, good):
    write_log(good / "killed", [9.0, 8.0], has_ended=False)
    path = good / "killed/memory.jsonl"
    path.write_text(path.read_text()[:-20])  # within the last row
    status, _, error = command("report", "good", "killed")
    assert (status, error) == (0, "")
    markdown = (good / "panda-report/report.md").read_text()
    assert "| steps | 2 | 1 |" in markdown
    (line,) = [line for line in markdown.splitlines() if line.startswith("- killed: ")][-1:]
    assert line == "- killed: the end of its log (it was killed, or is still running)"
    assert "- good: the end" not in markdown


def test_a_bounded_run_that_came_no_further_than_its_check_is_shown(command, good):
    write_contract(good / "bounded/contract/exp")
    status, _, error = command("report", "bounded")
    assert (status, error) == (0, "")
    assert "the contract holds" in (good / "panda-report/report.md").read_text()


def test_a_folder_that_is_given_twice_is_shown_once(command, good):
    assert command("report", "good", "good")[0] == 0
    assert "| run | good |" in (good / "panda-report/report.md").read_text()


def test_the_report_of_a_bounded_run_is_not_written_over(command, good):
    (good / "good/report.json").write_text('{"stages": []}')
    status, _, error = command("report", "good", "--out", "good/../good")
    assert status == 2
    assert "--out: got good/../good, one of EXP_DIR" in error
    assert (good / "good/report.json").read_text() == '{"stages": []}'


def test_a_log_that_must_not_be_read_is_left_out_and_those_beside_it_are_shown(
    command, good, monkeypatch
):
    for name in ("first", "second"):
        write_log(good / "runs" / name, [7.0])
    locked = lock(monkeypatch, good / "runs/first/memory.jsonl")
    status, _, error = command("report", "good", "runs")
    said = "EXP_DIR: cannot read runs/first/memory.jsonl: Permission denied; it is left out"
    assert (status, error) == (1, f"panda-icefall: {said}\n")
    assert "| run | good | second |" in (good / "panda-report/report.md").read_text()
    assert json.loads((good / "panda-report/report.json").read_text())["not_read"] == [said]
    locked.rename(good / "runs/first/other.jsonl")
    assert command("report", "runs")[0] == 0


def test_a_folder_of_nothing_but_a_log_that_must_not_be_read_is_named_once(
    command, good, monkeypatch
):
    write_log(good / "run", [7.0])
    lock(monkeypatch, good / "run/memory.jsonl")
    status, _, error = command("report", "run")
    assert status == 2
    assert error == (
        "panda-icefall: EXP_DIR: cannot read run/memory.jsonl: Permission denied; it is left out\n"
    )


def test_a_run_whose_contract_lies_where_nobody_may_look_is_shown_without_it(
    command, good, monkeypatch
):
    write_log(good / "run", [7.0], exp_dir=str(good / "closed/exp"))
    write_contract(good / "closed/exp")
    lock(monkeypatch, good / "closed")
    status, _, error = command("report", "good", "run")
    assert status == 1
    assert error.endswith(": Permission denied; run is shown without its contract\n")
    assert "| run | good | run |" in (good / "panda-report/report.md").read_text()
