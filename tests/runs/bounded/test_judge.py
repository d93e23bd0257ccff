"""What each stage left, and whether that is an answer at all."""

import json

import pytest
import torch

from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.judge import Judge
from panda_icefall.runs.bounded.plan import Stage
from panda_icefall.runs.bounded.stage import StageFailed, StageOutcome

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
    """A judge on the CPU, with `content`, and `stage(name)` in a folder of its own."""
    content = {"verdicts": [], "arms": {}}
    made = Judge(CONFIG, "cpu", content)
    made.content = content

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

    made.stage, made.contract = stage, contract
    return made


def test_a_contract_that_passed(judge):
    judge.contract(0, rank0=PASSED)
    assert judge.content["verdicts"][0]["holds"] is True
    assert judge.content["contract"]["updates"] == 1


def test_a_contract_that_is_violated_is_an_answer(judge):
    judge.contract(1, rank0=VIOLATED)
    assert judge.content["verdicts"][0]["holds"] is False


def test_every_rank_must_pass(judge):
    judge.contract(1, rank0=PASSED, rank1=PASSED, rank2=VIOLATED, rank3=PASSED)
    (verdict,) = judge.content["verdicts"]
    assert verdict["holds"] is False
    assert "1 violation(s) on rank 2" in verdict["text"]


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
    assert judge.content["verdicts"] == []


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
