"""Synthetic data folders: what is refused, and what is written for each corpus."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.data import lang, synthetic
from panda_icefall.runs.data.catalog import CORPORA
from panda_icefall.runs.data.check import check_data, count_classes
from panda_icefall.runs.data.synthetic import MissingBackendError, synth_data

UTTERANCES = 12
SIZES = {"aishell": 53, "wenetspeech": 61, "librispeech": 97}


@pytest.fixture
def without_k2(monkeypatch):
    """The small checkout's scripts need no k2."""
    monkeypatch.setattr(synthetic, "PACKAGES", dict.fromkeys(lang.PACKAGES, ("lhotse",)))


@pytest.fixture
def request_data(tmp_path, small_checkout, without_k2):
    def make(corpus="aishell", out="data", utterances=UTTERANCES, **options):
        options = {"vocab_size": SIZES.get(corpus, 53), "seed": 17, **options}
        synth_data(corpus, tmp_path / out, small_checkout, utterances, **options)
        return tmp_path / out

    return make


@pytest.mark.parametrize("utterances", [0, -3])
def test_a_request_without_utterances_is_refused(request_data, utterances):
    with pytest.raises(ValueError, match=rf"utterances: got {utterances}, expected at least 1"):
        request_data(utterances=utterances)


@pytest.mark.parametrize("vocab_size", [3, 0, -1, 70199])
def test_a_vocabulary_outside_the_possible_sizes_is_refused(request_data, vocab_size):
    expected = rf"vocab_size: got {vocab_size}, expected 4 to 70198 .*<blk>, <sos/eos> and <unk>"
    with pytest.raises(ValueError, match=expected):
        request_data(vocab_size=vocab_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "timit"}, r"corpus: got 'timit', expected aishell, wenetspeech, librispeech"),
        ({"lang": "bpe"}, r"lang: got 'bpe', expected char or bbpe for AISHELL"),
        ({"corpus": "wenetspeech", "lang": "bbpe"}, r"got 'bbpe', expected char for WenetSpeech"),
    ],
)
def test_a_corpus_or_vocabulary_that_no_recipe_has_is_refused(request_data, options, message):
    with pytest.raises(UsageError, match=message):
        request_data(**options)


def test_a_folder_that_is_no_icefall_checkout_is_refused_by_what_it_lacks(tmp_path, without_k2):
    with pytest.raises(UsageError, match=r"icefall_root: got .*no icefall/__init__.py.*clone"):
        synth_data("aishell", tmp_path / "data", tmp_path, 1)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_that_holds_something_is_refused_and_left_alone(tmp_path, request_data, kind):
    out = tmp_path / "data"
    kept = out / "kept.txt" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        request_data()
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("corpus", "kind", "module"),
    [
        ("aishell", "char", "k2"),
        ("aishell", "bbpe", "sentencepiece"),
        ("wenetspeech", "char", "lhotse"),
        ("librispeech", "bpe", "sentencepiece"),
    ],
)
def test_a_missing_package_is_named_with_its_install_line_and_nothing_is_written(
    tmp_path, small_checkout, monkeypatch, corpus, kind, module
):
    monkeypatch.setattr(synthetic, "PACKAGES", {kind: (module,)})
    assert module in lang.PACKAGES[kind]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingBackendError, match=rf"{module}: not installed in .*pip install"):
        synth_data(corpus, tmp_path / "deep" / "data", small_checkout, 1, kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise SystemExit('the script was reached')", r"status 1(?s:.)*the script was reached"),
        (None, r"has no egs/aishell/ASR/local/prepare_char\.py"),
        (
            "import sys; open(sys.argv[2] + '/tokens.txt', 'w').write('<blk> 0\\na 1\\n#0 2\\n')",
            r"vocab_size: got 2 classes from the scripts in egs/aishell/ASR/local, expected 53",
        ),
    ],
    ids=["fails", "missing", "other count"],
)
def test_a_script_that_does_not_do_its_work_leaves_nothing(
    tmp_path, small_checkout, without_k2, script, message
):
    root = tmp_path / "icefall"
    shutil.copytree(small_checkout, root)
    path = root / "egs/aishell/ASR/local/prepare_char.py"
    if script is None:
        path.unlink()
    else:
        path.write_text(script)
    with pytest.raises((RuntimeError, OSError), match=message):
        synth_data("aishell", tmp_path / "data", root, 1, vocab_size=53)
    assert [found.name for found in tmp_path.iterdir()] == ["icefall"]


