"""Benchmarks in other precisions and on other devices: what runs, and what a figure is called."""

import json
import re
import sys

import bench_profile
import pytest
import torch
from benchmarks import memory, options, results, tables
from benchmarks.agreement import Reference
from benchmarks.arms import Step, arms_of
from benchmarks.child import step_of
from benchmarks.gemm_limit import products_of
from benchmarks.inputs import LossInputs
from benchmarks.losses import LOSSES
from benchmarks.precision import HALVES, PRECISIONS, float32_products, is_supported
from benchmarks.shapes import LossShape
from benchmarks.timing import interleaved_samples, quartiles

CPU = torch.device("cpu")
SHAPE = LossShape(B=3, T=11, S=5, s_range=4, C=37, H=8, D=8, shortest=0.4)
TINY = "--B 3 --T 12 --S 4 --C 40 --H 8 --D 8 --repeats 1".split()
SUPPORTED = [name for name in HALVES if is_supported(name, CPU)]


@pytest.mark.parametrize("precision", SUPPORTED)
def test_the_dense_step_multiplies_in_half_and_its_gradients_are_float32(precision):
    step = Step.make("dense", "whole", LossInputs.random(SHAPE, CPU), None, precision)
    dtypes = {product.dtype for product in products_of(step) if len(product.left[0]) == 2}
    assert HALVES[precision] in dtypes
    assert {g.dtype for g in step.gradients().values()} == {torch.float32}
    # As in icefall the simple loss's normaliser is computed outside of autocast.
    batched = {product.dtype for product in products_of(step) if len(product.left[0]) == 3}
    assert batched == {torch.float32}


@pytest.mark.parametrize("precision", SUPPORTED)
@pytest.mark.parametrize("part", ["simple", "pruned"])
def test_every_method_agrees_in_half(part, precision):
    inputs = LossInputs.random(SHAPE, CPU)
    reference = Reference(Step.make("dense", part, inputs))
    dense = reference.against(Step.make("dense", part, inputs, None, precision))
    assert dense.grad_rel_l2 > 1e-4  # else it is no half
    arms = arms_of(part, "cpu", precision)
    assert "class-tiles" not in arms
    for arm in arms:
        agreement = reference.against(Step.make(arm, part, inputs, None, precision))
        assert agreement.grad_rel_l2 < 1.25 * dense.grad_rel_l2 + 1e-4, arm
        assert agreement.loss_rel < 1.25 * dense.loss_rel + 1e-4, arm


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_agrees_in_half(loss):
    inputs = LossInputs.random(SHAPE, CPU)
    reference = Reference(step_of("dense", loss, inputs))
    dense, panda = (
        reference.against(step_of(arm, loss, inputs, None, "bf16")) for arm in ("dense", "panda")
    )
    assert panda.grad_rel_l2 < 1.25 * dense.grad_rel_l2 + 1e-4


def test_tf32_is_on_in_a_step_forward_and_backward_and_off_again():
    seen = []
    step = Step.make("dense", "pruned", LossInputs.random(SHAPE, CPU), None, "tf32")
    note = lambda *given: seen.append(torch.get_float32_matmul_precision())  # noqa: E731
    step.model.joiner.output_linear.register_forward_hook(note)
    step.inputs.encoder_out.register_hook(note)
    with float32_products("fp32"):
        step.run()
        assert torch.get_float32_matmul_precision() == "highest"
    assert seen == ["high", "high"]


