"""The workspace of those who give none: by the caches of a CPU, by the L2 of a GPU."""

import types

import pytest
import torch

from panda_icefall.normalizer import TileCounters, options, selected_log_probs, workspace
from panda_icefall.normalizer.workspace import MIB, auto_workspace_bytes, last_level_cache_bytes

CPU = torch.device("cpu")


@pytest.fixture
def caches(monkeypatch, tmp_path):
    """Sets what sysfs says about the caches of a core."""

    def install(*sizes):
        for number, size in enumerate(sizes):
            (tmp_path / f"index{number}").mkdir()
            (tmp_path / f"index{number}" / "size").write_text(size + "\n")
        last_level_cache_bytes.cache_clear()
        monkeypatch.setattr(workspace, "_CACHES", tmp_path)

    yield install
    last_level_cache_bytes.cache_clear()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (["48K", "32K", "1024K", "32768K"], 16),
        (["48K", "2M", "36M"], 18),
        (["32K", "256K", "4096K"], 8),
        (["32K", "1M", "1G"], 32),
        ([], 16),
        (["48K", "unknown"], 16),
        (["48K", ""], 16),
    ],
)
def test_a_cpu_gives_half_of_its_last_cache_within_bounds(caches, sizes, expected):
    caches(*sizes)
    assert auto_workspace_bytes(CPU) == expected * MIB


@pytest.fixture
def gpus(monkeypatch):
    """Sets what torch says about the GPUs, by their numbers; counts how often it is asked."""
    asked = []

    def install(*properties):
        def told(index):
            asked.append(index)
            return properties[index]

        monkeypatch.setattr(torch.cuda, "get_device_properties", told)
        workspace._gpu_workspace_bytes.cache_clear()
        return asked

    yield install
    workspace._gpu_workspace_bytes.cache_clear()


def gpu(cache_mib, memory_mib):
    known = {} if cache_mib is None else {"L2_cache_size": cache_mib * MIB}
    return types.SimpleNamespace(total_memory=memory_mib * MIB, **known)


@pytest.mark.parametrize(
    ("cache_mib", "memory_mib", "expected"),
    [
        (50, 80_000, 100),
        (6, 16_000, 64),
        (None, 16_000, 64),
        (500, 80_000, 256),
        (50, 4096, 64),
        (None, 640, 10),
    ],
)
def test_a_gpu_gives_twice_its_l2_and_little_of_its_memory(gpus, cache_mib, memory_mib, expected):
    gpus(gpu(cache_mib, memory_mib))
    assert auto_workspace_bytes(torch.device("cuda", 0)) == expected * MIB


def test_a_gpu_is_asked_once_whatever_is_allocated(gpus, monkeypatch):
    asked = gpus(gpu(50, 80_000), gpu(6, 80_000))
    for name in ("memory_stats", "memory_allocated", "memory_reserved", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    sizes = [auto_workspace_bytes(torch.device(name)) // MIB for name in 3 * ["cuda:0", "cuda"]]
    assert sizes == 3 * [100, 64]
    assert asked == [0, 1]


def tiles(hidden_dim, workspace_bytes):
    counters = TileCounters()
    rows, weight = torch.zeros(400, hidden_dim), torch.zeros(400, hidden_dim)
    ids = torch.zeros(400, 1, dtype=torch.int64)
    selected_log_probs(rows, weight, None, ids, workspace_bytes=workspace_bytes, counters=counters)
    return counters.totals.tiles_forward


def test_none_takes_what_the_device_gives(monkeypatch):
    monkeypatch.setattr(options, "auto_workspace_bytes", lambda device: 2**20)
    assert tiles(16, None) == tiles(16, 2**20)


def test_without_a_bound_even_the_widest_joiner_has_useful_tiles(monkeypatch):
    monkeypatch.setattr(options, "auto_workspace_bytes", lambda device: 1_000)
    assert tiles(1_000, None) <= 12
    with pytest.raises(ValueError, match="workspace_bytes: got 1000, expected at least"):
        tiles(1_000, 1_000)
