"""A short name for the values of a model's parameters, to know them again by."""

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["parameter_digest"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def parameter_digest(model: nn.Module) -> str:
    """The same text for the same parameters, bit for bit, on any device.

    Args:
      model: Its parameters are read where they are, one copy of the largest in int64 at a time;
        its buffers do not matter.

    Returns:
      A digest in hexadecimal of every parameter's name, dtype, shape and bits.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        form = f"{name} {parameter.dtype} {tuple(parameter.shape)}"
        digest.update(f"{form} {_checksum(parameter.detach())}\n".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    # Integer sums are exact in any order, so that a GPU's agrees with the CPU's.
    flat = tensor.contiguous().reshape(-1)
    words = flat.view(_INTEGERS.get(flat.element_size(), torch.int64)).to(torch.int64)
    places = torch.arange(1, len(words) + 1, device=words.device)
    return int((words * places).sum())
