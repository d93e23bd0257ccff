"""Tiles that do not fit the memory: made again with half the workspace, once, and said."""

import pytest
import torch
from gates import values

from panda_icefall.normalizer import TileCounters, selected_log_probs, tile_loop

WORKSPACE = 2**15
CPU = "[enforce fail at alloc_cpu.cpp:66] . DefaultCPUAllocator: can't allocate memory"


def loss_and_gradients(counters=None):
    rows, weight, bias, ids, adjoints, _ = values()
    leaves = [t.requires_grad_() for t in (rows, weight, bias)]
    logp, log_z = selected_log_probs(
        *leaves, ids, workspace_bytes=WORKSPACE, counters=counters or TileCounters()
    )
    total = (logp * adjoints).sum()
    return (logp.detach(), log_z.detach(), *torch.autograd.grad(total, leaves))


def failing(patch, name, error, times):
    """The tile loop's ``name`` raises so many times, when a part of its tiles is done."""
    original, left, plans = getattr(tile_loop, name), [error] * times, []

    def planted(*args, **kwargs):
        plans.append(next(a for a in args if isinstance(a, tile_loop.TilePlan)))
        result = original(*args, **kwargs)
        if left:
            raise left.pop()
        return result

    patch.setattr(tile_loop, name, planted)
    return plans


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU), MemoryError()]
)
def test_half_the_workspace_gives_the_same_once_more(monkeypatch, caplog, name, error):
    expected = loss_and_gradients()
    plain, counters = TileCounters(), TileCounters()
    loss_and_gradients(plain)
    plans = failing(monkeypatch, name, error, times=1)
    found = loss_and_gradients(counters)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert counters.totals.out_of_memory_retries == 1
    # Nothing but the tiles is counted twice.
    assert counters.totals.adjoint_mass == plain.totals.adjoint_mass
    assert counters.totals.sites_backward == plain.totals.sites_backward
    first, second = plans
    assert second.tile_bytes <= WORKSPACE // 2 < first.tile_bytes
    assert caplog.text.count("did not fit the memory") == 1


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_second_failure_is_torchs_own_error_with_what_to_set(monkeypatch, name):
    error = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
    plans = failing(monkeypatch, name, error, times=2)
    message = r"Tried to allocate 1 GiB; panda: half .*--panda-workspace-mib.*--max-duration"
    with pytest.raises(torch.cuda.OutOfMemoryError, match=message):
        loss_and_gradients()
    assert len(plans) == 2


def test_a_workspace_of_which_the_half_holds_no_row_is_not_halved(monkeypatch):
    rows, weight, bias, ids, _, _ = values()
    with pytest.raises(ValueError, match="expected at least") as caught:
        selected_log_probs(rows, weight, bias, ids, workspace_bytes=1)
    least = int(str(caught.value).partition("at least ")[2].split()[0])
    failing(monkeypatch, "forward", torch.cuda.OutOfMemoryError("full"), times=1)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="full; panda: half"):
        selected_log_probs(rows, weight, bias, ids, workspace_bytes=least * 3 // 2)


def test_other_errors_are_raised_at_once(monkeypatch):
    plans = failing(monkeypatch, "forward", RuntimeError("a bug"), times=1)
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        loss_and_gradients()
    assert len(plans) == 1
