"""Copies of a recipe's training state: trained beside the original, or from one ulp beside it."""

import contextlib
import copy
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = [
    "copy_batch",
    "copy_model",
    "copy_training",
    "generator_states",
    "keep_rng",
    "perturb_by_one_ulp",
    "unwrap_model",
]

_SEED = 0


def unwrap_model(model: nn.Module) -> nn.Module:
    """The recipe's own model inside ``DistributedDataParallel``, or ``model`` itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` without its gradients and without a DDP wrapper."""
    return _copy_model(model, {})


def copy_training(model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Copy ``model`` and ``optimizer`` together, so that the copies belong to each other.

    Args:
      model: The training model, wrapped in DDP or not.
      optimizer: A ``torch.optim.Optimizer``, or an object that holds some (icefall's ``Noam``).

    Returns:
      The copied model, and a copied optimizer that updates its parameters.
    """
    memo: dict[int, Any] = {}
    copied_model = _copy_model(model, memo)
    if isinstance(optimizer, torch.optim.Optimizer):
        return copied_model, _copy_optimizer(optimizer, memo)
    for value in list(vars(optimizer).values()):
        if isinstance(value, torch.optim.Optimizer):
            _copy_optimizer(value, memo)
    return copied_model, copy.deepcopy(optimizer, memo)


def _copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    inner = unwrap_model(model)
    copied = copy.deepcopy(inner, memo)
    # Recipes that write `model.device = device` after wrapping leave it on the wrapper only.
    if inner is not model and not hasattr(copied, "device") and hasattr(model, "device"):
        copied.device = model.device
    return copied


def _copy_optimizer(
    optimizer: torch.optim.Optimizer, memo: dict[int, Any]
) -> torch.optim.Optimizer:
    # Optimizer.__getstate__ keeps three fields only; ScaledAdam needs its others too. An instance
    # attribute `step` is the counting wrapper of a learning-rate scheduler around the *original's*
    # step: a copy must fall back to its class.
    copied = optimizer.__class__.__new__(optimizer.__class__)
    memo[id(optimizer)] = copied
    for name, value in vars(optimizer).items():
        if name != "step":
            copied.__dict__[name] = copy.deepcopy(value, memo)
    return copied


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


def copy_batch(value: Any) -> Any:
    """A batch with its own containers and tensors, sharing everything else (cuts, texts)."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is dict:
        return {k: copy_batch(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_batch(v) for v in value)
    return value


def generator_states() -> list[torch.Tensor]:
    """The states of torch's generators, uint8: that of the CPU, then those of the CUDA devices."""
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_cuda]


@contextlib.contextmanager
def keep_rng() -> Iterator[None]:
    """Leave every random generator (torch, CUDA, Python, numpy) as it was at the start."""
    python_state = random.getstate()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        if numpy is not None and numpy_state is not None:
            numpy.random.set_state(numpy_state)
