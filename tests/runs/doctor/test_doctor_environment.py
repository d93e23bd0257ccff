"""Packages beside k2 and torch, and the memory log."""

import importlib.metadata
import re

import pytest
import torch

from panda_icefall.runs.doctor import environment, probes
from panda_icefall.runs.doctor.environment import (
    examine_lhotse,
    examine_memory_log,
    examine_packages,
    examine_triton,
)
from panda_icefall.runs.doctor.probes import Answer, ask
from panda_icefall.runs.memory import probe

SAMPLING = """
from torch.utils.data import Sampler

class SimpleCutSampler(Sampler):
    def __init__(self, cuts, max_cuts):
        raise TypeError("__init__() missing 1 required positional argument: 'data_source'")
"""


@pytest.fixture
def installed(monkeypatch):
    """Sets which packages have metadata."""

    def set_versions(**versions):
        def version(package):
            if package not in versions:
                raise importlib.metadata.PackageNotFoundError(package)
            return versions[package]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return set_versions


def test_installed_packages_are_listed_and_absent_ones_are_warnings(installed):
    installed(kaldialign="0.9", tensorboard="2.1", triton="3.0")
    found = {finding.subject: finding for finding in examine_packages()}
    assert {name: finding.level for name, finding in found.items()} == {
        "kaldialign": "ok",
        "sentencepiece": "warning",
        "tensorboard": "ok",
    }
    assert found["kaldialign"].text == "0.9"
    assert found["sentencepiece"].advice == "pip install sentencepiece"
    assert examine_triton(Answer()).text == "3.0"


def test_an_absent_triton_needs_nothing_done(installed):
    installed()
    assert examine_triton(Answer()).level == "ok"
    assert "torch alone" in examine_triton(Answer()).text


@pytest.mark.parametrize(
    ("tried", "level", "text"),
    [
        (Answer({"cuda:0": None}), "ok", "3.7; it works on the GPU"),
        (
            Answer({"cuda:0": "no cc"}),
            "warning",
            r"3.7 does not work, .*torch alone \(cuda:0: no cc",
        ),
        (Answer(error="killed by SIGSEGV"), "warning", r"torch alone \(killed by SIGSEGV\)"),
    ],
)
def test_a_triton_that_compiles_nothing_is_a_warning(installed, tried, level, text):
    installed(triton="3.7")
    finding = examine_triton(tried)
    assert finding.level == level
    assert re.match(f".*{text}", finding.text)


def test_without_gpus_no_kernel_is_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert probes._probe_triton() == {}


def test_a_sampler_that_cannot_be_made_is_a_problem(fake_package):
    package = fake_package("lhotse", "1.30.0", __init__="__version__ = '1.30.0'; CutSet = list")
    (package / "dataset").mkdir()
    (package / "dataset" / "__init__.py").touch()
    (package / "dataset" / "sampling.py").write_text(SAMPLING)
    finding = examine_lhotse(ask("lhotse"))
    assert finding.level == "problem"
    assert f"1.30.0 with torch {torch.__version__} cannot build a sampler" in finding.text
    assert "TypeError: __init__() missing 1 required" in finding.text


def test_a_package_that_lhotse_lacks_is_what_to_install(installed):
    installed(lhotse="1.33.0")
    finding = examine_lhotse(Answer(error="ModuleNotFoundError: No module named 'urllib3'"))
    assert (finding.level, finding.advice) == ("problem", "pip install urllib3")


def test_the_lhotse_to_take_is_that_for_this_torchs_sampler(installed, monkeypatch):
    class Demanding:
        def __init__(self, data_source):
            pass

    class Optional:
        def __init__(self, data_source=None):
            pass

    installed(lhotse="1.0")
    for sampler, fitting in ((Demanding, "<1.30"), (Optional, ">=1.30"), (object, ">=1.30")):
        monkeypatch.setattr(torch.utils.data, "Sampler", sampler)
        advice = examine_lhotse(Answer(error="TypeError: no")).advice
        assert advice == f"pip install 'lhotse{fitting}'"


def test_an_absent_lhotse_is_a_warning(installed):
    installed()
    finding = examine_lhotse(Answer(error="ModuleNotFoundError: No module named 'lhotse'"))
    assert (finding.level, finding.subject) == ("warning", "lhotse")
    assert "not installed" in finding.text


def test_peaks_that_cannot_be_reset_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_CLEAR_REFS", tmp_path / "clear_refs")
    assert examine_memory_log().level == "ok"
    monkeypatch.setattr(probe, "_CLEAR_REFS", tmp_path)  # a folder cannot be written to
    finding = examine_memory_log()
    assert finding.level == "warning"
    assert "clear_refs cannot be written" in finding.text


def test_this_package_and_python_are_named():
    texts = {finding.subject: finding.text for finding in environment.examine_versions()}
    assert texts["python"].startswith("3.")
    assert "panda_icefall" in texts["panda-icefall"]
