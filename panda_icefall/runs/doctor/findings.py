"""One finding per line: how it stands and what to do about it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

__all__ = ["PROBLEM", "Diagnosis", "Finding", "ok", "print_diagnosis", "problem", "warning"]

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}
_LEVEL_WIDTH = max(map(len, _STYLES))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      subject: What was looked at.
      level: ``ok``, ``warning`` (works, with something to know) or ``problem`` (will fail).
      text: What was found.
      advice: What to do about it, if anything.
    """

    subject: str
    level: str
    text: str
    advice: str | None = None


def ok(subject: str, text: str) -> Finding:
    """A finding that needs nothing done."""
    return Finding(subject, OK, text)


def warning(subject: str, text: str, advice: str) -> Finding:
    """A finding to know about."""
    return Finding(subject, WARNING, text, advice)


def problem(subject: str, text: str, advice: str) -> Finding:
    """A finding that makes a run fail."""
    return Finding(subject, PROBLEM, text, advice)


@dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which they are worth reading."""

    findings: tuple[Finding, ...]

    def count(self, level: str) -> int:
        """How many findings are of ``level``."""
        return sum(finding.level == level for finding in self.findings)

    @property
    def exit_status(self) -> int:
        """1 if there is a problem, else 0."""
        return 1 if self.count(PROBLEM) else 0

    @property
    def summary(self) -> str:
        """The counts in words."""
        counts = ((self.count(PROBLEM), PROBLEM), (self.count(WARNING), WARNING))
        return ", ".join(f"{n or 'no'} {name}{'s' if n != 1 else ''}" for n, name in counts)

    def as_json(self) -> str:
        """One JSON document: ``problems`` and ``warnings`` (counts), and all ``findings``."""
        content = {
            "problems": self.count(PROBLEM),
            "warnings": self.count(WARNING),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
        return json.dumps(content, indent=2)

    def as_markdown(self) -> str:
        """The findings in a fence, to paste into a bug report; the user's home folder is ``~``."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.level.ljust(_LEVEL_WIDTH)}  {finding.subject}: {finding.text}")
            if finding.advice is not None:
                lines.append(" " * _LEVEL_WIDTH + f"  -> {finding.advice}")
        text, home = "\n".join([*lines, self.summary]), str(Path.home())
        if home != Path.home().anchor:
            text = text.replace(home, "~")
        return f"```\n{text}\n```"


def print_diagnosis(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print one line per finding to stdout, its advice below it, and the counts at the end.

    Lines are never broken, so that a command in an advice can be copied.
    """
    console = console or Console()
    for finding in diagnosis.findings:
        line = Text(finding.level.ljust(_LEVEL_WIDTH), style=_STYLES[finding.level])
        line.append(f"  {finding.subject}: ", style="bold not dim default")
        line.append(finding.text, style="not bold default")
        console.print(line, soft_wrap=True)
        if finding.advice is not None:
            advice = " " * _LEVEL_WIDTH + f"  -> {finding.advice}"
            console.print(advice, soft_wrap=True, markup=False, highlight=False)
    console.print(diagnosis.summary, highlight=False)
