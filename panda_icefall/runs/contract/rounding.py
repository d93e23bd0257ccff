"""What rounding alone does: a start that is one ulp off, losses that round differently.

k2's recursion adds up float32 log-probs to scores of some thousand nats, and its occupations are
differences of such scores: several digits less exact than the log-probs it reads. Two
implementations whose log-probs differ by one ulp have gradients that far apart. So do torch's CTC.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from panda_icefall.routing.hosts import Kind, names_of
from panda_icefall.runs.contract.passes import wrapped_function
from panda_icefall.swaps import Swaps

__all__ = ["ctc_losses_in_float64", "perturb_by_one_ulp", "rerounded_simple_losses"]

_SEED = 0


def perturb_by_one_ulp(model: nn.Module) -> None:
    """Multiply every parameter element of ``model`` in place by 1 + eps or 1 - eps.

    A training run that starts so differs from the unchanged one by rounding alone. Two
    implementations of one loss cannot be expected to stay closer to each other than these two
    runs do. Zeros stay zeros.

    Args:
      model: Its floating-point parameters are changed, each by the eps of its own dtype. The signs
        come from a generator with a fixed seed: every call and every process draws the same, and
        the global generators are left as they are.
    """
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
                eps = torch.finfo(parameter.dtype).eps
                parameter.mul_(1 + eps * signs.to(parameter.device, parameter.dtype))


@contextlib.contextmanager
def rerounded_simple_losses() -> Iterator[None]:
    """Shift ``am`` of every frame and ``lm`` of every state by a number, in the enclosed block.

    The numbers, drawn between -1 and 1 from a seed of their own, cancel against the normalisers:
    log-probs, loss and gradients stay the same but for rounding.
    """
    with contextlib.ExitStack() as stack:
        for name in names_of(Kind.SIMPLE_LOSS):
            stack.enter_context(wrapped_function(name, _on_shifted_inputs))
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


def _on_shifted_inputs(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    for name in ("lm", "am"):
        given.arguments[name] = _shifted(given.arguments[name])
    return original(*given.args, **given.kwargs)


def _shifted(logits: Tensor) -> Tensor:
    """``[B, rows, C]`` plus one number for each row."""
    generator = torch.Generator(logits.device).manual_seed(_SEED)
    rows = torch.empty_like(logits[..., :1], requires_grad=False)
    return logits + rows.uniform_(-1, 1, generator=generator)
