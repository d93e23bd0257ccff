"""`panda-icefall fit` on the toy recipe, with trials whose outcome is known."""

import json
import signal

import pytest

from panda_icefall.runs.bounded.stage import Interrupted
from panda_icefall.runs.fitting import fit
from panda_icefall.runs.fitting.folder import trial_folder
from panda_icefall.runs.fitting.record import Trial
from panda_icefall.runs.hooks.worst_batches import BatchSize

MIB = 2**20
BASE = 300 * MIB
CPU = ("--device", "cpu", "--limit-mib", "200")


@pytest.fixture
def fitted(command, recipe, monkeypatch, tmp_path):
    """Runs `fit` on the toy recipe with trials of a known outcome; gives status, JSON, outputs."""
    limits = {"dense": 130, "routed": 700}
    tried = []

    def run_trial(request, arm, max_duration, deadline, on_poll):
        on_poll()
        tried.append((arm, max_duration))
        folder = trial_folder(request.out, arm, max_duration)
        folder.mkdir(parents=True)
        (folder / "output.log").write_text(run.tail)
        outcome = run.outcomes.get((arm, max_duration))
        if outcome == "interrupted":
            raise Interrupted("interrupted by SIGINT", 128 + signal.SIGINT)
        fits = max_duration <= limits[arm]
        outcome = outcome or ("fits" if fits else "out of memory")
        used = int(200 * MIB * max_duration / limits[arm])
        return Trial(
            arm=arm,
            max_duration=max_duration,
            outcome=outcome,
            detail="" if outcome == "fits" else run.detail,
            tail=run.tail if outcome == "failed" else "",
            seconds=2.0,
            exit_status={"fits": 0, "failed": run.status}.get(outcome, 1),
            peak_bytes=BASE + used,
            base_bytes=BASE,
            available_bytes=BASE + 200 * MIB,
            memory_kind="process RSS",
            worst=[BatchSize(cuts=9, longest_seconds=max_duration / 9, seconds=1.0, transcript=3)],
            log=f"trials/{arm}-{max_duration}/output.log",
        )

    monkeypatch.setattr(fit, "run_trial", run_trial)

    def run(*words, arguments=("--max-duration", "100"), options=CPU, out="fit"):
        tried.clear()
        given = [] if out is None else ["--out", str(tmp_path / out)]
        status, text, error = command("fit", *options, *given, *words, recipe.train_py, *arguments)
        path = tmp_path / (out or "panda-fit") / "fit.json"
        report = json.loads(path.read_text()) if path.exists() else None
        return status, report, text, error

    run.outcomes, run.tried, run.detail, run.status = {}, tried, "status 1: out of memory", 1
    run.tail, run.train_py = "step 1", recipe.train_py
    return run
