"""A report on the first training batch whose loss is not finite, or that a loss refuses."""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from panda_icefall import routing
from panda_icefall.routing import Computed, Finding
from panda_icefall.routing.diagnosis import lengths_of
from panda_icefall.routing.non_finite import is_finite
from panda_icefall.runs.hooks.bad_batch import report_path, utterance_of, write_report
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["NonFiniteReport"]

_MOST_PARAMETERS = 10


class NonFiniteReport(Hook):
    """Says which utterances of such a batch, which quantity and why; training does as it would.

    Looked at are the numbers that ``compute_loss`` gives beside its loss, which the recipe has read
    from the device, and on a CPU the losses themselves. Only where a recipe gives no numbers its
    loss is read, which waits for the device.

    Args:
      memory_log: The report lies beside it; None: in the recipe's folder.
    """

    def __init__(self, memory_log: Path | None) -> None:
        self._memory_log = memory_log
        self._batch: Any = None
        self._path: Path | None = None
        self._batches = 0

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """The batch that is about to be trained."""
        self._batch = call.bound.arguments["batch"] if call.is_training else None

    def around_loss(self, epoch: Epoch, compute: Callable[[], Any]) -> Any:
        """Follow the losses of one batch, and look at what came out."""
        losses: list[Computed] = []
        try:
            with routing.followed_losses(losses.append):
                result = compute()
            if not _is_finite(result, losses):
                self._batches += 1
                if self._path is None:
                    self._report(epoch, losses, result)
            return result
        except (AssertionError, ValueError) as error:  # those of k2, and ours
            if self._path is None:
                self._report_refusal(epoch, losses, error)
            raise
        finally:
            self._batch = None
            losses.clear()

    def _report(self, epoch: Epoch, losses: list[Computed], result: Any) -> None:
        findings = [finding for found in losses for finding in routing.diagnosed(found)]
        # Of a sharded one the part that is here: only this rank looks.
        held = {
            name: p.to_local() if hasattr(p, "to_local") else p
            for name, p in epoch.model.named_parameters()
        }
        names = [name for name, p in held.items() if not bool(p.isfinite().all())]
        text = "every routed loss is finite; the recipe's sum of them, or another loss, is not"
        if findings:
            text = str(findings[0])
        self._write(
            epoch,
            losses,
            text,
            numbers=_numbers(result),
            loss_scale=epoch.loss_scale,
            findings=[self._entry(finding, losses) for finding in findings],
            parameters_not_finite=names[:_MOST_PARAMETERS],
        )

    def _report_refusal(self, epoch: Epoch, losses: list[Computed], error: Exception) -> None:
        named = re.search(r"utterance b=(\d+)", str(error))
        findings = []
        if named is not None:
            b = int(named[1])
            B = _utterances(losses) or _rows(self._batch)
            findings = [{"utterance": b, **utterance_of(self._batch, b, B)}]
        text = f"{type(error).__name__}: {error}"
        self._write(epoch, losses, text, error=text, findings=findings)

    def _write(self, epoch: Epoch, losses: list[Computed], text: str, **content: Any) -> None:
        path = report_path(self._memory_log, epoch, "non-finite")
        lengths = [lengths_of(found.spec, found.frames) for found in losses[:1]]
        write_report(
            path, epoch, self._batch, reason=text, **content,
            lengths=[{"T": t, "S": s} for t, s in lengths[0]] if lengths else None,
        )  # fmt: skip
        self._path = path
        named = content["findings"][0] if content["findings"] else {}
        which = named.get("cut", named.get("text"))
        cut = "" if which is None else f" ({which})"
        logging.warning(
            "panda: training batch %d: %s%s; details in %s; said once", epoch.steps, text, cut, path
        )

    def _entry(self, finding: Finding, losses: list[Computed]) -> dict[str, Any]:
        named = utterance_of(self._batch, finding.utterance, _utterances(losses))
        return {**dataclasses.asdict(finding), **named}

    def outcome(self) -> dict[str, Any]:
        """How many batches had a loss that is not finite, and where the first is described."""
        path = None if self._path is None else str(self._path)
        return {"non_finite": path, "non_finite_batches": self._batches}


def _utterances(losses: list[Computed]) -> int:
    """B."""
    return losses[0].spec.symbols.shape[0] if losses else 0


def _rows(batch: Any) -> int:
    features = batch.get("inputs") if isinstance(batch, Mapping) else None
    return len(features) if isinstance(features, Tensor) and features.dim() else 1


def _numbers(result: Any) -> dict[str, float]:
    """What a recipe tells of its loss, by name."""
    info = result[1] if isinstance(result, tuple) and len(result) > 1 else None
    given = info.items() if isinstance(info, Mapping) else ()
    return {str(k): float(v) for k, v in given if isinstance(v, (int, float))}


def _is_finite(result: Any, losses: list[Computed]) -> bool:
    numbers = _numbers(result)
    if not all(map(math.isfinite, numbers.values())):
        return False
    if not numbers:
        loss = result[0] if isinstance(result, tuple) and result else result
        if isinstance(loss, Tensor) and not bool(loss.detach().isfinite().all()):
            return False
    return all(is_finite(found) for found in losses if found.loss.device.type == "cpu")
