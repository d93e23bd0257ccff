"""Which loss functions a recipe really calls, counted for the length of one call."""

import functools
import sys
from collections import Counter
from typing import Any, Callable

from panda_icefall.routing import LossTotals

__all__ = ["LossCallWatch", "explain_not_routed"]

_WATCHED = (
    ("k2", "rnnt_loss"),
    ("k2", "rnnt_loss_simple"),
    ("k2", "rnnt_loss_smoothed"),
    ("k2", "ctc_loss"),
    ("panda_icefall.losses.k2_functions", "rnnt_loss_simple"),
    ("panda_icefall.losses.k2_functions", "rnnt_loss_smoothed"),
    ("fast_rnnt", "rnnt_loss"),
    ("optimized_transducer", "transducer_loss"),
    ("torch.nn.functional", "ctc_loss"),
    ("torchaudio.functional", "rnnt_loss"),
)


class LossCallWatch:
    """Counts calls of known loss functions inside a ``with`` block.

    Only modules that are loaded already are watched: a watch imports nothing. Functions that a
    recipe bound by name at its import are not seen, since no attribute is looked up then.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._replaced: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = []

    def __enter__(self) -> "LossCallWatch":
        for module_name, name in _WATCHED:
            module = sys.modules.get(module_name)
            original = getattr(module, name, None)
            if callable(original):
                counting = self._counting(f"{module_name}.{name}", original)
                setattr(module, name, counting)
                self._replaced.append((module, name, original, counting))
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, original, counting in reversed(self._replaced):
            if getattr(module, name) is counting:
                setattr(module, name, original)
        self._replaced.clear()

    def _counting(self, label: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[label] += 1
            return original(*args, **kwargs)

        return call


def explain_not_routed(counters: LossTotals, calls: "Counter[str]") -> str:
    """One message that says what was called instead of a routed loss."""
    parts = []
    if counters.losses_dense:
        parts.append(
            f"rnnt_loss_pruned was called {counters.losses_dense} time(s), each with ordinary "
            "logits instead of a recorded joiner"
        )
    else:
        parts.append(
            "rnnt_loss_pruned was not seen to be called (names bound by `from k2 import ...` "
            "before PANDA was applied are out of reach)"
        )
    if counters.materialised:
        ops = ", ".join(f"{op} ({n} times)" for op, n in sorted(counters.materialised.items()))
        parts.append(f"the recorded joiner was turned into a tensor by {ops}")
    if calls:
        names = ", ".join(f"{name} ({n} times)" for name, n in sorted(calls.items()))
        parts.append(f"called instead: {names}")
    return (
        "PANDA was asked for, but no loss was routed in the first training batch: "
        + "; ".join(parts)
        + ". Train this recipe without --use-panda, or give it the pruned transducer loss"
    )
