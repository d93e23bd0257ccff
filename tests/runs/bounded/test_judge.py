"""What each stage left, and whether that is an answer at all."""

import json

import pytest
import torch

from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.judge import Judge
from panda_icefall.runs.bounded.plan import Stage
from panda_icefall.runs.bounded.stage import StageFailed, StageOutcome
from panda_icefall.runs.run_record import RunRecord

CONFIG = BoundedConfig.model_validate(
    {
        "recipe": "egs/aishell/ASR/zipformer/train.py",
        "train_args": {},
        "data": {"corpus": "aishell", "lang": "char", "vocab_size": 11},
        "bounds": {"max_batches": 2, "max_minutes": 5.0},
        "contract": {"batches": 1},
    }
)
PASSED = {
    "has_passed": True,
    "updates": 1,
    "batches": [],
    "parameters": [],
    "parameters_twin": [],
    "violations": [],
    "tolerances": {"loss_rel": 1e-6, "gradient_rel_l2": 1e-5, "parameter_rel_l2": 1e-6},
}
VIOLATED = {**PASSED, "has_passed": False, "violations": ["update 1: no"]}


@pytest.fixture
def judge(tmp_path):
    """A judge on the CPU, with `record`, and `stage(name)` in a folder of its own."""
    record = RunRecord()
    made = Judge(CONFIG, "cpu", record)
    made.record = record

    def stage(name):
        folder = tmp_path / name
        (folder / "exp").mkdir(parents=True, exist_ok=True)
        log, memory_log = folder / "output.log", folder / "memory.jsonl"
        return Stage(name, "", ("true",), log, memory_log, folder / "exp")

    def contract(status, **files):
        check = stage("contract")
        for name, content in files.items():
            rank = "" if name == "rank0" else f".{name}"
            (check.exp_dir / f"panda-check{rank}.json").write_text(json.dumps(content))
        made.read(check)
        made.judge(check, StageOutcome(status, 1.0, "last words"))

    def trained(name, losses, weight=None, adjoint_mass=1.0):
        """An arm left with these losses per frame, and with a model if it came to its end."""
        arm = stage(name)
        counted = {"losses_routed": int(name == "routed"), "adjoint_mass": adjoint_mass}
        rows = [
            {"row": "phase", "step": step, "phase": phase, "seconds": 1.0, **values}
            for step, loss in enumerate(losses, 1)
            for phase, values in (
                ("compute_loss", {"loss": loss, "frames": 1, **counted}),
                ("backward_update", {}),
            )
        ]
        arm.memory_log.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.read(arm)
        if weight is not None:
            torch.save({"model": {"w": torch.tensor([weight])}}, arm.exp_dir / "epoch-1.pt")
            made.judge(arm, StageOutcome(0, 1.0, ""))

    made.stage, made.contract, made.trained = stage, contract, trained
    made.answers = lambda: [(v.name, v.holds) for v in record.verdicts]
    return made


def test_a_contract_that_passed(judge):
    judge.contract(0, rank0=PASSED)
    assert judge.record.verdicts[0].holds is True
    assert judge.record.contract.updates == 1


def test_a_contract_that_is_violated_is_an_answer(judge):
    judge.contract(1, rank0=VIOLATED)
    assert judge.record.verdicts[0].holds is False


def test_every_rank_must_pass(judge):
    judge.contract(1, rank0=PASSED, rank1=PASSED, rank2=VIOLATED, rank3=PASSED)
    (verdict,) = judge.record.verdicts
    assert verdict.holds is False
    assert "1 violation(s) on rank 2" in verdict.text


@pytest.mark.parametrize(
    ("status", "files"),
    [
        (-9, {"rank0": PASSED}),  # killed after it had written
        (1, {"rank0": PASSED}),
        (0, {"rank0": VIOLATED}),
        (0, {}),
        (1, {}),
        (2, {}),
    ],
)
def test_a_contract_process_that_ended_otherwise_is_no_answer(judge, status, files):
    with pytest.raises(StageFailed, match=f"the contract run ended with status {status}"):
        judge.contract(status, **files)
    assert judge.record.verdicts == []


