"""What a plan says where nothing fits, nothing is gained, or the recipe's files tell little."""

import gzip
import json
import sys

import pytest

SMALL = ["--vocab", 4336, "--gpu-mem", "1.51GiB"]
TRAIN_PY = """
parser.add_argument("--joiner-dim", type=int, default=WIDTH)
parser.add_argument("--verbose")
params = {"decoder_dim": WIDTH, **more}
parser.add_argument("--prune-range", type=int, default=5)
parser.add_argument("--use-bf16", type=str2bool, default=True)
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe's folder in one of a corpus, with a text in place of TRAIN_PY's last line."""

    def write(corpus, text=""):
        folder = tmp_path / "egs" / corpus / "ASR" / "pruned"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(TRAIN_PY + text)
        return folder

    return write


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (SMALL, "set: nothing fits: a smaller encoder, or a GPU with more memory, is needed"),
        (["--vocab", 2, "--gpu-mem", "80GiB"], "set: what you like: even dense fits at --max-dur"),
        (["--vocab", 2, "--gpu-mem", "80GiB"], ">= 20,000"),
    ],
)
def test_the_advice_is_what_can_be_set(command, words, said):
    status, text, _ = command("plan", *words)
    assert status == 0
    assert said in text
    assert "--use-panda 1: the losses then take" not in text


@pytest.mark.parametrize("value", ["-5", "0", "inf", "nan"])
@pytest.mark.parametrize("name", ["max-duration", "utterance", "frame-rate", "symbol-rate"])
def test_what_is_no_length_or_rate_is_refused_by_name(command, name, value):
    words = ("--vocab", "100", "--gpu-mem", "24GiB", f"--{name}", value)
    status, text, error = command("plan", *words)
    assert (status, text) == (2, "")
    assert f"--{name}" in error
    assert value in error


def test_an_utterance_that_no_tile_can_hold_is_one_line(command):
    status, _, error = command("plan", "--vocab", 500, "--gpu-mem", "4GiB", "--utterance", 1e5)
    assert status == 2
    assert error.startswith("panda-icefall: workspace_bytes: got ")
    assert error.count("\n") == 1


def test_without_matplotlib_a_figure_is_refused_with_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["--vocab", 500, "--gpu-mem", "4GiB", "--figure", "plan.png"]
    status, _, error = command("plan", *words)
    assert status == 2
    assert "--figure: matplotlib cannot be loaded" in error
    assert "pip install 'panda-icefall[plots]'" in error


def test_classes_that_no_file_tells_are_those_published_for_the_corpus(command, recipe):
    unnumbered = 'parser.add_argument("--bpe-model", default="data/lang_bpe/bpe.model")\n'
    unmade = 'parser.add_argument("--lang-dir", default="data/lang_char")\n'
    for text in ("", unnumbered, unmade):
        status, printed, _ = command("plan", recipe("aishell", text), "--gpu-mem", "16GiB")
        assert status == 0
        assert "vocab 4336 (published for AISHELL)" in printed
        assert "dtype bf16 (train.py)" in printed
    status, _, error = command("plan", recipe("mine"), "--gpu-mem", "16GiB")
    assert status == 2
    assert "--vocab: got none, expected the number of classes, which " in error
    assert "mine/ASR/pruned does not tell; give it" in error


def test_what_the_recipe_computes_is_left_to_common_values(command, recipe):
    status, printed, _ = command("plan", recipe("aishell"), "--gpu-mem", "16GiB")
    assert status == 0
    assert "joiner-dim 512 (default)" in printed
    assert "decoder-dim 512 (default)" in printed


def test_the_worst_batch_of_the_cuts_is_printed_with_its_padding(command, tmp_path):
    path = tmp_path / "cuts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"duration": 5.0}) + "\n" for _ in range(80))
    words = ["--vocab", 500, "--gpu-mem", "4GiB", "--max-duration", 100, "--cuts", path]
    words += ["--num-buckets", 1]
    status, text, _ = command("plan", *words)
    assert status == 0
    line = "batches: the worst of an epoch of 80 utterances, B=20, T=125, S=20: 100 s with padding"
    assert line in text
