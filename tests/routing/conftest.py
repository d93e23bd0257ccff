"""The module that ``apply()`` patches in this lane: real k2, or the project's stand-in."""

import importlib

import pytest

import panda_icefall
from panda_icefall.routing import hosts


@pytest.fixture
def k2():
    name = "k2" if importlib.util.find_spec("k2") else hosts.STAND_IN
    yield importlib.import_module(name)
    panda_icefall.revert()
