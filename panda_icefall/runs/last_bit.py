"""Parameters that differ from a model's own in their last bit: what rounding alone does to it."""

import torch
from torch import nn

__all__ = ["change_last_bit"]

_SEED = 0


def change_last_bit(model: nn.Module) -> None:
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
