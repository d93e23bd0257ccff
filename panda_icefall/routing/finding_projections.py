"""Which modules of a model are projections to classes: by name, and without running any."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "KINDS",
    "check_projection_names",
    "classes_of",
    "find_ctc_heads",
    "find_projections",
    "unrecorded",
    "warn_of_no_ctc_head",
]

_CTC = "ctc"
KINDS = ("am", "lm", _CTC)
_NAME = re.compile(r"(?:.*\.)?simple_(?:\w+_)?(?:am|lm)_proj(?:_\w+)?")
_CTC_NAME = re.compile(r"(?:.*\.)?(?:\w+_)?ctc_output(?:_\w+)?")
_ESPNET_NAMES = ("am_proj", "lm_proj")
_LISTED = 6


def find_projections(
    model: nn.Module, names: Mapping[str, str] | None = None
) -> dict[str, nn.Module]:
    """The projections of the simple loss, by their full names in ``model``.

    Nothing of the model runs: a weight that is computed (a parametrization, which may draw random
    numbers or advance a buffer) is not asked for.

    Args:
      model: a recipe's model, wrapped in DDP or not.
      names: what "am" and "lm", or one of them, are called, ``{"am": "am_proj", "lm": "lm_proj"}``:
        the last part of a module's name, or more of it (``"joiner.am_proj"``). None: modules
        called ``simple_am_proj`` and ``simple_lm_proj``, or with a word more
        (``simple_am_proj_giga``, ``simple_st_am_proj``); where there are none, ``am_proj`` and
        ``lm_proj`` of one parent, as in ESPnet. The name of "ctc" is not looked for.

    Returns:
      Those that have a matrix for their weight; empty where ``names`` is None and none is found.

    Raises:
      TypeError, ValueError: names as in ``check_projection_names``, or one that no such module has.
    """
    if names is not None:
        check_projection_names(names)
        names = {kind: name for kind, name in names.items() if kind != _CTC}
    if not names:
        return dict(_with_a_matrix(model, _NAME.fullmatch)) or _pairs_of_espnet(model)
    found = dict(_with_a_matrix(model))
    named: dict[str, nn.Module] = {}
    for kind, name in names.items():
        named.update(_called(model, found, kind, name))
    return named


def find_ctc_heads(
    model: nn.Module, names: Mapping[str, str] | None = None
) -> dict[str, nn.Module]:
    """The CTC heads of a model by their full names: modules with a linear layer to classes in them.

    Args:
      model: as of ``find_projections``.
      names: as of ``find_projections``; "ctc" is the one looked for. Without it: modules called
        ``ctc_output``, or with a word more (``st_ctc_output``).

    Raises:
      TypeError, ValueError: as ``find_projections``.
    """
    if names is not None:
        check_projection_names(names)
    found = {
        path: module
        for path, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and next(_with_a_matrix(module, lambda _: True), None) is not None
    }
    if names is not None and _CTC in names:
        return _called(model, found, _CTC, names[_CTC])
    return {path: module for path, module in found.items() if _CTC_NAME.fullmatch(path)}


def _called(
    model: nn.Module, found: Mapping[str, nn.Module], kind: str, name: str
) -> dict[str, nn.Module]:
    """Those of the modules whose path ends with the name."""
    matching = {p: m for p, m in found.items() if p == name or p.endswith(f".{name}")}
    if not matching:
        raise ValueError(
            f"projections: got {kind}={name!r}, expected the name of a module of "
            f"{type(model).__name__} that has a matrix for its weight{_such_as(found, name)}"
        )
    return matching


def _pairs_of_espnet(model: nn.Module) -> dict[str, nn.Module]:
    """By these names only where both are there: one alone may be anything."""

    def is_wanted(path: str) -> bool:
        return path.rpartition(".")[2] in _ESPNET_NAMES

    found = dict(_with_a_matrix(model, is_wanted))
    parents = [path.rpartition(".")[0] for path in found]
    return {p: m for (p, m), parent in zip(found.items(), parents) if parents.count(parent) == 2}


def check_projection_names(names: Mapping[str, str]) -> None:
    """Refuse what is no mapping from "am", "lm" and "ctc", or some of them, to names.

    Raises:
      TypeError: it is no mapping of texts.
      ValueError: it is empty, has another key or an empty name.
    """
    example = 'expected {"am": NAME, "lm": NAME, "ctc": NAME}'
    if not isinstance(names, Mapping) or not all(isinstance(n, str) for n in names.values()):
        raise TypeError(f"projections: got {names!r}, {example} of names of modules")
    if not names or not set(names) <= set(KINDS) or not all(names.values()):
        raise ValueError(f"projections: got {dict(names)!r}, {example} or some of them")


def unrecorded(model: nn.Module, name: str, found: Mapping[str, nn.Module]) -> list[str]:
    """What to log if a simple loss is given tensors: which projections are not recorded, and why.

    Args:
      model: was searched by ``find_projections``.
      name: of its class.
      found: what that gave.
    """
    messages = []
    if not found:
        near = _near((path for path, _ in _with_a_matrix(model)), "simple_am_proj")
        messages.append(
            f"no simple_am_proj and simple_lm_proj in {name}: its simple loss is computed in tiles "
            "from am and lm as they are. If it has such projections under other names, say which: "
            'projections={"am": NAME, "lm": NAME} or --panda-projections am=NAME,lm=NAME; '
            f"candidates: {', '.join(near) or 'none'}"
        )
    with_matrix = find_projections(model)
    messages += [
        f"{path} of {name} has no weight [C, D] of its own and is not recorded: the simple loss is "
        "computed in tiles from the tensor that it gives"
        for path, _ in model.named_modules()
        if _NAME.fullmatch(path) and path not in with_matrix
    ]
    return messages


def warn_of_no_ctc_head(name: str) -> None:
    """Log that a model of this class has no CTC head that is known, where one was asked for."""
    logging.warning(
        "panda: no ctc_output in %s: its CTC loss, if it has one, is computed as without PANDA. If "
        'the head has another name, say which: projections={"ctc": NAME} or --panda-projections '
        "ctc=NAME; said once",
        name,
    )


def classes_of(module: nn.Module) -> int | None:
    """Rows of a module's weight, so far as it is told without computing the weight."""
    told = vars(module).get("out_features")
    if isinstance(told, int):
        return told
    return next((t.shape[0] for t in _plain_weights(module) if t.dim() == 2), None)


