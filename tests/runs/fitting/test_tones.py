"""The embedded recipe under a limit on the CPU: routing admits a longer batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
RECIPE = REPO / "egs/tones/ASR/pruned_transducer"


def run_script(*words):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones") / "data"
    size = "--num-train=60 --num-dev=6 --num-test=6 --num-words=1500 --vocab-size=1200"
    done = run_script(RECIPE / "prepare.py", "--data-dir", folder, *size.split())
    assert done.returncode == 0, done.stderr
    return folder


def test_routing_admits_a_longer_batch_under_the_same_limit(data_dir, tmp_path):
    options = f"--device cpu --limit-mib 190 --max-trials 2 --json --out {tmp_path}/fit"
    recipe = "--vocab-size=1200 --num-buckets=2 --encoder-dim=32 --num-encoder-layers=1"
    words = ["--data-dir", data_dir, *recipe.split(), "--max-duration", "48"]
    done = run_script("-m", "panda_icefall", "fit", *options.split(), RECIPE / "train.py", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    dense, routed = (report["arms"][arm] for arm in ("dense", "routed"))
    assert 0 < dense["fits"] < routed["fits"]
    assert dense["too_long"] <= routed["fits"]
    outcomes = {t["outcome"] for t in report["trials"] if t["arm"] == "dense"}
    assert outcomes == {"fits", "out of memory"}
    for trial in report["trials"]:
        assert trial["worst"][0]["worst_by"][0] == "seconds with padding"
