"""`panda-icefall report`: runs read from their folders, beside each other in one page."""

import json
import math
import sys
from pathlib import Path

import pytest
from run_folders import write_contract, write_log

from panda_icefall.runs import PandaOptions, UsageError, run_recipe
from panda_icefall.runs.comparison import read_runs
from panda_icefall.runs.records import Arm, validated

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "exp-dense", [9.0, 8.0, 7.0], peak=400)
    write_log(tmp_path / "exp-panda", [9.0, 8.0, 7.0], peak=100, use_panda=True)
    write_contract(tmp_path / "exp-panda")
    write_log(tmp_path / "other", [9.1, 8.2], peak=200, with_parts=False)
    return tmp_path


def test_three_runs_are_compared_by_the_first(command, runs):
    status, text, _ = command("report", "exp-dense", "exp-panda", "other")
    assert status == 0
    assert text.splitlines()[-1] == "report: panda-report/report.html"
    out = runs / "panda-report"
    markdown = (out / "report.md").read_text()
    assert "| run | exp-dense | exp-panda | other |" in markdown
    assert "| losses | dense | routed | dense |" in markdown
    assert "| steps | 3 | 3 | 2 |" in markdown
    assert "| last loss per frame | 7 | 7 | 8.2 |" in markdown
    assert "| largest loss difference | \N{EN DASH} | 0 | 2.5e-02 |" in markdown
    assert markdown.startswith("# exp-dense, exp-panda, other\n\n**3 runs**: least memory")
    assert "Dense: the transducer losses as the recipe computes them" in markdown
    assert "No run recorded its command." in markdown
    assert "| peak memory | 403 MiB | 103 MiB | 202 MiB |" in markdown
    assert "| above memory at start | 353 MiB | 53 MiB | 152 MiB |" in markdown
    assert "| median time per step | 1.00 s | 1.00 s | 1.00 s |" in markdown
    assert f"| memory / first run | 1.00{TIMES} | 0.26{TIMES} | 0.50{TIMES} |" in markdown
    assert "least memory: exp-panda, 103 MiB" in markdown
    assert "different numbers of steps" in markdown
    assert "exp-panda: the contract holds over 3 batch(es)." in markdown
    assert "exp-dense, other: no contract check was found." in markdown
    assert "torch 2.13.0, threads 1" in markdown
    assert "- other: phases" in markdown.partition("## Not measured")[2]
    assert {path.name for path in out.iterdir()} == {
        "report.html", "report.md", "report.json", "loss.png", "memory.png", "phases.png",
    }  # fmt: skip


def test_a_reader_sees_the_commands_and_where_they_differ(command, runs):
    argv = ["zipformer/train.py", "--exp-dir", "a", "--max-duration", "100", "--musan=0"]
    write_log(runs / "exp-dense", [9.0], argv=argv)
    options = {"use_panda": True, "max_batches": 20, "an_old_option": 3}
    argv = ["zipformer/train.py", "--exp-dir", "b c", "--max-duration=600", "--tags"]
    write_log(runs / "exp-panda", [9.0], argv=argv, options=options)
    assert command("report", "exp-dense", "exp-panda", "other")[0] == 0
    markdown = (runs / "panda-report/report.md").read_text()
    assert (
        "```\n# exp-dense\npanda-icefall run zipformer/train.py --exp-dir a --max-duration 100 "
        "--musan=0\n# exp-panda\npanda-icefall run zipformer/train.py --exp-dir 'b c' "
        "--max-duration=600 --tags --use-panda 1 --panda-max-batches 20\n```"
    ) in markdown
    assert (
        "**exp-panda: other arguments than exp-dense, so that a ratio says little (commands "
        "below): --max-duration 600 (there 100), --musan not given (there 0), "
        "--tags given (there not given)**"
    ) in markdown
    assert "**other: other" not in markdown  # its log tells no arguments


