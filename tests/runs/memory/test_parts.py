"""The parts of a phase leave no gap and take nothing twice."""

import itertools

import pytest

from panda_icefall.runs.memory import part_watch as module
from panda_icefall.runs.memory.part_watch import PartMeter
from panda_icefall.runs.memory.probe import MemoryReading, Part


class Probe:
    """Gives the peaks it was made with, and counts its starts."""

    def __init__(self, peaks):
        self.peaks = iter(peaks)
        self.starts = 0

    def start(self):
        self.starts += 1

    def cut(self):
        self.starts += 1
        return self.read()

    def read(self):
        return MemoryReading("cpu", current_bytes=1, peak_bytes=next(self.peaks))


@pytest.fixture
def meter(monkeypatch):
    clock = itertools.count()  # one second from boundary to boundary
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    return PartMeter(Probe(itertools.count(1)))


def told(meter):
    whole, parts = meter.finish()
    seconds = {name: part.seconds for name, part in parts.items()}
    assert whole.seconds == sum(seconds.values())
    assert whole.stretches == sum(part.stretches for part in parts.values())
    assert whole.reading.peak_bytes == max(p.reading.peak_bytes for p in parts.values())
    return seconds


def test_a_phase_without_parts_is_all_other(meter):
    meter.start()
    assert told(meter) == {"other": 1.0}


def test_time_between_two_parts_is_other_and_is_summed(meter):
    meter.start()
    for name in ("a", "b", "a"):
        meter.enter(name)
        meter.leave(name)
    assert told(meter) == {"other": 4.0, "a": 2.0, "b": 1.0}


def test_a_part_inside_another_belongs_to_the_outer_one(meter):
    meter.start()
    meter.enter("a")
    meter.enter("b")
    meter.enter("a")
    meter.leave("a")
    meter.leave("b")
    meter.leave("a")
    assert told(meter) == {"other": 2.0, "a": 1.0}


def test_a_held_part_goes_on_until_it_is_left_for_good(meter):
    meter.start()
    meter.enter("a")
    meter.leave("a", is_held=True)
    meter.enter("a")
    meter.leave("a")
    assert told(meter) == {"other": 2.0, "a": 1.0}


def test_another_part_ends_a_held_one(meter):
    meter.start()
    meter.enter("a")
    meter.leave("a", is_held=True)
    meter.enter("b")
    meter.leave("b")
    assert told(meter) == {"other": 2.0, "a": 1.0, "b": 1.0}


def test_a_part_held_inside_another_is_not_held_after_it(meter):
    meter.start()
    meter.enter("a")
    meter.enter("b")
    meter.leave("b", is_held=True)
    meter.leave("a")
    assert told(meter) == {"other": 2.0, "a": 1.0}


def test_what_an_exception_left_open_is_closed(meter):
    meter.start()
    meter.enter("a")
    meter.enter("b")
    meter.leave("a")
    meter.enter("c")
    assert told(meter) == {"other": 2.0, "a": 1.0, "c": 1.0}
    meter.start()
    assert told(meter) == {"other": 1.0}


def test_nothing_is_heard_outside_of_a_phase_or_unmatched(meter):
    meter.enter("a")
    meter.leave("a")
    meter.start()
    meter.leave("a")
    assert told(meter) == {"other": 1.0}
    meter.enter("a")
    meter.start()
    meter.leave("a")
    assert told(meter) == {"other": 1.0}


def test_the_peak_is_reset_at_each_boundary_and_the_largest_is_kept():
    probe = Probe([5, 40, 7, 30, 9])
    meter = PartMeter(probe)
    meter.start()
    for _ in range(2):
        meter.enter("a")
        meter.leave("a")
    whole, parts = meter.finish()
    assert probe.starts == 5
    assert {n: (p.reading.peak_bytes, p.stretches) for n, p in parts.items()} == {
        "other": (9, 3),
        "a": (40, 2),
    }
    assert whole.reading.peak_bytes == 40


def test_one_peak_that_could_not_be_reset_marks_the_sum():
    first = Part(1.0, 1, MemoryReading("cpu", 3, 9, is_since_start=True))
    both = first + Part(2.0, 1, MemoryReading("cpu", 4, 5))
    row = both.as_row()
    assert row == {
        "seconds": 3.0,
        "stretches": 2,
        "device": "cpu",
        "rss_bytes": 4,
        "peak_rss_bytes": 9,
        "peak_is_since_start": True,
    }


def test_finishing_what_was_not_started_is_our_own_mistake():
    with pytest.raises(AssertionError, match="without start"):
        PartMeter(Probe([])).finish()
