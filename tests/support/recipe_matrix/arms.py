"""One batch through a recipe's model: with the host's losses (dense), and routed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import panda_icefall
from panda_icefall.routing import routed_full_loss, routed_loss
from panda_icefall.routing.hosts import OWN_FUNCTIONS, SYMBOLS, Kind
from panda_icefall.runs.contract.dense_losses import ctc_losses_in_float64, exact_recursions
from panda_icefall.runs.contract.passes import PruneRanges
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
      losses: how many, pruned or of full lattices, the host was asked for (dense), or were routed.
      joiners: what each routed joiner did to a site, in words.
      materialised: operation -> how often, as in `panda_icefall.status()`.
      losses_dense: those of them that PANDA left to the host.
      simple: simple losses by how they were computed: `dense` by k2, `deferred` from what goes into
        the projections, `of tensors` in tiles of am and lm.
      frames, frames_differing: see `PruneRanges`.
      ctc_losses: how many of them torch was asked for (dense), or were routed.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    model_file: str
    losses: int
    joiners: tuple[str, ...] = ()
    materialised: dict[str, int] | None = None
    losses_dense: int = 0
    simple: dict[str, int] | None = None
    frames: int = 0
    frames_differing: int = 0
    ctc_losses: int = 0


class Arms(NamedTuple):
    """Functions of `is_training`; `dense` is called first, the others prune by its ranges.

    Losses of k2 run the exact recursion, as routed ones do: their own loses digits.
    `reference` is dense in float32, with the lattice of torch's CTC in float64.
    """

    dense: Callable[..., Pass]
    routed: Callable[..., Pass]
    reference: Callable[..., Pass]


@contextmanager
def recipe_passes(row: Row) -> Iterator[Arms]:
    """Import the recipe; gives its arms."""
    with ExitStack() as stack:
        for adaptation in row.adaptations:
            stack.enter_context(adaptation.around())
        stack.enter_context(recipe_folder_first(egs() / row.folder))
        train = train_module(row.train)
        params = make_params(row, train)

        # All arms prune alike: occupations that tie but for rounding are no difference.
        ranges = {is_training: PruneRanges() for is_training in (True, False)}

        def dense(*, is_training: bool) -> Pass:
            with ranges[is_training].recorded():
                return _dense(row, train, params, is_training=is_training)

        def routed(*, is_training: bool) -> Pass:
            with ranges[is_training].handed_on() as own:
                found = _routed(row, train, params, is_training=is_training)
            assert own.problems == []
            return replace(found, frames=own.frames, frames_differing=own.frames_differing)

        def reference(*, is_training: bool) -> Pass:
            with ExitStack() as exact:
                exact.enter_context(ranges[is_training].handed_on())
                exact.enter_context(ctc_losses_in_float64())
                for adaptation in row.adaptations:
                    if adaptation.around_reference is not None:
                        exact.enter_context(adaptation.around_reference())
                in_float32 = replace(row, precision=torch.float32)
                return _dense(in_float32, train, params, is_training=is_training)

        yield Arms(dense, routed, reference)


def _dense(row: Row, train: ModuleType, params: Any, *, is_training: bool) -> Pass:
    with ExitStack() as stack:
        for adaptation in row.adaptations:
            stack.enter_context(adaptation.around_dense())
        stack.enter_context(exact_recursions())
        losses = _watched(stack, Kind.PRUNED_LOSS, Kind.FULL_LOSS)
        simple = _watched(stack, Kind.SIMPLE_LOSS)
        ctc = stack.enter_context(mock.patch.object(F, "ctc_loss", wraps=F.ctc_loss))
        outcome = _run(row, train, params, is_training=is_training)
        called, of_simple = (sum(f.call_count for f in found) for found in (losses, simple))
    return Pass(
        *outcome,
        called,
        simple={"dense": of_simple} if of_simple else {},
        ctc_losses=ctc.call_count,
    )


def _watched(stack: ExitStack, *kinds: Kind) -> list[mock.Mock]:
    """Counters around the losses of some kinds, in the packages that recipes call."""
    return [
        stack.enter_context(mock.patch.object(module, name, wraps=getattr(module, name)))
        for name, module in (
            (symbol.name, sys.modules.get(host))
            for symbol in SYMBOLS
            for host in symbol.hosts
            if symbol.kind in kinds and host != OWN_FUNCTIONS
        )
        if hasattr(module, name)
    ]


def _routed(row: Row, train: ModuleType, params: Any, *, is_training: bool) -> Pass:
    joiners = []

    def noting(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noting_compute(logits: Any, *args: Any, **kwargs: Any) -> Tensor:
            joiners.append(joiner_kind(logits.node))
            return compute(logits, *args, **kwargs)

        return noting_compute

    with ExitStack() as stack:
        stack.enter_context(panda_icefall.patched(ctc=row.has_ctc_head))
        for module in (routed_loss, routed_full_loss):
            noted = mock.patch.object(module, "compute", noting(module.compute))
            stack.enter_context(noted)
        panda_icefall.routing.reset_counters()
        outcome = _run(row, train, params, is_training=is_training)
        status = panda_icefall.status()
    simple = {
        "deferred": status.simple_losses_deferred,
        "of tensors": status.simple_losses_of_tensors,
        "dense": status.simple_losses_dense,
    }
    return Pass(
        *outcome,
        status.losses_routed,
        tuple(joiners),
        dict(status.materialised),
        status.losses_dense,
        {how: count for how, count in simple.items() if count},
        ctc_losses=status.ctc_losses_routed,
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
        with panda_icefall.routing.recording_projections(model), _computing_in(row.precision):
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


def _computing_in(precision: torch.dtype) -> AbstractContextManager[Any]:
    return nullcontext() if precision == torch.float32 else torch.autocast("cpu", precision)


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
