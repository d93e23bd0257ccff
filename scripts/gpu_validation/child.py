"""One section in a process of its own: ``python -m gpu_validation.child NAME FILE cpu|cuda S``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

from gpu_validation.report import Report, Setting


def main() -> None:
    name, path, device, seconds = sys.argv[1:]
    # CUDA's allocator takes no device without an index everywhere.
    where = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    section = importlib.import_module(f"gpu_validation.{name}")
    section.run(Setting(where, Report(Path(path), float(seconds))))


if __name__ == "__main__":
    main()
