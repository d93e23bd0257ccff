"""What is installed, whether it fits together, and whether a recipe can be routed."""

from pathlib import Path

from panda_icefall.runs.doctor import environment, imports, k2_build
from panda_icefall.runs.doctor.findings import Diagnosis, Finding, print_diagnosis
from panda_icefall.runs.doctor.probes import Answer, ask
from panda_icefall.runs.doctor.recipe import examine_recipe, find_train_py
from panda_icefall.runs.doctor.recipe_sources import RecipeSources

__all__ = ["Diagnosis", "Finding", "examine", "print_diagnosis"]


def examine(recipe: Path | None = None, icefall_root: Path | None = None) -> Diagnosis:
    """Look at the installed packages, at icefall and, if named, at one recipe of it.

    Nothing of k2, lhotse, icefall or the recipe is imported into this process.

    Args:
      recipe: A recipe's folder, or one of its training scripts.
      icefall_root: An icefall checkout; without it the one around ``recipe``, or the importable
        one.

    Raises:
      UsageError: The recipe lies where nobody may look.
    """
    train_py = None if recipe is None else find_train_py(recipe)
    torch = environment.read_torch()
    k2 = k2_build.find_k2()
    findings: list[Finding] = [
        *environment.examine_versions(),
        environment.examine_torch(torch),
        *environment.examine_gpus(torch),
        environment.examine_triton(ask("triton") if torch.gpus else Answer()),
        *k2_build.examine_k2(k2, torch, Answer() if k2 is None else ask("k2")),
        k2_build.examine_routing(ask("routing")),
        environment.examine_lhotse(ask("lhotse")),
        *environment.examine_packages(),
        environment.examine_memory_log(),
    ]
    root = imports.find_root(icefall_root, recipe)
    sources = None if train_py is None else RecipeSources(train_py, root)
    needs_icefall = sources is not None and sources.imports_icefall
    if root is not None or sources is None or needs_icefall:
        findings.append(imports.examine_checkout(root))
        findings += imports.examine_icefall_import(root, needs_icefall)
    if sources is not None:
        findings += examine_recipe(sources)
    return Diagnosis(tuple(findings))
