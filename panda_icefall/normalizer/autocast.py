"""Autocast: what it is set to, and off, where every cast is written out."""

from __future__ import annotations

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast gives to a linear layer's operands now, or None where it is off."""
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        enabled = torch.is_autocast_enabled(device.type)
        return torch.get_autocast_dtype(device.type) if enabled else None
    if device.type == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def no_autocast(device: torch.device) -> torch.autocast:
    """A context without autocast on the device, so that replays in backward equal forward."""
    # The dtype is never used; but torch 1.13 warns about the CPU's default one, and refuses
    # bfloat16 on GPUs before Ampere, also where autocast is to be off.
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    return torch.autocast(device.type, enabled=False, dtype=dtype)
