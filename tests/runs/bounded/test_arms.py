"""Arms are read back from the memory log and the checkpoint a process left, complete or not."""

import json
import math

import pytest
import torch

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded.arms import final_parameters, read_arm

HEADER = {"row": "header", "versions": {}, "memory": {"rss_bytes": 120}}


def phase(step, name, seconds, peak, **values):
    return {
        "row": "part" if "within" in values else "phase",
        "step": step,
        "phase": name,
        "seconds": seconds,
        "rss_bytes": peak - 100,
        "peak_rss_bytes": peak,
        **values,
    }


def step_rows(step, loss=10.0, **values):
    return [
        phase(step, "encoder", 0.25, 300, within="compute_loss"),
        phase(step, "pruned_loss", 0.5, 900, within="compute_loss"),
        phase(step, "other", 0.125, 200, within="compute_loss"),
        phase(
            step, "compute_loss", 1.0, 900, loss=loss, frames=4, batch_idx_train=step + 7,
            losses_routed=1, sites=100, materialised={"cumsum": 1},
        ),
        phase(step, "backward", 1.0, 1500, within="backward_update"),
        phase(step, "other", 0.5, 250, within="backward_update"),
        phase(step, "backward_update", 2.0, 1500, sites_backward=60, **values),
    ]  # fmt: skip


def losses_of(arm):
    return [step.loss for step in arm.steps]


@pytest.fixture
def write(tmp_path):
    def write(*rows, tail=""):
        path = tmp_path / "memory.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
        return path

    return write


def test_a_step_with_its_phases(write):
    arm = read_arm(write(HEADER, *step_rows(1, grad_scale=8.0), *step_rows(2, loss=6.0)))
    first, second = arm.steps
    assert first.model_dump() == {
        "step": 1,
        "batch_idx_train": 8,
        "loss": 2.5,
        "seconds": 3.0,
        "peak_bytes": 1500,
        "losses_bytes": 700,  # the pruned loss's 900 above the 200 that the encoder left
        "grad_scale": 8.0,
        "phases": {
            "encoder": {"seconds": 0.25, "peak_bytes": 300},
            "pruned_loss": {"seconds": 0.5, "peak_bytes": 900},
            "other": {"seconds": 0.625, "peak_bytes": 250},
            "backward": {"seconds": 1.0, "peak_bytes": 1500},
        },
    }
    assert second.grad_scale is None
    assert losses_of(arm) == [2.5, 1.5]
    assert arm.memory_kind == "process RSS"
    assert arm.base_bytes == 120


def test_counters_are_summed_over_outer_phases_only(write):
    counters = read_arm(write(HEADER, *step_rows(1), *step_rows(2))).counters
    assert counters.losses_routed == 2
    assert counters.sites == 200
    assert counters.sites_backward == 120
    assert counters.materialised == {"cumsum": 2}


def test_cuda_rows_are_told_from_rss_rows(write):
    rows = [
        {**row, "peak_bytes": 77, "allocated_bytes": 5}
        for row in (step_rows(1)[3], step_rows(1)[6])
    ]
    arm = read_arm(write(*rows))
    assert arm.memory_kind == "CUDA allocated"
    assert arm.steps[0].peak_bytes == 77


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(write, tmp_path):
    whole = step_rows(1) + step_rows(2)
    assert len(read_arm(write(HEADER, *whole[:-1], tail='{"row": "pha')).steps) == 1
    assert read_arm(write(HEADER, *whole[:3])).steps == []
    assert read_arm(tmp_path / "never.jsonl").steps == []


def test_of_several_runs_in_one_log_the_last_one_is_read(write, tmp_path):
    first = {**HEADER, "run_id": "a", "options": {"use_panda": False}, "new key": {}}
    second = {**HEADER, "run_id": "b", "options": {"use_panda": True}, "memory": {"rss_bytes": 5}}
    old = [{**row, "run_id": "a"} for row in step_rows(1, loss=6.0) + step_rows(2)]
    new = [{**row, "run_id": "b", "new key": 1} for row in step_rows(1)]
    arm = read_arm(write(first, *old[:7], second, *new, *old[7:]))
    assert losses_of(arm) == [2.5]
    assert arm.counters.sites == 100
    assert (arm.base_bytes, arm.options) == (5, {"use_panda": True})
    # A log of before there were run ids, and a run that was killed within a row.
    torn = write(HEADER, *step_rows(1, loss=6.0), tail='{"row": "phase", "st')
    later = json.dumps(HEADER) + "\n" + "\n".join(map(json.dumps, step_rows(1))) + "\n"
    torn.write_text(torn.read_text() + later)
    assert losses_of(read_arm(torn)) == [2.5]
    assert read_arm(torn).options is None


def test_what_the_losses_added_is_left_out_where_it_was_not_measured(write):
    rows = [row for row in step_rows(1) if row["phase"] != "encoder"]
    assert read_arm(write(*rows)).steps[0].losses_bytes is None
    rows = [{**row, "peak_is_since_start": True} for row in step_rows(1)]
    assert read_arm(write(*rows)).steps[0].losses_bytes is None


def test_a_row_of_something_else_is_named(write, tmp_path):
    broken = {**step_rows(1)[3], "seconds": "soon"}
    with pytest.raises(UsageError, match=r"memory\.jsonl: seconds: .*number.*expected a file"):
        read_arm(write(HEADER, broken))


def test_a_step_that_raised_does_not_count(write):
    rows = step_rows(1)
    rows[-1]["error"] = "RuntimeError: no"
    assert read_arm(write(HEADER, *rows)).steps == []


def test_losses_spelt_as_text_are_not_finite(write):
    arm = read_arm(write(*step_rows(1, loss="nan"), *step_rows(2), *step_rows(3, loss="inf")))
    assert [step.step for step in arm.steps if not step.is_finite] == [1, 3]
    assert math.isnan(losses_of(arm)[0])


def test_the_model_of_a_checkpoint(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "path": tmp_path}, tmp_path / "epoch-1.pt")
    assert final_parameters(tmp_path)["w"].tolist() == [1.0, 1.0]


def test_a_checkpoint_that_is_missing_or_holds_no_model(tmp_path):
    with pytest.raises(UsageError, match=r"epoch-1\.pt: not written"):
        final_parameters(tmp_path)
    torch.save({"weights": 1}, tmp_path / "epoch-1.pt")
    with pytest.raises(UsageError, match=r"got the keys \['weights'\], expected one named model"):
        final_parameters(tmp_path)
