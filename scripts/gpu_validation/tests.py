"""The tests that are marked `cuda`: they work on the GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.packages import is_installed

from gpu_validation.report import REPO, Setting
from gpu_validation.sections import PATIENCE, SECTIONS

MARK, MARKED = "mark.cuda", "tests marked cuda"
# Of the tests in the interpreter some that take no time.
QUICK = ["-k", "no_rows or strides"]


def run(setting: Setting) -> None:
    if not is_installed("pytest"):
        setting.report.skip(MARKED, "pytest is not installed; the op and the losses are checked")
        return
    # Others are not even collected: what they import may not be here.
    files = [p for p in sorted((REPO / "tests").rglob("test_*.py")) if MARK in p.read_text()]
    seconds = SECTIONS["tests"].seconds * PATIENCE[setting.device.type]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "tests.xml"
        words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
        words += [f"--junitxml={xml}", *setting.size([], QUICK)]
        words += [str(path.relative_to(REPO)) for path in files]
        try:
            done = subprocess.run(
                words, cwd=REPO, capture_output=True, text=True, timeout=seconds, check=False,
                env=dict(os.environ),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            setting.report.check(MARKED, False, error=f"no end after {seconds:g} s")
            return
        _tell(setting, xml, done.returncode, done.stdout[-2000:] + done.stderr[-1000:])
    setting.report.fact("seconds of pytest", round(time.monotonic() - begin, 1))


def _tell(setting: Setting, xml: Path, status: int, output: str) -> None:
    """Counts, and a check for each test that failed."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    if xml.is_file():
        for case in ElementTree.parse(xml).iter("testcase"):
            kinds = {child.tag for child in case}
            is_failed = bool(kinds & {"failure", "error"})
            outcome = "failed" if is_failed else "skipped" if "skipped" in kinds else "passed"
            counts[outcome] += 1
            if is_failed:
                name = f"{case.get('classname')}.{case.get('name')}"
                message = next((child.get("message", "") for child in case), "")
                setting.report.check(name, False, error=message[:300])
    setting.report.row("tests", **counts)
    is_ok = status == 0 and counts["passed"] > 0
    said = {} if is_ok else {"error": output.replace(str(REPO), ".")}
    setting.report.check(MARKED, is_ok, **said)
