"""Every transducer loss as it is benchmarked: the methods agree, and the table says what ran."""

from dataclasses import replace

import bench_losses
import pytest
import torch
from benchmarks import losses, tables
from benchmarks.agreement import Reference
from benchmarks.child import Measured, step_of
from benchmarks.inputs import LossInputs
from benchmarks.losses import LOSSES, LossStep, arms_of
from benchmarks.packages import HAS_K2
from benchmarks.peaked_inputs import peaked_inputs
from benchmarks.shapes import PUBLIC, LossShape
from benchmarks.steps import site_shares
from lattice_oracle import LossKind, transducer_costs

SHAPE = LossShape(B=3, T=11, S=5, s_range=4, C=37, H=8, D=8, shortest=0.4)
CPU = torch.device("cpu")
TINY = "--B 3 --T 12 --S 4 --H 8 --D 8 --repeats 1".split()
C = SHAPE.C

# What the losses are called in the oracle; the symbols come before big blanks, blank, durations.
KINDS = {
    "regular": LossKind(),
    "modified": LossKind(rnnt_type="modified"),
    "constrained": LossKind(rnnt_type="constrained"),
    "one-symbol-per-frame": LossKind(rnnt_type="one_sym_per_frame"),
    "HAT": LossKind(head="hat"),
    "FastEmit": LossKind(fastemit_lambda=0.01),
    "multi-blank": LossKind(big_blank_durations=(2, 4, 8), blank=C - 1 + 3, sigma=0.05),
    "TDT": LossKind(durations=(0, 1, 2, 3, 4), blank=C - 1, sigma=0.05),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make", [LossInputs.random, peaked_inputs])
def test_every_method_agrees_with_the_dense_loss(loss, make):
    inputs = make(SHAPE, CPU)
    reference = Reference(step_of("dense", loss, inputs))
    assert len(arms_of(loss)) > 2
    for arm in arms_of(loss):
        agreement = reference.against(step_of(arm, loss, inputs))
        assert agreement.loss_rel < 2e-6, arm
        assert agreement.worst_grad_rel_l2 < 2e-5, arm


@pytest.mark.parametrize("loss", LOSSES)
def test_the_dense_loss_is_the_oracles(loss):
    """Else being smaller or faster than it would mean nothing."""
    form, inputs = LOSSES[loss], LossInputs.random(SHAPE, CPU)
    step = LossStep.make("dense", loss, inputs)
    am = step.model.encoder_proj(inputs.encoder_out)
    lm = step.model.decoder_proj(inputs.decoder_out)
    logits = step.model(am.unsqueeze(2), lm.unsqueeze(1))
    ranges = inputs.ranges if form.is_pruned else None
    if form.is_pruned:
        index = ranges.unsqueeze(-1).expand(*ranges.shape, logits.shape[-1])
        logits = logits.gather(2, index)
    lengths = inputs.boundary[:, 3], inputs.boundary[:, 2]
    kind = KINDS[loss.removesuffix(", pruned")]
    costs = transducer_costs(logits, step.symbols, *lengths, kind, ranges)
    assert costs.isfinite().all()
    assert step.run().item() == pytest.approx(costs.sum().item(), rel=1e-5)


@pytest.mark.k2
def test_the_k2_lane_has_real_peers():
    assert {"torchaudio", "k2"} <= {*arms_of("regular")}
    assert "k2" in arms_of("modified")


def test_peaked_inputs_need_backward_on_few_sites():
    shape = replace(PUBLIC["unsorted"], B=2, T=90, S=24, H=128, D=128)
    shares = {}
    for make in (LossInputs.random, peaked_inputs):
        LossStep.make("panda", "regular", make(shape, CPU)).run()
        shares[make.__name__] = site_shares()[1]
    assert shares["peaked_inputs"] < 0.35
    assert shares["random"] > 0.8


def test_the_band_of_peaked_inputs_holds_their_alignment():
    inputs = peaked_inputs(replace(PUBLIC["unsorted"], B=2, T=90, S=24, H=64, D=64), CPU)
    pruned, full = (
        step_of("dense", name, inputs).run() for name in ("multi-blank, pruned", "multi-blank")
    )
    assert pruned.item() == pytest.approx(full.item(), rel=0.05)


def test_a_method_that_was_not_routed_is_refused(monkeypatch):
    step = LossStep.make("panda", "regular", LossInputs.random(SHAPE, CPU))
    joiner = step.model
    monkeypatch.setattr(
        joiner, "forward", lambda am, lm: joiner.output_linear((am + lm).roll(1).roll(-1))
    )
    with pytest.raises(RuntimeError, match="the regular loss was not routed"):
        step.run()


def test_the_table_has_every_loss_and_method(script, checked):
    words = [*TINY, "--classes", 30, "--adjoints", "peaked"]
    rows = checked(script("bench_losses", *words), "losses")
    assert list(dict.fromkeys(row["form"] for row in rows)) == bench_losses.MEASURED
    for loss in bench_losses.MEASURED:
        assert [row["arm"] for row in rows if row["form"] == loss] == arms_of(loss)
    for row in rows:
        assert row["time_ratio"] > 0
        assert row["grad_rel_l2"] < 1e-5
        assert (row["of_limit"] is not None) == (row["arm"] == "panda")
        has_torchaudio = HAS_K2 and row["form"] == "regular"
        assert (row["torchaudio_time_ratio"] is not None) == has_torchaudio
        if row["arm"].startswith("panda"):
            assert 0 < row["backward_share"] <= 1


def test_a_method_above_the_cap_is_said_to_be_and_not_timed(script, checked, monkeypatch):
    from benchmarks import child

    run = child.run
    monkeypatch.setattr(
        child, "run", lambda job: Measured(True) if job.arm == "dense" else run(job)
    )
    words = [*TINY, "--public", "sorted", "--losses", "regular", "--arms", "panda"]
    figures = script("bench_losses", *words, "--shorten", 2)
    assert figures["settings"]["shapes"]["sorted"]["T"] == 6
    dense, panda = checked(figures, "losses")
    assert dense["is_out_of_memory"]
    assert panda["seconds_min"] > 0
    assert panda["memory_ratio"] is panda["time_ratio"] is None
    cells = [tables.COLUMNS["losses"][3].text([row]) for row in (dense, panda)]
    assert cells[0] == "OOM"
    assert cells[1] != "OOM"


def test_classes_of_durations_and_big_blanks_come_after_the_symbols():
    inputs = LossInputs.random(SHAPE, CPU)
    plain = LossStep.make("panda", "regular", inputs).model.output_linear
    for loss, blank, extra in (("multi-blank", C + 2, 3), ("TDT", C - 1, len(losses.DURATIONS))):
        step = LossStep.make("panda", loss, inputs)
        head = step.model.output_linear
        assert head.out_features == C + extra
        assert step.blank == blank
        assert torch.equal(head.weight[: C - 1], plain.weight[1:])
        assert torch.equal(head.bias[blank], plain.bias[0])
