"""What is wrong with a data folder or a checkout is named, with the command that mends it."""

import gzip
import shutil
import sys
from pathlib import Path

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.data.check import check_data, check_icefall_root

CASES = [
    ("aishell", "char", 31),
    ("aishell", "bbpe", 40),
    ("wenetspeech", "char", 47),
    ("librispeech", "bpe", 41),
]
WHERE = Path("/checkout/egs/aishell/ASR")
TRAIN = "fbank/aishell_cuts_train.jsonl.gz"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_a_complete_folder_passes(make_data, case):
    corpus, kind, vocab_size = case
    check_data(corpus, kind, make_data(*case), vocab_size, WHERE)


def test_a_folder_that_is_not_there_is_named_with_the_whole_preparation(tmp_path):
    message = (
        r"data: got '.*gone', which is no folder.*"
        r"run in /checkout/egs/aishell/ASR: \./prepare\.sh --stage 0 --stop-stage 3"
    )
    with pytest.raises(UsageError, match=message):
        check_data("aishell", "char", tmp_path / "gone", 31, WHERE)


MISSING = [
    (CASES[0], TRAIN, "--stage 0 --stop-stage 3"),
    (CASES[0], "fbank/aishell_cuts_dev.jsonl.gz", "--stage 0 --stop-stage 3"),
    (CASES[0], "fbank/musan_cuts.jsonl.gz", "--stage 0 --stop-stage 4"),
    (CASES[0], "lang_char/tokens.txt", "--stage 5 --stop-stage 6"),
    (CASES[0], "lang_char/words.txt", "--stage 5 --stop-stage 6"),
    (CASES[0], "lang_char/L.pt", "--stage 5 --stop-stage 6"),
    (CASES[1], "lang_bbpe_40/bbpe.model", "--stage 5 --stop-stage 7"),
    (CASES[2], "fbank/cuts_L_fixed.jsonl.gz", "--stage 23 --stop-stage 23"),
    (CASES[2], "fbank/cuts_DEV_fixed.jsonl.gz", "--stage 23 --stop-stage 23"),
    (CASES[2], "fbank/musan_cuts.jsonl.gz", "--stage 14 --stop-stage 14"),
    (CASES[2], "lang_char/tokens.txt", "--stage 15 --stop-stage 16"),
    (CASES[3], "fbank/librispeech_cuts_train-all-shuf.jsonl.gz", "--stage 0 --stop-stage 3"),
    (CASES[3], "fbank/librispeech_cuts_dev-other.jsonl.gz", "--stage 0 --stop-stage 3"),
    (CASES[3], "lang_bpe_41/bpe.model", "--stage 5 --stop-stage 5"),
]


@pytest.mark.parametrize(("case", "name", "stages"), MISSING, ids=lambda value: str(value))
def test_a_missing_file_is_named_with_the_stages_that_make_it(make_data, case, name, stages):
    corpus, kind, vocab_size = case
    data = make_data(*case)
    (data / name).unlink()
    with pytest.raises(UsageError, match=rf"which has no {name}.*prepare\.sh.*{stages}"):
        check_data(corpus, kind, data, vocab_size, WHERE)


@pytest.mark.parametrize(
    ("case", "arguments", "name"),
    [
        (CASES[2], ["--training-subset", "S"], "fbank/cuts_S_fixed.jsonl.gz"),
        (CASES[3], ["--full-libri=0"], "fbank/librispeech_cuts_train-clean-100.jsonl.gz"),
        (CASES[3], ["--enable-musan", "1"], "fbank/musan_cuts.jsonl.gz"),
    ],
)
def test_the_recipes_arguments_choose_what_must_be_there(make_data, case, arguments, name):
    corpus, kind, vocab_size = case
    data = make_data(*case)
    (data / name).unlink()
    with pytest.raises(UsageError, match=f"which has no {name}"):
        check_data(corpus, kind, data, vocab_size, WHERE, arguments)


def test_noise_that_a_recipe_does_not_open_may_be_missing(make_data):
    data = make_data(*CASES[3])
    (data / "fbank/musan_cuts.jsonl.gz").unlink()
    check_data("librispeech", "bpe", data, 41, WHERE, ["--enable-musan", "false"])


def test_a_training_set_that_is_not_chosen_may_be_missing(make_data):
    data = make_data(*CASES[3])
    (data / "fbank/librispeech_cuts_train-all-shuf.jsonl.gz").unlink()
    check_data("librispeech", "bpe", data, 41, WHERE, ["--full-libri", "False"])


def check_aishell(data):
    check_data("aishell", "char", data, 31, WHERE)


def test_a_manifest_without_cuts_is_refused(make_data, rewrite):
    data = make_data(*CASES[0])
    rewrite(data / TRAIN, [])
    with pytest.raises(UsageError, match=r"aishell_cuts_train.*got no cuts.*prepare\.sh"):
        check_aishell(data)


def test_an_empty_noise_manifest_is_refused_with_its_own_command(make_data, rewrite):
    data = make_data(*CASES[0])
    rewrite(data / "fbank/musan_cuts.jsonl.gz", [])
    with pytest.raises(UsageError, match=r"musan_cuts.*got no cuts.*--stop-stage 4"):
        check_aishell(data)


def test_cuts_without_features_are_refused(make_data, make_cut, rewrite):
    data = make_data(*CASES[0])
    bare = make_cut("train-7", "feats")
    del bare["features"]
    rewrite(data / TRAIN, [bare])
    with pytest.raises(UsageError, match=r"got cut 'train-7' without features"):
        check_aishell(data)


