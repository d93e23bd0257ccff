"""What can be said after each stage of a bounded run, taken from what its process left."""

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
from panda_icefall.runs.contract.result import ContractRecord, read_contracts
from panda_icefall.runs.contract.tolerances import Leeway
from panda_icefall.runs.errors import EXIT_VIOLATED, UsageError
from panda_icefall.runs.run_record import RunRecord

__all__ = ["Judge"]


class Judge:
    """Fills a run's record, stage by stage.

    Args:
      config: The configuration.
      device: ``cpu``, where runs repeat bit for bit, or ``cuda``, where some sums do not.
      record: Filled in place.
    """

    def __init__(self, config: BoundedConfig, device: str, record: RunRecord) -> None:
        self._config = config
        self._device = device
        self._record = record
        self._contracts: dict[int, ContractRecord] = {}
        self._models: dict[str, dict[str, Tensor]] = {}

    def read(self, stage: Stage) -> None:
        """Take over what the stage left, complete or not.

        Raises:
          UsageError: A file of it is none that panda-icefall has written.
        """
        if stage.name != "contract":
            self._record.arms[stage.name] = read_arm(stage.memory_log)
            return
        self._contracts = dict(enumerate(read_contracts(stage.exp_dir)))
        if self._contracts:
            self._record.contract = self._contracts[0]

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
                epoch = self._config.first_epoch
                self._models[stage.name] = final_parameters(stage.exp_dir, epoch)
            except UsageError as error:
                raise StageFailed(f"the {stage.name} run: {error}") from error
        if stage.name == "dense":
            self._require_steps()
        elif stage.name == "routed":
            arm = self._record.arms["routed"]
            self._record.verdicts.append(verdicts.transducer_loss_verdict(arm))
        elif stage.name == "twin":
            self._judge_arms()
        elif stage.name == "resumed":
            self._judge_resumed()

    def _judge_contract(self, stage: Stage, outcome: StageOutcome) -> None:
        has_passed = bool(self._contracts) and all(c.has_passed for c in self._contracts.values())
        is_answer = outcome.exit_status == (0 if has_passed else EXIT_VIOLATED)
        if not self._contracts or not is_answer:
            raise _failed(stage, outcome)
        self._record.verdicts.append(verdicts.contract_verdict(self._contracts))

    def _require_steps(self) -> None:
        steps = len(self._record.arms["dense"].steps)
        wanted = self._config.bounds.max_batches
        if steps < wanted:
            raise StageFailed(
                f"the dense run: its epoch ended after {steps} batches, bounds.max_batches asks "
                f"for {wanted}; give it more data (data.synthetic.utterances) or ask for fewer"
            )

    def judge_partial(self) -> None:
        """Judge what an unfinished run has to show: the steps and models that are there.

        What the configured bound does not already settle stays open while there is no whole twin.
        """
        trained = self._record.trained
        given = {verdict.name for verdict in self._record.verdicts}
        if "trajectory" in given or not self._contracts:
            return
        if "contract" not in given:
            is_violated = any(contract.violations for contract in self._contracts.values())
            verdict = verdicts.contract_verdict(self._contracts)
            verdict.holds = False if is_violated else None
            self._record.verdicts.append(verdict)
        if "transducer loss" not in given and "routed" in trained:
            verdict = verdicts.transducer_loss_verdict(trained["routed"], is_whole=False)
            self._record.verdicts.append(verdict)
        if "dense" in trained and "routed" in trained:
            self._judge_arms(is_whole=False)

    def _judge_arms(self, *, is_whole: bool = True) -> None:
        record, models = self._record, self._models
        twin = (record.arms if is_whole else record.trained).get("twin")
        curves = compare_trajectories(record.arms["dense"], record.arms["routed"], twin)
        apart = curves.twin_largest_relative_difference
        of_losses = self._leeway("loss_rel", apart)
        curves.bound, curves.allowed = of_losses.bound, str(of_losses)
        steps = self._config.bounds.max_batches
        found = [verdicts.trajectory_verdict(curves, steps, of_losses, is_whole=is_whole)]
        parameters = None
        if "dense" in models and "routed" in models:
            parameters = compare_final_parameters(
                models["dense"], models["routed"], models.get("twin")
            )
            of_parameters = self._leeway("parameter_rel_l2", parameters.twin_bulk_rel_l2)
            parameters.bound, parameters.allowed = of_parameters.bound, str(of_parameters)
            found.append(verdicts.final_parameters_verdict(parameters, of_parameters))
        found.append(verdicts.finite_verdict(curves, parameters))
        record.trajectory, record.final_parameters = curves, parameters
        record.verdicts += found

    def _leeway(self, tolerance: str, twin: float | None) -> Leeway:
        return Leeway(self._contracts[0].tolerances[tolerance], twin)

    def _judge_resumed(self) -> None:
        bounds, final = self._config.bounds, self._record.final_parameters
        found = compare_resumed(
            self._models["routed"], self._models["resumed"], bounds.stop_after, bounds.max_batches
        )
        leeway = None
        if self._device != "cpu" and final is not None:
            leeway = self._leeway("parameter_rel_l2", final.twin_rel_l2)
        self._record.resume = found
        self._record.verdicts.append(verdicts.resume_verdict(found, leeway))


def _failed(stage: Stage, outcome: StageOutcome) -> StageFailed:
    return StageFailed(
        f"the {stage.name} run ended with status {outcome.exit_status}{outcome.by_signal}; "
        f"{stage.log} ends with:\n{outcome.tail}"
    )
