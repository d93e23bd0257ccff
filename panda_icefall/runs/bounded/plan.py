"""The child processes of a bounded run: what each is called, trains and leaves where."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import panda_icefall
from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.data.check import icefall_environment
from panda_icefall.runs.hooks.contract_check import COMPARED
from panda_icefall.runs.memory.reading import StepCount
from panda_icefall.runs.options import PandaOptions

__all__ = ["Stage", "child_environment", "for_measuring", "plan_stages"]

_LAUNCHER = (sys.executable, "-m", "panda_icefall")
_MMAP_BYTES = 8 * 2**20
_CHECK = "contract"


@dataclass(frozen=True)
class Stage:
    """One child process.

    Attributes:
      name: Its name in the report, and its folder in the run's.
      purpose: What it is for, in a few words.
      command: Program and arguments.
      log: File for its output.
      memory_log: Its memory log.
      exp_dir: The recipe's ``--exp-dir``.
      steps: Training steps that it will take; of the check, batches to compare. 0: unknown.
    """

    name: str
    purpose: str
    command: tuple[str, ...]
    log: Path
    memory_log: Path
    exp_dir: Path
    steps: int = 0

    def count(self) -> StepCount:
        """What tells how many of ``steps`` are through while it runs."""
        if self.name == _CHECK:  # it writes no memory log
            return StepCount(self.log, COMPARED.encode())
        return StepCount(self.memory_log)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows launcher, verb and TRAIN_PY: the options of the recipe and of PANDA."""
        return self.command[len(_LAUNCHER) + 2 :]

    @property
    def shown_command(self) -> str:
        """The command as one would type it."""
        return shlex.join(self.command)


def plan_stages(
    config: BoundedConfig, train_py: Path, data_arguments: list[str], out: Path
) -> list[Stage]:
    """The stages in their order: contract, dense, routed, twin; stopped, resumed where they can be.

    Every continuation draws each batch from ``data.synthetic.seed`` and the batch's number, so
    that arms see the same random numbers and a resumed run those of the uninterrupted one.

    Args:
      config: The configuration.
      train_py: The recipe.
      data_arguments: The recipe's options that name its data.
      out: Folder of the whole run.
    """
    bounds, contract = config.bounds, config.contract
    epoch = ["--num-epochs", "1", "--start-epoch", str(config.first_epoch)]
    common = [*data_arguments, *config.recipe_arguments(), *epoch]
    every: list[str] = []
    if config.checkpoints == "batches":
        # A recipe saves a checkpoint every N batches, and wants N to be no less than the period.
        N = str(bounds.stop_after)
        every = ["--save-every-n", N, "--average-period", N]

    def stage(
        name: str, purpose: str, options: PandaOptions, words: Sequence[str] = (), exp_of: str = ""
    ) -> Stage:
        folder = out / name
        exp_dir = out / (exp_of or name) / "exp"
        verb = "check" if name == _CHECK else "run"
        arguments = ("--exp-dir", str(exp_dir), *common, *words, *options.words)
        command = (*_LAUNCHER, verb, str(train_py), *arguments)
        log, memory_log = folder / "output.log", folder / "memory.jsonl"
        steps = options.max_batches or options.batches_of_check
        return Stage(name, purpose, command, log, memory_log, exp_dir, steps)

    def training(
        name: str, purpose: str, options: PandaOptions, *words: str, exp_of: str = ""
    ) -> Stage:
        options = replace(options, memory_log=out / name / "memory.jsonl")
        return stage(name, purpose, options, [*every, *words], exp_of)

    asked = PandaOptions(
        workspace_mib=config.memory.workspace_mib,
        projections=config.projections,
        ctc=config.ctc,
        recipe_params={name: str(value) for name, value in config.recipe_params.items()} or None,
    )
    check = replace(
        asked,
        check_batches=contract.batches,
        check_update_steps=contract.update_steps,
        check_tolerances=contract.tolerances or None,
    )
    steps, stop_after = bounds.max_batches, bounds.stop_after
    dense = replace(asked, max_batches=steps, batch_seed=config.data.synthetic.seed)
    twin = replace(dense, last_bit_twin=True)
    routed = replace(dense, use_panda=True)
    stopped = replace(routed, max_batches=stop_after)
    resumed = replace(routed, max_batches=steps - stop_after)
    start = ["--start-batch", str(stop_after)]
    stages = [
        stage(_CHECK, "dense against routed on the first batches", check),
        training("dense", "the recipe as it is", dense),
        training("routed", "the same steps with PANDA", routed),
        training("twin", "dense, its start perturbed by one ulp (control run)", twin),
    ]
    if config.checkpoints == "epochs":
        return stages
    return [
        *stages,
        training("stopped", f"with PANDA, stopped after {stop_after}", stopped),
        training(
            "resumed", "resumed from the recipe's checkpoint", resumed, *start, exp_of="stopped"
        ),
    ]


def child_environment(icefall_root: Path, device: str) -> Mapping[str, str]:
    """The environment in which the recipe runs: imports resolve, the checkout stays clean."""
    project = Path(panda_icefall.__file__).parents[1]
    return for_measuring(icefall_environment(project, icefall_root), device)


def for_measuring(environment: Mapping[str, str], device: str) -> dict[str, str]:
    """``environment`` for a process that trains on a device, and whose memory is measured."""
    environment = dict(environment)
    environment["PYTHONUNBUFFERED"] = "1"  # a killed stage's log ends where it ended
    environment.pop("FORCE_COLOR", None)  # rich would write to the log as to a terminal
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # recipes take the GPU wherever they see one
        # glibc learns to keep freed blocks of up to 32 MiB: the resident set of an arm with small
        # blocks would show what it once held, that of one with large blocks what it holds.
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(_MMAP_BYTES))
    return environment
