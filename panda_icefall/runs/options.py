"""What a user may ask of PANDA: flag, type, default and help of every option, in one place.

A new option is one more field of :class:`PandaOptions`. The command line, the ``PANDA`` group of a
recipe's ``--help``, the words for logs and child processes, and whether a run has anything to do
for PANDA follow from it.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import panda_icefall
from panda_icefall import routing
from panda_icefall.engine_choice import (
    ENGINES,
    RECURSIONS,
    MissingEngineError,
    check_engine,
    check_recursion,
)
from panda_icefall.routing.finding_projections import check_projection_names
from panda_icefall.runs.contract.tolerances import Tolerances, parse_tolerances

__all__ = ["SWITCH_WORDS", "PandaOptions", "WorstOnly", "option", "spelt"]

CHECKPOINT_KEY = "panda"
# How a switch may be written, in lower case: those of icefall's str2bool.
SWITCH_WORDS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n"), False),
}

# What an option is for: a "run" that does something more, an argument of panda_icefall.apply() for
# the "loss", or a setting of the contract "check".
Role = Literal["run", "loss", "check"]


def option(
    default: Any,
    parse: Callable[[str], Any],
    role: Role,
    help_text: str,
    metavar: str | None = None,
) -> Any:
    """A field of :class:`PandaOptions` that has a flag.

    Args:
      default: The value where the flag is not given.
      parse: Makes the value of the flag's word, or raises ``argparse.ArgumentTypeError``.
      role: ``run``: given alone, the option makes a run active; ``loss``: it is an argument of
        :func:`panda_icefall.apply`, of the same name; ``check``: it is refused without a check.
      help_text: For ``--help``.
      metavar: Stands for the value there, if not the flag's own name in capitals.
    """
    metadata = {"parse": parse, "role": role, "help": help_text, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH_WORDS:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 or 1")
    return SWITCH_WORDS[text.lower()]


def _number(
    kind: Callable[[str], Any], expected: str, is_valid: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_valid(value):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


def _integer(least: int) -> Callable[[str], Any]:
    return _number(int, f"an integer of at least {least}", lambda v: v >= least)


def _log_path(text: str) -> Path:
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the path of a file to write")
    return path.absolute()


def _tolerances(text: str) -> dict[str, float]:
    try:
        return parse_tolerances(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choice(check: Callable[[str], None]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            check(text)
        except (ValueError, MissingEngineError) as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None
        return text

    return parse


def _projections(text: str) -> dict[str, str]:
    parts = [part.strip().partition("=") for part in text.split(",")]
    names = {kind.strip(): name.strip() for kind, _, name in parts}
    try:
        if len(names) < len(parts):
            raise ValueError("one kind twice")
        check_projection_names(names)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected am=NAME,lm=NAME,ctc=NAME or some of them, as the model calls "
            "them"
        ) from None
    return names


def _recipe_params(text: str) -> dict[str, str]:
    parts = [part.strip().partition("=") for part in text.split(",")]
    given = {name.strip(): value.strip() for name, _, value in parts}
    if len(given) < len(parts) or not all(name and value for name, value in given.items()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE, each name once")
    return given


@dataclass(frozen=True)
class WorstOnly:
    """Train on the batches of the first epoch that need most memory, then stop.

    Attributes:
      report: File for what these batches are.
      scan_batches: Batches of the epoch that are looked at; None: all.
      limit_bytes: What each process may hold: on CUDA in all, on a CPU above what it holds before
        its first batch; None: no limit but the device's.
    """

    report: str
    scan_batches: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True)
class PandaOptions:
    """What the user asked of PANDA for one run of a recipe; the help texts say what each does."""

    use_panda: bool = option(
        False, _switch, "run",
        "1 to compute the pruned transducer loss exactly, but without the [B, T, s_range, C] "
        "logits, and the simple loss without its projections to C classes. 0 trains as without "
        "PANDA.",
    )  # fmt: skip
    workspace_mib: float | None = option(
        None, _number(float, "a number of MiB above 0", lambda v: 0 < v < math.inf), "loss",
        "Upper bound of a tile's scratch memory, in MiB; the default is chosen from the device's "
        "caches. The loss does not depend on it.",
    )  # fmt: skip
    adjoint_tolerance: float | None = option(
        None, _number(float, "a number in [0, 1)", lambda v: 0.0 <= v < 1.0), "loss",
        "Share of the absolute adjoint mass that backward may leave out. 0 leaves nothing out; "
        "the default stays below fp32 rounding.",
    )  # fmt: skip
    engine: str = option(
        "auto", _choice(check_engine), "loss",
        "Kernels of the losses; auto: Triton's on CUDA where it works.",
        metavar="{" + ",".join(ENGINES) + "}",
    )  # fmt: skip
    recursion: str = option(
        "auto", _choice(check_recursion), "loss",
        "Recursion over the lattice: k2's own, in float32, or the exact one in float64; auto: the "
        "exact one, but on CUDA without Triton k2's.",
        metavar="{" + ",".join(RECURSIONS) + "}",
    )  # fmt: skip
    projections: Mapping[str, str] | None = option(
        None, _projections, "loss",
        "Names of the model's projections to classes that the simple loss reads, where they are "
        "not called simple_am_proj and simple_lm_proj: the last part of a module's name, or more "
        "of it. With --panda-ctc 1 also ctc=NAME, the CTC head, where it is not called ctc_output.",
        metavar="am=NAME,lm=NAME",
    )  # fmt: skip
    ctc: bool = option(
        False, _switch, "loss",
        "1 to compute the CTC loss of the model's ctc_output from the log-probs of each "
        "utterance's own labels and the blank, without the [B, T, C] log-softmax.",
    )  # fmt: skip
    strict: bool = option(
        False, _switch, "loss",
        "1 to end the run, with the reason, at the first loss that would be computed as without "
        "PANDA.",
    )  # fmt: skip
    max_batches: int | None = option(
        None, _integer(1), "run",
        "End the run cleanly, with a checkpoint and a summary, after this many training batches.",
    )  # fmt: skip
    check_batches: int = option(
        0, _integer(0), "run",
        "Compare dense and routed training on copies of the model over this many first batches: "
        "losses, gradients and updated parameters. Training itself is not changed by it.",
    )  # fmt: skip
    check_update_steps: int | None = option(
        None, _integer(1), "check",
        "Optimizer steps inside the contract check after which the updated parameters are "
        "compared; default: same as --panda-check-batches. Further batches are only trained on.",
    )  # fmt: skip
    check_tolerances: Mapping[str, float] | None = option(
        None, _tolerances, "check",
        "Bounds of the contract check in place of its defaults: "
        f"{', '.join(field.name for field in dataclasses.fields(Tolerances))}.",
        metavar="NAME=VALUE,NAME=VALUE",
    )  # fmt: skip
    check_recursion: str = option(
        "auto", _number(str, "auto or own", ("auto", "own").__contains__), "check",
        "Recursion of the check's dense passes; auto: the exact one where the routed losses run "
        "it, so that the bounds can be tight; own: that of the losses as they are without PANDA.",
        metavar="{auto,own}",
    )  # fmt: skip
    memory_log: Path | None = option(  # noqa: RUF009 - a plain field
        None, _log_path, "run",
        "Write memory, time and loss counters to this file, one row per training step and phase. "
        "On CUDA it waits for the device, and resets torch's peaks, at each part of a step.",
        metavar="FILE.jsonl",
    )  # fmt: skip
    verify_every: int | None = option(
        None, _integer(1), "run",
        "With --use-panda 1: compute two utterances of the first batch and of every N-th after it "
        "dense as well, and end the run, the batch saved, where a loss, log-prob or gradient is "
        "farther from the dense one than rounding explains.",
        metavar="N",
    )  # fmt: skip
    batch_seed: int | None = option(
        None, _integer(0), "run",
        "Seed the random generators before each training batch from this number and the recipe's "
        "count of batches, so that a run resumed within an epoch draws what the uninterrupted one "
        "drew.",
    )  # fmt: skip
    recipe_params: Mapping[str, str] | None = option(
        None, _recipe_params, "run",
        "Values in place of those that the recipe's get_params() gives, such as the sizes of a "
        "model for which it has no options.",
        metavar="NAME=VALUE,NAME=VALUE",
    )  # fmt: skip
    last_bit_twin: bool = option(
        False, _switch, "run",
        "1 to perturb every parameter by one ulp before training starts (control run): how far it "
        "ends from the unperturbed run is what rounding alone does to the recipe.",
    )  # fmt: skip
    # No flags: `panda-icefall check` asks for the one, `panda-icefall fit` for the other.
    stop_after_check: bool = False
    worst_only: WorstOnly | None = None

    @classmethod
    def flags(cls) -> dict[str, "dataclasses.Field[Any]"]:
        """The fields that have a flag, by it: ``--use-panda`` and ``--panda-...``."""
        named = [(o.name.replace("_", "-"), o) for o in dataclasses.fields(cls) if o.metadata]
        return {f"--{'' if n == 'use-panda' else 'panda-'}{n}": field for n, field in named}

    def given(self, *roles: Role) -> dict[str, Any]:
        """The values, of these roles, that are not at their defaults, by flag."""
        return {
            flag: getattr(self, o.name)
            for flag, o in self.flags().items()
            if o.metadata["role"] in roles and getattr(self, o.name) != o.default
        }

    @property
    def is_active(self) -> bool:
        """Whether anything at all has to be put around the recipe."""
        return bool(self.given("run"))

    @property
    def words(self) -> list[str]:
        """A command line of the options that are not at their defaults."""
        given = self.given("run", "loss", "check")
        return [word for flag, value in given.items() for word in (flag, spelt(value))]

    @property
    def in_words(self) -> str:
        """The options that are not at their defaults, as they are typed; without the log's path."""
        return " ".join(dataclasses.replace(self, memory_log=None).words)

    @property
    def announcement(self) -> str:
        """One line for a log: which version, with which options, and whether PANDA is off."""
        if self.use_panda:
            off = ""
        elif self.check_batches:
            off = "; dense and PANDA are compared, the recipe itself trains dense"
        else:
            off = "; PANDA is OFF, the recipe trains dense"
        return f"panda-icefall {panda_icefall.__version__}: {self.in_words}{off}"

    def note_in(self, params: Any) -> None:
        """Leave word in a recipe's ``params``, which its checkpoints keep, where PANDA is on.

        It is text beside the recipe's own parameters: icefall loads such a checkpoint, and trains
        on from it, without PANDA.
        """
        if self.use_panda and isinstance(params, MutableMapping):
            params[CHECKPOINT_KEY] = self.announcement

    @property
    def batches_of_check(self) -> int:
        """Training batches that the contract check needs: to compare, or to take its steps."""
        return max(self.check_batches, self.check_update_steps or 0)

    def routed(self) -> contextlib.AbstractContextManager[None]:
        """Losses routed with these options for the length of a block."""
        names = [o.name for o in self.flags().values() if o.metadata["role"] == "loss"]
        return routing.patched(**{name: getattr(self, name) for name in names})


def spelt(value: Any) -> str:
    """An option's value as the word that gives it."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={spelt(item)}" for name, item in value.items())
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(int(value)) if isinstance(value, bool) else str(value)
