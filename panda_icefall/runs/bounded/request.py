"""What the user asked for, checked in full before anything starts."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch

from panda_icefall.runs.bounded.config import BoundedConfig, load_config
from panda_icefall.runs.corpora import check_data, check_icefall_root, find_corpus
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_module import RecipeFile

__all__ = ["Request", "check_request"]


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
      out: Folder to write; it exists and is empty.
    """

    config: BoundedConfig
    config_path: Path
    root: Path
    train_py: Path
    device: str
    data: Optional[Path]
    out: Path

    @property
    def corpus_folder(self) -> Path:
        """``egs/<corpus>/ASR``, from where recipes are started."""
        return self.train_py.parents[1]

    @property
    def command(self) -> str:
        """A command that makes the same run again, in a folder of its own choice."""
        where = ["--synthetic"] if self.data is None else ["--data", str(self.data)]
        words = [str(self.config_path.absolute()), "--icefall-root", str(self.root), *where]
        return shlex.join(["panda-icefall", "bounded", *words, "--device", self.device])

    @property
    def title(self) -> str:
        """The recipe's path under ``egs``, and the form of its configuration."""
        recipe = self.train_py.relative_to(self.root / "egs").with_suffix("")
        return f"{recipe} ({self.config_path.stem})"


def check_request(
    config_path: Path,
    icefall_root: Path,
    *,
    data: Optional[Path] = None,
    synthetic: bool = False,
    device: Optional[str] = None,
    out: Optional[Path] = None,
) -> Request:
    """Check everything that can be wrong with a request, before anything starts.

    Args:
      config_path: The YAML file.
      icefall_root: An icefall checkout; only read.
      data: The recipe's data folder.
      synthetic: Make synthetic data in its layout, inside ``out``, in place of ``data``.
      device: ``cpu`` or ``cuda``; CUDA where there is one if not given.
      out: Folder to write; new or empty. ``panda-bounded/<recipe>-<form>`` if not given.

    Raises:
      UsageError: It cannot be run.
    """
    config = load_config(config_path)
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
        data = data.absolute()
        wanted = config.data
        check_data(
            wanted.corpus,
            wanted.lang,
            data,
            wanted.vocab_size,
            train_py.parents[1],
            config.recipe_arguments(),
        )
    name = f"{train_py.parents[2].name}-{train_py.parent.name}-{config_path.stem}"
    folder = _new_folder(out or Path("panda-bounded") / name, root)
    return Request(config, config_path, root, train_py, chosen_device, data, folder)


def _find_recipe(config: BoundedConfig, root: Path) -> Path:
    train_py = root / config.recipe
    if not train_py.is_file() or (root / "egs") not in train_py.parents:
        raise UsageError(
            f"recipe: got {config.recipe}, which {root} does not have, expected a training script "
            "egs/<corpus>/ASR/<recipe>/train.py"
        )
    RecipeFile(train_py).require_guard()
    return train_py


def _choose_device(device: Optional[str], config: BoundedConfig) -> str:
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


def _new_folder(out: Path, root: Path) -> Path:
    folder = out.expanduser().absolute()
    if root in folder.resolve().parents:
        raise UsageError(
            f"--out: got {folder}, inside the icefall checkout, which is only read; expected a "
            "folder elsewhere"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"--out: got {folder}, which exists and is not empty, expected a new folder; remove it "
            "or choose another"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}") from error
    return folder
