"""What a step does to the GPU: launches, waits, the heaviest kernels, and how busy it is."""

from __future__ import annotations

from benchmarks.arms import ARMS, Step
from benchmarks.device_events import events_of, sync_sources
from benchmarks.timing import quartiles, seconds_of

from gpu_validation.batches import adjoints_here, batch
from gpu_validation.report import Setting

HEAVIEST = 10
WARM_UPS, REPEATS = 3, 7


def run(setting: Setting) -> None:
    adjoints = adjoints_here(setting)[0]
    inputs = batch(setting, setting.size(adjoints, "random"), setting.size(5537, 40))
    for precision in setting.size(("bf16", "fp32"), ("bf16",)):
        for arm in setting.size(("panda", "panda-torch", "dense"), ("panda", "dense")):
            for part in setting.size(("whole", "simple", "pruned"), ("whole",)):
                case = f"{part} loss, {precision}, {ARMS[arm].label}"
                if not setting.report.is_over(case):
                    with setting.report.case(case):
                        _audit(setting, case, Step.make(arm, part, inputs, None, precision))


def _audit(setting: Setting, case: str, step: Step) -> None:
    device, report = setting.device, setting.report
    step.run()
    with step.applied():
        for _ in range(setting.size(WARM_UPS, 0)):
            step.compute()
        repeats = setting.size(REPEATS, 1)
        taken = quartiles([seconds_of(step.compute, device) for _ in range(repeats)])
        events = events_of(step.compute, device)
        sources = sync_sources(step.compute)
    report.row(
        "steps", step=case, **taken, busy_seconds=events.busy_seconds,
        busy_share=events.busy_seconds / taken["seconds"], launches=events.launches,
        copies=events.copies, waits=events.waits, waits_by_line=sum(sources.values()),
    )  # fmt: skip
    if not events.heaviest:
        report.skip(f"{case}: kernels", "torch's profiler saw none: CUPTI is not there")
    for kernel in events.heaviest[:HEAVIEST]:
        share = kernel.seconds / events.busy_seconds if events.busy_seconds else 0.0
        report.row(
            "kernels", step=case, kernel=kernel.name[:100], calls=kernel.calls,
            seconds=kernel.seconds, share=share,
        )  # fmt: skip
    for line, count in sources.most_common():
        report.row("waits", step=case, line=line, count=count)
