"""A folder that passes for an icefall checkout, with small scripts in place of the recipes' own."""

import pytest

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


@pytest.fixture(scope="session")
def small_checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("icefall")
    (root / "icefall").mkdir()
    (root / "icefall" / "__init__.py").write_text("")
    for name, text in SCRIPTS.items():
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return root
