"""The torch build and its GPUs, as findings."""

import dataclasses
import os

import pytest
import torch

from panda_icefall.runs.doctor.environment import (
    Gpu,
    TorchBuild,
    examine_gpus,
    examine_torch,
    read_torch,
)

CUDA = TorchBuild("2.4.1+cu124", cuda="12.4", cudnn=90100, architectures=("sm_80", "sm_90"))
CPU = TorchBuild("2.13.0+cpu")
ROCM = TorchBuild("2.12.1+rocm7.2", hip="7.2.1-abc")


def with_gpu(build, capability, *architectures):
    gpu = Gpu("Fast One", 24 * 2**30, capability)
    return dataclasses.replace(build, gpus=(gpu,), architectures=architectures)


def test_the_running_torch_is_read():
    build = read_torch()
    assert build.version == torch.__version__
    assert build.release == torch.__version__.split("+")[0]
    assert build.cuda == torch.version.cuda
    assert len(build.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_gpus_are_read_with_memory_and_capability(monkeypatch):
    class Properties:
        name, total_memory, major, minor = "Fast One", 7 * 2**30, 8, 6

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert read_torch().gpus == (Gpu("Fast One", 7 * 2**30, (8, 6)),) * 2


def test_the_driver_is_what_nvidia_smi_lists(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Fast One, 550.1'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert read_torch().driver == ("Fast One, 550.1",)
    script.write_text("#!/bin/sh\nexit 9\n")
    assert read_torch().driver == ()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (CUDA, "2.4.1+cu124, built for CUDA 12.4, cuDNN 90100"),
        (CPU, "2.13.0+cpu, built for CPU"),
        (ROCM, "2.12.1+rocm7.2, built for ROCm 7.2.1-abc"),
    ],
)
def test_the_build_is_named_with_its_target(build, text):
    assert examine_torch(build).text == text


def test_no_gpu_is_fine_for_a_cpu_build_and_worth_a_word_for_others():
    assert [finding.level for finding in examine_gpus(CPU)] == ["ok"]
    (finding,) = examine_gpus(CUDA)
    assert finding.level == "warning"
    assert "built for CUDA 12.4" in finding.text


def test_a_gpu_that_torch_cannot_use_is_named():
    (finding,) = examine_gpus(dataclasses.replace(CPU, driver=("Fast One, 550.1",)))
    assert finding.level == "warning"
    assert "Fast One, 550.1" in finding.text
    assert "torch built for a CUDA" in finding.advice


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [
        ((8, 0), ("sm_70", "sm_80")),
        ((8, 9), ("sm_86",)),  # a later minor revision runs the code of its major one
        ((12, 0), ("sm_90", "compute_90")),  # compiled by the driver
        ((10, 0), ("sm_100",)),
    ],
)
def test_a_gpu_that_torch_has_code_for_is_fine(capability, architectures):
    build = dataclasses.replace(with_gpu(CUDA, capability, *architectures), driver=("a, 1",))
    (finding,) = examine_gpus(build)
    assert finding.level == "ok"
    assert finding.text.startswith("Fast One, 24.0 GiB, compute capability")
    assert finding.text.endswith("driver: a, 1")


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [((9, 0), ("sm_86", "nonsense")), ((8, 0), ("sm_86",)), ((9, 0), ("sm_90a",)), ((8, 0), ())],
)
def test_a_gpu_that_torch_has_no_code_for_is_a_problem(capability, architectures):
    (finding,) = examine_gpus(with_gpu(CUDA, capability, *architectures))
    assert finding.level == "problem"
    assert "has no kernels for it" in finding.text
    assert f"sm_{capability[0]}{capability[1]}" in finding.advice


def test_the_architectures_of_rocm_are_not_judged():
    (finding,) = examine_gpus(with_gpu(ROCM, (11, 0), "gfx1100"))
    assert finding.level == "ok"
