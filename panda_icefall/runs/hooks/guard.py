"""The guard of a run: every so many batches some utterances are computed dense and compared."""

import dataclasses
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from panda_icefall import routing
from panda_icefall.routing import Computed, ComputedLoss, ComputedSimpleLoss, Deviation
from panda_icefall.runs.contract.tolerances import tolerances_for
from panda_icefall.runs.errors import MismatchError
from panda_icefall.runs.hooks.bad_batch import report_path, utterance_of, write_report
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["Guard", "bounds_on", "compared"]

_UTTERANCES = 2


def bounds_on(device: torch.device, operands: torch.dtype) -> dict[str, float]:
    """The largest distance of each quantity from the dense one in float64.

    A run of weeks must not end for rounding, and a bug shows at 1e-3 and more: log-probs may be ten
    times as far as the contract lets two float32 arms be, what comes out of a float32 recursion
    over some thousand nats a hundred times. Where CUDA's matrix products are in TF32, whose
    mantissa is that of float16, they may be as far as the contract lets float16 be; and where the
    operands of the last layer are half, so may the gradients, whose products are half there.

    Args:
      device: Of the losses.
      operands: Dtype that the last layer's operands are rounded to.
    """
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        single, log_prob, other = tolerances_for(torch.float16), 1.0, 1.0
    else:
        single, log_prob, other = tolerances_for(torch.float32), 10.0, 100.0
    of_log_probs = log_prob * single.log_prob_elementwise
    of_losses, of_gradients = other * single.loss_rel, other * single.gradient_rel_l2
    half = tolerances_for(operands).gradient_rel_l2 if device.type == "cuda" else 0.0
    return {
        **dict.fromkeys(("log-probs", "log_z"), of_log_probs),
        **dict.fromkeys(("loss", "batch loss"), of_losses),
        **dict.fromkeys(("adjoints", "occupations"), of_gradients),
        "gradient": max(of_gradients, half),
    }


class Guard(Hook):
    """Compares the routed losses of every N-th training batch, from the first on.

    The utterances are drawn from a generator of its own; parameters, gradients and random states
    stay as they are.

    Args:
      every: N.
      memory_log: The report on a mismatch lies beside it; None: in the recipe's folder.
    """

    def __init__(self, every: int, memory_log: Path | None) -> None:
        self._every = every
        self._memory_log = memory_log
        self._batch: Any = None
        self._batches = 0
        self._losses = 0
        self._left_out: set[str] = set()

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """The batch that is about to be trained."""
        self._batch = call.bound.arguments["batch"] if call.is_training else None

    def around_loss(self, epoch: Epoch, compute: Callable[[], Any]) -> Any:
        """Compare what one batch's losses gave, before its backward.

        Raises:
          MismatchError: A quantity is farther from the dense one than rounding explains. The batch
            is saved, and the report written.
        """
        if (epoch.steps - 1) % self._every:
            return compute()
        losses: list[Computed] = []
        try:
            with routing.followed_losses(losses.append, log_probs=True):
                result = compute()
            self._verify(epoch, losses)
            return result
        finally:
            self._batch = None
            losses.clear()

    def _verify(self, epoch: Epoch, losses: list[Computed]) -> None:
        draw = random.Random(f"{epoch.rank} {epoch.steps}")
        self._batches += 1
        for found in losses:
            B = found.spec.symbols.shape[0]
            chosen = sorted(draw.sample(range(B), min(_UTTERANCES, B)))
            deviations = compared(found, chosen)
            self._losses += bool(deviations)
            if not deviations:
                self._say_left_out(found.name, epoch)
            bounds = bounds_on(epoch.device, _operands(found))
            # So written, NaN is a mismatch.
            wrong = [d for d in deviations if not d.distance <= bounds[d.quantity]]
            if wrong:
                raise MismatchError(self._report(epoch, wrong, deviations, bounds, B))

    def _say_left_out(self, loss: str, epoch: Epoch) -> None:
        """That a kind of loss was not compared, once."""
        if loss not in self._left_out:
            self._left_out.add(loss)
            logging.warning(
                "panda: --panda-verify-every: the %s of training batch %d was not compared: it is "
                "not finite, is of sharded parameters, or does not fit --panda-workspace-mib",
                loss, epoch.steps,
            )  # fmt: skip

    def _report(
        self,
        epoch: Epoch,
        wrong: list[Deviation],
        deviations: list[Deviation],
        bounds: dict[str, float],
        utterances: int,
    ) -> str:
        """Write it; gives the message."""
        path = report_path(self._memory_log, epoch, "mismatch")
        chosen = wrong[0].utterances
        named = [{"utterance": b, **utterance_of(self._batch, b, utterances)} for b in chosen]
        entries = [
            {**dataclasses.asdict(d), "bound": bounds[d.quantity], "holds": d not in wrong}
            for d in deviations
        ]
        first = wrong[0]
        text = (
            f"--panda-verify-every: {first.quantity} of the {first.loss} of training batch "
            f"{epoch.steps}, utterances b={', '.join(map(str, chosen))}: got a distance of "
            f"{first.distance:.3g} from the dense loss, expected at most "
            f"{bounds[first.quantity]:.3g}"
        )
        write_report(path, epoch, self._batch, reason=text, utterances=named, compared=entries)
        return f"{text}; the routed loss is wrong, train without --use-panda and send {path}"

    def outcome(self) -> dict[str, Any]:
        """How many batches and losses were compared."""
        return {"verified_batches": self._batches, "verified_losses": self._losses}


def compared(found: Computed, chosen: list[int]) -> list[Deviation]:
    """The distances of a loss from the dense one, in as much scratch as its own tiles may take.

    None where what the loss read is sharded.
    """
    if not found.is_whole:
        return []
    scratch = found.options.workspace_on(found.loss.device)
    if isinstance(found, ComputedLoss):
        return routing.deviations_of(found, chosen, scratch)
    if isinstance(found, ComputedSimpleLoss):
        return routing.deviations_of_simple(found, chosen, scratch)
    return []  # a joiner that was called: only its own loop does that


def _operands(found: Computed) -> torch.dtype:
    """What the operands of the last layer of a loss are rounded to."""
    if not isinstance(found, ComputedLoss):
        return torch.float32
    logits = found.logits
    given = logits.rows.dtype if logits.weight is None else logits.weight.dtype
    return logits.head_dtype or given