def test_runs_with_many_other_arguments_share_a_short_warning(command, runs):
    write_log(runs / "exp-dense", [9.0], argv=["train.py"])
    for name in ("exp-panda", "other"):
        write_log(runs / name, [9.0], argv=["train.py", *(f"--{n}" for n in "abcdef")])
    assert command("report", "exp-dense", "exp-panda", "other")[0] == 0
    (line,) = [
        line
        for line in (runs / "panda-report/report.md").read_text().splitlines()
        if "so that a ratio" in line
    ]
    assert line.startswith("**exp-panda, other: other arguments than exp-dense")
    assert line.endswith("--d given (there not given), and 2 more**")


def test_a_resumed_run_is_compared_batch_by_batch():
    def arm(first, losses):
        rows = [{"step": n, "batch_idx_train": first + n, "loss": x} for n, x in enumerate(losses)]
        return validated(Arm, {"steps": rows}, "test")

    whole, resumed = arm(0, [9.0, 8.0, 4.0, 2.0]), arm(2, [4.0, 3.0])
    assert resumed.loss_differences(whole) == {0: 0.0, 1: 0.5}
    alone = arm(0, [9.0, float("nan"), 0.0])
    assert alone.loss_differences(arm(0, [9.0, 8.0, 0.0])) == {0: 0.0}


def test_a_loss_that_is_finite_in_one_run_alone_is_said(command, runs):
    write_log(runs / "exp-nan", [9.0, math.nan, 7.0])
    write_log(runs / "exp-finite", [9.0, 8.0, 7.0])
    assert command("report", "exp-finite", "exp-nan")[0] == 0
    markdown = (runs / "panda-report/report.md").read_text()
    assert "| largest loss difference | \N{EN DASH} | not finite |" in markdown
    assert command("report", "exp-nan", "exp-nan")[0] == 0


