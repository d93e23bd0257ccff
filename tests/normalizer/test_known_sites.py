"""Sites that a caller has checked are not checked again, and the host does not wait for them."""

import pytest
import torch
from benchmarks.syncs import Syncs
from gates import values

from panda_icefall.normalizer import KnownSites, RowLogits, RowProgram, RowTable, TileOptions
from panda_icefall.normalizer.checks import check_rows
from panda_icefall.normalizer.op import select


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_known_sites_give_what_a_mask_gives_and_nobody_reads_them(every):
    rows, weight, bias, ids, _, _ = values()
    live = torch.arange(len(rows)) % every == 0
    leaves = [t.requires_grad_() for t in (rows, weight, bias)]
    logits = RowLogits(RowProgram.of(leaves[0]), *leaves[1:])

    def run(sites):
        with Syncs() as syncs:
            found = select(logits, ids, live=sites, options=TileOptions(), counters=None)
        return [*found, *torch.autograd.grad(found.logp.sum(), leaves)], syncs.operations

    expected, reads = run(live)
    found, known_reads = run(KnownSites.of(live, int(live.sum())))
    assert (reads, known_reads) == (["tolist"], [])
    for mine, other in zip(found, expected):
        assert torch.equal(mine, other)


def test_without_a_live_site_there_is_nothing_to_compute():
    rows, weight, bias, ids, _, _ = values()
    none = KnownSites.of(torch.zeros(len(rows), dtype=torch.bool), 0)
    logits = RowLogits(RowProgram.of(rows), weight, bias)
    found = select(logits, ids, live=none, options=TileOptions(), counters=None)
    assert not found.logp.any()
    assert not found.log_z.any()


@pytest.mark.parametrize("index", [[0, 7], [-1, 2]])
def test_tables_that_are_read_beyond_their_rows_are_refused(index):
    table = RowTable(torch.zeros(7, 2), torch.tensor(index))
    with pytest.raises(ValueError, match=r"rows: a table of 7 rows is read at (7|-1)"):
        check_rows(RowProgram((RowTable(torch.zeros(2, 2)), table)))
    check_rows(RowProgram((RowTable(torch.zeros(7, 2), torch.tensor([0, 6])),)))
    check_rows(RowProgram((RowTable(torch.zeros(0, 2), torch.zeros(0).long()),)))
