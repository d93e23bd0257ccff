"""Which losses that routing leaves alone a recipe calls, counted for the length of one call."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from panda_icefall.routing import LossTotals
from panda_icefall.routing.hosts import SYMBOLS, Kind
from panda_icefall.swaps import Swaps

__all__ = ["LossCallWatch", "explain_ctc_not_routed", "explain_not_routed", "is_ctc_alone"]


_WATCHED = (Kind.OTHER_LOSS, Kind.CTC_LOSS)
_CTC_LOSS = "torch.nn.functional.ctc_loss"


class LossCallWatch:
    """Counts calls of known losses that routing does not replace, inside a ``with`` block.

    Only modules that are loaded already are watched: a watch imports nothing. Functions that a
    recipe bound by name at its import are not seen, since no attribute is looked up then.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._swaps = Swaps()

    def __enter__(self) -> "LossCallWatch":
        for symbol in (s for s in SYMBOLS if s.kind in _WATCHED):
            for host in symbol.hosts:
                module = sys.modules.get(host)
                original = getattr(module, symbol.name, None)
                if callable(original):
                    counting = self._counting(f"{host}.{symbol.name}", original)
                    self._swaps.replace(module, symbol.name, counting)
        return self

    def __exit__(self, *_: object) -> None:
        self._swaps.undo()

    def _counting(self, label: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[label] += 1
            return original(*args, **kwargs)

        return call


def is_ctc_alone(counters: LossTotals, calls: "Counter[str]") -> bool:
    """Whether CTC losses were routed, and no transducer loss was seen that should have been."""
    others = counters.losses_dense + counters.simple_losses_routed + counters.simple_losses_dense
    return counters.ctc_losses_routed > 0 and others == 0 and set(calls) <= {_CTC_LOSS}


def explain_ctc_not_routed(counters: LossTotals, heads: Iterable[str]) -> str:
    """One message that says why no CTC loss was routed.

    Args:
      counters: Of the first training batch.
      heads: Full names of the model's CTC heads.
    """
    names = ", ".join(heads)
    parts = [f"the model has {names}" if names else "the model has no ctc_output"]
    if counters.ctc_losses_dense:
        parts.append(
            f"{_CTC_LOSS} was called {counters.ctc_losses_dense} time(s), each with log-probs that "
            "were not recorded"
        )
    else:
        parts.append(f"no call of {_CTC_LOSS} was seen")
    if counters.materialised:
        ops = ", ".join(f"{op} ({n} times)" for op, n in sorted(counters.materialised.items()))
        parts.append(f"recorded tensors were turned into ordinary ones by {ops}")
    return (
        "--panda-ctc 1 was given, but no CTC loss was routed in the first training batch: "
        + "; ".join(parts)
        + ". Leave --panda-ctc out, train with the recipe's CTC head (such as --use-ctc 1), or "
        "name the head: --panda-projections ctc=NAME"
    )


def explain_not_routed(counters: LossTotals, calls: "Counter[str]") -> str:
    """One message that says what was called instead of a routed loss."""
    parts = []
    if counters.losses_dense:
        parts.append(
            f"pruned or full-lattice losses were called {counters.losses_dense} time(s), each with "
            "ordinary logits instead of a recorded joiner"
        )
    else:
        parts.append(
            "no call of a pruned or full-lattice loss was seen (names bound by `from k2 import "
            "...` before PANDA was applied cannot be replaced)"
        )
    if counters.materialised:
        ops = ", ".join(f"{op} ({n} times)" for op, n in sorted(counters.materialised.items()))
        parts.append(f"the recorded joiner was turned into a tensor by {ops}")
    if counters.simple_losses_routed:
        parts.append(f"only simple losses were routed ({counters.simple_losses_routed} times)")
    if counters.simple_losses_dense:
        parts.append(
            f"simple losses were computed as without PANDA ({counters.simple_losses_dense} times)"
        )
    if calls:
        names = ", ".join(f"{name} ({n} times)" for name, n in sorted(calls.items()))
        parts.append(f"called instead: {names}")
    return (
        "PANDA was asked for, but no loss was routed in the first training batch: "
        + "; ".join(parts)
        + ". Train this recipe without --use-panda, or give it a transducer loss of k2, torchaudio "
        "or optimized_transducer"
    )
