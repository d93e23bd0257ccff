"""The versions around k2 and torch, and whether memory peaks can be measured."""

import importlib.metadata
import inspect
import platform
from pathlib import Path
from typing import Optional

import torch

import panda_icefall
from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning
from panda_icefall.runs.doctor.probes import Answer
from panda_icefall.runs.memory.probe import MemoryProbe

__all__ = [
    "examine_lhotse",
    "examine_memory_log",
    "examine_packages",
    "examine_triton",
    "examine_versions",
]

_IMPORTED_BY = {
    "kaldialign": "icefall.utils, and so every icefall recipe",
    "sentencepiece": "recipes with BPE units",
    "tensorboard": "recipes that log with --tensorboard 1, their default",
}


def installed_version(package: str) -> Optional[str]:
    """The version in a package's metadata; ``None`` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine_versions() -> list[Finding]:
    """Python and this package."""
    python = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    folder = Path(panda_icefall.__file__).parent
    return [
        ok("python", python),
        ok("panda-icefall", f"{panda_icefall.__version__} at {folder}"),
    ]


def examine_triton() -> Finding:
    """The installed triton; nothing needs it on CPU."""
    version = installed_version("triton")
    return ok("triton", version or "not installed; losses are computed by torch alone")


def examine_packages() -> list[Finding]:
    """What icefall's recipes import besides torch, k2 and lhotse."""
    findings = []
    for package, importer in _IMPORTED_BY.items():
        version = installed_version(package)
        if version is None:
            text = f"not installed; imported by {importer}"
            findings.append(warning(package, text, f"pip install {package}"))
        else:
            findings.append(ok(package, version))
    return findings


def examine_lhotse(sampled: Answer) -> Finding:
    """Whether lhotse imports and its samplers fit the installed torch.

    lhotse 1.30 and later call ``torch.utils.data.Sampler.__init__`` without an argument that
    torch 1.13 demands; earlier ones pass it to torches that have it no more.

    Args:
      sampled: What making a sampler in a child process gave.
    """
    version = installed_version("lhotse")
    if sampled.error is None:
        return ok("lhotse", f"{sampled.facts['version']}; its samplers fit this torch")
    if version is None:
        text = "not installed; icefall's data modules import it"
        return warning("lhotse", text, f"pip install '{_lhotse_that_fits()}'")
    return problem(
        "lhotse",
        f"{version} with torch {torch.__version__} cannot make a sampler: {sampled.error}",
        f"pip install '{_lhotse_that_fits()}'",
    )


def _lhotse_that_fits() -> str:
    parameters = inspect.signature(torch.utils.data.Sampler.__init__).parameters
    data_source = parameters.get("data_source")
    is_demanded = data_source is not None and data_source.default is inspect.Parameter.empty
    return "lhotse<1.30" if is_demanded else "lhotse>=1.30"


def examine_memory_log() -> Finding:
    """Whether the peak of the resident set can be reset between the phases of a step."""
    probe = MemoryProbe("cpu")
    probe.start()
    if not probe.read().is_since_start:
        return ok("memory log", "the peak resident set can be reset for each phase")
    return warning(
        "memory log",
        "/proc/self/clear_refs cannot be written, so peaks on CPU are those since the process "
        "began; peaks on CUDA are not touched by it",
        "run on Linux where /proc is not mounted read-only, if peaks by phase are needed on CPU",
    )
