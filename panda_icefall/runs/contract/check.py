"""The contract: on one recipe's own batches, dense and routed training are the same training.

Three trajectories start from copies of the recipe's model and optimizer. With the recipe's own
arguments, autocast state and random numbers, for each training batch:

- on the first K batches, a dense and a routed pass at the *same* parameters, those of the dense
  trajectory, give the losses, the selected log-probs, the normalisers and the gradients to compare;
- for the first N batches (K unless told otherwise) the dense trajectory, the routed one and the
  dense twin, whose start was perturbed by one ulp and whose losses round differently, each take an
  optimizer step from their own parameters.

All passes of a batch are handed the prune ranges of its dense one. Where the routed losses run the
exact recursion, those of k2 do so in the other passes, as k2's own would add an error that is not
ours, and the bounds are the tighter ones; unless the user asks for k2's own, unmodified. Where a
gradient is further from the dense one than configured, one more dense pass, whose losses round
differently, shows how much of that is rounding. After the N steps the parameters
of the routed trajectory and of the twin are compared with those of the dense one, and stay as they
are for the batches that are left to compare. The twin shows what rounding alone does to this
recipe: optimizers of Adam's family move an element whose gradient is rounding noise (a key bias in
attention, say) by a whole learning rate in a direction that rounding decides.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from panda_icefall import routing
from panda_icefall.lattice import is_k2_chosen
from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.normalizer.retry import is_out_of_memory
from panda_icefall.routing.hosts import Kind
from panda_icefall.runs.call_watch import (
    LossCallWatch,
    explain_ctc_not_routed,
    explain_not_routed,
)
from panda_icefall.runs.contract.comparison import (
    compare_gradients,
    compare_parameters,
    compare_pruned_losses,
)
from panda_icefall.runs.contract.dense_losses import (
    ctc_losses_in_float64,
    exact_recursions,
    full_losses_in_float64,
    pruned_losses_with_hat,
    rerounded_losses,
)
from panda_icefall.runs.contract.passes import ObservedLoss, PruneRanges, observed_losses
from panda_icefall.runs.contract.result import (
    ContractRecord,
    Distance,
    UpdateRecord,
    backward_violations,
    final_violations,
    gradient_bounds,
    update_violations,
)
from panda_icefall.runs.contract.tolerances import tolerances_for
from panda_icefall.runs.contract.training_copy import (
    copy_model,
    copy_training,
    generator_states,
    keep_rng,
    perturb_by_one_ulp,
)
from panda_icefall.runs.memory.log import run_versions
from panda_icefall.runs.memory.probe import MemoryProbe, return_free_memory
from panda_icefall.runs.options import PandaOptions

__all__ = ["Contract"]

LossOf = Callable[[nn.Module], Tensor]


class _Arm(NamedTuple):
    """One trajectory: a copy of the recipe's model and of the optimizer that belongs to it."""

    model: nn.Module
    optimizer: Any


class _Arms(NamedTuple):
    dense: _Arm
    twin: _Arm
    routed: _Arm


class _Pass(NamedTuple):
    """What one forward and backward gave: its loss, its peak above the start, where it ended."""

    loss: float
    peak_bytes: int
    generators: list[Tensor]


