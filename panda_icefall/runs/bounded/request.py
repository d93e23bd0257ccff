"""What the user asked for, checked in full before anything starts."""

import math
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from panda_icefall.runs.bounded.config import BoundedConfig, load_config
from panda_icefall.runs.bounded.continuation import read_earlier, run_inputs
from panda_icefall.runs.bounded.plan import Stage, child_environment, plan_stages
from panda_icefall.runs.bounded.recipe_options import check_recipe_options
from panda_icefall.runs.data.catalog import data_arguments, find_corpus
from panda_icefall.runs.data.check import check_data, check_icefall_root
from panda_icefall.runs.doctor.imports import require_imports
from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.panda_arguments import split_panda_arguments
from panda_icefall.runs.recipe_module import RecipeFile
from panda_icefall.runs.run_record import RunRecord
from panda_icefall.shipped import find_config

__all__ = ["Request", "check_request", "new_folder"]


@dataclass(frozen=True)
class Request:
    """A bounded run that can be started.

    Attributes:
      config: The configuration.
      config_path: Where it was read.
      root: The icefall checkout.
      train_py: The recipe's training script.
      device: ``cpu`` or ``cuda``.
      data: The recipe's data folder; None where synthetic data are to be made.
      out: Folder to write; it exists, and is empty but for what ``earlier`` left.
      stages: Its child processes, in their order.
      inputs: All that the run depends on, by name.
      earlier: The record of the unfinished run that is to be continued; None: a new run.
      max_minutes: The bound in minutes, where it was given in place of the configuration's.
    """

    config: BoundedConfig
    config_path: Path
    root: Path
    train_py: Path
    device: str
    data: Path | None
    out: Path
    stages: list[Stage]
    inputs: dict[str, Any] = field(repr=False)
    earlier: RunRecord | None = field(repr=False)
    max_minutes: float | None

    @property
    def corpus_folder(self) -> Path:
        """``egs/<corpus>/ASR``, from where recipes are started."""
        return self.train_py.parents[1]

    @property
    def data_folder(self) -> Path:
        """The recipe's data folder, given or to be made."""
        return self.out / "data" if self.data is None else self.data

    @property
    def command(self) -> str:
        """A command that makes the same run again, from any folder, in a new folder there."""
        return shlex.join(self._words(self.max_minutes))

    def continuation(self, max_minutes: float | None = None) -> str:
        """A command that continues this run in its folder, with another bound if one is given."""
        return shlex.join([*self._words(max_minutes or self.max_minutes), "--out", str(self.out)])

    def _words(self, max_minutes: float | None) -> list[str]:
        is_installed = shutil.which("panda-icefall") is not None
        start = ["panda-icefall"] if is_installed else [sys.executable, "-m", "panda_icefall"]
        where = ["--synthetic"] if self.data is None else ["--data", str(self.data)]
        bound = [] if max_minutes is None else ["--max-minutes", f"{max_minutes:.12g}"]
        config = str(self.config_path.absolute())
        root = ["--icefall-root", str(self.root)]
        return [*start, "bounded", config, *root, *where, "--device", self.device, *bound]

    @property
    def title(self) -> str:
        """The recipe's path under ``egs``, and the form of its configuration."""
        recipe = self.train_py.relative_to(self.root / "egs").with_suffix("")
        return f"{recipe} ({self.config_path.stem})"