def test_a_bpe_vocabulary_that_the_text_cannot_fill_is_told_in_sentencepieces_words(
    tmp_path, request_data
):
    with pytest.raises(RuntimeError, match=r"train_bpe_model\.py: got exit status(?s:.)*ocab"):
        request_data("librispeech", vocab_size=5)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_checkout):
    """Each corpus' data, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "PACKAGES", dict.fromkeys(lang.PACKAGES, ("lhotse",)))
        for corpus, size in SIZES.items():
            (folder / corpus).mkdir()
            synth_data(
                corpus, folder / corpus, small_checkout, UTTERANCES, vocab_size=size, seed=17
            )
    return folder


@pytest.mark.parametrize("corpus", SIZES)
def test_what_is_written_is_what_the_check_wants(made, small_checkout, corpus):
    layout = CORPORA[corpus]
    kind = next(iter(layout.langs))
    where = small_checkout / layout.folder
    for value in layout.train:
        arguments = [layout.subset_option, value] if layout.subset_option else []
        check_data(corpus, kind, made / corpus, SIZES[corpus], where, arguments)
    counted = layout.langs[kind].folder_in(made / corpus, SIZES[corpus])
    assert count_classes(counted / layout.langs[kind].counted) == SIZES[corpus]


@pytest.mark.parametrize("corpus", SIZES)
def test_lhotse_validates_the_cuts_with_their_features(made, corpus):
    from lhotse import load_manifest, validate

    layout = CORPORA[corpus]
    ids = set()
    for name in (*layout.train.values(), *layout.dev, *layout.test):
        cuts = load_manifest(made / corpus / "fbank" / name)
        validate(cuts, read_data=True)
        assert len(cuts) == (UTTERANCES if name in layout.train.values() else 10)
        for cut in cuts:
            assert cut.load_features().shape == (cut.num_frames, 80)
            assert cut.duration == pytest.approx(cut.num_frames / 100)
            assert 1.0 <= cut.duration <= 10.0
            assert cut.supervisions[0].text.strip()
        ids.update(cut.id for cut in cuts)
    held_out = len(layout.dev) + len(layout.test)
    assert len(ids) == UTTERANCES + 10 * held_out


def test_the_noise_manifest_opens_as_recipes_open_it(made):
    from lhotse import load_manifest, validate

    cuts = load_manifest(made / "aishell" / "fbank" / "musan_cuts.jsonl.gz")
    validate(cuts, read_data=True)
    assert len(cuts) > 0


def test_token_ids_follow_the_inventory_and_cover_the_transcripts(made):
    folder = made / "wenetspeech" / "lang_char"
    tokens = dict(line.split() for line in (folder / "tokens.txt").read_text("utf-8").splitlines())
    spoken = lang.spoken_units("char", SIZES["wenetspeech"], 17)
    assert [tokens[character] for character in spoken] == [str(3 + i) for i in range(len(spoken))]
    assert set("".join((folder / "text").read_text("utf-8").split())) == set(spoken)


def test_a_bpe_model_knows_every_word_that_is_spoken(made):
    import sentencepiece
    from lhotse import load_manifest

    model = sentencepiece.SentencePieceProcessor()
    model.Load(str(made / "librispeech" / "lang_bpe_97" / "bpe.model"))
    assert model.piece_to_id("<blk>") == 0
    fbank = made / "librispeech" / "fbank"
    for cut in load_manifest(fbank / "librispeech_cuts_train-all-shuf.jsonl.gz"):
        text = cut.supervisions[0].text
        assert re.fullmatch(r"[A-Z]+( [A-Z]+)*", text)
        pieces = model.encode(text)
        assert model.unk_id() not in pieces
        # What the recipe keeps of a cut, its strictest rule.
        assert ((cut.num_frames - 7) // 2 + 1) // 2 - 2 >= len(pieces)


def relative_files(folder, pattern):
    return sorted(path.relative_to(folder) for path in Path(folder).rglob(pattern))


def test_the_same_request_gives_the_same_features_and_tokens(made, request_data):
    for corpus in SIZES:
        first, second = made / corpus, request_data(corpus, out=corpus)
        compared = relative_files(first, "*.npy") + relative_files(first, "*.txt")
        compared += relative_files(first, "text") + relative_files(first, "*.vocab")
        assert len(compared) > UTTERANCES
        for path in compared:
            assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_another_seed_gives_other_utterances(made, request_data):
    other = request_data("librispeech", seed=18) / "lang_bpe_97" / "transcript_words.txt"
    same = made / "librispeech" / "lang_bpe_97" / "transcript_words.txt"
    assert other.read_text() != same.read_text()


def test_nothing_but_the_finished_folders_is_left(made):
    assert sorted(path.name for path in made.iterdir()) == sorted(SIZES)
