"""Which transducer loss a recipe calls, and what of it routing would not reach."""

import ast
from collections.abc import Iterator

from panda_icefall.routing.hosts import HOSTS, SYMBOLS, Kind, names_of
from panda_icefall.runs.doctor.bound_early import examine_bindings
from panda_icefall.runs.doctor.findings import Finding, ok, problem
from panda_icefall.runs.doctor.recipe_sources import RecipeSources, Source

__all__ = ["examine_losses"]

(_ROUTED,), (_RECORDED,) = names_of(Kind.PRUNED_LOSS), names_of(Kind.PRUNING)
_NONE_KNOWN = "no loss that is known is called either"
_OTHER_LOSSES = {symbol.name for symbol in SYMBOLS if symbol.is_loss} | set(
    "CTCLoss LFMMILoss mwer_loss cross_entropy CrossEntropyLoss".split()
)


def examine_losses(sources: RecipeSources) -> list[Finding]:
    """The pruned loss of a recipe, functions bound past the patch, and scripted joiners."""
    return [
        *_examine_uses(sources),
        *examine_bindings(sources),
        *(finding for source in sources.of_recipe for finding in _scripted_joiners(source)),
    ]


def _examine_uses(sources: RecipeSources) -> Iterator[Finding]:
    routed, recorded, others = [], [], []
    for source in sources.of_recipe:
        for name, line in _uses(source):
            owner, _, function = name.rpartition(".")
            where = f"{name} ({source.path.name}:{line})"
            if owner in HOSTS and function == _ROUTED:
                routed.append(where)
            elif owner in HOSTS and function == _RECORDED:
                recorded.append(where)
            elif owner and function in _OTHER_LOSSES:
                others.append(where)
    if not routed:
        calls = f"it calls {', '.join(others)}" if others else _NONE_KNOWN
        yield problem(
            "pruned loss",
            f"k2.{_ROUTED} is called in none of the recipe's files; {calls}",
            "train this recipe without --use-panda, or give it the pruned transducer loss",
        )
        return
    yield ok("pruned loss", f"it calls {', '.join(routed)}")
    if not recorded:
        yield problem(
            "pruning",
            f"k2.{_RECORDED} is called in none of the recipe's files; a joiner on inputs that were "
            "pruned otherwise is not recorded, and no loss will be routed",
            f"prune with k2.{_RECORDED}(), or train this recipe without --use-panda",
        )


def _uses(source: Source) -> Iterator[tuple[str, int]]:
    """Full names of all functions and modules that the file reads, with their lines."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = source.full_name(node)
            if name is not None:
                yield name, node.lineno


def _scripted_joiners(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and source.full_name(node.func) == "torch.jit.script":
            what = ", ".join(ast.unparse(argument) for argument in node.args)
        elif isinstance(node, ast.ClassDef) and _is_scripted(source, node):
            what = node.name
        else:
            continue
        if "joiner" in what.lower():
            yield problem(
                "scripted joiner",
                f"{source.path.name}:{node.lineno} compiles {what} with torch.jit, which takes "
                "tensors only and refuses a recorded joiner",
                "train with the joiner as it is; script it for export",
            )


def _is_scripted(source: Source, node: ast.ClassDef) -> bool:
    bases = {source.full_name(base) for base in node.bases}
    marks = {source.full_name(mark) for mark in node.decorator_list}
    return bool(bases & {"torch.jit.ScriptModule"} or marks & {"torch.jit.script"})
