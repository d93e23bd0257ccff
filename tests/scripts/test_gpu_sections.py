"""The sections of validate_gpu.py find what they are there to find."""

import json
import math

import pytest
import torch
from benchmarks import device_events
from benchmarks.arms import Step
from benchmarks.gemm_limit import products_of
from benchmarks.inputs import LossInputs
from benchmarks.precision import is_supported
from gpu_validation import bench, large_offsets, losses, op, products, tables, tests, training
from gpu_validation.report import REPO, Report, Setting, error_text
from gpu_validation.roofline import best_seconds, tile_rates

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path):
    return Setting(CPU, Report(tmp_path / "events.jsonl", 600))


@pytest.fixture
def events(tmp_path):
    """What was said, by its kind."""

    def read(kind):
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    return read


def test_a_case_that_raises_is_a_failed_check_and_the_next_one_runs(setting, events):
    with setting.report.case("one"):
        raise ValueError(f"{REPO}/x")
    with setting.report.case("two"):
        setting.report.check("two", True)
    one, two = events("check")
    assert (one["name"], one["is_ok"], two["is_ok"]) == ("one", False, True)
    assert one["error"].endswith("ValueError: ./x\n")


def test_after_an_error_of_cuda_a_section_ends(setting, events):
    with pytest.raises(RuntimeError), setting.report.case("one"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert not events("check")[0]["is_ok"]


def test_when_the_time_is_up_what_is_left_out_is_said(tmp_path, events):
    report = Report(tmp_path / "events.jsonl", -1)
    assert report.is_over("C=500")
    assert [event["name"] for event in events("cut")] == ["C=500"]


def test_error_texts_name_no_folder():
    with pytest.raises(KeyError) as caught:
        raise KeyError("x")
    assert str(REPO) not in error_text(caught.value)
    assert "test_gpu_sections.py" in error_text(caught.value)


@pytest.mark.parametrize("name", [name for name in op.DTYPES if is_supported(name, CPU)])
def test_the_gates_of_the_op_fail_where_it_is_wrong(name):
    dtype = op.DTYPES[name]
    data = op.gates.in_dtype(op.gates.values("flat", 29, 0, 24, 5), dtype)
    plain = op.gates.run(op.gates.dense, *data)
    truth = op.gates.run(op.dense_selected_log_probs, *op.gates.in_dtype(data, torch.float64))
    ours = op.gates.run(op.selected_log_probs, *data)
    assert op.judged(dtype, 29, ours, plain, truth)["is_ok"]
    for at in range(5):
        for bug in (lambda x: x * 1.02, lambda x: x * math.nan):
            wrong = [bug(x) if i == at else x for i, x in enumerate(ours)]
            judged = op.judged(dtype, 29, wrong, plain, truth)
            assert not judged["is_ok"]
            assert judged["worst"] == op.gates.NAMES[at]


def test_offsets_that_wrap_are_found(setting, events, monkeypatch):
    right = large_offsets.selected_log_probs

    def wrapping(rows, weight, bias, ids, **options):
        return right(torch.cat((rows[:-1], rows[:1])), weight, bias, ids, **options)

    large_offsets.run(setting, ["torch"])
    monkeypatch.setattr(large_offsets, "selected_log_probs", wrapping)
    large_offsets.run(setting, ["torch"])
    assert [check["is_ok"] for check in events("check")] == [True, False]


def test_the_reference_in_blocks_is_the_dense_loss(monkeypatch):
    monkeypatch.setattr(large_offsets, "BLOCK_ROWS", 5)
    *data, _ = op.gates.values("flat", 29, 0, 24, 5)
    exact = op.gates.run(op.dense_selected_log_probs, *data, torch.zeros(24, dtype=torch.float64))
    for mine, theirs in zip(large_offsets.blockwise(*data), exact):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


def test_the_gates_of_the_losses_fail_where_one_is_wrong(setting, events):
    inputs = LossInputs.random(losses.TINY, CPU)
    dense = losses.outcome(Step.make("dense", "pruned", inputs))
    exact = losses.outcome(Step.make("dense", "pruned", inputs.in_float64()))
    assert {t.dtype for t in exact.values()} == {torch.float64}
    for bug in (1.0, 1 + 1e-4, math.nan):
        ours = {**dense, "encoder_out": dense["encoder_out"] * bug}
        losses.judge(setting, str(bug), "fp32", ours, dense, exact)
    without = {name: x for name, x in dense.items() if name != "loss"}
    with pytest.raises(KeyError):
        losses.judge(setting, "no loss", "fp32", without, dense, exact)
    assert [check["is_ok"] for check in events("check")] == [True, False, False]
    assert {check["worst"] for check in events("check")[1:]} == {"encoder_out"}


def test_a_step_that_keeps_memory_is_found(setting, events, monkeypatch):
    kept, run = [], Step.run

    def leaking(step):
        kept.append(torch.ones(3))
        return run(step)

    training.constant_bytes(setting)
    monkeypatch.setattr(Step, "run", leaking)
    training.constant_bytes(setting)
    assert [check["is_ok"] for check in events("check")] == [True, True, False, False]


def test_bits_that_differ_are_found(setting, events, monkeypatch):
    run, runs = training.outcome, []

    def drifting(step):
        runs.append(step)
        return {name: x + len(runs) for name, x in run(step).items()}

    monkeypatch.setattr(training, "outcome", drifting)
    training.equal_bits(setting)
    assert [check["is_ok"] for check in events("check")] == [False, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_gpu_has_no_second(setting, events, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_cuda = Setting(torch.device("cuda", 0), setting.report)
    training.another_device(on_cuda)
    assert events("skipped") == [
        {"kind": "skipped", "name": "another device", "why": "there is one GPU"}
    ]


def test_without_pytest_it_is_said(setting, events, monkeypatch):
    monkeypatch.setattr(tests, "is_installed", lambda package: False)
    tests.run(setting)
    assert "pytest is not installed" in events("skipped")[0]["why"]


def test_every_file_with_tests_for_cuda_is_found():
    files = {p.name for p in (REPO / "tests").rglob("test_*.py") if tests.MARK in p.read_text()}
    assert {"test_triton_rows.py", "test_banded.py"} <= files


def test_launches_waits_and_busy_seconds_of_a_step():
    x = torch.ones(8)
    events = device_events.events_of(lambda: (x.add_(x), x.exp_(), x.add_(x), x[0].item()), CPU)
    calls = {kernel.name: kernel.calls for kernel in events.heaviest}
    assert calls["aten::add_"] == 2
    assert calls["aten::exp_"] == 1
    assert events.waits == 1
    assert 0 < events.busy_seconds < 1
    assert device_events.covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4


def test_the_first_group_is_what_the_goal_is_of(monkeypatch):
    monkeypatch.setattr(bench, "is_supported", lambda precision, device: True)
    on_cuda = Setting(torch.device("cuda", 0), Report(REPO / "nowhere", 1))
    groups = bench.groups(on_cuda)
    assert groups[0] == bench.Group("trained", 5537, "bf16", "whole")
    assert groups[1] == bench.Group("random", 5537, "bf16", "whole")
    assert len(set(groups)) == len(groups) == 2 * 4 * 4 * 3
    assert "panda-torch" in [*bench.methods(on_cuda, groups[0])]
    assert "class-tiles" not in [*bench.methods(on_cuda, groups[0])]


def test_tiles_that_are_aligned_and_odd():
    found = products.layouts(4609, 5537)
    assert found == {"aligned": (4608, 5504), "odd": (4601, 5497)}
    n, H, c = products.tile_shape(Setting(CPU, Report(REPO / "nowhere", 1)))
    assert (H, c) == (8, 40)
    assert 0 < n <= 2 * 9 * 4


def test_the_roofline_is_the_longer_of_products_and_memory():
    rows = [
        {"precision": "bf16", "layout": "aligned", "tflops": 400.0},
        {"precision": "bf16", "layout": "aligned", "tflops": 500.0},
        {"precision": "bf16", "layout": "odd", "tflops": 900.0},
    ]
    rates = tile_rates(rows)
    assert rates == {"bf16": 500.0}
    step = {"precision": "bf16", "product_flops": 1e12, "product_bytes": 1e9}
    assert best_seconds(step, rates, 2000.0) == pytest.approx(2e-3)
    assert best_seconds({**step, "product_bytes": 8e9}, rates, 2000.0) == pytest.approx(4e-3)
    assert best_seconds({**step, "precision": "fp32"}, rates, 2000.0) is None


def test_methods_are_told_beside_the_dense_loss_and_the_roofline():
    def row(arm, seconds, **others):
        return {
            "adjoints": "trained", "classes": 5537, "precision": "bf16", "part": "whole",
            "arm": arm, "label": arm, "workspace_mib": None, "is_out_of_memory": False,
            "seconds": seconds, "seconds_q1": seconds, "seconds_q3": 2 * seconds,
            "busy_seconds": seconds / 2, "launches": 7, "peak_allocated_bytes": 2**30 * seconds,
            "peak_reserved_bytes": None, "backward_share": 0.25, "product_flops": 1e9,
            "product_bytes": 1, **others,
        }  # fmt: skip

    probed = {"products": [{"precision": "bf16", "layout": "aligned", "tflops": 1.0}],
              "bandwidth": [{"gbytes": 1.0}]}  # fmt: skip
    rows = [row("dense", 0.01), row("panda", 0.004), row("k2", 1.0, is_out_of_memory=True)]
    sections = {"probes": {"tables": probed}, "bench": {"tables": {"methods": rows}}}
    dense, panda, k2 = tables.compared(rows, sections)
    assert dense["of dense"] == 1.0
    assert panda["of dense"] == pytest.approx(0.4)
    assert panda["roofline, ms"] == pytest.approx(1.0)
    assert panda["of the roofline"] == pytest.approx(4.0)
    assert panda["of the GEMM rate"] == pytest.approx(0.25)
    assert panda["quartiles"] == "4 to 8"
    assert k2["ms"] == "out of memory"
    assert tables.goals(sections) == [
        {"adjoints": "trained", "of dense": pytest.approx(0.4), "goal, at most": 0.5,
         "of the GEMM rate": pytest.approx(0.25), "goal, at least": 0.5}
    ]  # fmt: skip
    assert tables.goals({}) == []
    lines = tables.table([dense, panda, k2])
    assert len({line.count("|") for line in lines}) == 1
    assert tables.table([]) == []


def test_bytes_of_a_product_are_its_operands_and_its_result():
    step = Step.make("dense", "pruned", LossInputs.random(losses.TINY, CPU))
    product = next(p for p in products_of(step) if len(p.left[0]) == 2)
    (n, inner), columns = product.left[0], product.right[0][-1]
    assert product.bytes == 4 * (n * inner + inner * columns + n * columns)
