"""The YAML file of a bounded run, read strictly: every key is known, every value has its type."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from panda_icefall.routing.finding_projections import check_projection_names
from panda_icefall.runs.contract.tolerances import Tolerances
from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.options import SWITCH_WORDS, PandaOptions, spelt

__all__ = ["BoundedConfig", "load_config"]

# Options that a bounded run sets by itself, and what decides them.
_OWN_ARGUMENTS = {
    "exp-dir": "--out",
    "manifest-dir": "--data",
    "lang-dir": "--data",
    "bpe-model": "--data",
    "num-epochs": "bounds.max_batches",
    "start-epoch": "bounds.resume_after",
    "start-batch": "bounds.resume_after",
    "save-every-n": "bounds.resume_after",
    "average-period": "bounds.resume_after",
}


def _number(value: Any) -> Any:
    # YAML reads 1e-6, which has no dot, as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _like_flag(name: str) -> BeforeValidator:
    """Reads a key as the word of the flag of that field of ``PandaOptions``: the same values."""
    (parse,) = (o.metadata["parse"] for o in dataclasses.fields(PandaOptions) if o.name == name)

    def read(value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        try:
            return parse(spelt(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"expected{str(error).rpartition('expected')[2]}") from None

    return BeforeValidator(read)


def _known_option(name: str) -> str:
    plain = name.lstrip("-").replace("_", "-")
    if name.startswith("-"):
        raise ValueError(f"expected the option without its dashes: {plain}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ValueError("expected the name of an option, letters, digits and hyphens")
    for own, origin in _OWN_ARGUMENTS.items():
        if own.startswith(plain):  # argparse takes abbreviations
            raise ValueError(f"a bounded run sets {own} itself, from {origin}; remove it")
    if plain.startswith(("panda-", "use-panda")):
        raise ValueError("PANDA's options follow from the configuration; remove it")
    return name


def _known_tolerance(name: str) -> str:
    known = [field.name for field in dataclasses.fields(Tolerances)]
    if name not in known:
        raise ValueError(f"unknown key, expected one of {', '.join(known)}")
    return name


def _known_projections(names: dict[str, str]) -> dict[str, str]:
    try:
        check_projection_names(names)
    except ValueError:
        raise ValueError("expected am: NAME, lm: NAME, ctc: NAME or some of them") from None
    return names


def _scalar(value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool)):
        raise ValueError("expected a text, a number or true/false")
    return value


Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
AtLeastOne = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]
ToleranceName = Annotated[str, AfterValidator(_known_tolerance)]
ProjectionNames = Annotated[dict[str, str], AfterValidator(_known_projections)]
OptionName = Annotated[str, AfterValidator(_known_option)]
OptionValue = Annotated[Any, AfterValidator(_scalar)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SyntheticConfig(_Strict):
    """Size of the data that ``--synthetic`` makes.

    Attributes:
      utterances: Training utterances; together they must hold ``bounds.max_batches`` batches.
      seed: Names the data.
    """

    utterances: AtLeastOne = 400
    seed: Annotated[int, _like_flag("batch_seed")] = 42


class DataConfig(_Strict):
    """What the recipe trains on.

    Attributes:
      corpus: Whose layout the data folder has.
      lang: Units of the transcripts.
      vocab_size: Classes C of the joiner, blank included; the data folder must agree.
      synthetic: Size of the synthetic data.
    """

    corpus: Literal["aishell", "wenetspeech", "librispeech"]
    lang: Literal["char", "bpe", "bbpe"]
    vocab_size: AtLeastTwo
    synthetic: SyntheticConfig = SyntheticConfig()


class Bounds(_Strict):
    """Where the run ends.

    Attributes:
      max_batches: Training batches, that is optimizer steps, of each continuation.
      max_minutes: Minutes after which the stage that runs then is stopped, and with it the whole
        run; the report is partial.
      resume_after: Batches after which the resumed run is stopped; half of ``max_batches`` where
        none is given. Zipformer recipes move their schedules at every tenth batch of a *process*:
        there only a multiple of 10 can resume exactly.
    """

    max_batches: AtLeastTwo
    max_minutes: Positive
    resume_after: AtLeastOne | None = None

    @property
    def stop_after(self) -> int:
        """``resume_after``, or its default."""
        return self.max_batches // 2 if self.resume_after is None else self.resume_after


class ContractConfig(_Strict):
    """The contract check on the first batches.

    Attributes:
      batches: Batches whose loss, log-probs and gradients are compared.
      update_steps: Optimizer steps after which the parameters are compared; default: the same as
        ``batches``.
      tolerances: Bounds by name; those left out have the default of the training's precision.
    """

    batches: AtLeastOne
    update_steps: Annotated[int | None, _like_flag("check_update_steps")] = None
    tolerances: dict[ToleranceName, Positive] = {}


class MemoryConfig(_Strict):
    """Memory of the routed arm.

    Attributes:
      workspace_mib: Upper bound of a tile's scratch, in MiB; None: by the device.
    """

    workspace_mib: Annotated[float | None, _like_flag("workspace_mib")] = None


class BoundedConfig(_Strict):
    """One bounded run.

    Attributes:
      recipe: The training script, relative to the icefall checkout.
      train_args: The recipe's own options without their dashes, and their values.
      data, bounds, contract, memory: See their classes.
      checkpoints: What the recipe saves checkpoints of. ``epochs``, in recipes without
        ``--start-batch``: their first epoch is number 0, and no run is stopped and resumed.
      recipe_params: Numbers in place of those that the recipe's ``get_params()`` gives, such as the
        sizes of a model for which it has no options.
      projections: What the model's projections for the simple loss are called, by "am" and "lm",
        and its CTC head, by "ctc"; as in icefall where none are given.
      ctc: Whether the routed arm takes the CTC loss too.
    """

    recipe: str
    train_args: dict[OptionName, OptionValue]
    data: DataConfig
    bounds: Bounds
    contract: ContractConfig
    memory: MemoryConfig = MemoryConfig()
    checkpoints: Literal["batches", "epochs"] = "batches"
    recipe_params: dict[str, int | float] = {}
    projections: ProjectionNames | None = None
    ctc: bool = False

    def recipe_arguments(self) -> list[str]:
        """``train_args`` as words of a command line."""
        words = []
        for name, value in self.train_args.items():
            words += [f"--{name}", str(int(value)) if isinstance(value, bool) else str(value)]
        return words

    @property
    def first_epoch(self) -> int:
        """The number of the recipe's first epoch."""
        return int(self.checkpoints == "batches")

    @property
    def uses_fp16(self) -> bool:
        """Whether the recipe is asked for mixed precision."""
        return SWITCH_WORDS.get(str(self._argument("use-fp16", 0)).lower(), False)

    @property
    def has_one_process(self) -> bool:
        """Whether the recipe is asked to train in a single process."""
        return str(self._argument("world-size", 1)) == "1"

    def _argument(self, name: str, default: Any) -> Any:
        given = {key.replace("_", "-"): value for key, value in self.train_args.items()}
        return given.get(name, default)


