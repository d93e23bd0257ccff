"""The report as a document: first screen, then a section for each part of the run."""

from collections.abc import Collection, Mapping
from typing import Any, Optional

from panda_icefall.runs.bounded.report import first_screen, sections
from panda_icefall.runs.bounded.report.blocks import Block, Document, Picture, Section, Text
from panda_icefall.runs.bounded.report.contract_section import contract_blocks
from panda_icefall.runs.bounded.report.reading import absence, mapping, read_arm

__all__ = ["build_document"]

_CAPTIONS = {
    "loss.png": (
        "Training loss per frame of every step; where the curves coincide, the wide grey one lies "
        "under the narrow orange one. Below: how far the other runs are from the dense one, "
        "relative to its loss, on a logarithmic scale with the steps of no difference at its foot."
    ),
    "memory.png": "Peak memory of every training step in MiB; the vertical axis starts at zero.",
    "phases.png": (
        "Peak memory and time within each phase of a training step: medians over the steps that "
        "both runs have, the first left out where there are more."
    ),
    "contract.png": (
        "Relative distance of the routed from the dense computation on the same batch, by quantity "
        "and batch: first loss, log-probs and log_z, below the line gradients (rel-L2) by "
        "parameter group. Colours: distance over the row's bound, which stands at the right; "
        "noise: the dense gradient is rounding noise itself, so it is judged in absolute terms."
    ),
}


def build_document(
    content: Mapping[str, Any], figures: Collection[str], without_figures: Optional[str]
) -> Document:
    """Everything that a report says about ``content``.

    Args:
      content: What ``report.json`` holds.
      figures: File names of the figures that were drawn.
      without_figures: Why there are none, where that is not for want of numbers.
    """
    answers = first_screen.verdicts(content)
    label, tone, sentence = first_screen.state(content, answers)
    return Document(
        title=str(content.get("title") or "untitled run"),
        label=label,
        tone=tone,
        sentence=sentence,
        details=first_screen.reason_details(content),
        verdicts=answers,
        headline=first_screen.headline(content),
        facts=first_screen.facts(content),
        commands=_commands(content),
        sections=_sections(content, figures, without_figures),
    )


def _commands(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    told = [("The same run again, in a new folder:", content.get("command"))]
    if content.get("state") != "complete":
        told.append(("To continue this run:", content.get("continuation")))
    return tuple((words, str(command)) for words, command in told if command)


def _sections(
    content: Mapping[str, Any], figures: Collection[str], without_figures: Optional[str]
) -> tuple[Section, ...]:
    def picture(name: str) -> list[Block]:
        return [Picture(name, _CAPTIONS[name])] if name in figures else []

    missing = [
        f"The {name} run: {why}."
        for name in ("dense", "routed")
        if (why := _why_missing(content, name))
    ]
    absent: list[Block] = [Text(" ".join(missing))] if missing else []
    found = [
        Section("Training", (*absent, *picture("loss.png"), *sections.training(content))),
        Section(
            "Memory and time",
            (*absent, *picture("memory.png"), *picture("phases.png"), *sections.memory(content)),
        ),
        Section("Contract", (*picture("contract.png"), *contract_blocks(content))),
        Section("Final parameters", tuple(sections.final_parameters(content))),
        Section("Stop and resume", tuple(sections.resume(content))),
        Section("What was routed", tuple(sections.routing(content))),
        Section("Stages", tuple(sections.stages(content))),
    ]
    configuration = sections.configuration(content)
    if configuration is not None:
        found.append(configuration)
    if without_figures is not None:
        found.insert(0, Section("Figures", (Text(without_figures),)))
    return tuple(found)


def _why_missing(content: Mapping[str, Any], arm: str) -> Optional[str]:
    """Why ``arm`` has no step to show, from the state of its stage; ``None`` if it has some."""
    if read_arm(content, arm) is not None:
        return None
    for stage in content.get("stages") or ():
        if mapping(stage).get("name") == arm:
            return f"no step was measured (its stage: {mapping(stage).get('state')})"
    return absence(content)
