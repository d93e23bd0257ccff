"""A process that runs PANDA's step of one checkout whenever it is told to: see bench_versions.py.

    PYTHONPATH=CHECKOUT:CHECKOUT/scripts python scripts/benchmarks/turns.py PART INPUTS OUTPUTS

Writes loss and gradients of one run to OUTPUTS. Prints a line of JSON with the peak of a fresh
process, then, for every line on stdin, one with the seconds of a run. Of the checkout it uses only
what older versions have too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(part: str, path: str, outputs: str) -> None:
    # Here and not above: Python puts this file's folder first, whose names are not packages.
    sys.path.pop(0)
    import torch

    import panda_icefall
    from benchmarks.arms import Step
    from benchmarks.child import Job, measure
    from benchmarks.inputs import LossInputs

    root, package = Path(sys.path[0]), Path(panda_icefall.__file__).parent
    if package.parent != root:
        raise SystemExit(f"{root}: got the package of {package.parent}, expected its own")
    inputs = LossInputs.load(Path(path), torch.device("cpu"))
    peak = measure(Job("panda", part, inputs.shape, path))
    step = Step.make("panda", part, inputs)
    loss = step.run()
    torch.save({"loss": loss, **step.gradients()}, outputs)
    say({"peak_bytes": peak.peak_bytes})
    for _ in sys.stdin:
        start = time.perf_counter()
        step.run()
        say({"seconds": time.perf_counter() - start})


def say(answer: dict[str, float]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
