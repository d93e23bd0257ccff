"""What the other sections run on: GPU, driver and clocks, torch, Triton, k2, compiler."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys

import torch
from benchmarks.packages import is_installed, package_version

from gpu_validation.report import REPO, Report, Setting
from panda_icefall.engine_choice import is_triton_chosen
from panda_icefall.lattice import has_k2_recursion
from panda_icefall.normalizer import auto_workspace_bytes

_SMI_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
_OPTIONAL = ("numpy", "pytest", "torchaudio", "rich")


def run(setting: Setting) -> None:
    report, device = setting.report, setting.device
    report.fact("python", platform.python_version())
    report.fact("system", f"{platform.system()} {platform.machine()}")
    report.fact("cpu cores", len(os.sched_getaffinity(0)))
    report.fact("commit", _output("git", "-C", str(REPO), "rev-parse", "--short", "HEAD"))
    report.fact("torch", torch.__version__)
    report.fact("torch's CUDA", torch.version.cuda)
    report.fact("torch's code for", " ".join(torch.cuda.get_arch_list()))
    _gpu(report, device)
    report.fact("default workspace, MiB", auto_workspace_bytes(device) / 2**20)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    report.fact("C compiler", None if compiler is None else os.path.basename(compiler))
    report.fact("triton", package_version("triton"))
    with report.case("engine"):
        is_triton = is_triton_chosen("auto", device)
        report.fact("engine auto", "triton" if is_triton else "torch")
    for package in _OPTIONAL:
        report.fact(package, package_version(package))
    _k2(report, device)
    report.check("panda_icefall is this checkout's", _is_this_checkout())


def _gpu(report: Report, device: torch.device) -> None:
    for field in _SMI_FIELDS:
        report.fact(f"nvidia-smi {field}", _smi(field))
    if device.type != "cuda":
        report.fact("gpu", None)
        return
    properties = torch.cuda.get_device_properties(device)
    report.fact("gpu", properties.name)
    report.fact("gpus", torch.cuda.device_count())
    report.fact("compute capability", f"{properties.major}.{properties.minor}")
    report.fact("multiprocessors", properties.multi_processor_count)
    report.fact("memory, GiB", round(properties.total_memory / 2**30, 1))
    report.fact("memory free, GiB", round(torch.cuda.mem_get_info(device)[0] / 2**30, 1))
    # Older torch does not tell.
    cache = getattr(properties, "L2_cache_size", None)
    report.fact("L2, MiB", None if cache is None else cache / 2**20)


def _k2(report: Report, device: torch.device) -> None:
    if not is_installed("k2"):
        report.fact("k2", None)
        return
    with report.case("import k2"):
        k2 = importlib.import_module("k2")
        report.fact("k2", package_version("k2"))
        report.fact("k2 with CUDA", getattr(k2, "with_cuda", None))
        report.fact("k2's recursion can be used", has_k2_recursion(device))


def _is_this_checkout() -> bool:
    spec = importlib.util.find_spec("panda_icefall")
    return spec is not None and str(spec.origin).startswith(str(REPO))


def _smi(field: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0")


def _output(*words: str) -> str | None:
    """The first line of a command; None where it is not there or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    print(done.stderr, file=sys.stderr)
    return next(iter(done.stdout.splitlines()), "").strip()
