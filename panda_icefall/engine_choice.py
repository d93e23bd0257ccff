"""Torch or Triton, k2's recursion or the exact one: which is used, and what is refused."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType

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
      engine: "torch", "triton", or "auto": Triton where the device is a CUDA one and
        ``why_not_triton`` has no objection, else torch.
      device: where the tensors lie.

    Raises:
      ValueError: there is no such engine, or it cannot work on this device.
      MissingEngineError: Triton is asked for and not installed.
    """
    check_engine(engine)
    if engine == "torch":
        return False
    if engine == "auto":
        return device.type == "cuda" and why_not_triton(device) is None
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"engine: got 'triton' for tensors on {device}, expected CUDA; give 'auto' "
            f"(Triton's interpreter, TRITON_INTERPRET=1, is for tests)"
        )
    return True


def row_kernels(engine: str, device: torch.device, in_torch: ModuleType) -> ModuleType:
    """The row kernels that work on the tiles of a device.

    Args:
      engine, device: as in ``is_triton_chosen``, which raises what this does.
      in_torch: the kernels in plain torch, which documents them. In its package ``triton_rows``, of
        the same functions, has them in Triton.
    """
    if not is_triton_chosen(engine, device):
        return in_torch
    package, _, _ = in_torch.__name__.rpartition(".")
    return importlib.import_module(f"{package}.triton_rows")


def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def why_not_triton(device: torch.device) -> str | None:
    """Why kernels in Triton cannot serve a CUDA device, None where they can.

    It takes Triton 3 or newer, compute capability 7.0 or newer (Triton's own limit), and the
    compilers that Triton calls: one kernel is compiled and run, once per process and device, and
    what goes wrong is logged.
    """
    if not _is_installed():
        return "it is not installed"
    import triton

    if int(triton.__version__.split(".")[0]) < 3:
        return f"its version is {triton.__version__}, expected 3 or newer"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 0):
        return f"the compute capability of {device} is {major}.{minor}, expected 7.0 or higher"
    try:
        _try_kernel(device)
    except torch.cuda.OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        logging.warning(
            "panda: Triton compiles no kernel for %s (%s); its engine is torch. Triton needs a C "
            "compiler and Python's headers: install them, or point CC to a compiler",
            device,
            reason,
        )
        return reason
    return None


def _try_kernel(device: torch.device) -> None:
    from panda_icefall.triton_probe import run

    run(device)
