"""Data loaders are stood for, not changed."""

import copy

import pytest

from panda_icefall.runs.recipe_calls import BatchFeed, FirstBatchOnly


class Loader(list):
    sampler = "sampler"


def test_all_but_iteration_is_the_loaders_own():
    feed = BatchFeed(Loader([1, 2, 3]), lambda: True)
    assert (len(feed), feed.sampler, list(feed), list(feed)) == (3, "sampler", [1, 2, 3], [1, 2, 3])
    with pytest.raises(AttributeError, match="nothing"):
        _ = feed.nothing


def test_each_request_is_asked_for_first_and_can_end_the_epoch():
    answers = iter([True, True, False])
    assert list(BatchFeed([1, 2, 3], lambda: next(answers))) == [1, 2]


def test_the_request_that_finds_no_more_batches_is_asked_for_too():
    asked = []
    assert list(BatchFeed([1, 2], lambda: asked.append(1) is None)) == [1, 2]
    assert len(asked) == 3


def test_an_exception_of_the_decision_reaches_the_loop():
    def refuse():
        raise KeyError("no")

    with pytest.raises(KeyError):
        next(iter(BatchFeed([1], refuse)))


def test_a_copy_of_a_feed_is_a_feed():
    assert list(copy.copy(BatchFeed([1], lambda: True))) == [1]


def test_one_validation_batch_is_enough():
    assert list(FirstBatchOnly(Loader([1, 2]))) == [1]
    assert list(FirstBatchOnly(Loader([]))) == []
