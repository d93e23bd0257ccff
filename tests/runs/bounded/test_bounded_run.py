"""A bounded run from a configuration to a report, on a toy recipe in processes of its own."""

import json
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from panda_icefall.cli import cli
from panda_icefall.runs import UsageError
from panda_icefall.runs.bounded import run as bounded_run
from panda_icefall.runs.bounded.continuation import only_run_in
from panda_icefall.runs.bounded.request import check_request
from panda_icefall.runs.bounded.run import run_bounded
from panda_icefall.runs.bounded.stage import Deadline
from panda_icefall.runs.hooks.contract_check import COMPARED

STAGES = ["contract", "dense", "routed", "twin", "stopped", "resumed"]


BROKEN = {"break-at": 1, "num-batches": 6}  # the contract fails


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
        ("transducer loss", True),
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

    log = (checkout.out / "contract/output.log").read_text()
    assert log.count(COMPARED) == 2  # by which its progress is shown

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
    rewrite(checkout, train_args=BROKEN)
    assert run(checkout) == 1
    (made,) = checkout.calls
    folder = checkout.out / "data"
    assert made == ("make", "aishell", folder, checkout.root, 400, "char", 11, 42)
    assert report(checkout)["data"]["kind"] == "synthetic"
    assert "the contract run ended with status 1" in report(checkout)["reason"]


def test_given_data_are_checked_before_anything_starts(checkout, tmp_path):
    rewrite(checkout, train_args=BROKEN)
    data = tmp_path / "data"
    assert run(checkout, synthetic=False, data=data) == 1
    (checked,) = checkout.calls
    corpus_folder = checkout.root / "egs/aishell/ASR"
    words = ["--break-at", "1", "--num-batches", "6"]
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
    assert content["state"] == "complete", content["reason"]
    found = {v["name"]: (v["holds"], v["text"]) for v in content["verdicts"]}
    judged = ("contract", "trajectory", "finite", "resume")
    assert [found[name][0] for name in judged] == [False, False, True, True], found


