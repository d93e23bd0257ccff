"""The shell functions that make the lanes: two processes never make one lane at once."""

import subprocess
from pathlib import Path

LANES = Path(__file__).resolve().parents[2] / "scripts" / "lanes.sh"

SCRIPT = f"""
. {LANES}
venvs=$1
build_lane() {{
    echo "begin $1" >>"$venvs/calls"
    sleep 0.3
    echo "end $1" >>"$venvs/calls"
    return $(cat "$venvs/status")
}}
make_lane "$2" python
"""


def make(folder, lane):
    return subprocess.Popen(
        ["bash", "-c", SCRIPT, "bash", str(folder), lane], stdout=subprocess.PIPE, text=True
    )


def test_two_that_want_one_lane_make_it_one_after_the_other(tmp_path):
    (tmp_path / "status").write_text("0")
    processes = [make(tmp_path, "modern") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "calls").read_text().split("\n")[:-1] == ["begin modern", "end modern"] * 2
    assert sum("waiting for another process" in text for text in said) == 1


def test_what_making_a_lane_fails_with_reaches_the_caller(tmp_path):
    (tmp_path / "status").write_text("3")
    process = make(tmp_path, "k2")
    process.communicate(timeout=60)
    assert process.returncode == 3
