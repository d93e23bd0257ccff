"""The module that ``apply()`` patches in this lane: real k2, or the project's stand-in."""

import importlib
import sys
import types

import pytest
import toy_full

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import hosts

# k2 1.23.4, the newest in the registry, has no HAT loss: the stand-in takes its place here.
NEWER_K2 = types.ModuleType("k2")
for _name in rnnt.__all__:
    setattr(NEWER_K2, _name, getattr(rnnt, _name))


@pytest.fixture
def newer_k2(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", NEWER_K2)
    yield NEWER_K2
    panda_icefall.revert()


@pytest.fixture
def k2():
    name = "k2" if importlib.util.find_spec("k2") else hosts.OWN_FUNCTIONS
    yield importlib.import_module(name)
    panda_icefall.revert()


@pytest.fixture
def oracle_hosts():
    """k2 and torchaudio by the oracle; no optimized_transducer."""
    with toy_full.oracles_as_hosts(with_packed=False):
        yield
        panda_icefall.revert()
