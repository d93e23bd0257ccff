"""The wheel and the sdist build and hold what they should; the version is said once."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import panda_icefall

ROOT = Path(__file__).parents[1]


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
    assert {
        f"panda_icefall/{name}" for name in ("cli.py", "py.typed", "runs/report/style.css")
    } <= set(names)
    assert not [n for n in names if n.startswith(("tests", "egs"))]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("panda_icefall/__init__.py") for name in archive.getnames())


def test_the_version_is_the_same_everywhere():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared
    assert panda_icefall.__version__ == declared[1]
    assert importlib.metadata.version("panda-icefall") == declared[1]
