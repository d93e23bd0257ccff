"""``selected_log_probs`` against float64, by the gates of tests/support/gates.py."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import gates
import torch
from benchmarks.packages import is_installed
from benchmarks.precision import HALVES, is_supported
from oracle import dense_selected_log_probs
from torch import Tensor

from gpu_validation import large_offsets
from gpu_validation.report import Setting
from panda_icefall.normalizer import TileCounters, selected_log_probs

DTYPES = {"fp32": torch.float32, **HALVES, "fp64": torch.float64}
KINDS = ("flat", "peaked")


def run(setting: Setting) -> None:
    """The usual sizes first: what is cut for want of time is then the least of it."""
    for classes in setting.size((5537, 500, 2, 65536), (29,)):
        for name, engine in itertools.product(DTYPES, engines(setting)):
            for is_one_tile in (True, False):
                tiles = "one tile" if is_one_tile else "many tiles"
                case = f"C={classes} {name} {engine} {tiles}"
                if setting.report.is_over(case):
                    continue
                with setting.report.case(case):
                    _case(setting, case, classes, name, engine, is_one_tile)
    large_offsets.run(setting, engines(setting))


def engines(setting: Setting) -> list[str]:
    """Those that can work; on a CPU Triton does by its interpreter."""
    if is_installed("triton"):
        return ["triton", "torch"]
    setting.report.skip("engine triton", "Triton is not installed")
    return ["torch"]


def _case(
    setting: Setting, case: str, classes: int, name: str, engine: str, is_one_tile: bool
) -> None:
    if not is_supported(name, setting.device):
        setting.report.skip(case, "this torch has no such products on this device")
        return
    for kind in setting.size(KINDS, KINDS[:1]):
        sites, hidden = setting.size(640, 10), setting.size(64, 5)
        dtype = DTYPES[name]
        data = [
            t.to(setting.device)
            for t in gates.in_dtype(gates.values(kind, classes, 0, sites, hidden), dtype)
        ]
        counters = TileCounters()
        op = functools.partial(
            selected_log_probs, engine=engine, counters=counters,
            workspace_bytes=workspace(sites, classes, hidden, is_one_tile),
            adjoint_tolerance=0.0 if dtype == torch.float64 else None,
        )  # fmt: skip
        ours = gates.run(op, *data)
        plain = gates.run(gates.dense, *data)
        truth = gates.run(dense_selected_log_probs, *gates.in_dtype(data, torch.float64))
        tiles = counters.totals.tiles_forward, counters.totals.tiles_backward
        setting.report.check(f"{case} {kind}", **judged(dtype, classes, ours, plain, truth))
        setting.report.row("tiles", case=f"{case} {kind}", forward=tiles[0], backward=tiles[1])
        if not is_one_tile and sites * classes > 100 * hidden:
            setting.report.check(f"{case} {kind}: cut", min(tiles) > 1, tiles=tiles)


def workspace(sites: int, classes: int, hidden: int, is_one_tile: bool) -> int:
    """Bytes with which all is one tile, or several row tiles and class tiles."""
    logits = 8 * sites * classes
    beside = 64 * hidden * (sites + classes)
    return 2 * (logits + beside) if is_one_tile else max(logits // 24, 128 * hidden)


def judged(
    dtype: torch.dtype, classes: int, ours: list[Tensor], plain: list[Tensor], truth: list[Tensor]
) -> dict[str, Any]:
    """The worst of the five outputs by its gate, and whether all hold."""
    ratios = {}
    for name, x, y, exact in zip(gates.NAMES, ours, plain, truth):
        reference = gates.rms(exact)
        if dtype == torch.float64:
            bound = gates.structure_bound(reference, classes)
        elif dtype == torch.float32 or name.startswith("d "):
            bound = gates.rounding_bound(dtype, gates.rms(y - exact), reference)
        else:
            bound = gates.low_precision_bound(gates.rms(truth[1]))
        error = gates.rms(x - exact)
        ratios[name] = error / bound if bound else (float("inf") if error else 0.0)
    worst = max(ratios, key=lambda name: gates.nan_last(ratios[name]))
    # Not `<= 1 for all` of maxima: a NaN compares as False.
    return {
        "is_ok": all(ratio <= 1 for ratio in ratios.values()),
        "worst": worst,
        "error_by_bound": ratios[worst],
    }