def check_request(
    config_path: Path,
    icefall_root: Path,
    *,
    data: Path | None = None,
    synthetic: bool = False,
    device: str | None = None,
    out: Path | None = None,
    max_minutes: float | None = None,
) -> Request:
    """Check everything that can be wrong with a request, before anything starts.

    Args:
      config_path: The YAML file, or the name of a shipped one, ``CORPUS/RECIPE[/FORM]``.
      icefall_root: An icefall checkout; only read.
      data: The recipe's data folder.
      synthetic: Make synthetic data in its layout, inside ``out``, in place of ``data``.
      device: ``cpu`` or ``cuda``; CUDA where there is one if not given.
      out: Folder to write: a new or empty one, or that of an unfinished run to continue. If not
        given, a new one: ``panda-bounded/<recipe>-<form>``, or with a number behind it.
      max_minutes: In place of ``bounds.max_minutes``.

    Raises:
      UsageError: It cannot be run.
    """
    config_path = _find_config(config_path, device)
    config = _with_minutes(load_config(config_path), max_minutes)
    root = check_icefall_root(icefall_root)
    train_py = _find_recipe(config, root)
    layout = find_corpus(config.data.corpus)
    layout.lang(config.data.lang)
    if (root / layout.folder) not in train_py.parents:
        raise UsageError(
            f"data.corpus: got {config.data.corpus}, whose recipes lie in {layout.folder}, for the "
            f"recipe {config.recipe}; expected the recipe's own corpus"
        )
    chosen_device = _choose_device(device, config)
    if (data is not None) == synthetic:
        given = "both" if synthetic else "neither"
        raise UsageError(f"--data, --synthetic: got {given}, expected one of them")
    if data is not None:
        data = data.expanduser().absolute()
        wanted = config.data
        with reading("data", data):
            check_data(
                wanted.corpus,
                wanted.lang,
                data,
                wanted.vocab_size,
                train_py.parents[1],
                config.recipe_arguments(),
            )
    name = f"{train_py.parents[2].name}-{train_py.parent.name}-{config_path.stem}"
    folder = new_folder(Path("panda-bounded") / name) if out is None else out
    folder = folder.expanduser().absolute()
    if root in folder.resolve().parents:
        raise UsageError(
            f"--out: got {folder}, inside the icefall checkout, which is never written to; "
            "expected a folder elsewhere"
        )
    inputs = run_inputs(config, root, train_py, chosen_device, data)
    earlier = read_earlier(folder, inputs)
    words = data_arguments(
        config.data.corpus, config.data.lang, data or folder / "data", config.data.vocab_size
    )
    stages = plan_stages(config, train_py, words, folder)
    if earlier is None:  # else it has been asked
        _, all_words = split_panda_arguments(stages[-1].arguments)
        environment = child_environment(root, chosen_device)
        require_imports(train_py, root)
        try:
            check_recipe_options(train_py, all_words, list(config.train_args), environment)
        except UsageError as error:
            raise UsageError(f"CONFIG: {config_path}: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}") from error
    return Request(
        config=config,
        config_path=config_path,
        root=root,
        train_py=train_py,
        device=chosen_device,
        data=data,
        out=folder,
        stages=stages,
        inputs=inputs,
        earlier=earlier,
        max_minutes=max_minutes,
    )


def _find_config(given: Path, device: str | None) -> Path:
    """A file as it is; the file of a name, by default in the form for the device."""
    if given.suffix in (".yaml", ".yml") or given.is_file():
        return given
    on_gpu = device == "cuda" or (device is None and torch.cuda.is_available())
    try:
        return find_config(given.as_posix(), "full" if on_gpu else "cpu")
    except ValueError as error:
        raise UsageError(f"CONFIG: {error}") from None


def _with_minutes(config: BoundedConfig, max_minutes: float | None) -> BoundedConfig:
    if max_minutes is None:
        return config
    if not (max_minutes > 0 and math.isfinite(max_minutes)):
        raise UsageError(f"--max-minutes: got {max_minutes:g}, expected a number above 0")
    bounds = config.bounds.model_copy(update={"max_minutes": max_minutes})
    return config.model_copy(update={"bounds": bounds})


def _find_recipe(config: BoundedConfig, root: Path) -> Path:
    train_py = root / config.recipe
    with reading("recipe", train_py):
        is_there = train_py.is_file()
    if not is_there or (root / "egs") not in train_py.parents:
        raise UsageError(
            f"recipe: got {config.recipe}, which {root} does not have, expected a training script "
            "egs/<corpus>/ASR/<recipe>/train.py"
        )
    RecipeFile(train_py).require_guard()
    return train_py


def _choose_device(device: str | None, config: BoundedConfig) -> str:
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("--device: got cuda, but torch sees no GPU; expected cpu, or a GPU")
    chosen = device or ("cuda" if has_cuda else "cpu")
    if chosen == "cpu" and config.uses_fp16:
        raise UsageError(
            "train_args.use-fp16: got true on cpu, where recipes train in fp32; expected --device "
            "cuda, or the configuration's cpu form"
        )
    if chosen == "cpu" and not config.has_one_process:
        raise UsageError(
            "train_args.world-size: got more than 1 on cpu, where icefall's setup_dist() (NCCL) "
            "cannot start; expected 1"
        )
    return chosen


def _has_nothing(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def new_folder(wanted: Path, is_free: Callable[[Path], bool] = _has_nothing) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that has nothing in it.

    Args:
      wanted: The first that is looked at.
      is_free: What else may be taken.
    """
    folder, number = wanted, 1
    while not is_free(folder):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
