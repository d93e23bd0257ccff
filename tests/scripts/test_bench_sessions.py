"""Several sessions of one benchmark: kept side by side, shown as a range."""

import json
import re

import pytest
from benchmarks import results, tables
from benchmarks.timing import times
from results_tables import section

SETTINGS = {"sizes": (1, 2), "device": "cpu"}


def rows_of(seconds, ratio):
    return [{"workspace_mib": 4.0, "arm": "panda", "label": "PANDA", "peak_bytes": 2**20,
             "is_out_of_memory": False, "time_ratio": ratio, **times(seconds)}]  # fmt: skip


def measure(path, seconds, ratio, settings=SETTINGS):
    document = results.begin("workspace", settings, path)
    results.add_session(document, path, rows_of(seconds, ratio))
    return results.read(path)


def test_a_session_is_added_and_tables_print_the_range(tmp_path):
    path = tmp_path / "workspace.json"
    assert len(measure(path, [3.0, 2.0, 9.0], 0.31)["sessions"]) == 1
    document = measure(path, [4.0, 2.5], 0.55)
    assert [s["rows"][0]["samples_s"] for s in document["sessions"]] == [[3, 2, 9], [4, 2.5]]
    (row,) = results.cells(document, tables.COLUMNS["workspace"], tables.KEYS["workspace"])
    assert row == ["4", "PANDA", "1.0", "2.000 to 2.500", "3.000 to 3.250"]
    (rows,) = results.merged(document, tables.KEYS["workspace"])
    assert results.number("time_ratio", ".2f")(rows) == "0.31 to 0.55"


def test_a_section_says_how_many_sessions_and_against_what(tmp_path, monkeypatch):
    path = tmp_path / "workspace.json"
    for seconds in ([1.0], [2.0]):
        measure(path, seconds, 1.0, {**SETTINGS, "adjoints": "random"})
    text = section(path.name, results.read(path))
    assert re.search(r"`workspace.json`: 2 sessions \(20.* UTC, 20.* UTC\); cpu .*torch \d", text)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({"sizes": [1, 3], "device": "cpu"}, {}),
        (SETTINGS, {"torch": "0.4.1"}),
        (SETTINGS, {"threads": 640}),
    ],
)
def test_a_session_of_something_else_is_refused_before_it_is_measured(tmp_path, settings, change):
    path = tmp_path / "workspace.json"
    document = measure(path, [1.0], 1.0)
    document["sessions"][0]["machine"].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(SystemExit, match=r"expected those of .* to add a session to; delete"):
        results.begin("workspace", settings, path)


def test_another_cpu_is_another_session_of_the_same(tmp_path):
    path = tmp_path / "workspace.json"
    document = measure(path, [1.0], 1.0)
    document["sessions"][0]["machine"]["cpu"] = "abacus"
    path.write_text(json.dumps(document))
    assert len(measure(path, [1.0], 1.0)["sessions"]) == 2


def test_a_command_names_no_folder_of_this_machine():
    words = [
        "/home/x/scripts/bench_loss.py",
        "--json",
        "/home/x/y.json",
        "--checkpoint",
        "exp/e.pt",
    ]
    said = results.command(words)
    assert said == "python scripts/bench_loss.py --json y.json --checkpoint exp/e.pt"


def test_minimum_and_median_of_samples():
    assert times([4.0, 1.0, 2.0]) == {"samples_s": [4, 1, 2], "seconds_min": 1, "seconds": 2}
    assert times([])["seconds"] == 0
