"""Imports that may fail or crash, tried in a child process that may die of them."""

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "ask", "error_line"]

TIMEOUT_SECONDS = 300
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from panda_icefall.runs.doctor import probes; probes.answer(sys.argv[2])"
)
_K2_BUILD = ("__version__", "git_sha1", "build_type", "torch_version", "cuda_version", "with_cuda")


@dataclass(frozen=True)
class Answer:
    """What a child process found.

    Attributes:
      facts: What it reported, by name.
      error: Why it has nothing to report: the error of the import, or how the process died.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def ask(probe: str) -> Answer:
    """Run one probe in a child process with this process's ``sys.path``.

    Args:
      probe: ``k2`` (import it, read its build), ``routing`` (apply, list what was replaced),
        ``lhotse`` (import it, make a sampler) or ``triton`` (compile and run a kernel on each GPU).
    """
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), probe]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer in {TIMEOUT_SECONDS} seconds")
    if done.returncode == 0:
        return Answer(**json.loads(done.stdout.splitlines()[-1]))
    return Answer(error=_last_words(done.returncode, done.stderr))


def _last_words(status: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    if status < 0:
        return f"the process was killed by {signal.Signals(-status).name}{last}"
    return f"the process ended with status {status}{last}"


def error_line(error: Exception) -> str:
    """An exception's type and message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def answer(probe: str) -> None:
    """In the child: run one probe and print its answer as the last line of stdout."""
    try:
        content: dict[str, Any] = {"facts": _PROBES[probe]()}
    except Exception as error:
        content = {"error": error_line(error)}
    print("\n" + json.dumps(content))


def _probe_k2() -> dict[str, Any]:
    import k2  # noqa: F401 - first, for its own message where torch does not fit

    version = importlib.import_module("_k2").version
    return {name: str(getattr(version, name, "unknown")) for name in _K2_BUILD}


def _probe_routing() -> dict[str, Any]:
    from panda_icefall import routing

    routing.apply()
    replaced = list(routing.status().replaced)
    routing.revert()
    return {"replaced": replaced}


def _probe_lhotse() -> dict[str, Any]:
    import lhotse
    from lhotse.dataset.sampling import SimpleCutSampler

    SimpleCutSampler(lhotse.CutSet(), max_cuts=1)
    return {"version": lhotse.__version__}


def _probe_triton() -> dict[str, Any]:
    import torch

    from panda_icefall.engine_choice import why_not_triton

    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return {str(gpu): why_not_triton(gpu) for gpu in gpus}


_PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "k2": _probe_k2,
    "routing": _probe_routing,
    "lhotse": _probe_lhotse,
    "triton": _probe_triton,
}
