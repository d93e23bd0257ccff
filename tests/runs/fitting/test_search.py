"""The search alone: what it finds of a limit that is known, in how many trials."""

import pytest

from panda_icefall.runs.fitting.search import Search


def search_for(limit, *, start=200, longest=20_000, trials=30, room=None, data=None):
    """Search where `limit` seconds fit; `data`: the most that a batch of the data can have."""
    search, tried = Search(start, longest, trials, 0.05), []
    while (seconds := search.next) is not None:
        tried.append(seconds)
        if seconds <= limit:
            padded = seconds if data is None else min(data, seconds)
            search.note_fit(seconds, padded, room and room(seconds))
        else:
            search.note_too_long(seconds)
    return search, tried


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40, 199, 200, 201, 640, 4321, 19_999])
@pytest.mark.parametrize("start", [1, 30, 200, 20_000])
def test_a_limit_is_found_within_the_tolerance(limit, start):
    search, tried = search_for(limit, start=start)
    assert search.is_settled
    assert search.fits <= limit < search.too_long
    assert search.too_long - search.fits <= max(1, 0.05 * search.fits)
    assert len(set(tried)) == len(tried)
    assert all(1 <= seconds <= 20_000 for seconds in tried)


@pytest.mark.parametrize("limit", [0, 0.5])
def test_where_nothing_fits_the_search_ends_at_one_second(limit):
    search, tried = search_for(limit)
    assert (search.fits, search.is_settled, tried[-1]) == (0, True, 1)


@pytest.mark.parametrize("limit", [20_000, 10**6])
def test_none_above_the_longest_is_tried(limit):
    search, tried = search_for(limit)
    assert (search.fits, search.too_long) == (20_000, None)
    assert max(tried) == 20_000
    assert search.is_settled
    assert not search.lacks_data


def test_the_number_of_trials_is_bounded_and_the_result_says_so():
    search, tried = search_for(640, trials=4)
    assert tried == [200, 400, 800, 566]
    assert (search.fits, search.too_long, search.is_settled) == (566, 800, False)


@pytest.mark.parametrize("limit", [90, 640, 3000])
def test_the_memory_left_over_leads_it_to_the_limit_in_few_trials(limit):
    """The peak grows with the seconds; what is used of the room has an error of some percent."""
    search, tried = search_for(limit, room=lambda seconds: 0.98 * limit / seconds)
    assert search.is_settled
    assert 0.9 * limit <= search.fits <= limit
    assert len(tried) <= 6
    blind, more = search_for(limit)
    assert len(tried) <= len(more)
    assert blind.is_settled


@pytest.mark.parametrize("error", [0.2, 0.7, 1.4, 5.0])
def test_memory_that_misleads_costs_trials_and_no_more(error):
    search, tried = search_for(640, room=lambda seconds: error * 640 / seconds)
    assert search.is_settled
    assert 0.95 * 640 <= search.fits <= 640
    assert len(tried) <= 11


def test_data_that_make_no_larger_batch_end_it():
    search, tried = search_for(10**6, start=30, data=100)
    assert search.lacks_data
    assert search.is_settled
    assert search.fits == tried[-1] == 240


def test_a_sampler_that_drops_what_is_no_whole_batch_is_told_from_memory():
    search = Search(100, 20_000, 30, 0.05)
    while (seconds := search.next) is not None:
        if seconds <= 300:
            search.note_fit(seconds, seconds, None)
        else:
            search.note_too_long(seconds, lacks_data=True)
    assert search.lacks_data
    assert 285 <= search.fits <= 300