def test_a_recipe_without_a_routed_loss_fails_in_words(checkout):
    rewrite(checkout, train_args={"num-batches": 6, "kind": "ctc"})
    assert run(checkout) == 1
    assert "no loss was routed in the first training batch" in report(checkout)["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_partial_report_and_readable_logs(checkout, number):
    rewrite(
        checkout,
        train_args={"num-batches": 100000},
        bounds={"max_batches": 99999, "max_minutes": 30, "resume_after": 10},
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
    assert "bounds.max_minutes: the limit of 0.25 minutes was reached" in report(checkout)["reason"]


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


def asked_by(command):
    """The request that a command of the report makes, read by the command line's own parser."""
    words = shlex.split(command)
    start = words.index("bounded") + 1
    assert words[: start - 1] in (["panda-icefall"], [sys.executable, "-m", "panda_icefall"])
    given = cli.commands["bounded"].make_context("bounded", words[start:]).params
    assert given.pop("is_json") is False
    return check_request(given.pop("config"), **given)


@pytest.mark.parametrize("has_data", [False, True], ids=["synthetic", "data"])
def test_the_command_in_the_report_makes_the_same_run_again(
    checkout, tmp_path, monkeypatch, has_data
):
    """Given as relative paths with a blank in them, read back in another folder."""
    here = tmp_path / "my folder"
    here.mkdir()
    monkeypatch.chdir(here)
    shutil.move(checkout.config, here / "the config.yaml")
    shutil.move(checkout.root, here / "ice fall")
    where = {"data": Path("my data")} if has_data else {"synthetic": True}
    words = {"device": "cpu", "max_minutes": 7.5, **where}
    asked = check_request(Path("the config.yaml"), Path("ice fall"), **words)
    assert asked.out == here / "panda-bounded/aishell-pruned-the config"
    monkeypatch.setattr("panda_icefall.runs.bounded.run.run_stage", None)
    with pytest.raises(TypeError):  # its first stage
        run_bounded(asked)
    content = json.loads((asked.out / "report.json").read_text())

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (here, elsewhere):
        monkeypatch.chdir(folder)
        again = asked_by(content["command"])
        assert again.out.parent == folder / "panda-bounded"
        assert again.earlier is None
        assert list(again.out.iterdir()) == []
        assert again.config == asked.config
        assert again.config.bounds.max_minutes == 7.5
        assert again.data == (here / "my data" if has_data else None)
        assert (again.train_py, again.device) == (asked.train_py, "cpu")
        assert again.inputs == asked.inputs
    assert asked_by(content["continuation"]).out == asked.out


def interrupt(monkeypatch, stage, steps):
    """The bound in minutes is over once `stage` has trained that many steps."""
    real = bounded_run.run_stage

    def run_stage(command, folder, environment, log, deadline, on_poll):
        def stop():
            memory_log = log.with_name("memory.jsonl")
            rows = memory_log.read_text() if memory_log.exists() else ""
            if rows.count('"phase": "backward_update"') >= steps:
                monkeypatch.setattr(Deadline, "is_over", True)
                deadline.check()

        if log.parent.name != stage:
            return real(command, folder, environment, log, deadline)
        slow = {**environment, "TOY_SLEEPS_AT": str(steps + 1)}
        return real(command, folder, slow, log, deadline, stop)

    monkeypatch.setattr(bounded_run, "run_stage", run_stage)


def test_a_partial_run_is_judged_so_far_and_continued(checkout, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        interrupt(patch, "routed", 2)
        assert run(checkout) == 1
    content = report(checkout)
    assert content["state"] == "partial"
    assert (
        content["reason"]
        == "bounds.max_minutes: the limit of 30 minutes was reached during the routed run"
    )
    assert [(v["name"], v["holds"]) for v in content["verdicts"]] == [
        ("contract", True),
        ("transducer loss", True),
        ("trajectory", True),
        ("finite", True),
    ]
    assert "2 of 4 steps" in content["verdicts"][2]["text"]
    assert "configured 1e-06; no dense twin yet" in content["verdicts"][2]["text"]
    told = capfd.readouterr().err
    assert "resume not judged: not reached" in told
    assert f"continue it: {content['continuation']}" in told
    assert content["continuation"] in (checkout.out / "report.md").read_text()
    assert f"--max-minutes 60 --out {checkout.out}" in content["continuation"]

    dense = (checkout.out / "dense" / "memory.jsonl").read_bytes()
    again = asked_by(content["continuation"])
    assert again.config.bounds.max_minutes == 60
    assert run_bounded(again) == 0
    content = report(checkout)
    assert content["state"] == "complete"
    assert [(s["name"], s["state"]) for s in content["stages"]] == [
        *(("contract", "taken over"), ("dense", "taken over")),
        *((name, "done") for name in STAGES[2:]),
    ]
    assert [v["holds"] for v in content["verdicts"]] == 6 * [True]
    assert len(content["arms"]["routed"]["steps"]) == 4
    assert (checkout.out / "dense" / "memory.jsonl").read_bytes() == dense
    assert (checkout.out / "routed-attempt-1" / "output.log").exists()
    assert [call[0] for call in checkout.calls] == ["make"]
    told = capfd.readouterr().err
    assert "2/6 dense: taken over from the earlier run" in told
    with pytest.raises(UsageError, match="which holds a finished run"):
        run(checkout)


def test_an_option_that_the_recipe_does_not_have_is_found_before_data_are_made(checkout):
    rewrite(checkout, train_args={"num-batchs": 6, "world-size": 1})
    message = r"config\.yaml: train_args\.num-batchs: .* no such option; did you mean num-batches"
    with pytest.raises(UsageError, match=message):
        run(checkout)
    assert not checkout.out.exists()
    assert checkout.calls == []


def test_two_processes_do_not_write_one_folder(checkout):
    asked = check_request(checkout.config, checkout.root, synthetic=True, device="cpu")
    with (
        only_run_in(asked.out),
        pytest.raises(UsageError, match=r"--out: got .*, in which another process is running"),
    ):
        run_bounded(asked)


def test_a_stage_that_another_process_ended_is_an_interruption(checkout):
    """As a scheduler does, which signals every process of a job."""
    rewrite(checkout, train_args={"num-batches": 6, "kill-at": 1})
    train_py = checkout.root / "egs/aishell/ASR/pruned/train.py"
    train_py.write_text(train_py.read_text().replace("signal.SIGKILL", "signal.SIGTERM"))
    assert run(checkout) == 128 + signal.SIGTERM
    content = report(checkout)
    assert content["state"] == "partial"
    assert content["reason"] == "its process was ended by SIGTERM during the contract run"
    assert [stage["state"] for stage in content["stages"]] == ["interrupted"]


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
    with pytest.raises(UsageError, match="--max-minutes: got nan, expected a number above 0"):
        run(checkout, max_minutes=float("nan"))
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
