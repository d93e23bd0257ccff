"""What a step could take at best: its matrix products at the rates that the probes measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def tile_rates(products: Rows) -> dict[str, float]:
    """TFLOP/s by precision: the fastest product of an aligned tile."""
    rates: dict[str, float] = {}
    for row in products:
        if row["layout"] == "aligned":
            rates[row["precision"]] = max(rates.get(row["precision"], 0.0), row["tflops"])
    return rates


def best_seconds(row: Mapping[str, Any], rates: Mapping[str, float], gbytes: float) -> float | None:
    """The longer of a row's products at full rate and their operands at full bandwidth.

    Args:
      row: of a step, with ``precision``, ``product_flops`` and ``product_bytes``.
      rates: of `tile_rates`.
      gbytes: gigabytes of memory a second.

    Returns:
      Seconds, or None where a probe is missing or the step did not fit.
    """
    if row["precision"] not in rates or not gbytes or not row.get("product_flops"):
        return None
    by_products = row["product_flops"] / (rates[row["precision"]] * 1e12)
    return max(by_products, row["product_bytes"] / (gbytes * 1e9))
