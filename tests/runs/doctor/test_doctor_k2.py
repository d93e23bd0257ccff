"""k2 against torch: right, wrong, broken, absent; with package folders made for the purpose."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from panda_icefall.runs.doctor.environment import Gpu, TorchBuild, read_torch
from panda_icefall.runs.doctor.k2_build import (
    K2Install,
    examine_k2,
    examine_routing,
    find_k2,
    wheel_suffix,
)
from panda_icefall.runs.doctor.probes import Answer, ask

K2 = K2Install(Path("k2"), "1.23.4", "1.13.1+cu117", "11.7")
TORCH = TorchBuild("1.13.1+cu117", cuda="11.7")
IMPORTED = Answer(
    {
        "__version__": "1.23.4",
        "git_sha1": "62e404dd3f3a",
        "build_type": "Release",
        "torch_version": "1.13.1+cu117",
        "cuda_version": "11.7",
        "with_cuda": "True",
    }
)
REQUIREMENTS = Path(__file__).parents[3] / "scripts" / "requirements-k2-wheel.txt"
PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"


def levels(findings):
    return {finding.subject: finding.level for finding in findings}


def abi(k2, build):
    return {finding.subject: finding for finding in examine_k2(k2, build, IMPORTED)}["k2 and torch"]


@pytest.mark.parametrize(
    ("build", "suffix"),
    [
        (TorchBuild("2.4.1+cu124", cuda="12.4"), "+cuda12.4.torch2.4.1"),
        (TorchBuild("2.4.1+cpu"), "+cpu.torch2.4.1"),
        (TorchBuild("2.4.1"), "+cpu.torch2.4.1"),
        (TorchBuild("2.12.1+rocm7.2", hip="7.2.5310-abc"), "+rocm7.2.torch2.12.1"),
    ],
)
def test_the_suffix_names_the_target_and_the_release_of_torch(build, suffix):
    assert wheel_suffix(build) == suffix


def test_a_k2_built_for_this_torch_is_fine():
    findings = examine_k2(K2, TORCH, IMPORTED)
    assert levels(findings) == {"k2": "ok", "k2 and torch": "ok"}
    assert findings[0].text.startswith(
        "1.23.4, Release build of git 62e404dd, for torch 1.13.1+cu117 + CUDA 11.7"
    )


@pytest.mark.parametrize(
    ("k2", "build", "said", "suffix", "kind"),
    [
        (
            K2,
            TorchBuild("2.2.1+cu121", cuda="12.1"),
            "k2 1.23.4 was built for torch 1.13.1 + CUDA 11.7, found torch 2.2.1 + CUDA 12.1",
            "+cuda12.1.torch2.2.1",
            "CUDA",
        ),
        (
            K2,
            TorchBuild("1.13.1+cu116", cuda="11.6"),
            "built for torch 1.13.1 + CUDA 11.7, found torch 1.13.1 + CUDA 11.6",
            "+cuda11.6.torch1.13.1",
            "CUDA",
        ),
        (
            K2,
            TorchBuild("1.13.1+cpu"),
            "built for torch 1.13.1 + CUDA 11.7, found torch 1.13.1 + CPU",
            "+cpu.torch1.13.1",
            "CPU",
        ),
        (
            dataclasses.replace(K2, version=None, torch="2.0.0", cuda=""),
            TorchBuild("2.12.1+rocm7.2", hip="7.2.5"),
            "k2 was built for torch 2.0.0 + CPU, found torch 2.12.1 + ROCm 7.2.5",
            "+rocm7.2.torch2.12.1",
            "ROCm",
        ),
    ],
)
def test_a_mismatch_names_both_sides_and_the_wheel(k2, build, said, suffix, kind):
    finding = abi(k2, build)
    assert finding.level == "problem"
    assert said in finding.text
    assert f"k2-<version>{suffix}-{PYTHON}-" in finding.advice
    assert f"pre-compiled {kind} wheels" in finding.advice


def test_a_cpu_k2_serves_a_cuda_torch_but_not_its_gpu():
    k2 = dataclasses.replace(K2, cuda="")
    imported = Answer({**IMPORTED.facts, "with_cuda": "False"})
    assert "k2 on GPU" not in levels(examine_k2(k2, TORCH, imported))
    with_gpu = dataclasses.replace(TORCH, gpus=(Gpu("Fast One", 1, (8, 0)),))
    findings = examine_k2(k2, with_gpu, imported)
    assert levels(findings) == {"k2": "ok", "k2 and torch": "ok", "k2 on GPU": "warning"}
    assert "finds Fast One" in findings[-1].text
    assert "+ CPU, at" in findings[0].text


def test_a_k2_that_does_not_say_what_it_was_built_for_is_worth_a_word():
    finding = abi(dataclasses.replace(K2, torch=None, cuda=None), TORCH)
    assert finding.level == "warning"
    assert "does not say" in finding.text


def test_an_absent_k2_is_no_problem_by_itself(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_k2() is None
    (finding,) = examine_k2(None, TorchBuild("2.13.0+cpu"), Answer())
    assert finding.level == "warning"
    assert "icefall's own recipes need k2" in finding.text
    assert "+cpu.torch2.13.0-" in finding.advice


def test_a_folder_that_is_called_k2_is_no_k2(tmp_path, monkeypatch):
    (tmp_path / "k2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    assert find_k2() is None


def test_what_k2_was_built_for_is_read_from_its_files(fake_package, monkeypatch):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    built_for = "# generated\nk2_torch_version = '2.4.1+cu124'\nk2_torch_cuda_version = '12.4'\n"
    folder = fake_package("k2", "1.24.4", torch_version=built_for)
    assert find_k2() == K2Install(folder, "1.24.4", "2.4.1+cu124", "12.4")


@pytest.mark.parametrize(
    ("version", "built_for"),
    [
        ("1.24.3+cuda11.7.torch2.0.1", ("2.0.1", "11.7")),
        ("1.24.3.dev20230718+cpu.torch2.0.1", ("2.0.1", "")),
        ("1.24.3", (None, None)),
    ],
)
def test_else_it_is_read_from_the_version(fake_package, monkeypatch, version, built_for):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    fake_package("k2", version)
    found = find_k2()
    assert (found.torch, found.cuda) == built_for


OTHER_PYTHONS = {
    "_k2.cpython-39-x86_64-linux-gnu.so": "3.9",
    "_k2.cpython-313-aarch64-linux-gnu.so": "3.13",
    "_k2.cp38-win_amd64.pyd": "3.8",
}


def python_is(monkeypatch, major, minor):
    monkeypatch.setattr(sys, "version_info", (major, minor, 1))


@pytest.fixture
def fake_k2(fake_package, monkeypatch):
    """A k2 1.23.4 with an extension file of a given name; no other k2 is on the path."""

    def write(extension, version="1.23.4", torch=None):
        torch = torch or str(torch_version)
        built_for = f"k2_torch_version = {torch!r}\nk2_torch_cuda_version = ''\n"
        folder = fake_package(
            "k2", version, torch_version=built_for, __init__="from _k2 import something\n"
        )
        (folder.parent / extension).write_bytes(b"no machine code")
        return folder

    torch_version = read_torch().version
    for name in ("k2", "_k2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "_k2" else real(n))
    return write


@pytest.mark.parametrize("extension", OTHER_PYTHONS)
def test_a_k2_for_another_python_says_so_and_nothing_of_it_is_ok(fake_k2, monkeypatch, extension):
    folder = fake_k2(extension)
    python_is(monkeypatch, 3, 10)
    k2 = find_k2()
    assert k2.other_python == folder.parent / extension
    (finding,) = examine_k2(k2, read_torch(), Answer(error="ModuleNotFoundError: ..."))
    assert (finding.subject, finding.level) == ("k2", "problem")
    said = f"1.23.4 at {folder} was built for Python {OTHER_PYTHONS[extension]} ({extension})"
    assert finding.text == (
        f"{said}, this is Python 3.10: `import k2` fails with \"No module named '_k2'\""
    )


def test_the_wheel_for_this_python_is_named_by_its_hash_where_it_is_known(fake_k2, monkeypatch):
    requirement = REQUIREMENTS.read_text().splitlines()[-1]
    fake_k2("_k2.cpython-39-x86_64-linux-gnu.so")
    python_is(monkeypatch, 3, 10)
    (finding,) = examine_k2(find_k2(), read_torch(), Answer())
    assert f"put the line `{requirement}` into a file" in finding.advice
    assert "pip install --no-deps --force-reinstall -r" in finding.advice


@pytest.mark.parametrize(("version", "minor"), [("1.23.4", 11), ("1.24.4", 10)])
def test_else_the_page_to_take_it_from(fake_k2, monkeypatch, version, minor):
    fake_k2("_k2.cpython-39-x86_64-linux-gnu.so", version)
    python_is(monkeypatch, 3, minor)
    (finding,) = examine_k2(find_k2(), read_torch(), Answer())
    assert f"`unzip -l` lists _k2.cpython-3{minor}-* in it" in finding.advice
    assert "pip install --no-deps --force-reinstall <file>" in finding.advice
    assert f"-cp3{minor}-..." in finding.advice


def test_a_k2_for_another_python_and_another_torch_has_both_faults(fake_k2):
    fake_k2("_k2.cpython-36m-x86_64-linux-gnu.so", torch="1.2.3")
    findings = examine_k2(find_k2(), read_torch(), Answer())
    assert levels(findings) == {"k2": "problem", "k2 and torch": "problem"}


def test_a_k2_whose_extension_is_found_elsewhere_is_not_judged_by_its_neighbours(
    fake_package, monkeypatch
):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    folder = fake_package("k2", "1.23.4")
    fake_package("_k2")
    (folder.parent / "_k2.cpython-39-x86_64-linux-gnu.so").touch()
    assert find_k2().other_python is None


BREAKAGES = {
    "raise ImportError('libk2context.so: undefined symbol: _ZN3c10')": (
        "ImportError: libk2context.so: undefined symbol: _ZN3c10"
    ),
    "raise ImportError('k2 was built using PyTorch 1.13.1\\nBut you are using another')": (
        "ImportError: k2 was built using PyTorch 1.13.1 But you are using another"
    ),
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "killed by SIGSEGV",
    "import os, sys; print('C++ says no', file=sys.stderr, flush=True); os._exit(3)": (
        "ended with status 3: C++ says no"
    ),
}


@pytest.mark.parametrize("code", BREAKAGES)
def test_a_k2_that_breaks_at_import_is_a_problem_with_its_error(fake_package, monkeypatch, code):
    monkeypatch.delitem(sys.modules, "k2", raising=False)
    fake_package("k2", "1.23.4", __init__=code)
    findings = examine_k2(find_k2(), read_torch(), ask("k2"))
    assert findings[0].level == "problem"
    assert BREAKAGES[code] in findings[0].text
    assert f"torch{torch.__version__.split('+')[0]}-{PYTHON}" in findings[0].advice


def test_a_probe_that_hangs_is_given_up(fake_package, monkeypatch):
    from panda_icefall.runs.doctor import probes

    fake_package("k2", __init__="import time; time.sleep(600)")
    monkeypatch.setattr(probes, "TIMEOUT_SECONDS", 0.2)
    assert ask("k2") == Answer(error="no answer in 0.2 seconds")


def test_the_patched_functions_are_named():
    finding = examine_routing(ask("routing"))
    assert finding.level == "ok"
    for name in ("do_rnnt_pruning", "rnnt_loss_pruned"):
        assert f".{name}" in finding.text


def test_unknown_signatures_are_a_problem_that_shows_them(fake_package):
    code = "def do_rnnt_pruning(am, lm, what): ...\ndef rnnt_loss_pruned(logits): ..."
    fake_package("k2", "9.9", __init__=code)
    finding = examine_routing(ask("routing"))
    assert finding.level == "problem"
    assert "got (am, lm, what), expected the parameters (am, lm, ranges)" in finding.text
