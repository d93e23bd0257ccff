"""A recipe's own model, built by its own train.py with small dimensions."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from recipe_matrix.row import ABSENT, BUILDERS, Row


def seed_everything(seed: int) -> None:
    """All three generators: models draw from torch and random, lhotse's augmentation from numpy."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_params(row: Row, train: ModuleType) -> Any:
    """What the recipe's `run()` has when it builds the model: defaults, options, vocabulary."""
    parser = train.get_parser()
    known = {option for action in parser._actions for option in action.option_strings}
    params = train.get_params()
    given = {f"--{name}": str(value) for name, value in row.options.items()}
    for name, value in row.sizes.items():
        if f"--{name}" in known:
            given.setdefault(f"--{name}", str(value))
        elif name.replace("-", "_") in params:
            params[name.replace("-", "_")] = value
    # "--option=value": a value may start with a dash.
    parsed = vars(parser.parse_args([f"{option}={value}" for option, value in given.items()]))
    params.update(parsed)
    params.update(vocab_size=row.num_classes, blank_id=0, sos_id=1, eos_id=1, unk_id=2)
    params.update(row.params)
    for name, value in row.params.items():
        if value is ABSENT:
            del params[name]
    return params


def make_model(row: Row, train: ModuleType, params: Any) -> nn.Module:
    """The model, always with the same parameters.

    Built anew for every pass: modules keep state between passes, and not all can be copied.
    """
    seed_everything(12)
    builder = next(getattr(train, name) for name in BUILDERS if hasattr(train, name))
    model = builder(params)
    if hasattr(train, "set_batch_count"):
        train.set_batch_count(model, 0.0)
    for adaptation in row.adaptations:
        if adaptation.model is not None:
            model = adaptation.model(model)
    return model
