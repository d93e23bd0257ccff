"""The examples, run as a stranger runs them: they agree, and the routed loss holds less."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parents[2]
EXAMPLES = REPO / "egs" / "examples"

pytestmark = pytest.mark.slow


def printed(script: str, *options: str) -> str:
    """What a script says, in a process of its own on one thread."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *options],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # No joiner of theirs needs to be called, and nothing else is worth a warning.
    assert done.stderr == ""
    return done.stdout


_PEAK = r"(\w+)(?: \(.*\))?: .*peak ([\d.]+) MiB"  # after a name, who computed it


def peaks(said: str) -> dict[str, float]:
    """MiB by name."""
    return {name: float(mib) for name, mib in re.findall(_PEAK, said)}


@pytest.mark.parametrize("script", ["own_loop.py", "nemo_joint.py", "espnet_joint.py"])
def test_dense_and_routed_agree_and_the_routed_loss_holds_less(script):
    said = printed(script)
    assert re.search(r"loss and gradients agree: \de-\d\d of their size apart", said)
    held = peaks(said)
    # Dense has the logits and their gradient, of 64 MiB each; routed less than one of them.
    assert held["dense"] > 100
    assert held["routed"] < 50


def test_the_small_transducer_learns():
    losses = [
        float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", printed("own_loop.py"))
    ]
    assert losses[-1] < 0.2 * losses[0]


def test_durations_are_an_option_of_the_nemo_joint():
    said = printed("nemo_joint.py", "--tdt")
    assert re.search(r"routed: TDT loss [\d.]+, peak", said)
    assert peaks(said)["routed"] < 50


@pytest.mark.skipif(torch.__version__ < "2.6", reason="DTensor is newer: runs in the modern lane")
def test_a_vocabulary_in_three_uneven_parts_learns_as_a_whole_one():
    said = printed("vocabulary_parallel.py", "--ranks", "3", "--steps", "10")
    held = [int(n) for n in re.findall(r"rank \d holds (\d+) of 2000 classes", said)]
    assert sorted(held) == [666, 667, 667]
    assert re.search(r"loss and gradients agree: \de-\d\d of their size apart", said)
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", said)]
    assert losses[-1] < 0.5 * losses[0]


def test_every_script_is_in_their_readme():
    text = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {
        *("comparing.py", "own_loop.py", "nemo_joint.py", "espnet_joint.py"),
        "vocabulary_parallel.py",
    }
    assert all(name in text for name in scripts)


def test_another_loss_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import comparing

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(SystemExit, match="loss and gradients differ by"):
        comparing.compare(lambda: x.sum(), lambda: 1.001 * x.sum(), [x])
    comparing.compare(lambda: x.sum(), lambda: x.sum(), [x])
