"""Adjoints of a training: the tokenizer of few pieces, and the batch made of a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tones_tokenizer import train_tokenizer

REPO = Path(__file__).resolve().parents[2]
RECIPE = REPO / "egs/tones/ASR/pruned_transducer"
SIZES = "--encoder-dim 16 --decoder-dim 16 --joiner-dim 12 --num-encoder-layers 1".split()


def run(*words):
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One epoch of the recipe on a tiny corpus with a tokenizer of 30 pieces among 90 classes."""
    folder = tmp_path_factory.mktemp("tones")
    data = folder / "data"
    counts = "--num-train 12 --num-dev 2 --num-test 2 --num-words 80 --vocab-size 30".split()
    done = run(RECIPE / "prepare.py", "--data-dir", data, *counts)
    assert done.returncode == 0, done.stderr
    assert train_tokenizer(data, pieces=30, classes=90) == data / "lang_bpe_90"
    words = ["--vocab-size", 90, "--exp-dir", folder / "exp", "--num-epochs", 1, *SIZES]
    done = run(RECIPE / "train.py", "--data-dir", data, *words)
    assert done.returncode == 0, done.stderr
    return folder / "exp" / "epoch-1.pt"


def bench(checkpoint, path, *words):
    return run(
        REPO / "scripts/bench_loss.py", "--adjoints", "trained", "--checkpoint", checkpoint,
        "--B", 2, "--T", 90, "--parts", "pruned", "--arms", "panda", "--repeats", 1,
        "--json", path, *words,
    )  # fmt: skip


def test_the_loss_of_a_checkpoint_is_measured(checkpoint, tmp_path):
    done = bench(checkpoint, tmp_path / "loss.json", "--C", 90)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "loss.json").read_text())
    shape = figures["settings"]["shape"]
    assert (shape["B"], shape["C"], shape["H"], shape["D"]) == (2, 90, 12, 16)
    assert 60 <= shape["T"] <= 90
    (session,) = figures["sessions"]
    assert session["rows"][1]["grad_rel_l2"] < 1e-5
    assert "/" not in session["command"].replace("scripts/", "")


def test_another_number_of_classes_is_refused(checkpoint, tmp_path):
    done = bench(checkpoint, tmp_path / "loss.json")
    assert done.returncode == 2
    assert "--checkpoint: got one of 90 classes, expected 4336" in done.stderr


def test_a_checkpoint_of_unequal_widths_is_not_stored(checkpoint, tmp_path):
    script, out = REPO / "scripts/make_trained_inputs.py", tmp_path / "inputs.npz"
    done = run(script, "--checkpoint", checkpoint, "--out", out, "--B", 2, "--T", 90)
    assert done.returncode == 2
    assert "got --encoder-dim 16 and --joiner-dim 12, expected equal ones" in done.stderr
    assert not out.exists()


def test_the_unused_classes_occur_in_no_text(checkpoint):
    import sentencepiece

    data = checkpoint.parents[1] / "data"
    tokenizer = sentencepiece.SentencePieceProcessor()
    tokenizer.load(str(data / "lang_bpe_90" / "bpe.model"))
    assert tokenizer.get_piece_size() == 90
    assert tokenizer.piece_to_id("<blk>") == 0
    ids = {i for line in (data / "text/lexicon.txt").read_text().splitlines()
           for i in tokenizer.encode(line)}  # fmt: skip
    assert 10 < len(ids) <= 28
    assert not any(tokenizer.id_to_piece(i).startswith("<unused") for i in ids)


@pytest.mark.parametrize(
    ("pieces", "classes", "match"),
    [
        (2, 90, "--pieces: got 2, expected 2 < pieces <= --classes 90"),
        (91, 90, "--pieces: got 91"),
        (30, 60, "expected a folder that prepare.py"),
    ],
)
def test_an_impossible_tokenizer_is_refused(tmp_path, pieces, classes, match):
    with pytest.raises(ValueError, match=match):
        train_tokenizer(tmp_path, pieces, classes)


def test_a_tokenizer_that_is_there_is_kept(checkpoint):
    with pytest.raises(ValueError, match="is there; delete it"):
        train_tokenizer(checkpoint.parents[1] / "data", pieces=30, classes=90)
