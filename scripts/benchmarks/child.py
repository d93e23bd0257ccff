"""One measured process: ``python -m benchmarks.child`` with a job as JSON on stdin.

A peak is only that of one method when nothing else ran in the process before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.arms import Step
from benchmarks.inputs import LossInputs
from benchmarks.losses import LOSSES, LossStep
from benchmarks.memory import CHILD_ENVIRONMENT, PeakMeter, cap_memory, is_out_of_memory
from benchmarks.shapes import LossShape
from benchmarks.steps import TrainingStep, site_shares
from benchmarks.timing import seconds_of, times

_SCRIPTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
      arm, part, workspace_mib: see `step_of`.
      shape: of random inputs; ignored where `inputs` is given.
      inputs: a file of `LossInputs.save`, or None: random ones.
      cap_bytes: what it may hold beside code, or None.
      device: ``cpu`` or ``cuda``.
      repeats: timed runs; 0: none, one run whose peak is measured.
      precision: see `precision.PRECISIONS`.
      warm_ups: runs before those that are measured: on CUDA kernels are compiled in them.
    """

    arm: str
    part: str
    shape: LossShape
    inputs: str | None = None
    workspace_mib: float | None = None
    cap_bytes: int | None = None
    device: str = "cpu"
    repeats: int = 0
    precision: str = "fp32"
    warm_ups: int = 0


@dataclass(frozen=True)
class Measured:
    """What a job came to.

    Attributes:
      is_out_of_memory: it did not fit under its cap; then the other figures say nothing.
      peak_bytes: above inputs and parameters, all gradients included.
      seconds, seconds_min: median and minimum of a forward and backward; without `repeats` of the
        run that gave the peak, which may be slower than others.
      samples_s: all of them.
      forward_share, backward_share: see `steps.site_shares`.
      parameter_bytes, input_bytes: the part of the peak that is gradients of parameters, and of
        encoder and decoder outputs.
    """

    is_out_of_memory: bool
    peak_bytes: int = 0
    seconds: float = 0.0
    seconds_min: float = 0.0
    samples_s: list[float] = field(default_factory=list)
    forward_share: float = 1.0
    backward_share: float = 1.0
    parameter_bytes: int = 0
    input_bytes: int = 0


def step_of(
    arm: str,
    part: str,
    inputs: LossInputs,
    workspace_mib: float | None = None,
    precision: str = "fp32",
) -> TrainingStep:
    """A step of a recipe's loss, or of a transducer loss by its name in `losses.LOSSES`."""
    kind = LossStep if part in LOSSES else Step
    return kind.make(arm, part, inputs, workspace_mib, precision)


def measure(job: Job) -> Measured:
    """Peak and, with `repeats`, time of a job, each in a fresh process.

    They are two as the allocator's setting that makes a peak exact costs large tensors time.

    Raises:
      RuntimeError: a process failed for another reason than memory.
    """
    measured = _in_process(replace(job, repeats=0), CHILD_ENVIRONMENT)
    if measured.is_out_of_memory or not job.repeats:
        return measured
    timed = _in_process(job, {})
    # Fragments of an ordinary heap may pass a cap that the tensors do not.
    return measured if timed.is_out_of_memory else replace(measured, **times(timed.samples_s))


def _in_process(job: Job, environment: dict[str, str]) -> Measured:
    path = os.pathsep.join([str(_SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{job}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def run(job: Job) -> Measured:
    """Run a job in this process, whose memory the cap limits from here on."""
    device = torch.device(job.device)
    # The BLAS keeps its buffers and the kernel mapped code, once for all: no method's own memory.
    warm_up = LossInputs.random(job.shape.warm_up(), device)
    step_of(job.arm, job.part, warm_up, job.workspace_mib, job.precision).run()
    del warm_up
    if job.cap_bytes is not None:
        cap_memory(job.cap_bytes, device)
    try:
        return _run(job, device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Measured(is_out_of_memory=True)


def _run(job: Job, device: torch.device) -> Measured:
    if job.inputs is None:
        inputs = LossInputs.random(job.shape, device)
    else:
        inputs = LossInputs.load(Path(job.inputs), device)
    step = step_of(job.arm, job.part, inputs, job.workspace_mib, job.precision)
    inputs.parameters = None  # the model has copied them
    for _ in range(job.warm_ups):
        step.run()
    step.begin()  # without the gradients of the last one
    meter = PeakMeter(device)
    with step.applied():
        meter.start()
        seconds = [seconds_of(step.compute, device) for _ in range(max(1, job.repeats))]
        peak_bytes = meter.peak_bytes()
    step.check()
    forward_share, backward_share = site_shares()
    sizes = {name: t.numel() * t.element_size() for name, t in step.gradients().items()}
    input_bytes = sum(sizes.pop(name) for name in ("encoder_out", "decoder_out"))
    return Measured(
        is_out_of_memory=False,
        peak_bytes=peak_bytes,
        **times(seconds),
        forward_share=forward_share,
        backward_share=backward_share,
        parameter_bytes=sum(sizes.values()),
        input_bytes=input_bytes,
    )


if __name__ == "__main__":
    given = json.loads(sys.stdin.read())
    print(json.dumps(asdict(run(Job(**{**given, "shape": LossShape(**given["shape"])})))))
