"""A loss that falls back must show: each planted bug fails the comparison that tests share.

What `pytest tests/routing --plant BUG` says of every test, see `tests/support/planted.py`.
"""

import counted
import planted
import pytest
import toy
import toy_joiner
import toy_simple


def pruned(rnnt_type):
    return lambda k2: toy_joiner.compare(k2, toy.TanhJoiner, rnnt_type=rnnt_type)


def simple(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with counted.deferred(model):
        model(k2, data)


def simple_of_tensors(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with counted.deferred(None, 0, of_tensors=1):
        model(k2, data)


NOTICED_BY = {
    "never_routed": pruned("regular"),
    "modified_never_routed": pruned("modified"),
    "constrained_never_routed": pruned("constrained"),
    "simple_never_deferred": simple,
    "simple_never_in_tiles": simple_of_tensors,
}


@pytest.mark.parametrize("bug", planted.BUGS)
def test_a_fall_back_is_noticed(k2, monkeypatch, bug):
    fell_back = []
    NOTICED_BY[bug](k2)
    planted.BUGS[bug](monkeypatch, fell_back)
    with pytest.raises(AssertionError):
        NOTICED_BY[bug](k2)
    assert fell_back


@pytest.mark.parametrize("rnnt_type", ["regular", "constrained"])
def test_a_bug_of_one_type_is_that_of_no_other(k2, monkeypatch, rnnt_type):
    planted.BUGS["modified_never_routed"](monkeypatch, [])
    pruned(rnnt_type)(k2)
