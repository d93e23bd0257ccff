"""What the GPU does to numbers, and how fast: roundings, rates, launches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.precision import HALVES, float32_products, is_supported
from benchmarks.timing import quartiles, seconds_of

from gpu_validation import products
from gpu_validation.report import Setting

WIDTH = 512


def run(setting: Setting) -> None:
    with setting.report.case("roundings"):
        roundings(setting)
    with setting.report.case("launches"):
        launches(setting)
    with setting.report.case("bandwidth"):
        bandwidth(setting)
    with setting.report.case("rates"):
        products.run(setting)


def roundings(setting: Setting) -> None:
    """What products make of their operands and sums, against float64."""
    device, report = setting.device, setting.report
    rows = torch.randn(256, WIDTH, device=device)
    weight = torch.randn(WIDTH, 256, device=device)
    for precision in ("fp32", "tf32"):
        with float32_products(precision):
            report.row(
                "roundings", product=f"{precision} operands",
                one_term=_relative(rows @ torch.eye(WIDTH, device=device), rows),
                sums=_relative(rows @ weight, rows.double() @ weight.double()),
            )  # fmt: skip
    for name, dtype in HALVES.items():
        if not is_supported(name, device):
            report.skip(f"roundings of {name}", "this torch has none on this device")
            continue
        left, right = rows.to(dtype), weight.to(dtype)
        exact = left.double() @ right.double()
        with float32_products("tf32"):
            one_term = _relative(left.float() @ torch.eye(WIDTH, device=device), left)
            sums = _relative(left.float() @ right.float(), exact)
        report.row("roundings", product=f"{name} values, TF32", one_term=one_term, sums=sums)
        # What normalizer/tensor_cores.py relies on.
        report.check(f"{name} values pass TF32 as they are", one_term == 0.0, got=one_term)
        report.row("roundings", product=f"{name}, half result", sums=_relative(left @ right, exact))
        if products.has_out_dtype(device, dtype):
            sums = _relative(products.widened_product(left, right), exact)
            report.row("roundings", product=f"{name}, out_dtype float32", sums=sums)
            report.check(f"{name} sums with out_dtype are float32's", sums < 1e-5, got=sums)
        else:
            report.skip(f"mm with out_dtype, {name}", "this torch has none on this device")


def launches(setting: Setting) -> None:
    """Microseconds of the host and of the device for one small kernel, and of one wait."""
    x = torch.zeros(1, device=setting.device)
    count = setting.size(1000, 10)

    def many() -> None:
        for _ in range(count):
            x.add_(1.0)

    many()
    x.item()
    host, whole = [], []
    for _ in range(5):
        begin = time.perf_counter()
        many()
        host.append((time.perf_counter() - begin) / count)
        x.item()
        whole.append((time.perf_counter() - begin) / count)
    _microseconds(setting, "a launch, host", host)
    _microseconds(setting, "a launch, until done", whole)
    _microseconds(setting, "a wait for one number", _each(x.item, count))


def _each(work: Callable[[], Any], count: int) -> list[float]:
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return taken


def _microseconds(setting: Setting, what: str, samples: list[float]) -> None:
    found = {name.replace("seconds", "us"): 1e6 * s for name, s in quartiles(samples).items()}
    setting.report.row("launches", what=what, **found)


def bandwidth(setting: Setting) -> None:
    """Bytes read and written in a second by a copy that no cache holds."""
    numbers = setting.size(2**28, 2**16)
    source = torch.zeros(numbers, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    samples = [seconds_of(lambda: target.copy_(source), setting.device) for _ in range(5)]
    found = quartiles(samples)
    setting.report.row("bandwidth", gbytes=8 * numbers / found["seconds"] / 1e9, **found)


def _relative(got: torch.Tensor, exact: torch.Tensor) -> float:
    """RMS of the error by RMS of the exact values."""
    error = (got.double() - exact.double()).norm()
    return float(error / exact.double().norm())
