"""Steps of training: fp16 under a GradScaler, equal bits, another device, memory that stays."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from benchmarks.arms import Step
from benchmarks.inputs import LossInputs
from benchmarks.precision import is_supported
from benchmarks.shapes import LossShape

from gpu_validation.losses import judge, outcome
from gpu_validation.report import Setting

SHAPE = LossShape(B=6, T=120, S=14, C=5537)
WIDE = LossShape(B=4, T=100, S=14, C=65_536)
TINY = LossShape(B=2, T=9, S=3, s_range=3, C=23, H=8, D=8)
SCALE = 65_536.0
# More than half gradients can hold, whatever the loss.
OVERFLOWING_SCALE = 2.0**60
WORKSPACE_MIB = 64.0


def run(setting: Setting) -> None:
    # cuBLAS reads it before its first product; without it deterministic algorithms are refused.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name, part in (
        ("bytes that stay allocated", constant_bytes),
        ("deterministic algorithms", equal_bits),
        ("fp16 under a GradScaler", scaled_training),
        ("another device", another_device),
    ):
        if not setting.report.is_over(name):
            with setting.report.case(name):
                part(setting)


def constant_bytes(setting: Setting) -> None:
    """After the first steps no step leaves more allocated than the one before."""
    inputs = LossInputs.random(setting.size(SHAPE, TINY), setting.device)
    gc.freeze()  # on a CPU what is there before need not be gone through each time
    try:
        for precision in ("fp32", "bf16"):
            step = Step.make("panda", "whole", inputs, None, precision)
            held = [_bytes_after(step) for _ in range(setting.size(50, 5))]
            settled = held[2:]
            setting.report.check(
                f"{len(held)} steps in {precision} leave as much allocated",
                min(settled) == max(settled), least=min(settled), most=max(settled),
            )  # fmt: skip
    finally:
        gc.unfreeze()


def _bytes_after(step: Step) -> int:
    """What is held after a step whose gradients are gone."""
    step.run()
    step.begin()
    return held_bytes(step.inputs.encoder_out.device)


def held_bytes(device: torch.device) -> int:
    """Bytes of tensors; on a CPU of those that Python holds and did not freeze."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if type(o) in kinds)


def equal_bits(setting: Setting) -> None:
    """Two runs of the whole loss, the recorded projections included."""
    inputs = LossInputs.random(setting.size(SHAPE, TINY), setting.device)
    for is_strict in (True, False):
        for precision in ("fp32", "bf16"):
            torch.use_deterministic_algorithms(is_strict)
            try:
                one, two = (
                    outcome(Step.make("panda", "whole", inputs, WORKSPACE_MIB, precision))
                    for _ in range(2)
                )
            finally:
                torch.use_deterministic_algorithms(False)
            others = [name for name in one if not torch.equal(one[name], two[name])]
            case = f"two runs in {precision} are equal"
            if is_strict:
                setting.report.check(f"{case}, deterministic", not others, others=others)
            else:
                setting.report.row("repeatability", case=case, holds=not others, others=others)


def scaled_training(setting: Setting) -> None:
    """One step at a scale of 65,536, and one that overflows and must be left out."""
    scaler = grad_scaler(setting.device, SCALE)
    if scaler is None or not is_supported("fp16", setting.device):
        setting.report.skip("fp16 under a GradScaler", "this torch has none on this device")
        return
    inputs = LossInputs.random(setting.size(WIDE, TINY), setting.device)
    frames = float(inputs.boundary[:, 3].sum())
    steps = {arm: Step.make(arm, "pruned", inputs, None, "fp16") for arm in ("dense", "panda")}
    steps["exact"] = Step.make("dense", "pruned", inputs.in_float64())
    steps["exact"].scaled = lambda loss: loss / frames
    exact = outcome(steps.pop("exact"))
    found = {}
    for arm, step in steps.items():
        scaler = grad_scaler(setting.device, SCALE)
        step.scaled = lambda loss, scaler=scaler: scaler.scale(loss / frames)
        found[arm] = {
            name: value if name == "loss" else value / SCALE
            for name, value in outcome(step).items()
        }
    judge(setting, "gradients at a scale of 65,536", "fp16", found["panda"], found["dense"], exact)
    for scale, is_taken in ((SCALE, True), (OVERFLOWING_SCALE, False)):
        _update(setting, steps["panda"], scale, frames, is_taken)


def _update(setting: Setting, step: Step, scale: float, frames: float, is_taken: bool) -> None:
    """An optimizer's step under a scaler of that scale."""
    scaler = grad_scaler(setting.device, scale)
    optimizer = torch.optim.SGD(step.model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in step.model.parameters()]
    step.scaled = lambda loss: scaler.scale(loss / frames)
    step.run()
    scaler.step(optimizer)
    scaler.update()
    after = list(step.model.parameters())
    is_moved = any(not torch.equal(x, y) for x, y in zip(before, after))
    is_finite = all(bool(p.isfinite().all()) for p in after)
    setting.report.check(
        f"a step at a scale of {scale:g} is {'taken' if is_taken else 'left out'}",
        is_moved == is_taken and is_finite and (scaler.get_scale() == scale) == is_taken,
        moved=is_moved, finite=is_finite, scale_after=scaler.get_scale(),
    )  # fmt: skip


def grad_scaler(device: torch.device, scale: float) -> Any | None:
    """One of torch's; None where it has none for the device."""
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):  # torch 2.3
        return torch.amp.GradScaler(device.type, init_scale=scale)
    return torch.cuda.amp.GradScaler(init_scale=scale) if device.type == "cuda" else None


def another_device(setting: Setting) -> None:
    """The second GPU while the first one is the current device."""
    if setting.device.type == "cuda" and torch.cuda.device_count() < 2:
        setting.report.skip("another device", "there is one GPU")
        return
    second = torch.device("cuda", 1) if setting.device.type == "cuda" else setting.device
    shape = setting.size(SHAPE, TINY)
    one, two = (
        outcome(Step.make("panda", "pruned", LossInputs.random(shape, device), WORKSPACE_MIB))
        for device in (setting.device, second)
    )
    apart = {
        name: float((two[name].to(setting.device) - x).norm() / x.norm()) for name, x in one.items()
    }
    setting.report.check(
        "the second device gives what the first one does",
        all(distance < 1e-5 for distance in apart.values()) and two["loss"].device == second,
        apart=max(apart.values()),
    )
