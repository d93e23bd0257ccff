"""What the host reads of a lattice: once, and never what is older than the step."""

import gc
import threading
import weakref

import pytest
import torch
from benchmarks.syncs import Syncs

from panda_icefall.losses.host_values import boundary_of_step, boundary_on_host, on_host
from panda_icefall.losses.lattice_checks import check_spec
from panda_icefall.losses.lengths import sites_of_utterances
from panda_icefall.losses.sites import FullSites, RetainedSites, inside_boundary
from panda_icefall.losses.spec import LatticeSpec

B, T, S, C = 4, 6, 3, 9
ROWS = [(0, 0, 3, 6), (0, 0, 1, 2), (0, 0, 0, 0), (1, 2, 2, 5)]


@pytest.fixture
def spec():
    symbols = torch.ones(B, S, dtype=torch.int64)
    return LatticeSpec(symbols=symbols, termination_symbol=0, boundary=torch.tensor(ROWS))


def test_values_of_all_kinds_come_in_one_transfer():
    with Syncs() as syncs:
        found = on_host(torch.tensor([[1, 2], [3, 4]]).t(), torch.tensor(True), torch.empty(0, 3))
    assert found == [[1, 3, 2, 4], [1], []]
    assert syncs.operations.count("tolist") == 1
    assert on_host() == []


def test_what_a_loss_has_read_is_known_for_the_same_tensors_only(spec):
    assert check_spec(spec, C, T).boundary == ROWS
    with Syncs() as syncs:
        assert boundary_on_host(spec.boundary, S, T) == ROWS
        assert boundary_of_step(spec.symbols, spec.boundary, C, T) == ROWS
    assert syncs.waits == []
    for symbols, boundary, classes, frames in [
        (spec.symbols.clone(), spec.boundary, C, T),
        (spec.symbols, spec.boundary.clone(), C, T),
        (spec.symbols, None, C, T),
        (spec.symbols, spec.boundary, C - 1, T),
        (spec.symbols, spec.boundary, C, T + 1),
    ]:
        assert boundary_of_step(symbols, boundary, classes, frames) is None
    for boundary, states, frames in [
        (spec.boundary.clone(), S, T), (spec.boundary, S + 1, T), (spec.boundary, S, T + 1)
    ]:  # fmt: skip
        with Syncs() as syncs:
            assert boundary_on_host(boundary, states, frames) == ROWS
        assert syncs.operations == ["tolist"]


def test_a_row_outside_is_named(spec):
    with pytest.raises(ValueError, match=r"boundary: got \[0, 0, 3, 6\] for utterance b=0.*S=2"):
        boundary_on_host(spec.boundary, S - 1, T)


def test_tensors_that_were_changed_are_read_again(spec):
    check_spec(spec, C, T)
    spec.boundary[1, 3] = 4
    assert boundary_on_host(spec.boundary, S, T)[1] == (0, 0, 1, 4)
    check_spec(spec, C, T)
    spec.symbols.add_(1)
    assert boundary_of_step(spec.symbols, spec.boundary, C, T) is None


def test_nothing_is_kept_of_inference_tensors_or_of_another_thread():
    with torch.inference_mode():
        frozen = LatticeSpec(
            symbols=torch.ones(B, S, dtype=torch.int64), termination_symbol=0,
            boundary=torch.tensor(ROWS),
        )  # fmt: skip
        check_spec(frozen, C, T)
        assert boundary_of_step(frozen.symbols, frozen.boundary, C, T) is None
    spec = LatticeSpec(
        symbols=torch.ones(B, S, dtype=torch.int64), termination_symbol=0,
        boundary=torch.tensor(ROWS),
    )  # fmt: skip
    check_spec(spec, C, T)
    found = []
    other = threading.Thread(
        target=lambda: found.append(boundary_of_step(spec.symbols, spec.boundary, C, T))
    )
    other.start()
    other.join()
    assert found == [None]


def test_no_tensor_is_kept_alive(spec):
    symbols, boundary = spec.symbols.clone(), spec.boundary.clone()
    check_spec(LatticeSpec(symbols=symbols, termination_symbol=0, boundary=boundary), C, T)
    references = [weakref.ref(symbols), weakref.ref(boundary)]
    del symbols, boundary
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("seed", range(20))
def test_the_packed_sites_are_those_inside_the_boundary(seed):
    g = torch.Generator().manual_seed(seed)
    shape = [int(n) for n in torch.randint(1, 7, (3,), generator=g)]
    B, T, S = shape[0], shape[1], shape[2] - 1
    first = torch.stack([torch.randint(0, n + 1, (B,), generator=g) for n in (S, T)], dim=1)
    last = [torch.randint(0, n + 1, (B,), generator=g) for n in (S, T)]
    last = torch.maximum(torch.stack(last, dim=1), first)
    spec = LatticeSpec(
        symbols=torch.zeros(B, S, dtype=torch.int64), termination_symbol=0,
        boundary=torch.cat((first, last), dim=1),
    )  # fmt: skip
    states = torch.arange(S + 1).expand(B, T, S + 1)
    expected = inside_boundary(states, spec.boundary).flatten().nonzero().squeeze(1)
    with Syncs() as syncs:
        sites = FullSites.of(spec, 1, T)
    assert torch.equal(sites.position, expected)
    assert syncs.operations == ["tolist"]


def test_the_sites_of_lengths_wait_once():
    lengths = torch.tensor([5, 3]), torch.tensor([2, 0])
    with Syncs() as syncs:
        sites = sites_of_utterances(
            torch.ones(2, 2).long(), *lengths, T=5, blank=0, classes=C, forbidden=range(1)
        )
    assert syncs.operations == ["tolist"]
    assert sites.position.tolist() == [*range(15), 15, 18, 21]


@pytest.mark.parametrize("has_boundary", [True, False])
def test_the_retained_sites_wait_once(spec, has_boundary):
    ranges = (torch.arange(T) // 3)[None, :, None] + torch.arange(2).expand(B, T, 2)
    boundary = spec.boundary if has_boundary else None
    given = LatticeSpec(
        symbols=spec.symbols, termination_symbol=0, boundary=boundary, ranges=ranges
    )
    with Syncs() as syncs:
        sites = RetainedSites.of(given, C)
    assert syncs.operations == ["tolist"]
    live = inside_boundary(ranges, boundary).flatten()
    index = sites.evaluated.index
    if has_boundary:
        assert torch.equal(index, live.nonzero().squeeze(1))
    else:
        assert index is None
