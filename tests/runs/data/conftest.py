"""Data folders as the recipes' scripts leave them, and a checkout to make them, in miniature."""

import gzip
import json

import pytest

from panda_icefall.runs.data.catalog import CORPORA

# Numbers characters as the real script does; the graphs are what nothing here opens.
PREPARE_CHAR = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--lang-dir", type=pathlib.Path)
folder = parser.parse_args().lang_dir
tokens = ["<blk>", "<sos/eos>", "<unk>"]
tokens += dict.fromkeys("".join((folder / "text").read_text("utf-8").split()))
tokens += ["#0", "#1"]
lines = [f"{token} {number}" for number, token in enumerate(tokens)]
(folder / "tokens.txt").write_text("\\n".join(lines) + "\\n", "utf-8")
(folder / "L.pt").write_text("")
"""

TRAIN_BPE = """
import argparse, pathlib, sentencepiece
parser = argparse.ArgumentParser()
parser.add_argument("--lang-dir", type=pathlib.Path)
parser.add_argument("--transcript")
parser.add_argument("--vocab-size", type=int)
args = parser.parse_args()
sentencepiece.SentencePieceTrainer.train(
    input=args.transcript, vocab_size=args.vocab_size, model_type="unigram",
    model_prefix=str(args.lang_dir / "bpe"), user_defined_symbols=["<blk>", "<sos/eos>"],
    unk_id=2, bos_id=-1, eos_id=-1, num_threads=1,
)
"""

SCRIPTS = {
    "egs/aishell/ASR/local/prepare_char.py": PREPARE_CHAR,
    "egs/wenetspeech/ASR/local/prepare_char.py": PREPARE_CHAR,
    "egs/librispeech/ASR/local/train_bpe_model.py": TRAIN_BPE,
}


def cut(cut_id, storage, text="甲乙"):
    """A cut with features stored as one file, as a lhotse writer describes it."""
    features = {"storage_type": "numpy_files", "storage_path": str(storage)}
    features["storage_key"] = f"{cut_id}.npy"
    supervisions = [{"id": cut_id, "text": text}] if text else []
    return {"id": cut_id, "type": "MonoCut", "features": features, "supervisions": supervisions}


def write_manifest(path, cuts):
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(one) + "\n" for one in cuts)


def write_bpe_model(path, vocab_size, text_path):
    import sentencepiece

    words = [f"{onset}{vowel}" for onset in "BDFGKLMN" for vowel in "AEIOU"]
    text_path.write_text("\n".join(f"{one} {other}" for one in words for other in words))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text_path),
        vocab_size=vocab_size,
        model_type="unigram",
        model_prefix=str(path.with_suffix("")),
        user_defined_symbols=["<blk>", "<sos/eos>"],
        unk_id=2,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )


@pytest.fixture
def make_data(tmp_path):
    """Writes a complete data folder of a corpus."""

    def make(corpus, kind, vocab_size):
        data = tmp_path / "data"
        layout = CORPORA[corpus]
        fbank = data / "fbank"
        fbank.mkdir(parents=True)
        for name in (*layout.train.values(), *layout.dev, "musan_cuts.jsonl.gz"):
            stem = name.split(".")[0]
            text = "" if name.startswith("musan") else "甲乙"
            cuts = [cut(f"{stem}-{n}", fbank / "feats", text) for n in range(3)]
            (fbank / "feats").mkdir(exist_ok=True)
            for one in cuts:
                (fbank / "feats" / f"{one['id']}.npy").touch()
            write_manifest(fbank / name, cuts)
        lang = layout.langs[kind]
        folder = lang.folder_in(data, vocab_size)
        folder.mkdir()
        for name in lang.opened:
            (folder / name).touch()
        if lang.counted == "tokens.txt":
            tokens = ["<blk>", "<sos/eos>", "<unk>", *map(chr, range(0x4E00, 0x4E00 + vocab_size))]
            lines = [f"{token} {n}\n" for n, token in enumerate(tokens[:vocab_size])]
            lines += [f"#0 {vocab_size}\n", f"#1 {vocab_size + 1}\n"]
            (folder / "tokens.txt").write_text("".join(lines), "utf-8")
        else:
            write_bpe_model(folder / lang.counted, vocab_size, tmp_path / "text")
        return data

    return make


@pytest.fixture
def rewrite():
    """Replaces a manifest's cuts by others."""
    return write_manifest


@pytest.fixture
def make_cut():
    return cut


@pytest.fixture(scope="session")
def small_checkout(tmp_path_factory):
    """A folder that passes for an icefall checkout, with small scripts in place of its own."""
    root = tmp_path_factory.mktemp("icefall")
    (root / "icefall").mkdir()
    (root / "icefall" / "__init__.py").write_text("")
    for name, text in SCRIPTS.items():
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return root
