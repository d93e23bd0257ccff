"""Which transducer loss a recipe calls, and what of it routing would not reach."""

import ast
from collections.abc import Iterator

from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning
from panda_icefall.runs.doctor.recipe_sources import RecipeSources, Source

__all__ = ["examine_losses"]

_ROUTED = "rnnt_loss_pruned"
_PATCHED = ("do_rnnt_pruning", _ROUTED)
_PATCHED_MODULES = ("k2", "panda_icefall.losses.k2_functions")
_OTHER_LOSSES = (
    "rnnt_loss_pruned rnnt_loss_smoothed rnnt_loss_simple rnnt_loss transducer_loss ctc_loss "
    "CTCLoss LFMMILoss mwer_loss cross_entropy CrossEntropyLoss"
).split()


def examine_losses(sources: RecipeSources) -> list[Finding]:
    """The pruned loss of a recipe, names bound past the patch, and scripted joiners."""
    return [
        _examine_calls(sources),
        *(finding for source in sources.of_recipe for finding in _bound_by_name(source)),
        *(finding for source in sources.of_recipe for finding in _scripted_joiners(source)),
    ]


def _examine_calls(sources: RecipeSources) -> Finding:
    routed, others = [], []
    for source in sources.of_recipe:
        for call in _calls(source):
            name = source.full_name(call.func) or ""
            owner, _, function = name.rpartition(".")
            where = f"{source.path.name}:{call.lineno}"
            if function == _ROUTED and owner in _PATCHED_MODULES:
                routed.append(f"{name} ({where})")
            elif owner and function in _OTHER_LOSSES:
                others.append(f"{name} ({where})")
    if routed:
        return ok("pruned loss", f"it calls {', '.join(routed)}")
    calls = f"it calls {', '.join(others)}" if others else "no loss that is known is called either"
    return problem(
        "pruned loss",
        f"k2.{_ROUTED} is called in none of the recipe's files; {calls}",
        "train this recipe without --use-panda, or give it the pruned transducer loss",
    )


def _calls(source: Source) -> Iterator[ast.Call]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node


def _bound_by_name(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        names = [alias.name for alias in node.names if alias.name in _PATCHED]
        statement = f"`from {node.module} import {', '.join(names)}`"
        where = f"{source.path.name}:{node.lineno} has {statement}"
        advice = f"import the module, as `import k2`, and call k2.{'(), k2.'.join(names)}()"
        if names and node.module in _PATCHED_MODULES:
            yield warning(
                "import by name",
                f"{where}: processes spawned for --world-size above 1 bind it before the patch",
                f"{advice}; or train with --world-size 1",
            )
        elif names and node.module.startswith("k2."):
            text = f"{where}: the patch is in k2, and does not reach {node.module}"
            yield problem("import by name", text, advice)


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
