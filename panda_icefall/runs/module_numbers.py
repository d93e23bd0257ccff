"""What a recipe's modules remember outside of their parameters and buffers.

icefall's ``Whiten`` changes its ``prob`` as training goes, ``ActivationBalancer`` counts its calls:
plain numbers on the modules, which no ``state_dict`` and no checkpoint holds. They are kept here
beside the recipe's own checkpoints, so that a resumed run goes on as the one it continues.
"""

import json
import logging
from pathlib import Path
from typing import Any, Union

from torch import nn

from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.errors import UsageError

__all__ = ["ModuleNumbers"]

Numbers = dict[str, dict[str, Union[int, float, bool]]]


class ModuleNumbers:
    """Saves and restores the plain numbers of a model's modules that training has changed.

    Args:
      model: The recipe's model as it was built, without a DDP wrapper.
      folder: The recipe's ``exp_dir``, where its ``checkpoint-N.pt`` go.
      rank: The process's rank: each keeps numbers of its own.
    """

    def __init__(self, model: nn.Module, folder: Path, rank: int) -> None:
        self._model = model
        self._folder = folder
        self._rank = rank
        self._as_built = _numbers_of(model)

    def path(self, batches: int) -> Path:
        """The file beside the checkpoint that was saved after ``batches`` training batches."""
        return self._folder / f"checkpoint-{batches}.panda-rank{self._rank}.json"

    def save(self, batches: int) -> None:
        """Write the numbers that differ from those of the model as it was built."""
        changed: Numbers = {}
        for module, numbers in _numbers_of(self._model).items():
            as_built = self._as_built.get(module, {})
            differing = {k: v for k, v in numbers.items() if k not in as_built or as_built[k] != v}
            if differing:
                changed[module] = differing
        replace_file(self.path(batches), json.dumps(changed).encode("utf-8"))

    def restore(self, batches: int) -> None:
        """Put back what :meth:`save` wrote; a missing file is logged as a warning.

        Raises:
          UsageError: The file names a module that the model lacks.
        """
        path = self.path(batches)
        if not path.is_file():
            logging.warning(
                "panda: %s: not found; the run resumes with modules that have forgotten what no "
                "checkpoint holds (whitening probabilities, call counts). Save the checkpoint in "
                "a run with --panda-batch-seed to repeat it exactly",
                path,
            )
            return
        modules = dict(self._model.named_modules())
        for name, numbers in json.loads(path.read_text(encoding="utf-8")).items():
            if name not in modules:
                raise UsageError(
                    f"--start-batch: {path}: got numbers of the module {name!r}, expected one "
                    "of this model; resume with the arguments that the checkpoint was saved with"
                )
            for attribute, value in numbers.items():
                setattr(modules[name], attribute, value)


def _numbers_of(model: nn.Module) -> Numbers:
    return {name: _plain_numbers(module) for name, module in model.named_modules()}


def _plain_numbers(module: Any) -> dict[str, Union[int, float, bool]]:
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in (int, float, bool) and name != "training"
    }
