"""The embedded recipe trains: twice alike, resumed, routed, in two processes; and decodes."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
import torch
from tones import RECIPE, REPO, SMALL_MODEL, printed_losses, run_script


def test_training_twice_from_one_seed_prints_the_same_losses(data_dir, trained, tmp_path):
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL]
    again = run_script(RECIPE / "train.py", *arguments)
    losses = printed_losses(trained[1])
    assert len(losses) >= 6
    assert printed_losses(again.stderr) == losses


def test_resuming_goes_on_as_if_never_stopped(data_dir, trained, tmp_path):
    def parameters(exp_dir: Path):
        return torch.load(exp_dir / "epoch-2.pt", map_location="cpu")["model"]

    # Dropout off: its random state is not part of a checkpoint.
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--dropout=0", *SMALL_MODEL]
    whole = run_script(RECIPE / "train.py", *arguments, "--num-epochs=2")
    expected = parameters(tmp_path)
    resumed = run_script(RECIPE / "train.py", *arguments, "--num-epochs=2", "--start-epoch=2")
    assert whole.returncode == resumed.returncode == 0, whole.stderr + resumed.stderr
    for name, value in parameters(tmp_path).items():
        assert torch.equal(value, expected[name]), name


def test_decoding_writes_the_results_and_the_token_error_rate(data_dir, trained):
    exp_dir = trained[0]
    done = run_script(
        RECIPE / "decode.py", "--data-dir", data_dir, "--exp-dir", exp_dir, "--epoch=2"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"token error rate [\d.]+% \[\d+ / \d+, ", done.stderr)
    (recogs,) = (exp_dir / "greedy_search").glob("recogs-test-*.txt")
    lines = recogs.read_text().splitlines()
    transcripts = (data_dir / "text" / "transcripts_test.txt").read_text().splitlines()
    assert sorted(line[4:] for line in lines[::2]) == sorted(transcripts)
    assert all(line.startswith("hyp=") for line in lines[1::2])


def test_the_panda_flag_changes_no_printed_loss(data_dir, trained, tmp_path):
    done = run_script(
        *["-m", "panda_icefall", "run", RECIPE / "train.py", "--data-dir", data_dir],
        *["--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL, "--use-panda", "1"],
    )
    assert done.returncode == 0, done.stderr
    number = r"(\w+)=([\d.e+-]+)"
    dense = [re.findall(number, line) for line in printed_losses(trained[1])]
    routed = [re.findall(number, line) for line in printed_losses(done.stderr)]
    assert len(dense) == len(routed) > 0
    for expected, got in zip(dense, routed):
        assert [name for name, _ in got] == [name for name, _ in expected]
        # Four digits are printed; the last may round the other way.
        assert [float(v) for _, v in got] == pytest.approx(
            [float(v) for _, v in expected], rel=2e-3
        )


def test_the_tutorial_runs_as_it_is_written(data_dir, tmp_path):
    """Its commands that train, and its report, with this recipe for AISHELL's."""
    text = (REPO / "egs/TUTORIAL.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^panda-icefall (check|run|report) (.*)$", text, flags=re.M)
    assert [verb for verb, _ in lines] == ["check", "run", "run", "run", "report"]
    size = ["--data-dir", data_dir, "--num-epochs=1", *SMALL_MODEL]
    said = []
    for verb, rest in lines:
        words = [
            word.replace("zipformer/exp", f"{tmp_path}/exp")
            for word in rest.replace("zipformer/check", f"{tmp_path}/check").split()
        ]
        if verb == "report":
            words[-1] = str(tmp_path / "report")
        else:
            words[0] = str(RECIPE / "train.py")
            at = words.index("--max-duration")
            words[at : at + 2] = map(str, size)
        done = run_script("-m", "panda_icefall", verb, *words)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    checked, trained, dense, routed, _ = said
    assert "The contract holds" in checked
    for of_panda in (trained, routed):
        assert re.search(r"losses routed / dense\W+\d+ / 0\b", of_panda)
        assert re.search(r"materialised\W+0\b", of_panda)
    assert "OFF" in dense
    assert "added by the losses of a step" in dense
    assert len(printed_losses(dense)) == len(printed_losses(routed)) > 0
    assert (tmp_path / "report" / "report.html").is_file()


def test_autocast_trains_to_about_the_same_losses(data_dir, trained, tmp_path):
    arguments = ["--data-dir", data_dir, "--exp-dir", tmp_path, "--num-epochs=2", *SMALL_MODEL]
    done = run_script(RECIPE / "train.py", *arguments, "--use-fp16=1")
    assert done.returncode == 0, done.stderr
    pattern = r"validation: loss=([\d.]+)"
    exact, half = (
        [float(v) for v in re.findall(pattern, log)] for log in (trained[1], done.stderr)
    )
    # bf16 keeps eight bits: a percent after two epochs is what rounding may do.
    assert half == pytest.approx(exact, rel=1e-2)
    assert printed_losses(done.stderr) != printed_losses(trained[1])


def test_two_processes_train_routed_and_report_once_however_they_are_started(data_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    panda = ["-m", "panda_icefall", "run", RECIPE / "train.py", "--data-dir", data_dir]
    panda += ["--num-epochs=1", *SMALL_MODEL, "--use-panda", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said = []
    for name, words in {
        "spawned": [*panda, "--world-size=2", f"--master-port={port}"],
        "torchrun": [*torchrun, *panda],
    }.items():
        done = run_script(*words, "--exp-dir", tmp_path / name)
        assert done.returncode == 0, done.stderr
        validation = re.findall(r"\((\d)/2\) Epoch 1, validation: (.*)", done.stderr)
        assert sorted(rank for rank, _ in validation) == ["0", "1"]
        assert validation[0][1] == validation[1][1]
        assert (tmp_path / name / "epoch-1.pt").is_file()
        # One report, in which both ranks routed all of their losses.
        assert done.stderr.count("PANDA summary") == 1
        (counted,) = re.findall(r"(?<!CTC )losses routed / dense\W+(\d+) / (\d+)", done.stderr)
        (batches,) = re.findall(r"training batches per rank\W+(\d+, \d+)", done.stderr)
        said.append((validation[0][1], counted, batches))
        assert int(counted[0]) > sum(map(int, batches.split(", "))) > 2
        assert counted[1] == "0"
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data-dir={none}"], "vocab_size: got 60, expected a finished"),
        (["--data-dir={data}", "--vocab-size=77"], "vocab_size: got 77, expected a finished"),
        (["--data-dir={data}", "--start-epoch=4"], "checkpoint: got .*epoch-3.pt, expected"),
        (["--data-dir={data}", "--world-size=0"], "--world-size: got 0, expected at least 1"),
        (["--data-dir={data}", "--use-fp16=maybe"], "got 'maybe', expected 0 or 1"),
    ],
)
def test_wrong_arguments_stop_training_with_a_clear_message(
    data_dir, recipe, tmp_path, monkeypatch, capsys, arguments, message
):
    filled = [a.format(none=tmp_path / "none", data=data_dir) for a in arguments]
    monkeypatch.setattr(recipe.train, "setup_logger", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--exp-dir={tmp_path}", *SMALL_MODEL, *filled])
    with pytest.raises((SystemExit, FileNotFoundError)) as caught:
        recipe.train.main()
    assert getattr(caught.value, "code", 1) != 0
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")
