"""Two ranks under DDP, by NCCL on two GPUs and by gloo in the CPU form."""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmarks.arms import Step
from benchmarks.inputs import LossInputs
from benchmarks.model import TransducerLoss
from benchmarks.shapes import LossShape
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import panda_icefall
from gpu_validation.report import Setting
from gpu_validation.sections import PATIENCE, SECTIONS
from panda_icefall.routing import patched_module

SHAPE = LossShape(B=4, T=90, S=12, C=4336)
TINY = LossShape(B=2, T=9, S=3, s_range=3, C=23, H=8, D=8)
WORKSPACE_MIB = 64.0
# Ranks that wait for each other do so for ever.
SECONDS = SECTIONS["ranks"].seconds - 5


def run(setting: Setting) -> None:
    is_cuda = setting.device.type == "cuda"
    if is_cuda and torch.cuda.device_count() < 2:
        setting.report.skip("two ranks by NCCL", "there is one GPU")
        return
    backend = "nccl" if is_cuda else "gloo"
    case = f"two ranks by {backend} have the mean of both gradients"
    shape = setting.size(SHAPE, TINY)
    with setting.report.case(case):
        found = _from_ranks(backend, shape, SECONDS * PATIENCE[setting.device.type])
        alone = [_gradients_alone(shape, setting.device, seed) for seed in range(2)]
        apart = {
            name: _distance(gradient, (alone[0][name] + alone[1][name]) / 2)
            for name, gradient in found["gradients"].items()
        }
        is_ok = all(distance < 1e-5 for distance in apart.values())
        setting.report.check(case, is_ok and found["is_routed"], apart=max(apart.values()))


def _distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected.cpu()).norm() / expected.norm())


def _gradients_alone(shape: LossShape, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Of the parameters, for one rank's batch."""
    step = Step.make("panda", "whole", LossInputs.random(shape, device, seed), WORKSPACE_MIB)
    step.run()
    return {name: p.grad for name, p in step.model.named_parameters()}


def _from_ranks(backend: str, shape: LossShape, seconds: float) -> dict[str, Any]:
    """What rank 0 found.

    Raises:
      TimeoutError: the ranks wait for each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank0.pt"
        context = mp.spawn(_train, (port, backend, shape, str(path)), nprocs=2, join=False)
        end = time.monotonic() + seconds
        while not context.join(timeout=0.2):  # raises what a rank raised
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"two ranks by {backend}: no end after {seconds:g} s")
        return torch.load(path)


def _train(rank: int, port: int, backend: str, shape: LossShape, path: str) -> None:
    """One step of one rank, each with a batch of its own."""
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(rank)
    inputs = LossInputs.random(shape, device, seed=rank)
    model = TransducerLoss(inputs, has_simple=True, k2=patched_module())
    ddp = DistributedDataParallel(model, device_ids=[rank] if backend == "nccl" else None)
    with panda_icefall.patched(model, workspace_mib=WORKSPACE_MIB):
        ddp(inputs, "whole").backward()
        status = panda_icefall.status()
    if rank == 0:
        gradients = {name: p.grad.cpu() for name, p in model.named_parameters()}
        is_routed = status.losses_routed == status.simple_losses_deferred == 1
        torch.save({"gradients": gradients, "is_routed": is_routed}, path)
    dist.destroy_process_group()
