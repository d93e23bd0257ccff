"""Totals of tiles while they grow: from several threads, with the time of each phase."""

import dataclasses
import threading

import pytest
import torch

from panda_icefall.normalizer import TileCounters, TileTotals


def test_what_threads_add_at_the_same_time_is_all_there():
    counters = TileCounters()

    def count():
        for _ in range(2000):
            counters.add(sites=2, adjoint_mass=0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.totals == TileTotals(sites=16_000, adjoint_mass=4000.0)


def test_the_time_of_a_phase_is_added_up_where_the_work_failed_too(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    counters, cpu = TileCounters(), torch.device("cpu")
    with counters.timed("forward", cpu):
        pass
    with pytest.raises(ValueError, match="bad"), counters.timed("forward", cpu):
        raise ValueError("bad")
    assert counters.totals == TileTotals(forward_seconds=2.5)


def test_totals_that_were_given_out_stay_as_they_are():
    counters = TileCounters()
    before = counters.totals
    counters.add(tiles_forward=1)
    assert (before.tiles_forward, counters.totals.tiles_forward) == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.tiles_forward = 3


def test_a_count_that_is_none_is_refused():
    with pytest.raises(AttributeError, match="tiles"):
        TileCounters().add(tiles=1)
