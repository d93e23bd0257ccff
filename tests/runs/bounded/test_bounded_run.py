"""A bounded run from a configuration to a report, on a toy recipe in processes of its own."""

import json
import os
import signal
import threading
import time

import pytest
import torch
import yaml

from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded.request import check_request
from panda_icefall.runs.bounded.run import run_bounded

STAGES = ["contract", "dense", "routed", "twin", "stopped", "resumed"]


def run(checkout, **changes):
    arguments = {"synthetic": True, "device": "cpu", "out": checkout.out, **changes}
    return run_bounded(check_request(checkout.config, checkout.root, **arguments))


def report(checkout):
    return json.loads((checkout.out / "report.json").read_text())


def rewrite(checkout, **changes):
    checkout.config.write_text(yaml.safe_dump({**checkout.content, **changes}))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_all_stages_run_and_every_verdict_holds(checkout):
    assert run(checkout) == 0
    content = report(checkout)
    assert content["state"] == "complete"
    assert content["passed"] is True
    assert content["title"] == "aishell/ASR/pruned/train (config)"
    assert [stage["name"] for stage in content["stages"]] == STAGES
    assert {stage["state"] for stage in content["stages"]} == {"done"}
    assert [(v["name"], v["holds"]) for v in content["verdicts"]] == [
        ("contract", True),
        ("pruned loss", True),
        ("trajectory", True),
        ("final parameters", True),
        ("finite", True),
        ("resume", True),
    ]
    steps = {name: len(arm["steps"]) for name, arm in content["arms"].items()}
    assert steps == {"dense": 4, "routed": 4, "twin": 4, "stopped": 2, "resumed": 2}
    assert content["arms"]["routed"]["counters"]["losses_routed"] > 0
    assert content["arms"]["dense"]["counters"]["losses_routed"] == 0
    assert content["final_parameters"]["twin_rel_l2"] > 0
    assert content["resume"]["is_bitwise"] is True
    for name in ("report.md", "report.html"):
        assert "aishell/ASR/pruned" in (checkout.out / name).read_text()

    # What the report says is in the files that the processes left.
    models = {
        name: torch.load(checkout.out / name / "exp/epoch-1.pt")["model"]
        for name in ("dense", "routed")
    }
    total = sum((models["dense"][k].double() ** 2).sum() for k in models["dense"])
    apart = sum(((models["dense"][k] - v).double() ** 2).sum() for k, v in models["routed"].items())
    assert content["final_parameters"]["rel_l2"] == pytest.approx((apart / total).sqrt().item())
    resumed = [step["batch_idx_train"] for step in content["arms"]["resumed"]["steps"]]
    assert resumed == [3, 4]


def test_synthetic_data_are_made_in_the_folder_of_the_run(checkout):
    rewrite(checkout, train_args={"no-such-option": 1})
    assert run(checkout) == 1
    (made,) = checkout.calls
    folder = checkout.out / "data"
    assert made == ("make", "aishell", folder, checkout.root, 400, "char", 11, 42)
    assert report(checkout)["data"]["kind"] == "synthetic"
    assert "unrecognized arguments: --no-such-option" in report(checkout)["reason"]


def test_given_data_are_checked_before_anything_starts(checkout, tmp_path):
    rewrite(checkout, train_args={"no-such-option": 1})
    data = tmp_path / "data"
    assert run(checkout, synthetic=False, data=data) == 1
    (checked,) = checkout.calls
    corpus_folder = checkout.root / "egs/aishell/ASR"
    words = ["--no-such-option", "1"]
    assert checked == ("check", "aishell", "char", data, 11, corpus_folder, words)
    assert report(checkout)["data"] == {
        "kind": "given",
        "folder": str(data),
        "corpus": "aishell",
        "lang": "char",
        "classes": 11,
    }


def test_data_that_cannot_be_made_leave_a_partial_report(checkout, monkeypatch):
    def fail(*_):
        raise FileExistsError("out: got something there")

    monkeypatch.setattr("panda_icefall.runs.bounded.run.synth_data", fail)
    with pytest.raises(UsageError, match="out: got something there"):
        run(checkout)
    assert report(checkout)["state"] == "partial"
    assert "during the synthetic data" in report(checkout)["reason"]


def test_a_stage_that_fails_ends_the_run_and_its_last_words_are_shown(checkout, capfd):
    rewrite(checkout, train_args={"num-batches": 6, "break-at": 3})
    assert run(checkout) == 1
    content = report(checkout)
    assert content["state"] == "partial"
    assert content["passed"] is False
    assert [stage["state"] for stage in content["stages"]] == ["done", "failed"]
    assert "the dense run ended with status 1" in content["reason"]
    assert "the toy recipe breaks on purpose" in content["reason"]
    assert [v["name"] for v in content["verdicts"]] == ["contract"]
    assert len(content["arms"]["dense"]["steps"]) == 2
    assert "PARTIAL: the dense run ended" in capfd.readouterr().err


def test_a_violated_contract_does_not_hide_the_rest(checkout):
    rewrite(checkout, train_args={"num-batches": 6, "kind": "skewed"})
    assert run(checkout) == 1
    content = report(checkout)
    assert content["state"] == "complete"
    holds = {v["name"]: v["holds"] for v in content["verdicts"]}
    assert holds["contract"] is False
    assert holds["trajectory"] is False
    assert holds["finite"] is True
    assert holds["resume"] is True


