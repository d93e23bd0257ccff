"""The installed torch with its GPUs, the packages beside k2, and the memory log."""

import importlib.metadata
import inspect
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import panda_icefall
from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning
from panda_icefall.runs.doctor.probes import Answer
from panda_icefall.runs.memory.probe import MemoryProbe

__all__ = [
    "Gpu",
    "TorchBuild",
    "examine_gpus",
    "examine_lhotse",
    "examine_memory_log",
    "examine_packages",
    "examine_torch",
    "examine_triton",
    "examine_versions",
    "installed_version",
    "read_torch",
]

_GIB = 2**30
_IMPORTED_BY = {
    "kaldialign": "icefall.utils, and so every icefall recipe",
    "sentencepiece": "recipes with BPE units",
    "tensorboard": "recipes that log with --tensorboard 1, their default",
}


@dataclass(frozen=True)
class Gpu:
    """One GPU that torch finds: its name, memory in bytes, and compute capability."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class TorchBuild:
    """What torch says of itself, and the driver of its machine.

    Attributes:
      version: ``torch.__version__``, with its build tag where it has one.
      cuda: The CUDA it was built for; ``None`` for a CPU or ROCm build.
      hip: The ROCm it was built for, if any.
      cudnn: The version of cuDNN, as torch numbers it.
      gpus: The GPUs that torch can use.
      architectures: The GPU architectures it holds code for, as ``sm_86`` or ``compute_86``.
      driver: What ``nvidia-smi`` lists, one ``name, driver version`` a GPU.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    cudnn: int | None = None
    gpus: tuple[Gpu, ...] = ()
    architectures: tuple[str, ...] = ()
    driver: tuple[str, ...] = ()

    @property
    def release(self) -> str:
        """The version without its build tag."""
        return self.version.split("+")[0]

    @property
    def target(self) -> str:
        """What it was built for, in words."""
        if self.hip is not None:
            return f"ROCm {self.hip}"
        return "CPU" if self.cuda is None else f"CUDA {self.cuda}"


def read_torch() -> TorchBuild:
    """The torch of this process; asks ``nvidia-smi``, if there is one, for the driver."""
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        gpus.append(Gpu(properties.name, properties.total_memory, capability))
    return TorchBuild(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cudnn=torch.backends.cudnn.version(),
        gpus=tuple(gpus),
        architectures=tuple(torch.cuda.get_arch_list()),
        driver=_driver(),
    )


def _driver() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def examine_torch(build: TorchBuild) -> Finding:
    """Name the build."""
    cudnn = "" if build.cudnn is None else f", cuDNN {build.cudnn}"
    return ok("torch", f"{build.version}, built for {build.target}{cudnn}")


def examine_gpus(build: TorchBuild) -> list[Finding]:
    """The GPUs, whether torch has code for them, and a GPU that torch cannot use."""
    driver = "; ".join(build.driver)
    if build.gpus:
        of_driver = f"; driver: {driver}" if driver else ""
        return [_examine_gpu(gpu, build, of_driver) for gpu in build.gpus]
    if driver:
        found = warning(
            "GPU",
            f"{driver} (nvidia-smi), which torch {build.version}, built for {build.target}, "
            "cannot use",
            "install a torch built for a CUDA that this driver supports, and the k2 built for it",
        )
    elif build.target == "CPU":
        found = ok("GPU", "none; this torch is built for CPU")
    else:
        found = warning(
            "GPU",
            f"none that torch can use, though it is built for {build.target}",
            "nothing, for runs on CPU; else check that nvidia-smi (rocm-smi) lists the GPU",
        )
    return [found]


def _examine_gpu(gpu: Gpu, build: TorchBuild, driver: str) -> Finding:
    major, minor = gpu.capability
    text = f"{gpu.name}, {gpu.memory_bytes / _GIB:.1f} GiB, compute capability {major}.{minor}"
    if build.cuda is None or _has_code_for(gpu.capability, build.architectures):
        return ok("GPU", text + driver)
    return problem(
        "GPU",
        f"{text}: torch {build.version} has no kernels for it, only for "
        f"{', '.join(build.architectures) or 'none'}{driver}",
        f"install a torch built for sm_{major}{minor}, and the k2 built for that torch",
    )


def _has_code_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Binaries serve later minor revisions of their major one; ``compute_`` code any later GPU."""
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)", architecture)
        if found is None:
            continue
        built = (int(found[2]), int(found[3]))
        if built <= capability and (found[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def installed_version(package: str) -> str | None:
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


def examine_triton(tried: Answer) -> Finding:
    """The installed triton, and whether it works on the GPUs; nothing needs it on CPU.

    Args:
      tried: What compiling a kernel for each GPU gave in a child process; no facts without GPUs.
    """
    version = installed_version("triton")
    if version is None:
        return ok("triton", "not installed; losses are computed by torch alone")
    reasons = {f"{gpu}: {why}" for gpu, why in tried.facts.items() if why is not None}
    if tried.error is not None:
        reasons.add(tried.error)
    if not reasons:
        return ok("triton", f"{version}; it works on the GPU" if tried.facts else version)
    return warning(
        "triton",
        f"{version} does not work, so losses are computed by torch alone ({'; '.join(reasons)})",
        "install a C compiler (gcc) and Python's headers (python3-dev), which Triton calls",
    )


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
        return ok("lhotse", f"{sampled.facts['version']}; its samplers work with this torch")
    advice = f"pip install '{_lhotse_that_fits()}'"
    if version is None:
        return warning("lhotse", "not installed; icefall's data modules import it", advice)
    missing = re.search(r"No module named '(\w+)", sampled.error)
    if missing:  # what lhotse imports and does not ask for, as 1.33 does with urllib3
        advice = f"pip install {missing[1]}"
    text = f"{version} with torch {torch.__version__} cannot build a sampler: {sampled.error}"
    return problem("lhotse", text, advice)


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
        "began; peaks on CUDA are not affected",
        "run on Linux where /proc is not mounted read-only, if peaks by phase are needed on CPU",
    )