def test_the_loss_is_scaled_before_its_backward_alone():
    inputs = LossInputs.random(SHAPE, CPU)
    plain, scaled = (Step.make("panda", "pruned", inputs) for _ in range(2))
    loss = plain.run()
    gradient = plain.gradients()["joiner.output_linear.weight"].clone()
    scaled.scaled = lambda loss: loss * 1024
    assert torch.equal(scaled.run(), loss)
    torch.testing.assert_close(
        scaled.gradients()["joiner.output_linear.weight"], 1024 * gradient, rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(
    ("script_name", "words"),
    [
        ("bench_loss", [*TINY, "--parts", "pruned"]),
        ("bench_losses", [*TINY[:6], "--H", 8, "--D", 8, "--losses", "HAT", "--classes", 30]),
        pytest.param(
            "bench_ctc", ["--B", 2, "--T", 9, "--D", 8, "--classes", 20, "--repeats", 1],
            marks=pytest.mark.slow,
        ),
        ("bench_profile", TINY),
        ("bench_workspace", [*TINY, "--sizes-mib", 1]),
        ("bench_classes", [*TINY[:6], "--H", 8, "--D", 8, "--classes", 30]),
        ("bench_capacity", ["--recipes", "aishell", "--C", 50, "--H", 8, "--D", 8, "--start", 2,
                            "--longest", 2]),
    ],
)  # fmt: skip
def test_every_benchmark_knows_half_and_says_so(script, script_name, words):
    figures = script(script_name, *words, "--dtype", "bf16", "--warm-ups", 1)
    assert figures["settings"]["dtype"] == "bf16"
    assert "(cpu, bf16)" in tables.title(figures)
    assert figures["sessions"][0]["rows"]


def test_figures_of_before_are_of_float32(tmp_path):
    path = tmp_path / "workspace.json"
    document = results.begin("workspace", {"device": "cpu"}, path)
    results.add_session(document, path, [{"workspace_mib": 1.0, "arm": "panda"}])
    old = json.loads(path.read_text())
    del old["settings"]["dtype"]
    path.write_text(json.dumps(old))
    results.begin("workspace", {"device": "cpu", "dtype": "fp32"}, path)
    with pytest.raises(SystemExit, match="delete the file or give another --json"):
        results.begin("workspace", {"device": "cpu", "dtype": "bf16"}, path)


def test_names_of_files_carry_the_device_and_the_dtype(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB (HBM3)")
    names = {
        (device, dtype): results.default_path("loss", device=device, dtype=dtype).name
        for device in ("cpu", "cuda")
        for dtype in ("fp32", "bf16")
    }
    assert len({*names.values()}) == 4
    assert re.fullmatch("loss-(k2|modern).json", names["cpu", "fp32"])
    assert names["cuda", "fp32"].startswith("loss-nvidia-h100-80gb-hbm3-fp32-")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--device", "cuda"], "--device: got cuda, expected cpu: torch finds no GPU here"),
        (["--warm-ups", "-1"], "--warm-ups: got -1, expected at least 0"),
        (["--dtype", "fp16"], "--dtype: got fp16, expected one that autocast of torch .* on cpu"),
    ],
)
def test_what_is_not_there_is_refused(monkeypatch, capsys, words, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(options, "is_supported", lambda precision, device: precision != "fp16")
    with pytest.raises(SystemExit):
        options.make_parser("").parse_args(words)
    assert re.search(match, capsys.readouterr().err)


def test_the_profile_is_the_hosts_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["bench_profile.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        bench_profile.main()
    assert "expected cpu; see validate_gpu.py --only audit" in capsys.readouterr().err


def test_on_cuda_kernels_are_compiled_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parser = options.make_parser("")
    assert parser.parse_args(["--device", "cuda"]).warm_ups == 3
    assert parser.parse_args([]).warm_ups == 0
    calls = []
    samples = interleaved_samples({"a": lambda: calls.append("a")}, 2, CPU, warm_ups=3)
    assert len(calls) == 5
    assert len(samples["a"]) == 2


def test_a_cap_on_cuda_names_the_device_by_its_index(monkeypatch):
    given = []
    properties = type("Properties", (), {"total_memory": 1000})
    for name, value in (
        ("current_device", lambda: 3),
        ("get_device_properties", lambda index: properties),
        ("set_per_process_memory_fraction", lambda *args: given.append(args)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    memory.cap_memory(250, torch.device("cuda"))
    memory.cap_memory(2500, torch.device("cuda", 1))
    assert given == [(0.25, 3), (1.0, 1)]


def test_quartiles_of_samples():
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]) == {
        "seconds": 4.0, "seconds_q1": 2.0, "seconds_q3": 6.0,
    }  # fmt: skip
    assert quartiles([2.0]) == {"seconds": 2.0, "seconds_q1": 2.0, "seconds_q3": 2.0}


def test_every_precision_is_known():
    assert {*HALVES} < {*PRECISIONS}
    assert is_supported("fp32", CPU)
    assert is_supported("bf16", CPU)
