"""What is changed in the hosts' losses for dense passes: which recursion, and how they round."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.lattice import exact_recursion
from panda_icefall.losses import of_logits
from panda_icefall.routing.hosts import Kind, loaded_functions, names_of
from panda_icefall.routing.replaced import pruned_loss_with_hat
from panda_icefall.runs.contract.passes import wrapped_function
from panda_icefall.runs.errors import UsageError
from panda_icefall.swaps import Swaps

__all__ = [
    "ctc_losses_in_float64",
    "exact_recursions",
    "full_losses_in_float64",
    "pruned_losses_with_hat",
    "rerounded_losses",
]

_SEED = 0
_BOTH = (Kind.SIMPLE_LOSS, Kind.PRUNED_LOSS)


@contextlib.contextmanager
def exact_recursions() -> Iterator[None]:
    """Losses of k2 and fast_rnnt over the exact recursion, in place of their own, in the block.

    Their own adds up float32 log-probs to scores of some thousand nats; gradients have an error of
    some 1e-6 from that, which two implementations that both are right do not share. All else of the
    losses stays theirs.
    """
    name = "mutual_information_recursion"
    with Swaps() as swaps:
        for host in ("k2.rnnt_loss", "fast_rnnt.rnnt_loss"):
            module = sys.modules.get(host)
            if module is None:
                continue
            if not hasattr(module, name):
                raise UsageError(
                    f"{host}: got no {name} in it, expected the one that its losses call, for the "
                    "check's exact recursion; give --panda-check-recursion own"
                )
            swaps.replace(module, name, exact_recursion)
        yield


@contextlib.contextmanager
def pruned_losses_with_hat() -> Iterator[None]:
    """Pruned losses take ``use_hat_loss`` in the block, as the routed ones do on any k2."""
    with Swaps() as swaps:
        for module, name in loaded_functions(Kind.PRUNED_LOSS):
            original = getattr(module, name)
            ours = pruned_loss_with_hat(original)
            if ours is not original:
                swaps.replace(module, name, ours)
        yield


@contextlib.contextmanager
def rerounded_losses(kinds: Sequence[Kind] = _BOTH) -> Iterator[None]:
    """Shift the logits of simple or pruned losses in the block, each row of C by a number.

    The numbers, drawn between -1 and 1 from a seed of their own, cancel against the normalisers:
    log-probs, loss and gradients stay the same but for rounding. Those of HAT, whose blank has no
    part in the softmax, are left as they are.

    What is read of a row is then one ulp off, and what gradients make of that is the distance
    between two implementations that both are right. Over k2's own recursion it is several digits
    more: that adds up float32 log-probs to scores of some thousand nats, and its occupations are
    differences of such scores.
    """
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            for module, name in loaded_functions(kind):
                stack.enter_context(wrapped_function(name, _on_shifted_rows, module))
        yield


@contextlib.contextmanager
def full_losses_in_float64() -> Iterator[None]:
    """Full-lattice losses of the same float32 logits without float32 sums, in the block.

    Where the host's takes no float64, they are our own.
    """
    with contextlib.ExitStack() as stack:
        for module, name in loaded_functions(Kind.FULL_LOSS):
            stack.enter_context(wrapped_function(name, _full_loss_in_float64, module))
        yield


@contextlib.contextmanager
def ctc_losses_in_float64() -> Iterator[None]:
    """torch's CTC losses of the same float32 log-probs without float32 sums, in the block."""
    (name,) = names_of(Kind.CTC_LOSS)
    original = getattr(F, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def ctc_loss(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        log_probs = given.arguments["log_probs"]
        if log_probs.dtype != torch.float32:
            return original(*args, **kwargs)
        given.arguments["log_probs"] = log_probs.double()
        return original(*given.args, **given.kwargs).float()

    with Swaps() as swaps:
        swaps.replace(F, name, ctc_loss)
        yield


def _on_shifted_rows(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    arguments = given.arguments
    if not arguments.get("use_hat_loss", False):
        for name in ("lm", "am", "logits"):
            if name in arguments:
                arguments[name] = _shifted(arguments[name])
    return original(*given.args, **given.kwargs)


def _shifted(logits: Tensor) -> Tensor:
    """``[..., C]`` plus one number for each row."""
    generator = torch.Generator(logits.device).manual_seed(_SEED)
    rows = torch.empty_like(logits[..., :1], requires_grad=False)
    return logits + rows.uniform_(-1, 1, generator=generator)


def _full_loss_in_float64(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    arguments = given.arguments
    logits = arguments["logits"]
    if logits.dtype != torch.float32:
        return original(*given.args, **given.kwargs)
    arguments["logits"] = logits.double()
    if "symbols" in arguments:  # k2's
        return original(*given.args, **given.kwargs).float()
    is_packed = logits.dim() == 2
    of_float64 = of_logits.transducer_loss if is_packed else of_logits.rnnt_loss
    return of_float64(**arguments).float()
