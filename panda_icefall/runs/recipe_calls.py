"""What stands between a recipe and the session: its calls, taken apart, and its data loaders."""

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panda_icefall import routing
from panda_icefall.runs.contract.training_copy import copy_batch
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import UsageError
from panda_icefall.swaps import Swaps

__all__ = ["BatchFeed", "Epoch", "FirstBatchOnly", "LossCall", "with_params", "wrap_function"]


@dataclass
class Epoch:
    """What one call of ``train_one_epoch`` was given.

    Attributes:
      arguments: Its arguments by name.
      device: Device of the model's parameters.
      ledger: Books what routing counts for the recipe.
      rank: The process's rank.
      steps: Training steps of this process, over all epochs, the one under way included.
    """

    arguments: dict[str, Any]
    device: torch.device
    ledger: CounterLedger
    rank: int = 0
    steps: int = 0

    @property
    def model(self) -> nn.Module:
        """The model that trains, wrapped in DDP or not."""
        return self.arguments["model"]

    @property
    def batch_idx_train(self) -> int | None:
        """The recipe's own count of training batches, if it keeps one."""
        value = getattr(self.arguments.get("params"), "batch_idx_train", None)
        return value if isinstance(value, int) else None

    @property
    def saved_batches(self) -> int | None:
        """``batch_idx_train`` where the recipe saves ``checkpoint-N.pt`` after this batch."""
        every = getattr(self.arguments.get("params"), "save_every_n", None)
        done = self.batch_idx_train
        is_saved = isinstance(every, int) and every > 0 and done and done % every == 0
        return done if is_saved else None

    @property
    def loss_scale(self) -> float:
        """The scale of the recipe's ``GradScaler``, 1 without an enabled one."""
        scaler = self.arguments.get("scaler")
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0

    @property
    def folder(self) -> Path:
        """The recipe's ``exp_dir``, else the working folder."""
        return Path(getattr(self.arguments.get("params"), "exp_dir", None) or Path.cwd())


def wrap_function(
    swaps: Swaps,
    namespace: dict[str, Any],
    name: str,
    around: Callable[[Callable[..., Any], inspect.BoundArguments], Any],
    needed: Sequence[str],
    where: str,
) -> Callable[..., Any]:
    """Replace one function of a recipe by ``around(function, its bound arguments)``.

    Args:
      swaps: Put the function back when the run is over.
      namespace: The globals in which the recipe looks the function up.
      name: The function's name.
      around: Called in its place.
      needed: Parameters that the function must have.
      where: The recipe's path, for errors.

    Returns:
      The recipe's own function.

    Raises:
      UsageError: The function or one of its parameters is missing.
    """
    function = namespace.get(name)
    if not callable(function):
        raise UsageError(
            f"TRAIN_PY: {where} defines no {name}(), expected an icefall recipe with "
            "compute_loss() and train_one_epoch() at its top level"
        )
    # A forked child inherits the wrappers of its parent's session.
    original = getattr(function, "__panda_original__", function)
    signature = inspect.signature(original)
    missing = [parameter for parameter in needed if parameter not in signature.parameters]
    if missing:
        raise UsageError(
            f"TRAIN_PY: {name}() of {where}: got the parameters "
            f"({', '.join(signature.parameters)}), expected one named {' and '.join(missing)}"
        )

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, signature.bind(*args, **kwargs))

    call.__panda_original__ = original  # type: ignore[attr-defined]
    swaps.replace(namespace, name, call)
    return original


def with_params(
    given: Mapping[str, str], function: Callable[..., Any], bound: inspect.BoundArguments
) -> Any:
    """What a recipe's ``get_params()`` gives, with some of its numbers replaced.

    Raises:
      UsageError: It gives no such number, or one of another kind.
    """
    params = function(*bound.args, **bound.kwargs)
    for name, text in given.items():
        kind = type(params.get(name))
        try:
            if kind not in (int, float):
                raise ValueError
            params[name] = kind(text)
        except ValueError:
            numbers = ", ".join(k for k, value in params.items() if type(value) in (int, float))
            raise UsageError(
                f"--panda-recipe-params: got {name}={text}, expected a number in place of one that "
                f"get_params() gives: {numbers}"
            ) from None
    return params


@dataclass(frozen=True)
class LossCall:
    """One call of a recipe's ``compute_loss``, still to be made.

    Attributes:
      function: The recipe's own function.
      bound: Its arguments.
    """

    function: Callable[..., Any]
    bound: inspect.BoundArguments

    @property
    def is_training(self) -> bool:
        """Whether it is of a training batch; else of a validation batch."""
        return bool(self.bound.arguments.get("is_training", torch.is_grad_enabled()))

    def __call__(self) -> Any:
        """Make the call; where routing is applied, the model's projections are recorded in it."""
        with routing.recording_projections(self.bound.arguments["model"]):
            return self.function(*self.bound.args, **self.bound.kwargs)

    def loss_of(self, model: nn.Module) -> Tensor:
        """The loss that it would give for ``model``, on copies of what it may change."""
        arguments = dict(self.bound.arguments)
        arguments["model"] = model
        arguments["batch"] = copy_batch(arguments["batch"])
        if "params" in arguments:
            arguments["params"] = copy.copy(arguments["params"])
        bound = inspect.BoundArguments(self.bound.signature, OrderedDict(arguments))
        result = LossCall(self.function, bound)()
        return result[0] if isinstance(result, tuple) else result


class BatchFeed:
    """Stands for a training data loader and asks before each of its batches.

    A recipe asks for its next batch outside the ``try`` that it puts around ``compute_loss``, so
    an exception of ``before_batch`` ends the run without the recipe's "bad model" checkpoint.
    Everything but iteration (``sampler``, ``dataset``, ``len``, ...) is the loader's own.

    Args:
      loader: The recipe's data loader.
      before_batch: Called before each request; ``False`` ends the epoch there.
    """

    def __init__(self, loader: Any, before_batch: Callable[[], bool]) -> None:
        self._loader = loader
        self._before_batch = before_batch

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while self._before_batch():
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


class FirstBatchOnly(BatchFeed):
    """Stands for a validation data loader of which one batch is enough."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader, lambda: True)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            return
