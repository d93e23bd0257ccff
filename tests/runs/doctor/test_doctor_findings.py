"""How findings are counted, printed and written as JSON."""

import io
import json

import pytest
from rich.console import Console

from panda_icefall.runs.doctor.findings import Diagnosis, ok, print_diagnosis, problem, warning

GOOD = ok("python", "3.11 [Linux]")
ODD = warning("k2", "not installed", "look for the wheel")
BAD = problem("lhotse", "breaks", "pip install 'lhotse<1.30'")


def printed(*findings):
    console = Console(file=io.StringIO(), width=40)
    print_diagnosis(Diagnosis(findings), console)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("findings", "status", "summary"),
    [
        ((), 0, "no problems, no warnings"),
        ((GOOD, ODD), 0, "no problems, 1 warning"),
        ((GOOD, BAD, ODD, BAD), 1, "2 problems, 1 warning"),
    ],
)
def test_only_problems_make_the_exit_status_one(findings, status, summary):
    diagnosis = Diagnosis(findings)
    assert diagnosis.exit_status == status
    assert diagnosis.summary == summary
    assert printed(*findings)[-1] == summary


def test_a_finding_is_one_line_with_its_advice_below():
    assert printed(GOOD, ODD)[:3] == [
        "ok       python: 3.11 [Linux]",
        "warning  k2: not installed",
        "         -> look for the wheel",
    ]


def test_long_lines_are_not_broken():
    long = "x" * 200
    assert printed(problem("k2", long, long))[:2] == [
        f"problem  k2: {long}",
        f"         -> {long}",
    ]


def test_the_json_document_holds_the_same_findings():
    document = json.loads(Diagnosis((GOOD, BAD)).as_json())
    assert document == {
        "problems": 1,
        "warnings": 0,
        "findings": [
            {"subject": "python", "level": "ok", "text": "3.11 [Linux]", "advice": None},
            {
                "subject": "lhotse",
                "level": "problem",
                "text": "breaks",
                "advice": "pip install 'lhotse<1.30'",
            },
        ],
    }


def test_the_report_for_a_bug_is_one_fence_without_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Diagnosis((ok("python", f"3.11 at {tmp_path}/venv"), ODD)).as_markdown()
    assert found.splitlines() == [
        "```",
        "ok       python: 3.11 at ~/venv",
        "warning  k2: not installed",
        "         -> look for the wheel",
        "no problems, 1 warning",
        "```",
    ]
    monkeypatch.setenv("HOME", "/")
    assert (
        f"3.11 at {tmp_path}/venv"
        in Diagnosis((ok("python", f"3.11 at {tmp_path}/venv"),)).as_markdown()
    )