def test_the_page_needs_nothing_else(command, runs):
    assert command("report", "exp-dense", "exp-panda")[0] == 0
    page = (runs / "panda-report/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    assert "http" not in page.partition("<body>")[2]
    assert "<title>exp-dense and exp-panda</title>" in page


def test_the_report_is_json_too(command, runs):
    status, text, _ = command("report", "exp-dense", "exp-panda", "--json", "--out", "there")
    assert status == 0
    content = json.loads(text)
    assert content == json.loads((runs / "there/report.json").read_text())
    assert [run["losses"] for run in content["runs"]] == ["dense", "routed"]
    assert len(content["runs"][0]["arm"]["steps"]) == 3


def test_one_run_is_shown_and_compared_with_nothing(command, runs):
    assert command("report", "other")[0] == 0
    assert "only other trained." in (runs / "panda-report/report.md").read_text()


def test_a_folder_of_several_runs_gives_all_of_them(tmp_path):
    for name in ("dense", "routed"):
        write_log(tmp_path / "bounded" / name, [1.0])
    assert [run.name for run in read_runs([tmp_path / "bounded"])] == ["dense", "routed"]


def test_runs_in_folders_of_the_same_name_are_told_apart(tmp_path):
    for name in ("a", "b"):
        write_log(tmp_path / name / "exp", [1.0])
    found = read_runs([tmp_path / "a/exp", tmp_path / "b/exp"])
    assert [run.name for run in found] == ["a/exp", "b/exp"]
    for name in ("a", "b"):
        write_log(tmp_path / name / "x/y/z", [1.0])
    found = read_runs([tmp_path / "a/x/y/z", tmp_path / "b/x/y/z"])
    assert [run.name for run in found] == [str(run.log) for run in found]


def test_a_log_without_options_is_not_said_to_be_dense(tmp_path):
    write_log(tmp_path, [1.0], options=None)
    assert [run.losses for run in read_runs([tmp_path])] == ["not recorded"]


def test_a_run_without_a_whole_step_is_said_to_have_none(command, runs):
    write_log(runs / "empty", [])
    assert command("report", "exp-dense", "empty")[0] == 0
    markdown = (runs / "panda-report/report.md").read_text()
    assert "- empty: steps, losses, peak memory, phases" in markdown


def test_folders_without_a_log_are_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = command("report", "gone")
    assert status == 2
    assert "EXP_DIR: gone: does not exist, expected a file that --panda-memory-log wrote" in error
    assert not (tmp_path / "panda-report").exists()
    (tmp_path / "memory.jsonl").write_text('{"row": "header"}\n')
    (tmp_path / "panda-check.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        read_runs([tmp_path])


def test_without_matplotlib_the_numbers_stay_and_older_figures_go(command, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (runs / "panda-report").mkdir()
    (runs / "panda-report" / "loss.png").write_bytes(b"of an earlier report")
    assert command("report", "exp-dense", "exp-panda")[0] == 0
    markdown = (runs / "panda-report" / "report.md").read_text()
    assert "No figures: matplotlib cannot be loaded" in markdown
    assert "least memory: exp-panda" in markdown
    assert not list((runs / "panda-report").glob("*.png"))


def test_a_report_that_cannot_be_written_is_one_line(command, runs):
    (runs / "full/report.html").mkdir(parents=True)
    status, _, error = command("report", "exp-dense", "--out", "full")
    assert status == 2
    assert "--out: cannot write full: Is a directory" in error
    assert error.count("\n") == 1


def test_the_contract_is_found_where_the_run_wrote_it(recipe):
    log = recipe.folder / "log/m.jsonl"
    options = PandaOptions(use_panda=True, memory_log=log, check_batches=1, max_batches=1)
    assert run_recipe(recipe.train_py, ["--exp-dir", "there"], options) == 0
    (run,) = read_runs([log.parent])
    assert run.contract_path == recipe.folder / "there/panda-check.json"
    assert [len(contract.batches) for contract in run.contracts] == [1]


def test_the_folder_that_the_log_names_is_looked_at_first_then_those_beside_it(tmp_path):
    named, beside = tmp_path / "named", tmp_path / "run/exp"
    write_log(tmp_path / "run", [1.0], exp_dir=str(named))
    assert read_runs([tmp_path / "run"])[0].contract_path is None
    write_contract(beside)
    assert read_runs([tmp_path / "run"])[0].contract_path == beside / "panda-check.json"
    write_contract(named)
    assert read_runs([tmp_path / "run"])[0].contract_path == named / "panda-check.json"


def test_the_routed_runs_of_a_bounded_run_share_its_contract(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dense", "routed", "resumed"):
        write_log(tmp_path / "bounded" / name, [1.0], use_panda=name != "dense")
    write_contract(tmp_path / "bounded/contract/exp")
    assert command("report", "bounded")[0] == 0
    markdown = (tmp_path / "panda-report/report.md").read_text()
    assert "resumed, routed: the contract holds over 3 batch(es)." in markdown
    assert "dense: no contract check was found." in markdown


def test_the_folder_of_a_check_shows_its_contract_alone(command, runs):
    write_contract(runs / "check", has_passed=False, violations=["update 1: loss"])
    assert command("report", "check", "exp-dense", "exp-panda")[0] == 0
    markdown = (runs / "panda-report/report.md").read_text()
    assert "check: VIOLATED: update 1: loss" in markdown
    assert "| losses | check only | dense | routed |" in markdown
    # The first that trained is the one to compare with.
    assert f"| time / first run | \N{EN DASH} | 1.00{TIMES} | 1.00{TIMES} |" in markdown
    assert "- check: everything but the contract" in markdown.partition("## Not measured")[2]
    assert "different numbers of steps" not in markdown
    (found,) = json.loads((runs / "panda-report/report.json").read_text())["runs"][:1]
    assert (found["log"], found["contract"]["violations"]) == (None, ["update 1: loss"])
    assert [Path(run.contract_path).name for run in read_runs([runs / "check"])] == [
        "panda-check.json"
    ]


def test_a_violation_on_another_rank_is_one(tmp_path):
    write_log(tmp_path / "exp", [1.0])
    write_contract(tmp_path / "exp")
    write_contract(tmp_path / "exp", rank=".rank1", has_passed=False, violations=["update 2"])
    (run,) = read_runs([tmp_path / "exp"])
    assert [contract.violations for contract in run.contracts] == [[], ["update 2"]]
