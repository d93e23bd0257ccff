"""The matrix as a markdown table in `egs/README.md`."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

from recipe_matrix.measure import MATERIALISED, OWN_FAILURE, REFUSED, ROUTED, Outcome

README = Path(__file__).parents[3] / "egs" / "README.md"
BEGIN = "<!-- recipe matrix: written by the test run named below -->"
END = "<!-- recipe matrix: end -->"
COMMAND = "ICEFALL_ROOT=<icefall> pytest tests/icefall/test_recipe_matrix.py --write-matrix"


def render(outcomes: list[Outcome], versions: str) -> str:
    """Counts, versions, and one line per outcome."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    counts = ", ".join(f"{kinds[k]} {k}" for k in (ROUTED, MATERIALISED, REFUSED))
    folders = {outcome.name.split(":")[0].split(" ")[0] for outcome in outcomes}
    models = {outcome.model_file for outcome in outcomes if outcome.model_file}
    lines = [
        f"{len(outcomes)} rows, {len(folders)} recipe folders, {len(models)} model files: "
        f"{counts}, {kinds[OWN_FAILURE]} fail by themselves.",
        _simple_losses(outcomes),
        "",
        f"`{COMMAND}`, {versions}",
        "",
        "| recipe: variant | joiner | losses | simple | outcome | loss | gradients | with |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_line(outcome) for outcome in outcomes])


def _simple_losses(outcomes: list[Outcome]) -> str:
    kinds: Counter[str] = Counter()
    for outcome in outcomes:
        for part in outcome.simple.partition(" (")[0].split(", "):
            count, _, kind = part.partition(" ")
            if kind:
                kinds[kind] += int(count)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    frames = sum(outcome.frames for outcome in outcomes)
    differing = sum(outcome.frames_differing for outcome in outcomes)
    return (
        f"Simple losses: {counts}. For {differing} of {frames} frames the routed arm alone "
        "would have chosen other prune ranges."
    )


def _line(outcome: Outcome) -> str:
    kind = f"{outcome.kind}: {outcome.reason}" if outcome.reason else outcome.kind
    if outcome.kind in (OWN_FAILURE, REFUSED):
        measured = ["", "", "", kind, "", ""]
    else:
        differences = [f"{d:.1e}" for d in (outcome.loss_difference, outcome.gradient_difference)]
        losses = [str(outcome.losses), outcome.simple]
        measured = [outcome.joiner, *losses, kind, *differences]
    return "| " + " | ".join([outcome.name, *measured, outcome.notes]) + " |"


def write(outcomes: list[Outcome], versions: str, readme: Path = README) -> None:
    """Put the table between the markers of the file."""
    put(render(outcomes, versions), BEGIN, END, readme)


def put(text: str, begin: str, end: str, readme: Path = README) -> None:
    """Put a text between two markers of the file, in place of what stands there."""
    before, _, rest = readme.read_text().partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def lines(begin: str, end: str, readme: Path = README) -> list[str]:
    """The rows of the table between two markers of the file, without its head."""
    table = readme.read_text().partition(begin)[2].partition(end)[0]
    return [line for line in table.splitlines() if line.startswith("| ")][1:]


def names(readme: Path = README) -> list[str]:
    """The rows that the file's table lists, in order."""
    return [line.split(" | ")[0][2:] for line in lines(BEGIN, END, readme)]


def versions() -> str:
    """icefall commit, k2 and torch of this run."""
    import k2
    import torch

    git = ["git", "-C", os.environ["ICEFALL_ROOT"], "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    release = getattr(k2, "__dev_version__", None) or getattr(k2, "__version__", "unknown")
    return f"icefall {commit}, k2 {release}, torch {torch.__version__}"
