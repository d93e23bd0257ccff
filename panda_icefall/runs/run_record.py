"""``report.json`` of a bounded run as a typed record: its stages, arms, distances and verdicts."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field

from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import Arm, Record

__all__ = [
    "DataRecord",
    "FinalParameters",
    "GroupDistance",
    "ParameterDistance",
    "Resumption",
    "RunRecord",
    "StageRecord",
    "Trajectory",
    "Verdict",
]

_Figure = TypeVar("_Figure")


class Verdict(Record):
    """One question that a bounded run answers.

    Attributes:
      name: What was judged.
      holds: The answer; ``None`` while there is none.
      text: The figure and its bound, in words.
    """

    name: str
    holds: bool | None
    text: str


class StageRecord(Record):
    """One child process of a bounded run: how it ended, if it has."""

    name: str
    state: str
    command: str | None = None
    log: str | None = None
    seconds: float | None = None
    exit_status: int | None = None


class DataRecord(Record):
    """What was trained on; ``classes`` is C, blank included."""

    kind: str | None = None
    folder: str | None = None
    corpus: str | None = None
    lang: str | None = None
    classes: int | None = None


class Trajectory(Record):
    """How far the losses of the routed run, and of the dense twin, go from the dense ones.

    Attributes:
      steps: Steps compared.
      non_finite: Steps with NaN or infinity in any arm.
      bound: The largest relative difference that holds.
      allowed: Where that comes from, in words.
    """

    steps: int
    largest_relative_difference: float
    step_of_largest: int | None = None
    first_relative_difference: float | None = None
    twin_largest_relative_difference: float | None = None
    non_finite: int = 0
    bound: float | None = None
    allowed: str | None = None


class GroupDistance(Record):
    """Distance of one parameter group after the last step."""

    group: str
    rel_l2: float
    max_abs: float | None = None
    twin_rel_l2: float | None = None


class ParameterDistance(Record):
    """Distance of one parameter, and its share of the squared distance of all."""

    name: str
    share: float
    rel_l2: float
    twin_rel_l2: float | None = None


class FinalParameters(Record):
    """Distance of the parameters after the last step; all figures of the twin are None without one.

    Attributes:
      rel_l2: Relative L2 distance of all parameters together.
      bulk_rel_l2: The same without the few elements that lie furthest apart.
      non_finite: Names of the parameters with NaN or infinity.
      groups: By top-level module.
      largest_parameters: Those with the largest share of the distance.
      bound: The largest ``bulk_rel_l2`` that holds.
      allowed: Where that comes from, in words.
    """

    rel_l2: float
    twin_rel_l2: float | None = None
    bulk_rel_l2: float
    twin_bulk_rel_l2: float | None = None
    non_finite: list[str] = Field(default_factory=list)
    groups: list[GroupDistance] = Field(default_factory=list)
    largest_parameters: list[ParameterDistance] = Field(default_factory=list)
    bound: float | None = None
    allowed: str | None = None


class Resumption(Record):
    """Final parameters of the stopped and resumed run against those of the uninterrupted one."""

    stopped_after: int
    steps: int
    is_bitwise: bool
    rel_l2: float


class RunRecord(Record):
    """``report.json``: everything that a bounded run has found so far.

    Attributes:
      state: ``running``, ``complete`` or ``partial``.
      reason: Why the run is partial; its first line is a sentence, others the end of a log.
      passed: Whether every verdict holds; ``None`` before the end.
      command: Makes the same run again.
      continuation: Continues this one.
      inputs: All that the run depends on, by name.
    """

    title: str | None = None
    state: str | None = None
    reason: str | None = None
    passed: bool | None = None
    verdicts: list[Verdict] = Field(default_factory=list)
    command: str | None = None
    continuation: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    config_path: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    data: DataRecord = DataRecord()
    started: str | None = None
    stages: list[StageRecord] = Field(default_factory=list)
    arms: dict[str, Arm] = Field(default_factory=dict)
    seconds: float | None = None
    contract: ContractRecord | None = None
    trajectory: Trajectory | None = None
    final_parameters: FinalParameters | None = None
    resume: Resumption | None = None

    @property
    def trained(self) -> dict[str, Arm]:
        """The arms that have a step."""
        return {name: arm for name, arm in self.arms.items() if arm.steps}

    @property
    def comparable(self) -> dict[str, Arm]:
        """The dense and the routed arm, those there are, over the steps that both have."""
        arms = {name: self.trained[name] for name in ("dense", "routed") if name in self.trained}
        last = min((arm.steps[-1].step for arm in arms.values()), default=0)
        return {name: arm.up_to(last) for name, arm in arms.items()}

    def compare(self, figure: Callable[[Arm], _Figure]) -> tuple[_Figure | None, _Figure | None]:
        """``figure`` of the dense and of the routed arm over the steps that both have."""
        arms = self.comparable
        dense, routed = (figure(arms[n]) if n in arms else None for n in ("dense", "routed"))
        return dense, routed

    @property
    def absence(self) -> str:
        """Why something is not in the record, as far as the state of the run tells."""
        states = {"complete": "not part of this run", "partial": "not reached"}
        return states.get(self.state or "", "not run yet")
