"""The installed torch: what it was built for, and the GPUs it finds."""

import re
import subprocess
from dataclasses import dataclass
from typing import Optional

import torch

from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning

__all__ = ["Gpu", "TorchBuild", "examine_gpus", "examine_torch", "read_torch"]

_GIB = 2**30


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
    cuda: Optional[str] = None
    hip: Optional[str] = None
    cudnn: Optional[int] = None
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
    if build.gpus:
        driver = f"; driver: {'; '.join(build.driver)}" if build.driver else ""
        return [_examine_gpu(gpu, build, driver) for gpu in build.gpus]
    if build.driver:
        return [
            warning(
                "GPU",
                f"{'; '.join(build.driver)} (nvidia-smi), which torch {build.version}, built for "
                f"{build.target}, cannot use",
                "install a torch built for a CUDA that this driver serves, and the k2 built for it",
            )
        ]
    if build.target == "CPU":
        return [ok("GPU", "none; this torch is built for CPU")]
    return [
        warning(
            "GPU",
            f"none that torch can use, though it is built for {build.target}",
            "nothing, for runs on CPU; else see that nvidia-smi (rocm-smi) lists the GPU",
        )
    ]


def _examine_gpu(gpu: Gpu, build: TorchBuild, driver: str) -> Finding:
    major, minor = gpu.capability
    text = f"{gpu.name}, {gpu.memory_bytes / _GIB:.1f} GiB, compute capability {major}.{minor}"
    if build.cuda is None or _has_code_for(gpu.capability, build.architectures):
        return ok("GPU", text + driver)
    return problem(
        "GPU",
        f"{text}: torch {build.version} has no code for it, only for "
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
