"""Progress is for terminals: how far, how long, how much longer; elsewhere nothing."""

import io

import pytest
from rich.console import Console

from panda_icefall.runs.memory.reading import StepCount
from panda_icefall.runs.report.progress import shown_progress, times_text


def console(is_terminal):
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, height=10)


def test_where_there_is_no_terminal_nothing_is_written():
    where = console(False)
    with shown_progress(where, "3/6 routed", 30) as show:
        show(10)
    assert where.file.getvalue() == ""


@pytest.mark.parametrize(("total", "shown"), [(30, "12/30"), (None, "3/6 routed")])
def test_a_terminal_shows_how_far_it_is(total, shown):
    where = console(True)
    with shown_progress(where, "3/6 routed", total) as show:
        show(12)
        where.print("a line above")
    text = where.file.getvalue()
    assert "3/6 routed" in text
    assert shown in text
    assert "a line above" in text


def test_the_text_may_change_on_the_way():
    where = console(True)
    with shown_progress(where, "fit", 16) as show:
        show(0, "dense, --max-duration 200")
        show(1)
        show(1, "dense, --max-duration 400")
    text = where.file.getvalue()
    assert "dense, --max-duration 200" in text or "dense, --max-duration 400" in text


@pytest.mark.parametrize(
    ("spent", "done", "total", "text"),
    [
        (10.0, 5, 20, "10.0 s, about 30.0 s left"),
        (90.0, 10, 30, "1 min 30 s, about 3 min 00 s left"),
        (7.0, 0, 20, "7.0 s"),
        (7.0, 3, None, "7.0 s"),
    ],
)
def test_what_remains_takes_as_long_as_what_is_done(spent, done, total, text):
    assert times_text(spent, done, total) == text


def test_steps_are_counted_while_their_log_is_written(tmp_path):
    log = tmp_path / "memory.jsonl"
    count = StepCount(log)
    assert count.read() == 0
    part = '{"row": "part", "phase": "backward", "within": "backward_update"}\n'
    first = '{"row": "phase", "phase": "compute_loss"}\n' + part
    log.write_text('{"row": "header"}\n' + first)
    assert count.read() == 0
    end = '{"row": "phase", "rank": 0, "phase": "backward_update", "seconds": 1}\n'
    with log.open("a") as file:
        file.write(end + first + end[:30])
        file.flush()
        assert count.read() == 1
        file.write(end[30:])
    assert count.read() == 2
    assert count.read() == 2


def test_another_mark_is_counted_in_another_file(tmp_path):
    log = tmp_path / "output.log"
    count = StepCount(log, b"compared batch")
    log.write_text("a warning\ncontract check: compared batch 1 of 3, 2.0 s\ncompared bat")
    assert count.read() == 1
