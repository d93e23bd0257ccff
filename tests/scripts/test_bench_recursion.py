"""What the recursion costs in a step of the whole loss."""

import pytest
from benchmarks.packages import HAS_K2

TINY = "--B 3 --T 12 --S 4 --C 40 --H 8 --D 8 --repeats 2".split()


def test_the_recursions_stand_beside_each_other(script, checked):
    rows = checked(script("bench_recursion", *TINY), "recursion")
    assert [row["recursion"] for row in rows] == (["k2", "exact"] if HAS_K2 else ["exact"])
    for row in rows:
        assert len(row["samples_s"]) == 2
        assert row["recursions_s"] > 0
        assert 0 < row["share"] < 1
        assert (row["added"] is None) is not HAS_K2
    if HAS_K2:
        assert rows[0]["added"] == pytest.approx(0)
