"""The wheel and the sdist build and hold what they should; the version is said once."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import panda_icefall
from panda_icefall import shipped

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_and_sdist_build_from_the_checkout(tmp_path):
    # A build writes into its folder, and another lane may build beside this one.
    checkout = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "out")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(checkout)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    inside = ("cli/__init__.py", "py.typed", "runs/report/style.css")
    assert {f"panda_icefall/{name}" for name in inside} <= set(names)
    assert not [n for n in names if n.startswith(("tests", "egs"))]
    assert shipped_in(names) == shipped_in_checkout()
    with tarfile.open(sdist) as archive:
        packed = archive.getnames()
    assert any(name.endswith("panda_icefall/__init__.py") for name in packed)
    beside = {name.partition("/")[2] for name in packed}
    assert shipped_in_checkout() <= beside, "a wheel made from the sdist must be whole too"
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    asked = subprocess.run(
        [sys.executable, "-m", "panda_icefall", "bounded", "--list"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.split() == shipped.config_names()


def shipped_in(names):
    prefix = "panda_icefall/_files/"
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def shipped_in_checkout():
    listed = subprocess.run(
        ["git", "ls-files", "egs", "patches"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.split() if not name.endswith(".png")}


def test_the_version_is_said_once():
    assert importlib.metadata.version("panda-icefall") == panda_icefall.__version__
    text = (ROOT / "pyproject.toml").read_text()
    assert panda_icefall.__version__ not in text
    citation = (ROOT / ".github/CITATION.cff").read_text()
    assert f"version: {panda_icefall.__version__}\n" in citation


def test_a_named_configuration_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find_config("aishell/zipformer", "cpu").name == "cpu.yaml"
    path = shipped.find_config("aishell/zipformer/full", "cpu")
    assert path == ROOT / "egs/aishell/ASR/zipformer/full.yaml"
    with pytest.raises(ValueError, match=r"did you mean aishell/zipformer/cpu\?"):
        shipped.find_config("aishell/zipfromer", "cpu")


def test_an_installed_package_has_its_own_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_INSTALLED", tmp_path)
    assert shipped.shipped_folder("egs") == ROOT / "egs"
    config = tmp_path / "egs/mine/ASR/conformer/cpu.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    assert shipped.config_names() == ["mine/conformer/cpu"]
    assert shipped.find_config("mine/conformer", "cpu") == config


DOCKERFILE = (ROOT / "scripts/Dockerfile").read_text()


def test_the_image_gets_what_the_package_needs_and_keeps_its_own_torch():
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|requires) = \[(.*)\]$", project, flags=re.MULTILINE)
    needed = {name for text in lists for name in re.findall(r'"([^"]+)"', text)}
    installed = set(re.findall(r'"([^"]+)"', DOCKERFILE))
    assert len(needed) > 5
    assert needed - {"torch>=1.13"} == installed
    assert "--no-deps --no-build-isolation ." in DOCKERFILE


@pytest.mark.icefall
def test_the_image_is_one_of_icefalls_own():
    (tag,) = re.findall(r"^ARG ICEFALL=k2fsa/icefall:(\S+)$", DOCKERFILE, flags=re.MULTILINE)
    icefall = Path(os.environ["ICEFALL_ROOT"])
    assert f'"{tag}"' in (icefall / "docs/source/docker/intro.rst").read_text()
    recipe = (icefall / f"docker/{tag}.dockerfile").read_text()
    (root,) = re.findall(r"git clone https://github.com/k2-fsa/icefall (\S+)", recipe)
    assert f"ICEFALL_ROOT={root}" in DOCKERFILE