def test_a_recipe_without_a_routed_loss_fails_in_words(checkout):
    rewrite(checkout, train_args={"num-batches": 6, "kind": "ctc"})
    assert run(checkout) == 1
    assert "no loss was routed in the first training batch" in report(checkout)["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_partial_report_and_readable_logs(checkout, number):
    rewrite(
        checkout,
        train_args={"num-batches": 100000},
        bounds={"max_batches": 99999, "max_minutes": 5, "resume_after": 10},
    )

    def interrupt():
        log = checkout.out / "dense" / "memory.jsonl"
        while not log.exists() or log.read_text().count('"phase": "backward_update"') < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert run(checkout) == 128 + number
    content = report(checkout)
    assert content["state"] == "partial"
    assert content["reason"] == f"interrupted by {number.name} during the dense run"
    assert [stage["state"] for stage in content["stages"]] == ["done", "interrupted"]
    assert len(content["arms"]["dense"]["steps"]) >= 3
    end = (checkout.out / "dense" / "memory.jsonl").read_text().splitlines()[-1]
    assert json.loads(end)["reason"] == "KeyboardInterrupt"
    assert "PARTIAL" in (checkout.out / "report.md").read_text()


def test_the_bound_in_minutes_makes_the_run_partial(checkout):
    rewrite(
        checkout,
        train_args={"num-batches": 100000},
        bounds={"max_batches": 99999, "max_minutes": 0.25, "resume_after": 10},
    )
    assert run(checkout) == 1
    assert "bounds.max_minutes: 0.25 minutes were over" in report(checkout)["reason"]


def test_an_epoch_that_is_too_short_is_said_after_the_dense_run(checkout):
    rewrite(checkout, train_args={"num-batches": 3})
    assert run(checkout) == 1
    content = report(checkout)
    assert "its epoch ended after 3 batches, bounds.max_batches asks for 4" in content["reason"]
    assert [stage["state"] for stage in content["stages"]] == ["done", "failed"]


def test_a_recipe_without_its_checkpoint_fails_in_words(checkout):
    train_py = checkout.root / "egs/aishell/ASR/pruned/train.py"
    train_py.write_text(train_py.read_text().replace('f"epoch-{epoch + 1}.pt"', '"last.pt"'))
    assert run(checkout) == 1
    assert "the dense run: " in report(checkout)["reason"]
    assert "epoch-1.pt: not written" in report(checkout)["reason"]


def test_the_command_in_the_report_makes_the_same_run_again(checkout, tmp_path):
    rewrite(checkout, train_args={"no-such-option": 1})
    run(checkout, synthetic=False, data=tmp_path / "data")
    words = report(checkout)["command"].split()
    assert words[:2] == ["panda-icefall", "bounded"]
    assert words[2:] == [
        *(str(checkout.config), "--icefall-root", str(checkout.root)),
        *("--data", str(tmp_path / "data"), "--device", "cpu"),
    ]


def test_what_cannot_be_run_is_said_before_anything_starts(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--data, --synthetic: got neither, expected one"):
        run(checkout, synthetic=False)
    with pytest.raises(UsageError, match="--data, --synthetic: got both"):
        run(checkout, data=tmp_path)
    with pytest.raises(UsageError, match="--device: got cuda, but torch sees no GPU"):
        run(checkout, device="cuda")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--out: got .*full, which exists and is not empty"):
        run(checkout, out=tmp_path / "full")
    with pytest.raises(UsageError, match="icefall"):
        check_request(checkout.config, tmp_path / "full", synthetic=True)
    rewrite(checkout, train_args={"use-fp16": 1})
    with pytest.raises(UsageError, match=r"train_args\.use-fp16: got true on cpu"):
        run(checkout)
    rewrite(checkout, train_args={"world-size": 2})
    with pytest.raises(UsageError, match=r"train_args\.world-size: got more than 1 on cpu"):
        run(checkout)
    rewrite(checkout, data={"corpus": "wenetspeech", "lang": "char", "vocab_size": 11})
    with pytest.raises(UsageError, match=r"data\.corpus: got wenetspeech, whose recipes lie in"):
        run(checkout)
    rewrite(checkout, data={"corpus": "aishell", "lang": "bpe", "vocab_size": 11})
    with pytest.raises(UsageError, match="lang: got 'bpe', expected"):
        run(checkout)
    rewrite(checkout)
    with pytest.raises(UsageError, match=r"--out: got .*, inside the icefall checkout"):
        run(checkout, out=checkout.root / "egs" / "out")
    (checkout.root / "egs/aishell/ASR/pruned/decode.py").write_text("print('no guard')")
    rewrite(checkout, recipe="egs/aishell/ASR/pruned/decode.py")
    with pytest.raises(UsageError, match="has no top-level"):
        run(checkout)
    rewrite(checkout, recipe="egs/aishell/ASR/pruned/no.py")
    with pytest.raises(UsageError, match=r"recipe: got egs/aishell/ASR/pruned/no\.py, which"):
        run(checkout)
    assert not checkout.out.exists()
    assert checkout.calls == []


def test_a_folder_that_cannot_be_made(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--out: cannot make"):
        run(checkout, out=tmp_path / "file" / "out")
