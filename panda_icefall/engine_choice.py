"""Torch or Triton, k2's recursion or the exact one: which is used, and what is refused."""

from __future__ import annotations

import importlib.util
import os

import torch

ENGINES = ("auto", "torch", "triton")
RECURSIONS = ("auto", "k2", "exact")


class MissingEngineError(ImportError):
    """The engine that was asked for is not installed."""


def check_engine(engine: str) -> None:
    """Refuse an engine that no device of this machine could have.

    Raises:
      ValueError: there is no such engine.
      MissingEngineError: Triton is asked for and not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected one of {', '.join(ENGINES)}")
    if engine == "triton" and not _is_installed():
        raise MissingEngineError(
            "engine: got 'triton', which is not installed; pip install triton, or give 'auto'"
        )


def check_recursion(recursion: str) -> None:
    """Refuse a recursion that does not exist, or k2's where k2 is not installed.

    Raises:
      ValueError: there is no such recursion.
      MissingEngineError: k2's is asked for and k2 is not installed.
    """
    if recursion not in RECURSIONS:
        raise ValueError(f"recursion: got {recursion!r}, expected one of {', '.join(RECURSIONS)}")
    if recursion == "k2" and importlib.util.find_spec("k2") is None:
        raise MissingEngineError(
            "recursion: got 'k2', which is not installed; install k2, or give 'auto'"
        )


def is_triton_chosen(engine: str, device: torch.device) -> bool:
    """Whether Triton kernels are to work on the tensors of a device.

    Args:
      engine: "torch", "triton", or "auto": Triton 3 or newer where it is installed and the device
        is a CUDA one of compute capability 7.0 or newer (Triton's own limit), else torch.
      device: where the tensors lie.

    Raises:
      ValueError: there is no such engine, or it cannot work on this device.
      MissingEngineError: Triton is asked for and not installed.
    """
    check_engine(engine)
    if engine == "torch":
        return False
    if engine == "auto":
        return device.type == "cuda" and _is_installed() and _runs_on(device)
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"engine: got 'triton' for tensors on {device}, expected CUDA; give 'auto' "
            f"(Triton's interpreter, TRITON_INTERPRET=1, is for tests)"
        )
    return True


def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _runs_on(device: torch.device) -> bool:
    import triton

    is_recent = int(triton.__version__.split(".")[0]) >= 3
    return is_recent and torch.cuda.get_device_capability(device) >= (7, 0)
