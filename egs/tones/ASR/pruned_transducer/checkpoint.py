"""Checkpoints: parameters of the model, states of training, and the sizes to rebuild it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# The unpickler that makes no objects but tensors; torch 1.13's knows no floats.
IS_WEIGHTS_ONLY = int(torch.__version__.partition(".")[0]) >= 2
PROGRESS = ("batch_idx_train", "best_valid_loss", "best_valid_epoch")


def save_checkpoint(
    path: Path,
    params: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
) -> None:
    """Write everything that resuming and decoding need; the file is complete or absent."""
    inner = model.module if isinstance(model, DDP) else model
    partial = path.with_suffix(".partial")
    # Plain values only: torch.load refuses other classes, and options may come from elsewhere.
    plain = {name: v for name, v in params.items() if isinstance(v, (bool, int, float, str))}
    torch.save(
        {
            "params": plain,
            "model": inner.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
        },
        partial,
    )
    partial.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dict that save_checkpoint() wrote, on the CPU.

    Raises:
      FileNotFoundError: no such checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint: got {path}, expected a file that train.py wrote; check --exp-dir and "
            "the epoch"
        )
    return torch.load(path, map_location="cpu", weights_only=IS_WEIGHTS_ONLY)


def load_checkpoint(
    path: Path,
    params: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LambdaLR,
) -> None:
    """Put the state of `path` into all four, in place."""
    saved = read_checkpoint(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    params.update({name: saved["params"][name] for name in PROGRESS})
