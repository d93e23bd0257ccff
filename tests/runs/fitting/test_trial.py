"""Trials as they are: children that fit, run out of memory, die, fail or have nothing to train."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from panda_icefall.normalizer.retry import RETRYING
from panda_icefall.runs.bounded.stage import Deadline, StageOutcome
from panda_icefall.runs.fitting.request import check_fit
from panda_icefall.runs.fitting.trial import _last_words, _outcome, run_trial
from panda_icefall.runs.hooks.worst_batches import BatchSize, Scan

SAMPLED = """
class Cut:
    def __init__(self, duration):
        self.duration = duration
        self.supervisions = []


class Sampler:
    def __init__(self, batches):
        self.batches = batches

    def state_dict(self):
        return {}

    def __iter__(self):
        return iter(self.batches)


class Sampled(Loader):
    def __init__(self, params):
        count = int(params.max_duration)
        self.num_batches = params.num_batches
        self.sampler = Sampler([[Cut(1.0)] * count, [Cut(0.5)] * count])
        self.dataset = self

    def __getitem__(self, cuts):
        return next(iter(Loader(1)))


def get_parser():"""
OPTION = """    parser.add_argument("--max-duration", type=float, default=20)
    return parser
"""
ENDS = """                if params.max_duration == 92:
                    import os
                    os.kill(os.getpid(), 9)
                if params.max_duration > 92:
                    import time
                    time.sleep(60)
                loss, info = compute_loss("""
WORST = Scan(batches=1, worst=[BatchSize(cuts=1, longest_seconds=1, seconds=1, transcript=0)])
NOTHING = Scan(batches=0, worst=[])


@pytest.fixture
def sampled(recipe):
    """The toy recipe with a sampler like lhotse's, and ends of its own by --max-duration."""
    recipe.edit(
        ("def get_parser():", SAMPLED),
        ("    return parser\n", OPTION),
        ('    assert train_dl.sampler == "the loader\'s sampler"\n', ""),
        ("train_dl=Loader(params.num_batches)", "train_dl=Sampled(params)"),
        ("                loss, info = compute_loss(", ENDS),
    )
    return recipe


@pytest.mark.parametrize(
    ("status", "output", "scan", "outcome"),
    [
        (0, f"a tile of 8 MiB did not fit (out of memory); {RETRYING}", WORST, "fits"),
        (1, f"did not fit (out of memory); {RETRYING}\nKeyError: 'text'", WORST, "failed"),
        (1, f"(out of memory); {RETRYING}\nMemoryError: half", WORST, "out of memory"),
        (1, "RuntimeError: Resource temporarily unavailable", None, "out of memory"),
        (-11, "epoch 1, batch 0", WORST, "failed"),
        (139, "epoch 1, batch 0", WORST, "failed"),
        (-6, "CUDA error: no kernel image is available for execution", WORST, "failed"),
        (1, "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB", WORST, "out of memory"),
        (1, "DefaultCPUAllocator: can't allocate memory: you tried", None, "out of memory"),
        (-6, "terminate called after throwing 'std::bad_alloc'", WORST, "out of memory"),
        (-9, "epoch 1, batch 0", WORST, "killed"),
        (137, "epoch 1, batch 0", WORST, "killed"),
        (1, "ProcessExitedException: process 1 terminated with signal SIGKILL", WORST, "killed"),
        (1, "ended without a training batch", NOTHING, "no batch"),
        (1, "ArithmeticError: another reason", WORST, "failed"),
        (2, "train.py: error: unrecognized arguments: --lr", None, "failed"),
        (1, "out of memory" + 20_000 * "." + "ArithmeticError", WORST, "failed"),
    ],
)
def test_a_trial_is_told_by_how_its_process_ended(status, output, scan, outcome, tmp_path):
    log = tmp_path / "output.log"
    log.write_text(output)
    assert _outcome(StageOutcome(status, 1.0, output), scan, log) == outcome


TRACEBACK = "Traceback (most recent call last):\n  File 'train.py', line 1\n"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("train.py: error: unrecognized arguments: --bogus 3\nPANDA summary: no batch",
         "train.py: error: unrecognized arguments: --bogus 3"),
        (TRACEBACK + "RuntimeError: my recipe is broken\nsecond line\n\nPANDA summary",
         "RuntimeError: my recipe is broken"),
        (TRACEBACK + "KeyError: 1\n\nWhile handling it:\n\n" + TRACEBACK + "ValueError",
         "ValueError"),
        ("epoch 1\nbatch 0\n", "batch 0"),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_what_ended_a_trial_is_told_and_not_what_was_printed_last(output, words):
    assert _last_words(StageOutcome(1, 1.0, output)) == f"status 1: {words}"


@pytest.mark.slow
def test_a_child_that_dies_ends_alone(sampled):
    request = check_fit(
        sampled.train_py,
        ["--num-batches", "7"],
        device="cpu",
        limit_mib=1024,
        scan_batches=None,
        most_trials=1,
        tolerance=0.1,
        max_minutes=5,
        out=sampled.folder / "out",
    )
    trial = run_trial(request, "dense", 92, Deadline.after(5), lambda: None)
    assert (trial.outcome, trial.exit_status) == ("killed", -9)
    assert "status -9 (SIGKILL)" in trial.detail
    assert trial.available_bytes > 2**30
    assert (sampled.folder / "out" / trial.log).is_file()
    assert not (sampled.folder / "out/trials/dense-92/exp").exists()


def test_ctrl_c_keeps_what_was_measured(sampled):
    out = sampled.folder / "fit"
    words = ["--device", "cpu", "--limit-mib", "1000", "--out", str(out)]
    recipe_words = ["--num-batches", "7", "--use-panda", "1", "--max-duration", "47"]
    command = [sys.executable, "-m", "panda_icefall", "fit", *words, "train.py", *recipe_words]
    with subprocess.Popen(
        command, cwd=sampled.folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        deadline = time.monotonic() + 120  # the second trial sleeps
        while len(list(out.glob("trials/*"))) < 2 and time.monotonic() < deadline:
            assert child.poll() is None
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        text, error = child.communicate(timeout=60)
    assert child.returncode == 130, error
    report = json.loads((out / "fit.json").read_text())
    assert (report["state"], report["reason"]) == ("partial", "interrupted by SIGINT")
    (trial,) = report["trials"]
    assert (trial["arm"], trial["max_duration"], trial["outcome"]) == ("routed", 47, "fits")
    assert [size["cuts"] for size in trial["worst"]] == [47]
    assert trial["peak_bytes"] >= trial["base_bytes"] > 0
    assert report["arms"]["routed"]["fits"] == 47
    assert "PARTIAL: interrupted by SIGINT" in text
    assert "Traceback" not in error
    # Of a trial that was through: no checkpoints; the worst batch twice, and nothing else.
    folder = out / "trials/routed-47"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["memory.jsonl", "output.log", "scan.json"]
    rows = [json.loads(line) for line in (folder / "memory.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if r.get("phase") == "backward_update"] == [1, 2]
    assert rows[0]["options"]["use_panda"] is True
    assert rows[-1]["reason"] == "bound"
