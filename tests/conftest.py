"""Lane rules, planted bugs, and the command line in this process.

k2-marked tests need a real k2; those marked icefall, espnet or wenet need ICEFALL_ROOT, ESPNET_ROOT
or WENET_ROOT as well. Tests that start processes are marked slow here, others that are slow by
themselves.
"""

import importlib.util
import os
import signal
import sys

import pytest
import torch

# Triton asks this as it is imported: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

HAS_K2 = importlib.util.find_spec("k2") is not None
# Their assertions tell the values too.
pytest.register_assert_rewrite(
    "bands", "counted", "drawn", "gates", "simple_losses", "toolkit_checkout", "toy", "toy_joiner"
)


def pytest_addoption(parser):
    parser.addoption(
        "--plant",
        metavar="BUG",
        help="plant a bug of tests/support/planted.py; tests in which a loss falls back must fail",
    )


def pytest_configure(config):
    # A shell puts jobs into the background with SIGINT ignored, which their processes inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    bug = config.getoption("--plant")
    if bug is not None:
        import planted

        if bug not in planted.BUGS:
            raise pytest.UsageError(f"--plant: got {bug!r}, expected one of {[*planted.BUGS]}")
        config.pluginmanager.register(planted.Planting(bug))


# Names by which tests and their helpers start processes, and fixtures for which some are started.
STARTERS = {"Popen", "from_two_ranks", "run_script", "start", "subprocess"}
STARTED = {"checkout", "checkpoint", "data_dir", "port", "trained"}


def starts_processes(item):
    return bool(STARTED & {*item.fixturenames} or STARTERS & {*item.function.__code__.co_names})


def pytest_collection_modifyitems(items):
    needs_k2 = pytest.mark.skipif(not HAS_K2, reason="needs k2: runs in the k2 lane")
    needs_checkout = {
        name: pytest.mark.skipif(
            not os.environ.get(f"{name.upper()}_ROOT"),
            reason=f"needs {name.upper()}_ROOT (a checkout of {name})",
        )
        for name in ("icefall", "espnet", "wenet")
    }
    for item in items:
        if starts_processes(item):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("k2"):
            item.add_marker(needs_k2)
        for name, mark in needs_checkout.items():
            if item.get_closest_marker(name):
                item.add_marker(needs_k2)
                item.add_marker(mark)


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
