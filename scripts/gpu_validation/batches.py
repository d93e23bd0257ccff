"""The batches that are measured: the corpora's sizes, with trained and with random adjoints."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.inputs import LossInputs
from benchmarks.packages import is_installed
from benchmarks.shapes import CORPORA, LossShape

from gpu_validation.report import Setting

# The classes of WenetSpeech and AISHELL, of BPE pieces, and of a large multilingual vocabulary.
CLASSES = (5537, 4336, 500, 65_536)
# Some 40,000 sites, but where dense logits of that many fill a GPU.
TIMES, TIMES_OF_MANY_CLASSES = 3, 1
TINY = LossShape(B=2, T=9, S=3, s_range=3, H=8, D=8)


def batch(setting: Setting, adjoints: str, classes: int) -> LossInputs:
    """A batch by its adjoints, ``trained`` or ``random``, and its classes."""
    times = setting.size(TIMES if classes < 20_000 else TIMES_OF_MANY_CLASSES, 1)
    if adjoints == "trained":
        from benchmarks.stored_inputs import load  # needs numpy

        width = setting.size(CORPORA["aishell"].H, 64)
        return load(width, classes=classes).to(setting.device).repeated(times)
    shape = setting.size(CORPORA["aishell"].with_batch(20 * times), TINY)
    return LossInputs.random(replace(shape, C=classes), setting.device)


def adjoints_here(setting: Setting) -> list[str]:
    """The stored tensors are numpy's."""
    if is_installed("numpy"):
        return ["trained", "random"]
    setting.report.skip("trained adjoints", "numpy is not installed")
    return ["random"]