class Contract:
    """Runs the check, one batch at a time, beside the recipe's own training.

    Args:
      options: The number of batches and steps, the bounds, and the settings of the routed arm.
      device: The training device, for the memory of each arm.

    Attributes:
      result: What was found so far.
      not_routed: Why no loss was routed, if none was.
      batches_seen: Batches given to :meth:`observe` without an error.
      is_complete: Nothing is left to compare, or to go on with.
    """

    def __init__(self, options: PandaOptions, device: torch.device) -> None:
        steps = options.check_update_steps
        self._bounds = tolerances_for(torch.float32)
        self.result = ContractRecord(
            has_passed=False,
            updates=options.check_batches,
            update_steps=options.check_batches if steps is None else steps,
            precision="float32",
            tolerances=vars(self._bounds),
            versions=run_versions(device),
        )
        self.not_routed: str | None = None
        self._options = options
        self._probe = MemoryProbe(device)
        self._device = device
        self._arms: _Arms | None = None
        self.batches_seen = 0
        self.is_complete = False

    def observe(self, loss_of: LossOf, model: nn.Module, optimizer: Any, scale: float) -> None:
        """Compare both arms on one batch; the model, optimizer and random state stay untouched.

        An error of the check itself is recorded as a violation: raised here, inside the recipe's
        ``compute_loss``, it would end the run in a "bad model" checkpoint.

        Args:
          loss_of: Computes the recipe's loss of this batch with a given model.
          model: The recipe's model, copied at the first batch.
          optimizer: The recipe's optimizer, copied with it.
          scale: The loss scale of the recipe's ``GradScaler``, 1 without one.
        """
        try:
            with keep_rng():
                if self._arms is None:
                    self._arms = self._start(model, optimizer)
                self._update(self._arms, loss_of, scale)
        except Exception as error:
            logging.getLogger(__name__).exception("The contract check could not go on")
            self._finish(f"the check could not go on: {type(error).__name__}: {error}")
            return
        self.batches_seen += 1
        if self.not_routed is not None:
            self._finish("no loss was routed in the routed arm")
        elif self.batches_seen == self._options.batches_of_check:
            self.result.violations += backward_violations(self.result)
            self._finish()

    def _start(self, model: nn.Module, optimizer: Any) -> _Arms:
        dtype = autocast_dtype(self._device) or next(model.parameters()).dtype
        self.result.precision = str(dtype).removeprefix("torch.")
        bounds = tolerances_for(dtype, is_recursion_exact=self._is_recursion_exact)
        self.result.dense_recursion = "exact" if self._is_recursion_exact else "own"
        if self._options.check_tolerances is not None:
            bounds = dataclasses.replace(bounds, **self._options.check_tolerances)
        self._bounds, self.result.tolerances = bounds, dict(vars(bounds))
        arms = _Arms(*(_Arm(*copy_training(model, optimizer)) for _ in range(3)))
        perturb_by_one_ulp(arms.twin.model)
        return arms

    def _update(self, arms: _Arms, loss_of: LossOf, scale: float) -> None:
        """One batch: the comparison while batches are left for it, then a step while steps are."""
        result, ranges = self.result, PruneRanges()
        if len(result.batches) < result.updates:
            self._compare(arms.dense.model, loss_of, scale, ranges)
            if self.not_routed is not None:
                return
        else:
            with self._dense(), ranges.recorded():
                self._pass(loss_of, arms.dense.model, scale)
        if result.steps < result.update_steps:
            self._rerounded_pass(loss_of, arms.twin.model, scale, ranges)
            with self._options.routed(), ranges.handed_on():
                self._pass(loss_of, arms.routed.model, scale)
            for arm in arms:
                _step(arm, scale)
            result.steps += 1
            if result.steps == result.update_steps:
                self._compare_final(arms)
        arms.dense.model.zero_grad(set_to_none=True)

    def _compare(
        self, dense: nn.Module, loss_of: LossOf, scale: float, ranges: PruneRanges
    ) -> None:
        """Both ways at the dense parameters; leaves the dense gradients in ``dense``."""
        routed = copy_model(dense)
        dense_losses: list[ObservedLoss] = []
        routed_losses: list[ObservedLoss] = []
        with self._dense(), ranges.recorded(), observed_losses(dense_losses.append):
            of_dense = self._pass(loss_of, dense, scale)
        with self._options.routed(), observed_losses(routed_losses.append):
            before = routing.status()
            with LossCallWatch() as watch, ranges.handed_on() as own_ranges:
                of_routed = self._pass(loss_of, routed, scale)
            counted = routing.status() - before
        if counted.losses_routed == 0:
            self.not_routed = explain_not_routed(counted, watch.calls)
            return
        if self._options.ctc and counted.ctc_losses_routed == 0:
            heads = routing.find_ctc_heads(routed, self._options.projections)
            self.not_routed = explain_ctc_not_routed(counted, heads)
            return
        compared = compare_pruned_losses(dense_losses, routed_losses)
        bounds = self._bounds
        gradients = compare_gradients(dense, routed, scale, bounds)
        del routed
        twin = self._twin_gradients(gradients, dense, loss_of, scale, ranges)
        loss_abs = abs(of_routed.loss - of_dense.loss)
        update = UpdateRecord(
            update=len(self.result.batches) + 1,
            loss_dense=of_dense.loss,
            loss_routed=of_routed.loss,
            pruned_losses=compared.values,
            log_probs=compared.log_probs,
            log_z=compared.log_z,
            log_prob_problems=compared.problems,
            prune_ranges=own_ranges,
            simple_losses_routed=counted.simple_losses_routed,
            simple_losses_dense=counted.simple_losses_dense,
            gradients=gradients,
            gradients_twin=twin,
            # A mass that is not finite is not counted; its sites are computed all the same.
            has_pruned_gradient=counted.adjoint_mass > 0 or counted.sites_backward > 0,
            has_same_draws=all(map(torch.equal, of_dense.generators, of_routed.generators)),
            peak_bytes_dense=of_dense.peak_bytes,
            peak_bytes_routed=of_routed.peak_bytes,
            loss_abs=loss_abs,
            loss_rel=loss_abs / max(abs(of_dense.loss), torch.finfo(torch.float32).tiny),
            gradient_bounds=gradient_bounds(gradients, twin, bounds),
        )
        self.result.batches.append(update)
        self.result.violations += update_violations(update, bounds)

    def _twin_gradients(
        self,
        gradients: list[Distance],
        dense: nn.Module,
        loss_of: LossOf,
        scale: float,
        ranges: PruneRanges,
    ) -> list[Distance]:
        """What rounding in the loss does to them, where one is beyond its bound."""
        bounds = self._bounds
        if all(g.is_negligible or g.rel_l2 <= bounds.gradient_rel_l2 for g in gradients):
            return []
        twin = copy_model(dense)
        self._rerounded_pass(loss_of, twin, scale, ranges)
        return compare_gradients(dense, twin, scale, bounds)

    @contextlib.contextmanager
    def _dense(self) -> Iterator[None]:
        """The hosts' own losses, over the recursion that the routed ones run, or over their own."""
        is_exact = self._is_recursion_exact
        recursions = exact_recursions() if is_exact else contextlib.nullcontext()
        with routing.suspended(), recursions, pruned_losses_with_hat():
            yield

    @property
    def _is_recursion_exact(self) -> bool:
        """Whether the dense passes run the exact recursion too."""
        options = self._options
        is_k2s = is_k2_chosen(options.recursion, options.engine, self._device)
        return options.check_recursion == "auto" and not is_k2s

    def _rerounded_pass(
        self, loss_of: LossOf, model: nn.Module, scale: float, ranges: PruneRanges
    ) -> None:
        """A dense pass whose losses, of which both arms have implementations, round differently.

        Shifted logits are a copy more of them. Where that does not fit, simple losses alone do so.
        """

        def run(rerounded: contextlib.AbstractContextManager[None]) -> None:
            of_ctc = ctc_losses_in_float64() if self._options.ctc else contextlib.nullcontext()
            with (
                self._dense(), ranges.handed_on(), rerounded,
                full_losses_in_float64(), of_ctc,
            ):  # fmt: skip
                self._pass(loss_of, model, scale)

        try:
            run(rerounded_losses())
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the handler, which holds the failed pass's tensors.
        logging.warning(
            "panda: the check's dense pass with other rounding does not fit the memory; once more "
            "with other rounding in the simple loss alone"
        )
        model.zero_grad(set_to_none=True)
        return_free_memory()
        run(rerounded_losses((Kind.SIMPLE_LOSS,)))

    def _pass(self, loss_of: LossOf, model: nn.Module, scale: float) -> _Pass:
        """Forward and backward of one arm; the random generators are put back."""
        with keep_rng(), _own_autocast_cache():
            return_free_memory()
            self._probe.start()
            start_bytes = self._probe.read().current_bytes
            loss = loss_of(model)
            with torch.autocast(self._device.type, enabled=False):
                (loss * scale).backward()
            peak_bytes = self._probe.read().peak_bytes - start_bytes
            generators = generator_states()
        return _Pass(loss.detach().to(torch.float64).item(), max(0, peak_bytes), generators)

    def _compare_final(self, arms: _Arms) -> None:
        result = self.result
        result.parameters = compare_parameters(arms.dense.model, arms.routed.model)
        result.parameters_twin = compare_parameters(arms.dense.model, arms.twin.model)
        result.violations += final_violations(result)

    def _finish(self, violation: str | None = None) -> None:
        result = self.result
        if violation is not None:
            result.violations.append(violation)
        has_all = len(result.batches) == result.updates and result.steps == result.update_steps
        result.has_passed = has_all and not result.violations
        self.is_complete = True
        self._arms = None


@contextlib.contextmanager
def _own_autocast_cache() -> Iterator[None]:
    # Autocast keeps half-precision copies of parameters until its block ends; that block is the
    # recipe's, and would keep those of every copied model.
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _step(arm: _Arm, scale: float) -> None:
    for parameter in arm.model.parameters():
        if parameter.grad is not None and scale != 1.0:
            parameter.grad.div_(scale)
    arm.optimizer.step()
    arm.model.zero_grad(set_to_none=True)
