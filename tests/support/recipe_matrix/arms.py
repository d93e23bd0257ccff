"""One batch through a recipe's model: with k2 as it is (dense), and routed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Callable
from unittest import mock

import torch
from torch import Tensor

import panda_icefall
from panda_icefall.routing import routed_loss
from recipe_matrix.batch import forward_arguments
from recipe_matrix.building import make_model, make_params, seed_everything
from recipe_matrix.isolation import egs, recipe_folder_first, train_module
from recipe_matrix.joiner_kind import joiner_kind
from recipe_matrix.row import Call, Row


@dataclass(frozen=True)
class Pass:
    """What one forward, and in training backward, gave.

    Attributes:
      outputs: every floating tensor that `forward` returned.
      gradients: by parameter name; empty in validation.
      model_file: below `egs`, links followed.
      pruned_losses: how many of them k2 was asked for (dense), or were routed.
      joiners: what each routed joiner did to a site, in words.
      materialised: operation -> how often, as in `panda_icefall.status()`.
      losses_dense: pruned losses that PANDA left to k2.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    model_file: str
    pruned_losses: int
    joiners: tuple[str, ...] = ()
    materialised: dict[str, int] | None = None
    losses_dense: int = 0


@contextmanager
def recipe_passes(row: Row) -> Iterator[tuple[Callable[..., Pass], Callable[..., Pass]]]:
    """Import the recipe; gives `dense(is_training=...)` and `routed(is_training=...)`."""
    with ExitStack() as stack:
        for adaptation in row.adaptations:
            stack.enter_context(adaptation.around())
        stack.enter_context(recipe_folder_first(egs() / row.folder))
        train = train_module(row.train)
        params = make_params(row, train)

        def dense(*, is_training: bool) -> Pass:
            return _dense(row, train, params, is_training=is_training)

        def routed(*, is_training: bool) -> Pass:
            return _routed(row, train, params, is_training=is_training)

        yield dense, routed


def _dense(row: Row, train: ModuleType, params: Any, *, is_training: bool) -> Pass:
    import k2

    original = k2.rnnt_loss_pruned
    with mock.patch.object(k2, "rnnt_loss_pruned", wraps=original) as counted:
        outcome = _run(row, train, params, is_training=is_training)
    return Pass(*outcome, counted.call_count)


def _routed(row: Row, train: ModuleType, params: Any, *, is_training: bool) -> Pass:
    joiners = []
    compute = routed_loss.compute

    def noting_compute(logits: Any, *args: Any, **kwargs: Any) -> Tensor:
        joiners.append(joiner_kind(logits.node))
        return compute(logits, *args, **kwargs)

    with panda_icefall.patched(), mock.patch.object(routed_loss, "compute", noting_compute):
        panda_icefall.routing.reset_counters()
        outcome = _run(row, train, params, is_training=is_training)
        status = panda_icefall.status()
    return Pass(
        *outcome,
        status.losses_routed,
        tuple(joiners),
        dict(status.materialised),
        status.losses_dense,
    )


def _run(
    row: Row, train: ModuleType, params: Any, *, is_training: bool
) -> tuple[list[Tensor], dict[str, Tensor], str]:
    """One pass from a fixed random state: Zipformer draws in backward too."""
    model = make_model(row, train, params)
    model.train(is_training)
    arguments = forward_arguments(row, Call(train, params, is_training))
    seed_everything(20)
    with torch.set_grad_enabled(is_training):
        outputs = list(_floating(model(**arguments)))
        total = torch.stack([_reduced(output) for output in outputs]).sum()
    if is_training:
        total.backward()
    gradients = {
        name.removeprefix("module."): p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    plain = getattr(model, "module", model)
    model_file = Path(inspect.getfile(type(plain))).resolve().relative_to(egs())
    return [output.detach() for output in outputs], gradients, str(model_file)


def _floating(result: Any) -> Iterator[Tensor]:
    """The floating tensors in nested tuples and lists."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _floating(item)


def _reduced(output: Tensor) -> Tensor:
    """Losses are summed; what else a model returns (CTC log-probs, masked features) is averaged."""
    return output.sum() if output.dim() < 3 else output.mean()
