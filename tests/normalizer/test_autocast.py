"""Autocast off, wherever that is asked for."""

import pytest
import torch

from panda_icefall.normalizer.autocast import no_autocast


def test_autocast_is_off_inside_and_back_afterwards():
    x = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with no_autocast(torch.device("cpu")):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_gpus_without_bfloat16_are_not_asked_for_it(monkeypatch):
    # torch 1.13 refuses the dtype there, although autocast is to be off.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given: False)
    with no_autocast(torch.device("cuda")):
        pass
