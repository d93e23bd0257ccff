"""What hangs on a training session: contract check, memory log, proof, guard, resumption."""

import contextlib
from collections.abc import Iterator

from rich.console import Console

from panda_icefall.runs.contract.training_copy import perturb_by_one_ulp
from panda_icefall.runs.hooks.contract_check import ContractCheck
from panda_icefall.runs.hooks.guard import Guard
from panda_icefall.runs.hooks.hook import Hook, call_each
from panda_icefall.runs.hooks.memory_log import MemoryLogging
from panda_icefall.runs.hooks.non_finite import NonFiniteReport
from panda_icefall.runs.hooks.repeatable_batches import RepeatableBatches
from panda_icefall.runs.hooks.routing_proof import RoutingProof
from panda_icefall.runs.hooks.worst_batches import WorstBatches
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import Epoch

__all__ = ["Hook", "call_each", "hooks_for"]


def hooks_for(options: PandaOptions, console: Console) -> list[Hook]:
    """The hooks that the options ask for, in the order in which they are called.

    Args:
      options: What the user asked for.
      console: Where rank 0 prints the result of a contract check.
    """
    hooks: list[Hook] = []
    if options.worst_only is not None:  # its search for them belongs to no step
        hooks.append(WorstBatches(options.worst_only))
    if options.memory_log is not None:  # its phases begin and end outside of the others
        hooks.append(MemoryLogging(options.memory_log, options))
    if options.check_batches:
        hooks.append(ContractCheck(options, console))
    if options.use_panda:
        hooks.append(NonFiniteReport(options.memory_log))
        if options.verify_every is not None:
            hooks.append(Guard(options.verify_every, options.memory_log))
        hooks.append(RoutingProof(options.workspace_mib, options.projections, options.ctc))
    if options.last_bit_twin:
        hooks.append(PerturbedStart())
    if options.batch_seed is not None:
        hooks.append(RepeatableBatches(options.batch_seed))
    return hooks


class PerturbedStart(Hook):
    """Perturbs the model once, before anything is trained."""

    def __init__(self) -> None:
        self._is_due = True

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch's model, as the recipe has built or loaded it."""
        if self._is_due:
            perturb_by_one_ulp(epoch.model)
            self._is_due = False
        yield
