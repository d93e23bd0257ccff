"""Rates of matrix products at the shapes of PANDA's own tiles, and at awkward ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.arms import Step
from benchmarks.gemm_limit import products_of
from benchmarks.inputs import LossInputs
from benchmarks.precision import HALVES, PRECISIONS, float32_products, is_supported
from benchmarks.shapes import CORPORA, LossShape
from benchmarks.timing import quartiles, seconds_of
from torch import Tensor

from gpu_validation.report import Setting

SAMPLES = 5
# Enough that starting it and ending it does not show.
FLOPS_OF_A_SAMPLE = 2e11


def tile_shape(setting: Setting) -> tuple[int, int, int]:
    """``(n, H, c)`` of the largest product of a step's forward: rows, width, classes of a tile."""
    tiny = LossShape(B=2, T=9, S=3, C=40, H=8, D=8)
    shape = setting.size(CORPORA["wenetspeech"].with_batch(54), tiny)
    step = Step.make("panda", "pruned", LossInputs.random(shape, setting.device))
    largest = max((p for p in products_of(step) if p.left[0][-1] == shape.H), key=lambda p: p.flops)
    return largest.left[0][-2], shape.H, largest.right[0][-1]


def layouts(n: int, c: int) -> dict[str, tuple[int, int]]:
    """Rows and classes of a tile as GEMMs like them, and as no kernel does."""
    aligned = (max(128, n // 128 * 128), max(64, c // 64 * 64))
    return {"aligned": aligned, "odd": (aligned[0] - 7, aligned[1] - 7)}


def run(setting: Setting) -> None:
    """One row for each precision, product and layout."""
    n, H, c = tile_shape(setting)
    setting.report.fact("tile of a step: rows, width, classes", [n, H, c])
    for precision in PRECISIONS:
        if not is_supported(precision, setting.device):
            setting.report.skip(f"products in {precision}", "this torch has none on this device")
            continue
        for layout, (rows, classes) in layouts(n, c).items():
            for name, work in products(precision, rows, H, classes, setting.device).items():
                what = f"{precision} {name}, {layout}"
                if setting.report.is_over(what):
                    continue
                with setting.report.case(what), float32_products(precision):
                    flops = 2.0 * rows * H * classes
                    rate = rate_of(work, flops, setting)
                    setting.report.row(
                        "products", precision=precision, product=name, layout=layout,
                        rows=rows, width=H, classes=classes, **rate,
                    )  # fmt: skip


def products(
    precision: str, rows: int, H: int, classes: int, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """The products of a tile: logits, the gradient of the rows, the gradient of the weight."""
    dtype = HALVES.get(precision, torch.float32)

    def operand(*size: int) -> Tensor:
        return torch.randn(*size, device=device).to(dtype)

    hidden, weight, grad = operand(rows, H), operand(classes, H), operand(rows, classes)
    found: dict[str, Callable[[], Tensor]] = {
        "logits": lambda: torch.mm(hidden, weight.t()),
        "rows' gradient": lambda: torch.mm(grad, weight),
        "weight's gradient": lambda: torch.mm(grad.t(), hidden),
    }
    if dtype != torch.float32 and has_out_dtype(device, dtype):
        found["logits in float32"] = lambda: widened_product(hidden, weight.t())
    return found


def widened_product(left: Tensor, right: Tensor) -> Tensor:
    """A product of half operands that is summed and kept in float32: torch 2.8 and later."""
    options: dict[str, Any] = {"out_dtype": torch.float32}
    return torch.mm(left, right, **options)


def has_out_dtype(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `widened_product` works here."""
    try:
        tiny = torch.ones(16, 16, dtype=dtype, device=device)
        return widened_product(tiny, tiny).dtype == torch.float32
    except (TypeError, RuntimeError):  # NotImplementedError is one
        return False


def rate_of(work: Callable[[], Any], flops: float, setting: Setting) -> dict[str, float]:
    """Median and quartiles of one call in seconds, and its TFLOP/s."""
    calls = setting.size(max(1, round(FLOPS_OF_A_SAMPLE / flops)), 1)

    def sample() -> None:
        for _ in range(calls):
            work()

    for _ in range(setting.size(3, 1)):
        work()
    taken = [seconds_of(sample, setting.device) / calls for _ in range(SAMPLES)]
    found = quartiles(taken)
    return {"tflops": flops / found["seconds"] / 1e12, **found}
