"""What can be said after each stage of a bounded run, taken from what its process left."""

import json
from typing import Any

from torch import Tensor

from panda_icefall.runs.bounded import verdicts
from panda_icefall.runs.bounded.arms import final_parameters, read_arm
from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.distances import (
    compare_final_parameters,
    compare_resumed,
    compare_trajectories,
)
from panda_icefall.runs.bounded.plan import Stage
from panda_icefall.runs.bounded.stage import StageFailed, StageOutcome
from panda_icefall.runs.bounded.verdicts import Leeway
from panda_icefall.runs.contract.report import FILE_NAME
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import rank_path

__all__ = ["Judge"]

_EXIT_VIOLATED = 1


class Judge:
    """Fills a report's content, stage by stage.

    Args:
      config: The configuration.
      device: ``cpu``, where runs repeat bit for bit, or ``cuda``, where some sums do not.
      content: The report's content, filled in place.
    """

    def __init__(self, config: BoundedConfig, device: str, content: dict[str, Any]) -> None:
        self._config = config
        self._device = device
        self._content = content
        self._contracts: dict[int, dict[str, Any]] = {}
        self._models: dict[str, dict[str, Tensor]] = {}

    def read(self, stage: Stage) -> None:
        """Take over what the stage left, complete or not."""
        if stage.name == "contract":
            rank = 0
            while (path := rank_path(stage.exp_dir / FILE_NAME, rank)).exists():
                self._contracts[rank] = json.loads(path.read_text(encoding="utf-8"))
                rank += 1
            if self._contracts:
                self._content["contract"] = self._contracts[0]
        else:
            self._content["arms"][stage.name] = read_arm(stage.memory_log)

    def judge(self, stage: Stage, outcome: StageOutcome) -> None:
        """Compare what can be compared now that ``stage`` is done.

        Raises:
          StageFailed: The stage did not do what it was for.
        """
        if stage.name == "contract":
            self._judge_contract(stage, outcome)
            return
        if outcome.exit_status != 0:
            raise _failed(stage, outcome)
        if stage.name != "stopped":
            try:
                self._models[stage.name] = final_parameters(stage.exp_dir)
            except UsageError as error:
                raise StageFailed(f"the {stage.name} run: {error}") from error
        if stage.name == "dense":
            self._require_steps()
        elif stage.name == "routed":
            arm = self._content["arms"]["routed"]
            self._content["verdicts"].append(verdicts.pruned_loss_verdict(arm))
        elif stage.name == "twin":
            self._judge_arms()
        elif stage.name == "resumed":
            self._judge_resumed()

    def _judge_contract(self, stage: Stage, outcome: StageOutcome) -> None:
        has_passed = bool(self._contracts) and all(
            contract["has_passed"] for contract in self._contracts.values()
        )
        is_answer = outcome.exit_status == (0 if has_passed else _EXIT_VIOLATED)
        if not self._contracts or not is_answer:
            raise _failed(stage, outcome)
        self._content["verdicts"].append(verdicts.contract_verdict(self._contracts))

    def _require_steps(self) -> None:
        steps = len(self._content["arms"]["dense"]["steps"])
        wanted = self._config.bounds.max_batches
        if steps < wanted:
            raise StageFailed(
                f"the dense run: its epoch ended after {steps} batches, bounds.max_batches asks "
                f"for {wanted}; give it more data (data.synthetic.utterances) or ask for fewer"
            )

    def _tolerance(self, name: str) -> float:
        return float(self._content["contract"]["tolerances"][name])

    def judge_partial(self) -> None:
        """Judge what an unfinished run has to show: the steps and models that are there.

        What the configured bound does not already settle stays open while there is no whole twin.
        """
        arms = self._content["arms"]
        given = {verdict["name"] for verdict in self._content["verdicts"]}
        if "trajectory" in given or not self._contracts:
            return
        if "contract" not in given:
            verdict = verdicts.contract_verdict(self._contracts)
            is_violated = any(contract["violations"] for contract in self._contracts.values())
            self._content["verdicts"].append({**verdict, "holds": False if is_violated else None})
        if "pruned loss" not in given and arms.get("routed", {}).get("steps"):
            verdict = verdicts.pruned_loss_verdict(arms["routed"], is_whole=False)
            self._content["verdicts"].append(verdict)
        if arms.get("dense", {}).get("steps") and arms.get("routed", {}).get("steps"):
            self._judge_arms(is_whole=False)

    def _judge_arms(self, *, is_whole: bool = True) -> None:
        arms, models = self._content["arms"], self._models
        twin = arms.get("twin")
        if not is_whole and twin is not None and not twin["steps"]:
            twin = None
        curves = compare_trajectories(arms["dense"], arms["routed"], twin)
        apart = curves["twin_largest_relative_difference"]
        of_losses = Leeway(self._tolerance("loss_rel"), apart)
        curves.update(bound=of_losses.bound, allowed=str(of_losses))
        steps = self._config.bounds.max_batches
        found = [verdicts.trajectory_verdict(curves, steps, of_losses, is_whole=is_whole)]
        parameters = None
        if "dense" in models and "routed" in models:
            parameters = compare_final_parameters(
                models["dense"], models["routed"], models.get("twin")
            )
            bulk = parameters["twin_bulk_rel_l2"]
            of_parameters = Leeway(self._tolerance("parameter_rel_l2"), bulk)
            parameters.update(bound=of_parameters.bound, allowed=str(of_parameters))
            found.append(verdicts.final_parameters_verdict(parameters, of_parameters))
        found.append(verdicts.finite_verdict(curves, parameters))
        self._content.update(trajectory=curves, final_parameters=parameters)
        self._content["verdicts"] += found

    def _judge_resumed(self) -> None:
        bounds = self._config.bounds
        found = compare_resumed(
            self._models["routed"], self._models["resumed"], bounds.stop_after, bounds.max_batches
        )
        leeway = None
        if self._device != "cpu":
            twin = self._content["final_parameters"]["twin_rel_l2"]
            leeway = Leeway(self._tolerance("parameter_rel_l2"), twin)
        self._content["resume"] = found
        self._content["verdicts"].append(verdicts.resume_verdict(found, leeway))


def _failed(stage: Stage, outcome: StageOutcome) -> StageFailed:
    return StageFailed(
        f"the {stage.name} run ended with status {outcome.exit_status}{outcome.by_signal}; "
        f"{stage.log} ends with:\n{outcome.tail}"
    )