@pytest.mark.parametrize("supervisions", [[], None, [{"id": "a"}], [{"id": "a", "text": " "}]])
def test_cuts_without_a_transcript_are_refused(make_data, make_cut, rewrite, supervisions):
    data = make_data(*CASES[0])
    silent = make_cut("aishell_cuts_train-0", data / "fbank/feats")
    silent["supervisions"] = supervisions
    rewrite(data / TRAIN, [silent])
    with pytest.raises(UsageError, match=r"got cut 'aishell_cuts_train-0' without a transcript"):
        check_aishell(data)


def test_features_whose_files_are_gone_are_refused(make_data):
    data = make_data(*CASES[0])
    shutil.rmtree(data / "fbank/feats")
    with pytest.raises(UsageError, match=r"feats/aishell_cuts_train-0\.npy, which does not exist"):
        check_aishell(data)


@pytest.mark.parametrize(
    ("kind", "name"), [("lilcom_chunky", "feats.lca"), ("numpy_files", "feats/train-0.npy")]
)
def test_relative_features_are_looked_for_where_the_recipe_runs(
    tmp_path, make_data, make_cut, rewrite, kind, name
):
    """prepare.sh leaves paths such as data/fbank/..., relative to the corpus folder."""
    data = make_data(*CASES[0])
    stored = name.split("/")[0]
    relative = make_cut("train-0", f"data/fbank/{stored}")
    relative["features"]["storage_type"] = kind
    rewrite(data / TRAIN, [relative])
    with pytest.raises(UsageError, match=rf"/checkout/egs/.*/data/fbank/{name}, which does not"):
        check_aishell(data)
    (tmp_path / "data/fbank" / name).touch()
    check_data("aishell", "char", data, 31, tmp_path)


def test_features_that_are_not_in_files_are_taken_at_their_word(make_data, make_cut, rewrite):
    data = make_data(*CASES[0])
    inside = make_cut("train-0", "")
    inside["features"]["storage_type"] = "memory_lilcom"
    rewrite(data / TRAIN, [inside])
    check_aishell(data)


@pytest.mark.parametrize("content", [b"{}", gzip.compress(b"{not json"), gzip.compress(b"x")[:-3]])
def test_a_file_that_is_no_manifest_is_refused(make_data, content):
    data = make_data(*CASES[0])
    (data / TRAIN).write_bytes(content)
    with pytest.raises(UsageError, match=r"does not read as gzipped JSON lines .*prepare\.sh"):
        check_aishell(data)


@pytest.mark.parametrize("line", ["a text", 3, {"features": 3}, {"supervisions": ["a text"]}])
def test_lines_that_are_no_cuts_are_refused(make_data, rewrite, line):
    data = make_data(*CASES[0])
    rewrite(data / TRAIN, [line])
    with pytest.raises(UsageError, match="got lines that are not cuts"):
        check_aishell(data)


def test_a_vocabulary_of_another_size_is_told_with_both_numbers_and_the_published_one(make_data):
    data = make_data(*CASES[0])
    message = (
        r"vocab_size: got 4336 for data whose .*lang_char/tokens\.txt has 31 classes.*"
        r"AISHELL as published: 4336.*set vocab_size to 31 or.*--stage 5 --stop-stage 6"
    )
    with pytest.raises(UsageError, match=message):
        check_data("aishell", "char", data, 4336, WHERE)


def test_a_model_of_another_size_than_its_folder_says_is_refused(make_data):
    data = make_data(*CASES[3])
    (data / "lang_bpe_41").rename(data / "lang_bpe_500")
    with pytest.raises(UsageError, match=r"got 500 for data whose .*bpe\.model has 41 classes"):
        check_data("librispeech", "bpe", data, 500, WHERE)


def test_a_model_that_sentencepiece_cannot_read_is_refused(make_data):
    data = make_data(*CASES[3])
    (data / "lang_bpe_41/bpe.model").write_bytes(b"no model")
    with pytest.raises(UsageError, match=r"bpe\.model: got a file that sentencepiece cannot load"):
        check_data("librispeech", "bpe", data, 41, WHERE)


def test_without_sentencepiece_its_install_line_is_given(make_data, monkeypatch):
    data = make_data(*CASES[3])
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UsageError, match="pip install sentencepiece"):
        check_data("librispeech", "bpe", data, 41, WHERE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no symbol"),
        ("#0 0\n", "got no symbol"),
        ("<blk> 0\na\n", r"got 'a' in line 2, expected a symbol and its number"),
        ("<blk> 0\na b\n", r"got 'a b' in line 2"),
    ],
)
def test_a_broken_token_table_is_refused(make_data, text, message):
    data = make_data(*CASES[0])
    (data / "lang_char/tokens.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        check_aishell(data)


@pytest.mark.parametrize(
    ("present", "missing"), [((), "icefall/__init__.py"), (("icefall/__init__.py",), "egs")]
)
def test_a_folder_that_is_no_checkout_is_refused_by_what_it_lacks(tmp_path, present, missing):
    for name in present:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    message = rf"icefall_root: got '{tmp_path}', which has no {missing}.*clone icefall"
    with pytest.raises(UsageError, match=message):
        check_icefall_root(tmp_path)


def test_a_checkout_is_found_by_a_relative_path_too(tmp_path, monkeypatch):
    (tmp_path / "icefall").mkdir()
    (tmp_path / "icefall/__init__.py").touch()
    (tmp_path / "egs").mkdir()
    monkeypatch.chdir(tmp_path / "egs")
    assert check_icefall_root(Path("..")) == tmp_path
