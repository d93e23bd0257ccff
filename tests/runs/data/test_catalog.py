"""The options that point a recipe at its data, and the manifests that its arguments choose."""

import ast
import os
import re
from pathlib import Path

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.data.catalog import CORPORA, data_arguments, find_corpus

RECIPES = [
    ("aishell", "char", "zipformer/train.py"),
    ("aishell", "char", "pruned_transducer_stateless7/train.py"),
    ("aishell", "bbpe", "zipformer/train_bbpe.py"),
    ("wenetspeech", "char", "zipformer/train.py"),
    ("wenetspeech", "char", "pruned_transducer_stateless5/train.py"),
    ("librispeech", "bpe", "zipformer/train.py"),
]


@pytest.mark.parametrize(
    ("corpus", "kind", "vocab_size", "words"),
    [
        ("aishell", "char", None, ["--lang-dir", "lang_char"]),
        ("aishell", "bbpe", None, ["--bpe-model", "lang_bbpe_500/bbpe.model"]),
        ("aishell", "bbpe", 300, ["--bpe-model", "lang_bbpe_300/bbpe.model"]),
        ("wenetspeech", "char", 5537, ["--lang-dir", "lang_char"]),
        ("librispeech", "bpe", 5000, ["--bpe-model", "lang_bpe_5000/bpe.model"]),
    ],
)
def test_the_options_are_absolute_and_name_the_vocabulary(
    tmp_path, monkeypatch, corpus, kind, vocab_size, words
):
    monkeypatch.chdir(tmp_path)
    option, name = words
    expected = ["--manifest-dir", str(tmp_path / "data/fbank"), option]
    expected.append(str(tmp_path / "data" / name))
    assert data_arguments(corpus, kind, Path("data"), vocab_size) == expected


def test_an_unknown_corpus_or_vocabulary_is_refused(tmp_path):
    with pytest.raises(UsageError, match="corpus: got 'tedlium', expected aishell, wenetspeech"):
        data_arguments("tedlium", "bpe", tmp_path)
    with pytest.raises(UsageError, match="lang: got 'char', expected bpe for LibriSpeech"):
        data_arguments("librispeech", "char", tmp_path)


@pytest.mark.parametrize(
    ("corpus", "arguments", "name"),
    [
        ("aishell", [], "aishell_cuts_train"),
        ("wenetspeech", [], "cuts_L_fixed"),
        ("wenetspeech", ["--training-subset", "M", "--training-subset=S"], "cuts_S_fixed"),
        ("librispeech", ["--seed", "0"], "librispeech_cuts_train-all-shuf"),
        ("librispeech", ["--full-libri", "False"], "librispeech_cuts_train-clean-100"),
        ("librispeech", ["--full-libri=yes"], "librispeech_cuts_train-all-shuf"),
    ],
)
def test_the_training_manifest_is_the_one_that_the_recipe_would_open(corpus, arguments, name):
    assert find_corpus(corpus).train_manifest(arguments) == f"{name}.jsonl.gz"


@pytest.mark.parametrize("value", [["XL"], [], ["1"]])
def test_a_subset_that_there_is_not_is_refused(value):
    with pytest.raises(UsageError, match=r"--training-subset: got '.*', expected L or M or S"):
        find_corpus("wenetspeech").train_manifest(["--training-subset", *value])


@pytest.mark.icefall
@pytest.mark.parametrize(("corpus", "kind", "train_py"), RECIPES)
def test_the_real_recipes_have_these_options(tmp_path, corpus, kind, train_py):
    folder = Path(os.environ["ICEFALL_ROOT"]) / CORPORA[corpus].folder / train_py
    sources = [folder, *folder.parent.glob("asr_datamodule.py")]
    calls = [node for path in sources for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    known = {
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
    }
    options = data_arguments(corpus, kind, tmp_path)[::2]
    assert {*options, "--enable-musan"} <= known
    if CORPORA[corpus].subset_option:
        assert CORPORA[corpus].subset_option in known


@pytest.mark.icefall
@pytest.mark.parametrize("corpus", CORPORA)
def test_every_stage_that_is_named_is_one_of_the_real_prepare_script(corpus):
    layout = CORPORA[corpus]
    script = (Path(os.environ["ICEFALL_ROOT"]) / layout.folder / "prepare.sh").read_text("utf-8")
    there = set(re.findall(r"\$stage -le (-?\d+)", script))
    commands = [layout.prepare_fbank, layout.prepare_musan]
    commands += [lang.prepare for lang in layout.langs.values()]
    for command in commands:
        assert set(re.findall(r"stage (\d+)", command)) <= there
