"""What a resumed run needs beside what the recipe loads: put back ahead of its first epoch.

The recipe's own checkpoint is loaded again where a scan for large batches has changed what was
loaded from it. And the modules' plain numbers, which no ``state_dict`` and no checkpoint holds
(icefall's ``Whiten`` changes its ``prob`` as training goes, ``ActivationBalancer`` counts its
calls), are kept in a file beside each checkpoint.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panda_icefall.runs.atomic_file import replace_json
from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_calls import Epoch

__all__ = ["ModuleNumbers", "parameter_digest", "reload_after_scan"]

# Of torch itself: what these say is of the process, not of the training.
_TORCHS_OWN = ("training", "_is_full_backward_hook")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def reload_after_scan(epoch: Epoch, batches: int, *, is_sampler_needed: bool = True) -> None:
    """Load the recipe's checkpoint again where a scan for large batches has changed the state.

    Most icefall recipes look for the batches that need the most memory ahead of their first epoch,
    resumed runs too: lhotse's sampler, restored from the checkpoint, is iterated to its end and
    would start the epoch over; some recipes take optimizer steps on these batches as well. Nothing
    is done where the sampler still stands behind the checkpoint's last batch, or is none of
    lhotse's.

    Args:
      epoch: The first epoch of a resumed run.
      batches: Its ``--start-batch``.
      is_sampler_needed: Whether to refuse a checkpoint without a sampler; a recipe may skip the
        trained batches by itself.

    Raises:
      UsageError: The checkpoint is missing, the sampler cannot be restored from it, or the recipe
        has gone to another epoch.
    """
    sampler = getattr(epoch.arguments["train_dl"], "sampler", None)
    # Set by load_state_dict() of lhotse's samplers until the first batch is drawn.
    if getattr(sampler, "_just_restored_state", True):
        return
    path = epoch.folder / f"checkpoint-{batches}.pt"
    asked = f"--panda-batch-seed: --start-batch {batches}"
    happened = "the sampler of the training data is at the start of its epoch"
    if not path.is_file():
        raise UsageError(f"{asked}: {happened}, and {path} does not exist; restore that file")
    # The recipe has unpickled the same file just before.
    state = torch.load(path, map_location="cpu", weights_only=False)
    if "sampler" in state:
        _restore_sampler(sampler, state["sampler"], f"{asked}: {path}")
    elif is_sampler_needed:
        raise UsageError(
            f"{asked}: {happened}, and {path} holds no sampler to restore it from; resume from the "
            "end of an epoch (--start-epoch), or without --panda-batch-seed"
        )
    unwrap_model(epoch.model).load_state_dict(state["model"])
    optimizer = epoch.arguments.get("optimizer")
    if optimizer is not None and state.get("optimizer") is not None:
        optimizer.load_state_dict(state["optimizer"])
    logging.info(
        "panda: %s: the recipe scanned its training data before the first epoch; "
        "sampler, model and optimizer were loaded again from %s",
        asked,
        path.name,
    )


def _restore_sampler(sampler: Any, state: dict[str, Any], what: str) -> None:
    epoch = sampler.epoch
    saved_epoch = state.get("epoch")
    if saved_epoch != epoch:
        raise UsageError(
            f"{what}: got a sampler saved in epoch {saved_epoch} (counted from 0), expected the "
            f"epoch {epoch} in which the recipe resumes; resume in the epoch of the checkpoint"
        )
    try:
        sampler.load_state_dict(state)
    except (AssertionError, AttributeError, KeyError, StopIteration, TypeError) as error:
        raise UsageError(
            f"{what}: the sampler cannot load its state: {error!r}; resume with the data, "
            "processes and lhotse that the checkpoint was saved with"
        ) from error


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
        replace_json(self.path(batches), content)

    def restore(self, batches: int) -> None:
        """Put back what :meth:`save` wrote; a missing file is logged as a warning.

        Raises:
          UsageError: The file is none of :meth:`save`'s, was written for other parameters than
            the model has now, or names a module that it lacks.
        """
        path = self.path(batches)
        if not path.is_file():
            logging.warning(
                "panda: %s: not found; module attributes that no checkpoint holds (whitening "
                "probabilities, call counts) start anew. Save the checkpoint in a run "
                "with --panda-batch-seed to repeat it exactly",
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


def _plain_numbers(module: Any) -> dict[str, int | float | bool]:
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in (int, float, bool) and name not in _TORCHS_OWN
    }


def parameter_digest(model: nn.Module) -> str:
    """The same text for the same parameter values, bit for bit, on any device.

    Args:
      model: Its parameters are read where they are, one copy of the largest in int64 at a time;
        its buffers do not matter.

    Returns:
      A digest in hexadecimal of every parameter's name, dtype, shape and bits.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        form = f"{name} {parameter.dtype} {tuple(parameter.shape)}"
        digest.update(f"{form} {_checksum(parameter.detach())}\n".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    # Integer sums are exact in any order, so that a GPU's agrees with the CPU's.
    flat = tensor.contiguous().reshape(-1)
    words = flat.view(_INTEGERS.get(flat.element_size(), torch.int64)).to(torch.int64)
    places = torch.arange(1, len(words) + 1, device=words.device)
    return int((words * places).sum())
