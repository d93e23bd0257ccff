"""The recipes' real scripts over synthetic transcripts, counted as the real recipes count."""

import os
import sys
from pathlib import Path

import pytest

from panda_icefall.runs.data.catalog import CORPORA
from panda_icefall.runs.data.check import check_data
from panda_icefall.runs.data.synthetic import synth_data

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

KINDS = [
    ("aishell", "char", 53),
    ("aishell", "bbpe", 500),
    ("wenetspeech", "char", 67),
    ("librispeech", "bpe", 500),
]


@pytest.fixture(scope="module")
def root():
    return Path(os.environ["ICEFALL_ROOT"])


@pytest.fixture(autouse=True)
def icefall_importable_and_left_as_it_is(monkeypatch, root):
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def made(request, tmp_path_factory, root):
    corpus, kind, vocab_size = request.param
    data = tmp_path_factory.mktemp(corpus) / "data"
    synth_data(corpus, data, root, 12, kind, vocab_size, seed=5)
    return corpus, kind, vocab_size, data


def recipe_classes(lang_folder, kind):
    """C by the lines that the recipes have themselves."""
    if kind == "char":
        from icefall.lexicon import Lexicon

        return max(Lexicon(lang_folder).tokens) + 1
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor()
    sp.load(str(lang_folder / ("bbpe.model" if kind == "bbpe" else "bpe.model")))
    assert sp.piece_to_id("<blk>") == 0
    return sp.get_piece_size()


def test_the_recipe_counts_the_requested_classes(made, root):
    corpus, kind, vocab_size, data = made
    check_data(corpus, kind, data, vocab_size, root / CORPORA[corpus].folder)
    lang_folder = CORPORA[corpus].langs[kind].folder_in(data, vocab_size)
    assert recipe_classes(lang_folder, kind) == vocab_size


def test_every_transcript_is_spelt_without_the_unknown_token(made):
    from lhotse import load_manifest

    corpus, kind, vocab_size, data = made
    layout = CORPORA[corpus]
    lang_folder = layout.langs[kind].folder_in(data, vocab_size)
    names = [*layout.train.values(), *layout.dev, *layout.test]
    texts = [
        cut.supervisions[0].text for name in names for cut in load_manifest(data / "fbank" / name)
    ]
    if kind == "char":
        from icefall.lexicon import Lexicon

        table = Lexicon(lang_folder).token_table
        assert all(character in table for text in texts for character in text)
        return
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor()
    sp.load(str(lang_folder / layout.langs[kind].counted))
    if kind == "bbpe":
        from icefall import byte_encode, tokenize_by_CJK_char

        texts = [byte_encode(tokenize_by_CJK_char(text)) for text in texts]
    assert all(sp.unk_id() not in pieces for pieces in sp.encode(texts))
