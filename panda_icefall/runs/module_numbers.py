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
from panda_icefall.runs.parameter_digest import parameter_digest

__all__ = ["ModuleNumbers"]

# Of torch itself: what these say is of the process, not of the training.
_TORCHS_OWN = ("training", "_is_full_backward_hook")


class ModuleNumbers:
    """Saves and restores the plain numbers of a model's modules.

    All of them: a number may have changed before anybody looked (a recipe's scan for large batches
    runs the model ahead of its first epoch), so none can be told to be as it was built.

    Args:
      model: The recipe's model without a DDP wrapper.
      folder: The recipe's ``exp_dir``, where its ``checkpoint-N.pt`` go.
      rank: The process's rank: each keeps numbers of its own.
    """

    def __init__(self, model: nn.Module, folder: Path, rank: int) -> None:
        self._model = model
        self._folder = folder
        self._rank = rank

    def path(self, batches: int) -> Path:
        """The file beside the checkpoint that was saved after ``batches`` training batches."""
        return self._folder / f"checkpoint-{batches}.panda-rank{self._rank}.json"

    def save(self, batches: int) -> None:
        """Write the numbers, and which parameters they belong to."""
        modules = {name: _plain_numbers(module) for name, module in self._model.named_modules()}
        content = {
            "parameters": parameter_digest(self._model),
            "modules": {name: numbers for name, numbers in modules.items() if numbers},
        }
        replace_file(self.path(batches), json.dumps(content).encode("utf-8"))

    def restore(self, batches: int) -> None:
        """Put back what :meth:`save` wrote; a missing file is logged as a warning.

        Raises:
          UsageError: The file is none of :meth:`save`'s, was written for other parameters than
            the model has now, or names a module that it lacks.
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
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            digest, saved = content["parameters"], content["modules"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"--start-batch: {path}: got {error!r}, expected what --panda-batch-seed saves; "
                "remove the file to resume without it"
            ) from error
        if digest != parameter_digest(self._model):
            raise UsageError(
                f"--start-batch: {path}: got a model whose parameters are not those that this file "
                f"was saved with; checkpoint-{batches}.pt beside it is of another run, or the "
                "model was changed after it was loaded. Remove the file to resume without it"
            )
        modules = dict(self._model.named_modules())
        for name, numbers in saved.items():
            if name not in modules:
                raise UsageError(
                    f"--start-batch: {path}: got numbers of the module {name!r}, expected one "
                    "of this model; resume with the arguments that the checkpoint was saved with"
                )
            for attribute, value in numbers.items():
                setattr(modules[name], attribute, value)


def _plain_numbers(module: Any) -> dict[str, Union[int, float, bool]]:
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in (int, float, bool) and name not in _TORCHS_OWN
    }