def load_config(path: Path) -> BoundedConfig:
    """Read and check one configuration.

    Args:
      path: The YAML file.

    Raises:
      UsageError: The file cannot be read, a key is unknown, missing or given twice, or a value
        has the wrong type or range; the message names every such key.
    """
    try:
        with reading("CONFIG", path):
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"CONFIG: {path} is not YAML: {error}") from error
    try:
        config = BoundedConfig.model_validate(content)
    except ValidationError as error:
        found = "; ".join(_describe(item) for item in error.errors())
        raise UsageError(f"CONFIG: {path}: {found}") from error
    plain = [name.replace("_", "-") for name in config.train_args]
    for name in plain:
        if plain.count(name) > 1:
            raise UsageError(f"CONFIG: {path}: train_args.{name}: given in two spellings")
    bounds = config.bounds
    if bounds.stop_after >= bounds.max_batches:
        raise UsageError(
            f"CONFIG: {path}: bounds.resume_after: got {bounds.stop_after}, expected less than "
            f"bounds.max_batches ({bounds.max_batches})"
        )
    return config


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would take the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not plain text", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _describe(item: Any) -> str:
    """One of pydantic's findings in a line: the key, what it got and what it expects."""
    steps = [str(step) for step in item["loc"] if step != "[key]"]
    key = ".".join(steps)
    if item["type"] == "missing":
        return f"{key}: missing"
    if item["type"] == "extra_forbidden":
        known = _fields_at(steps[:-1])
        close = difflib.get_close_matches(steps[-1], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{key}: unknown key, expected one of {', '.join(known)}{hint}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{key or 'the whole file'}: got {item['input']!r}: {message}"


def _fields_at(steps: list[str]) -> list[str]:
    model: Any = BoundedConfig
    for step in steps:
        model = model.model_fields[step].annotation
    return list(model.model_fields)
