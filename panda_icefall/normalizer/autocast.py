"""Autocast off: here every cast is written out, so that replays in backward equal forward."""

import torch


def no_autocast(device: torch.device) -> torch.autocast:
    """A context without autocast on the device."""
    # The dtype is never used; without it torch 1.13 warns about the CPU's default one.
    return torch.autocast(device.type, enabled=False, dtype=torch.bfloat16)
