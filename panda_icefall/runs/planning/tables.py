"""A plan on a console: components, what fits, what to set, and how far to trust it."""

from rich.console import Console
from rich.table import Column, Table

from panda_icefall.normalizer.workspace import MIB
from panda_icefall.runs.planning.loss_memory import MEASURED_ERROR, Batch
from panda_icefall.runs.planning.plan import ARMS, LONGEST, Plan
from panda_icefall.runs.report import units

__all__ = ["print_plan"]

_DOUBTFUL = 0.25  # an error of a run's own peaks that other sizes would explain
_FAR = 8  # times the largest batch of a run: what is constant in it counts for less there


def print_plan(plan: Plan, console: Console) -> None:
    """Print it; nothing is measured here, and the last lines say so."""
    inputs = plan.inputs
    components = Table(
        "",
        *(Column(arm, justify="right") for arm in ARMS),
        title=f"Memory at --max-duration {inputs.max_duration:g}, at the peak of a step, MiB",
    )
    names = dict.fromkeys(name for arm in ARMS for name in plan.components[arm])
    for name in sorted(names, key=lambda n: -max(plan.components[arm].get(n, 0) for arm in ARMS)):
        sizes = (plan.components[arm].get(name) for arm in ARMS)
        components.add_row(name, *("-" if s is None else f"{s / MIB:,.0f}" for s in sizes))
    components.add_section()
    whole = "the losses" if inputs.calibration is None else "the whole step"
    components.add_row(whole, *(f"{plan.total(arm) / MIB:,.0f}" for arm in ARMS))
    console.print(components)

    alone = "" if inputs.calibration is not None else "Losses alone, without the encoder: "
    fits = Table(
        "",
        *(Column(arm, justify="right") for arm in ARMS),
        title=f"{alone}Largest --max-duration in {units.mib(inputs.usable_bytes)} "
        f"({units.mib(inputs.gpu_bytes)} less {units.mib(inputs.reserve_bytes)} in reserve)",
    )
    more = {arm: ">= " if plan.longest[arm] >= LONGEST else "" for arm in ARMS}
    fits.add_row("seconds of audio", *(f"{more[arm]}{plan.longest[arm]:,}" for arm in ARMS))
    console.print(fits)
    for line in _lines(plan):
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _lines(plan: Plan) -> list[str]:
    inputs = plan.inputs
    lines = [f"set: {plan.advice}"]
    if inputs.calibration is None:
        lines.append(
            "The encoder, the parameters and the optimizer are NOT in these figures: the losses "
            "would have the GPU for themselves. For the whole step, run the recipe for a few "
            "batches: panda-icefall run TRAIN_PY ... --use-panda 1 --panda-max-batches 20 "
            "--panda-memory-log EXP_DIR/memory.jsonl; then plan with --from-run EXP_DIR."
        )
    else:
        found = inputs.calibration
        lines.append(
            f"beside the losses: {found.path} ({found.kind}, {len(found.peaks)} steps): "
            f"{units.mib(found.base_bytes)} between steps, {found.frame_bytes / 1024:.1f} KiB for "
            f"a frame. {_own_error(plan)}"
        )
        measured = max(frames for frames, _ in found.peaks) / inputs.speech.frame_rate
        if max(plan.longest.values()) > _FAR * measured:
            lines.append(
                f"That run's largest batch had {measured:,.0f} s: far longer ones are guessed from "
                "it; run it with a --max-duration nearer to what is planned."
            )
        if not found.is_routed:
            lines.append(
                "That run was dense, and does not show what the encoder's own backward needs: the "
                "routed figures are at least what is printed; give --from-run a routed run."
            )
    if inputs.utterances is None:
        lines.append(
            f"batches: utterances of {inputs.utterance:g} s, {_shape(plan.batches['dense'])}; the "
            "sampler's worst batch is found with --cuts"
        )
    else:
        worst = plan.batches["dense"]
        padded = worst.frames / inputs.speech.frame_rate
        lines.append(
            f"batches: the worst of an epoch of {inputs.utterances:,} utterances, "
            f"{_shape(worst)}: {padded:,.0f} s with padding"
        )
    from_recipe = [f"{name} {text}" for name, text in inputs.sources.items()]
    lines.append(f"taken from: {', '.join(from_recipe)}")
    lines.append(
        f"Calculated, not measured: within {MEASURED_ERROR:.0%} of what torch's allocator gave out "
        "for whole losses on a CPU in float32 (scripts/check_plan.py). No GPU, no fp16 and no "
        "other joiner than linear(tanh(am + lm)) was measured."
    )
    return lines


def _own_error(plan: Plan) -> str:
    """How the plan's own figures for the steps of the run compare with what was measured."""
    inputs, found = plan.inputs, plan.inputs.calibration
    assert found is not None
    arm = "routed" if found.is_routed else "dense"
    errors = []
    for frames, peak in found.peaks:
        seconds = frames / inputs.speech.frame_rate
        batch = inputs.speech.batch(max(1, round(seconds / inputs.utterance)), inputs.utterance)
        errors.append(sum(inputs.memory(arm, batch).values()) / peak - 1)
    doubt = " Are these sizes those of that run?" if max(map(abs, errors)) > _DOUBTFUL else ""
    return f"Its own peaks are met within {min(errors):+.0%} to {max(errors):+.0%}.{doubt}"


def _shape(batch: Batch) -> str:
    return f"B={batch.B}, T={batch.T}, S={batch.S}"
