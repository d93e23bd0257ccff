"""The contract: on one recipe's own batches, dense and routed training are the same training.

Three trajectories start from copies of the recipe's model and optimizer. For each of the first K
training batches, with the recipe's own arguments, autocast state and random numbers:

- the dense trajectory takes a step, and a routed pass at the *same* parameters gives the loss and
  the gradients to compare with;
- the routed trajectory takes its own step, from its own parameters;
- so does the dense twin, which started from parameters that differ in their last bit.

After K updates the parameters of the routed trajectory and of the twin are compared with those of
the dense one. The twin shows what rounding alone does to this recipe: optimizers of Adam's family
move an element whose gradient is rounding noise (a key bias in attention, say) by a whole learning
rate in a direction that rounding decides.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from panda_icefall import routing
from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.runs.call_watch import LossCallWatch, explain_not_routed
from panda_icefall.runs.contract.comparison import compare_gradients, compare_parameters
from panda_icefall.runs.contract.result import (
    ContractResult,
    UpdateResult,
    final_violations,
    update_violations,
)
from panda_icefall.runs.contract.tolerances import tolerances_for
from panda_icefall.runs.contract.training_copy import copy_model, copy_training, keep_rng
from panda_icefall.runs.memory.probe import MemoryProbe, return_free_memory
from panda_icefall.runs.options import PandaOptions

_TWIN_SEED = 0

__all__ = ["Contract"]

LossOf = Callable[[nn.Module], Tensor]


class Contract:
    """Runs the check, one batch at a time, beside the recipe's own training.

    Args:
      options: The number of updates, and the settings of the routed arm.
      device: The training device, for the memory of each arm.
    """

    def __init__(self, options: PandaOptions, device: torch.device) -> None:
        self.result = ContractResult(updates=options.check_batches)
        self._options = options
        self._probe = MemoryProbe(device)
        self._device = device
        self._dense: Optional[tuple[nn.Module, Any]] = None
        self._routed: Optional[tuple[nn.Module, Any]] = None
        self._twin: Optional[tuple[nn.Module, Any]] = None
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
                if self._dense is None:
                    self._start(model, optimizer)
                self._update(loss_of, scale)
        except Exception as error:
            logging.getLogger(__name__).exception("The contract check could not go on")
            self._finish(f"the check could not go on: {type(error).__name__}: {error}")
            return
        if self.result.not_routed is not None:
            self._finish("no loss was routed in the routed arm")
        elif len(self.result.batches) == self.result.updates:
            self._compare_final()
            self._finish()

    def _start(self, model: nn.Module, optimizer: Any) -> None:
        dtype = autocast_dtype(self._device) or next(model.parameters()).dtype
        self.result.precision = str(dtype).removeprefix("torch.")
        self.result.tolerances = tolerances_for(dtype)
        self._dense = copy_training(model, optimizer)
        self._routed = copy_training(model, optimizer)
        self._twin = copy_training(model, optimizer)
        _change_last_bit(self._twin[0])

    def _update(self, loss_of: LossOf, scale: float) -> None:
        assert self._dense is not None
        assert self._routed is not None
        assert self._twin is not None
        twin_model, twin_optimizer = self._twin
        dense_model, dense_optimizer = self._dense
        routed_model, routed_optimizer = self._routed
        probe_model = copy_model(dense_model)

        with routing.suspended():
            loss_dense, peak_dense = self._pass(loss_of, dense_model, scale)
            self._pass(loss_of, twin_model, scale)
        with routing.patched(self._options.workspace_mib, self._options.adjoint_tolerance):
            before = routing.status()
            with LossCallWatch() as watch:
                loss_routed, peak_routed = self._pass(loss_of, probe_model, scale)
            counted = routing.status() - before
            if counted.losses_routed == 0:
                self.result.not_routed = explain_not_routed(counted, watch.calls)
                return
            gradients = compare_gradients(dense_model, probe_model, scale, self.result.tolerances)
            del probe_model
            self._pass(loss_of, routed_model, scale)

        update = UpdateResult(
            update=len(self.result.batches) + 1,
            loss_dense=loss_dense,
            loss_routed=loss_routed,
            gradients=gradients,
            peak_bytes_dense=peak_dense,
            peak_bytes_routed=peak_routed,
        )
        self.result.batches.append(update)
        self.result.violations += update_violations(update, self.result.tolerances)
        _step(dense_model, dense_optimizer, scale)
        _step(twin_model, twin_optimizer, scale)
        _step(routed_model, routed_optimizer, scale)

    def _pass(self, loss_of: LossOf, model: nn.Module, scale: float) -> tuple[float, int]:
        """Forward and backward of one arm: its loss, and its peak bytes above the start."""
        with keep_rng(), _own_autocast_cache():
            return_free_memory()
            self._probe.start()
            start_bytes = self._probe.read().current_bytes
            loss = loss_of(model)
            with torch.autocast(self._device.type, enabled=False):
                (loss * scale).backward()
            peak_bytes = self._probe.read().peak_bytes - start_bytes
        return loss.detach().to(torch.float64).item(), max(0, peak_bytes)

    def _compare_final(self) -> None:
        assert self._dense is not None
        assert self._routed is not None
        assert self._twin is not None
        result = self.result
        result.parameters = compare_parameters(self._dense[0], self._routed[0])
        result.parameters_twin = compare_parameters(self._dense[0], self._twin[0])
        result.violations += final_violations(result)

    def _finish(self, violation: Optional[str] = None) -> None:
        if violation is not None:
            self.result.violations.append(violation)
        self.is_complete = True
        self._dense = self._routed = self._twin = None


@contextlib.contextmanager
def _own_autocast_cache() -> Iterator[None]:
    # Autocast keeps half-precision copies of parameters until its block ends; that block is the
    # recipe's, and would keep those of every copied model.
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _change_last_bit(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(_TWIN_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            eps = torch.finfo(parameter.dtype).eps
            parameter.mul_(1 + eps * signs.to(parameter.device, parameter.dtype))


def _step(model: nn.Module, optimizer: Any, scale: float) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None and scale != 1.0:
            parameter.grad.div_(scale)
    optimizer.step()
    model.zero_grad(set_to_none=True)
