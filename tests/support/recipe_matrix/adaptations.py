"""What single recipes need besides their own files: inputs, stand-ins, frozen parts, hooks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from recipe_matrix.batch import X_LENS, transcripts
from recipe_matrix.isolation import mended, on_path, stand_in_attributes, stand_in_modules
from recipe_matrix.row import Adaptation, Call

Arguments = dict[str, Any]


def module(name: str, **attributes: Any) -> ModuleType:
    """A module made of the given attributes; it can be asked for with `find_spec`."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, loader=None)
    vars(made).update(attributes)
    return made


def without(package: str, **attributes: Any) -> Adaptation:
    """An empty module for a package that the model does not use; only its import is needed."""
    made = {package: module(package, **attributes)}
    return Adaptation(note=f"{package} left empty", around=partial(stand_in_modules, made))


# Dataset classes of other lhotse versions that the data modules import.
OTHER_LHOTSE = Adaptation(
    note="dataset classes of another lhotse left empty",
    around=partial(
        stand_in_attributes,
        "lhotse.dataset",
        "K2Speech2TextTranslationDataset",
        "K2Speech2textTranslationDataset",
        "SingleCutSampler",
    ),
)


def started_in(folder: str) -> Adaptation:
    """A folder on PYTHONPATH, as an empty entry there adds the working directory."""
    return Adaptation(note="started in its ASR folder", around=partial(on_path, folder))


# The folder has links to everything but this file.
WITH_ENCODER_INTERFACE = Adaptation(
    note="with librispeech's encoder_interface.py",
    around=partial(on_path, "librispeech/ASR/zipformer"),
)


def with_mended_train(folder: str, wrong: str, right: str) -> Adaptation:
    """The recipe's train.py without a mistake that keeps it from being imported."""
    around = partial(mended, "train", f"{folder}/train.py", wrong, right)
    return Adaptation(note=f"`{wrong}` read as `{right}`", around=around)


@contextmanager
def _stand_in_k2() -> Iterator[None]:
    import k2

    from panda_icefall import rnnt

    with ExitStack() as stack:
        if "use_hat_loss" in inspect.signature(k2.rnnt_loss_pruned).parameters:
            yield
            return
        for name in rnnt.__all__:
            if name == "mutual_information_recursion":
                continue  # the stand-ins call k2's
            stack.enter_context(mock.patch.object(k2, name, getattr(rnnt, name)))
        yield


# k2 1.23.4 does not know the `use_hat_loss` that these recipes pass.
K2_STAND_IN = Adaptation(note="k2 stand-in", around=_stand_in_k2)


def _samples(call: Call, arguments: Arguments) -> Arguments:
    del arguments["x_lens"]
    lens = torch.tensor(X_LENS) * 160  # 16 kHz
    x = torch.randn(len(lens), int(lens.max()), generator=torch.Generator().manual_seed(5))
    padding_mask = torch.arange(x.shape[1]) >= lens[:, None]
    return {**arguments, "x": x, "padding_mask": padding_mask}


@contextmanager
def _reproducible() -> Iterator[None]:
    """Without what makes two dense passes from one random state differ.

    The masks come from generators that the operating system seeds; mkldnn's backward of these
    convolutions (torch 1.13) reads memory that nobody wrote.
    """
    made = np.random.default_rng
    with ExitStack() as stack:
        # A new one for every call, whatever seed it asks for.
        seeded = stack.enter_context(mock.patch.object(np.random, "default_rng"))
        seeded.side_effect = lambda seed=None: made(30)
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


WAVEFORMS = Adaptation(note="seeded masks, no mkldnn", inputs=_samples, around=_reproducible)


@contextmanager
def _old_weight_norm() -> Iterator[None]:
    from torch.nn.utils import parametrizations, weight_norm

    if hasattr(parametrizations, "weight_norm"):
        yield
    else:
        with mock.patch.object(parametrizations, "weight_norm", weight_norm, create=True):
            yield


OLD_WEIGHT_NORM = Adaptation(note="torch 1.13's weight_norm", around=_old_weight_norm)


def _two_channels(call: Call, arguments: Arguments) -> Arguments:
    import k2

    C = call.params.vocab_size
    y = k2.ragged.cat([arguments["y"], transcripts(C, symbols=7)], axis=0)
    return {**arguments, "y": y}


TWO_CHANNELS = Adaptation(inputs=_two_channels)


def _translations(call: Call, arguments: Arguments) -> Arguments:
    return {**arguments, "st_y": transcripts(call.params.vocab_st_size, symbols=9)}


TRANSLATIONS = Adaptation(inputs=_translations)


def _augmented(call: Call, arguments: Arguments) -> Arguments:
    """As the recipes' `compute_loss` does: augmented copies in training, plain ones otherwise."""
    if not call.is_training:
        return {**arguments, "use_spec_aug": False}
    lens = torch.tensor(X_LENS)
    segments = torch.stack([torch.arange(len(lens)), torch.zeros_like(lens), lens], dim=1)
    return {
        **arguments,
        "use_spec_aug": True,
        "spec_augment": call.train.get_spec_augment(call.params),
        "supervision_segments": segments.int(),
    }


SPEC_AUGMENT = Adaptation(inputs=_augmented)


def train_only(word: str) -> Adaptation:
    """Freeze every parameter without `word` in its name, as the recipe's `run()` does."""

    def freeze(model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = word in name
        return model

    return Adaptation(model=freeze)


def _inf_check_hooks(model: nn.Module) -> nn.Module:
    from icefall.hooks import register_inf_check_hooks

    register_inf_check_hooks(model)
    return model


INF_CHECK = Adaptation(model=_inf_check_hooks)


def _diagnostics(model: nn.Module) -> nn.Module:
    from icefall import diagnostics

    diagnostics.attach_diagnostics(model, diagnostics.TensorDiagnosticOptions(4))
    return model


PRINT_DIAGNOSTICS = Adaptation(model=_diagnostics)


@contextmanager
def _process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


DISTRIBUTED = Adaptation(around=_process_group, model=nn.parallel.DistributedDataParallel)
