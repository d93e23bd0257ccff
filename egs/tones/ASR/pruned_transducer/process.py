"""What a training process sets up for itself: log, process group, gradient scaler."""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def setup_logger(exp_dir: Path, rank: int, world_size: int) -> None:
    """Log to exp-dir/log/log-train-<time>[-<rank>] and to the terminal."""
    stamp = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    name = f"log-train-{stamp}" + (f"-{rank}" if world_size > 1 else "")
    (exp_dir / "log").mkdir(parents=True, exist_ok=True)
    who = f" ({rank}/{world_size})" if world_size > 1 else ""
    logging.basicConfig(
        format=f"%(asctime)s %(levelname)s [%(filename)s:%(lineno)d]{who} %(message)s",
        level=logging.INFO,
        handlers=[logging.FileHandler(exp_dir / "log" / name), logging.StreamHandler()],
        force=True,
    )


def training_device(rank: int) -> torch.device:
    """This rank's GPU, made the current one, so that none lands on rank 0's; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return device


def setup_dist(rank: int, world_size: int, master_port: int) -> None:
    """Join the process group: nccl where CUDA is, else gloo; torchrun has chosen the port."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        os.environ["MASTER_ADDR"] = "localhost"
        os.environ["MASTER_PORT"] = str(master_port)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world_size)


def make_grad_scaler(enabled: bool) -> Any:
    """A gradient scaler for CUDA; one that does nothing where `enabled` is false."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)
