"""Lane rules, and the command line in this process.

k2-marked tests need a real k2, icefall-marked ones ICEFALL_ROOT as well.
"""

import importlib.util
import os
import sys

import pytest
import torch

# Triton asks this as it is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

HAS_K2 = importlib.util.find_spec("k2") is not None


def pytest_collection_modifyitems(items):
    needs_k2 = pytest.mark.skipif(not HAS_K2, reason="needs k2: runs in the k2 lane")
    needs_icefall = pytest.mark.skipif(
        not os.environ.get("ICEFALL_ROOT"), reason="needs ICEFALL_ROOT (an icefall checkout)"
    )
    for item in items:
        if item.get_closest_marker("k2"):
            item.add_marker(needs_k2)
        if item.get_closest_marker("icefall"):
            item.add_marker(needs_k2)
            item.add_marker(needs_icefall)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `panda-icefall words`; gives its exit status, stdout and stderr."""
    from panda_icefall import cli

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["panda-icefall", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capsys.readouterr())

    return run
