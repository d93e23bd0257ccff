"""Which sections there are, in their order, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One process of the validation.

    Attributes:
      name: for the command line, and the module of this package that has its `run`.
      seconds: after which no further case of it is begun.
      checks: what it leaves out for want of time is a failure.
    """

    name: str
    seconds: float
    checks: bool = True


SECTIONS = {
    section.name: section
    for section in (
        Section("environment", 15, checks=False),
        Section("probes", 40, checks=False),
        Section("op", 80),
        Section("losses", 60),
        Section("training", 45),
        Section("ranks", 30),
        Section("tests", 90),
        Section("audit", 35, checks=False),
        Section("bench", 140, checks=False),
    )
}
# After its time a section may end what it is at.
GRACE_SECONDS = 10
# Of all sections, which then end within ten minutes.
WHOLE_SECONDS = 570
# What times are multiplied by: a dry run is about the form, on a machine that may be busy.
PATIENCE = {"cuda": 1, "cpu": 10}