def test_an_epoch_that_ends_early_is_a_failure_of_the_dense_run(judge):
    judge.contract(0, rank0=PASSED)
    stage = judge.stage("dense")
    torch.save({"model": {}}, stage.exp_dir / "epoch-1.pt")
    judge.read(stage)
    with pytest.raises(StageFailed, match=r"ended after 0 batches, bounds\.max_batches asks for 2"):
        judge.judge(stage, StageOutcome(0, 1.0, ""))


def test_a_run_without_a_checkpoint_is_a_failure(judge):
    judge.contract(0, rank0=PASSED)
    stage = judge.stage("dense")
    judge.read(stage)
    with pytest.raises(StageFailed, match=r"the dense run: .*epoch-1\.pt: not written"):
        judge.judge(stage, StageOutcome(0, 1.0, ""))


def test_an_interrupted_run_is_judged_by_the_steps_that_were_trained(judge):
    judge.contract(0, rank0=PASSED)
    judge.trained("dense", [4.0, 2.0], weight=1.0)
    judge.trained("routed", [4.0])
    judge.judge_partial()
    assert judge.answers() == [
        ("contract", True),
        ("transducer loss", True),
        ("trajectory", True),
        ("finite", True),
    ]
    assert "1 of 2 steps" in judge.record.verdicts[2].text
    assert judge.record.verdicts[3].text == "0 step(s) with NaN or infinity"


@pytest.mark.parametrize(
    ("loss", "holds"), [(2.1, None), (float("nan"), False)], ids=["far", "nan"]
)
def test_what_the_twin_would_decide_stays_open_without_it(judge, loss, holds):
    judge.contract(0, rank0=PASSED)
    judge.trained("dense", [4.0, 2.0], weight=1.0)
    judge.trained("routed", [4.0, loss], weight=1.1)
    judge.trained("twin", [])
    judge.judge_partial()
    assert judge.answers() == [
        ("contract", True),
        ("transducer loss", True),
        ("trajectory", holds),
        ("final parameters", None),
        ("finite", holds is None),
    ]
    text = judge.record.verdicts[3].text
    assert text.startswith("rel-L2 1.0e-01; ")
    assert text.endswith("(configured 1e-06; no dense twin yet)")


def test_a_gradient_that_has_not_come_yet_is_no_violation(judge):
    judge.contract(0, rank0=PASSED)
    judge.trained("routed", [4.0], adjoint_mass=0.0)
    judge.judge_partial()
    assert judge.answers() == [("contract", True), ("transducer loss", None)]


def test_a_run_that_ended_after_its_twin_has_nothing_judged_twice(judge):
    judge.contract(0, rank0=PASSED)
    for name in ("dense", "routed", "twin"):
        judge.trained(name, [4.0, 2.0], weight=1.0)
    given = judge.answers()
    judge.judge_partial()
    assert judge.answers() == given
    assert len(given) == 5


@pytest.mark.parametrize(("content", "holds"), [(PASSED, None), (VIOLATED, False)])
def test_a_contract_that_was_interrupted_can_only_be_violated(judge, content, holds):
    check = judge.stage("contract")
    (check.exp_dir / "panda-check.json").write_text(json.dumps(content))
    judge.read(check)
    judge.judge_partial()
    assert judge.answers() == [("contract", holds)]


def test_without_a_contract_nothing_is_judged(judge):
    judge.trained("dense", [4.0, 2.0])
    judge.trained("routed", [4.0, 2.0])
    judge.judge_partial()
    assert judge.answers() == []


def test_the_signal_that_killed_a_process_is_named(judge):
    with pytest.raises(StageFailed, match=r"ended with status -9 \(SIGKILL\); "):
        judge.contract(-9, rank0=PASSED)