def _with_a_matrix(
    model: nn.Module, is_wanted: Callable[[str], Any] = bool
) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if not is_wanted(path) or path.endswith("_orig_mod"):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            continue
        # torch.compile's wrapper has the name, what it wraps has the weight.
        inner = module._modules.get("_orig_mod") or module
        has_width = isinstance(vars(inner).get("in_features"), int)
        if has_width or any(t.dim() == 2 for t in _plain_weights(inner)):
            yield path, module


def _plain_weights(module: nn.Module) -> Iterator[Tensor]:
    """``weight`` where it is a parameter, or what a parametrization of it starts from."""
    own = module._parameters.get("weight")
    if own is not None:
        yield own
    parametrizations = module._modules.get("parametrizations")
    of_weight = None if parametrizations is None else parametrizations._modules.get("weight")
    for name, tensor in {} if of_weight is None else of_weight._parameters.items():
        if name.startswith("original") and tensor is not None:
            yield tensor


def _near(paths: Iterable[str], name: str) -> list[str]:
    wanted = name.rpartition(".")[2]

    def unlikeness(path: str) -> float:
        return -difflib.SequenceMatcher(None, wanted, path.rpartition(".")[2]).ratio()

    return sorted(paths, key=unlikeness)[:_LISTED]


def _such_as(found: Mapping[str, nn.Module], name: str) -> str:
    near = _near(found, name)
    return f", such as {', '.join(near)}" if near else "; it has none"
