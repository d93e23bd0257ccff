"""Peaks and caps of measured processes."""

from types import SimpleNamespace

import pytest
import torch
from benchmarks.child import Job, measure
from benchmarks.inputs import LossInputs
from benchmarks.memory import PeakMeter, cap_memory, is_out_of_memory
from benchmarks.shapes import LossShape

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Logits of 17 MiB; the head of 2 MiB.
SHAPE = LossShape(B=2, T=100, S=8, s_range=5, C=4336, H=128, D=16, shortest=0.5)
MIB = 2**20


def test_the_meter_sees_a_tensor_that_is_gone_again():
    meter = PeakMeter(CPU)
    meter.start()
    torch.ones(64 * MIB // 4).sum()
    assert 60 * MIB < meter.peak_bytes() < 80 * MIB
    meter.start()
    assert meter.peak_bytes() < 20 * MIB


def test_a_cap_ends_the_dense_loss_and_not_the_selected_one():
    measured = {
        arm: measure(Job(arm, "pruned", SHAPE, cap_bytes=48 * MIB)) for arm in ("dense", "panda")
    }
    assert measured["dense"].is_out_of_memory
    assert not measured["panda"].is_out_of_memory
    assert measured["panda"].peak_bytes < 30 * MIB
    assert measured["panda"].parameter_bytes == 4 * (
        SHAPE.C * (SHAPE.H + 1) + 2 * SHAPE.H * (SHAPE.D + 1)
    )
    assert measured["panda"].input_bytes == 4 * SHAPE.B * SHAPE.D * (SHAPE.T + SHAPE.S + 1)


def test_a_timed_job_keeps_the_peak_of_the_process_that_measured_it():
    plain, timed = (measure(Job("panda", "pruned", SHAPE, repeats=n)) for n in (0, 1))
    assert timed.seconds > 0
    assert timed.seconds != plain.seconds
    assert abs(timed.peak_bytes - plain.peak_bytes) < 2 * MIB


def test_any_other_failure_is_not_taken_for_a_full_memory():
    with pytest.raises(RuntimeError, match=r"exit status 1(.|\n)*FileNotFoundError"):
        measure(Job("dense", "pruned", SHAPE, inputs="/nowhere/inputs.pt"))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_an_allocators_refusal_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_inputs_come_back_from_their_file_as_they_were(tmp_path):
    inputs = LossInputs.random(SHAPE, CPU)
    inputs.save(tmp_path / "inputs.pt")
    again = LossInputs.load(tmp_path / "inputs.pt", CPU)
    assert again.shape == SHAPE
    for name in ("encoder_out", "decoder_out", "symbols", "boundary", "ranges"):
        assert torch.equal(getattr(again, name), getattr(inputs, name))
    assert again.encoder_out.requires_grad


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"B": 0}, "B: got 0, expected at least 1"),
        ({"C": 1}, "C: got 1, expected at least 2"),
        ({"shortest": 0.0}, "shortest: got 0.0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, match):
    with pytest.raises(ValueError, match=match):
        LossShape(**sizes)


def test_a_gpu_is_capped_by_its_number(monkeypatch):
    capped = []

    def cap(fraction, device):
        capped.append((fraction, torch.cuda._utils._get_device_index(device)))

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", cap)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * MIB)
    )
    for name in ("cuda", "cuda:1"):
        cap_memory(2 * MIB, torch.device(name))
    assert capped == [(0.25, 2), (0.25, 1)]
