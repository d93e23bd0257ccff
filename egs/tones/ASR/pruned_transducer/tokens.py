"""From texts to classes: the BPE model and padded batches of class ids."""

from __future__ import annotations

from pathlib import Path

import sentencepiece as spm
import torch
from params import AttributeDict
from torch import Tensor


def load_bpe_model(params: AttributeDict) -> spm.SentencePieceProcessor:
    """The BPE model for `params.vocab_size`; sets `vocab_size` and `blank_id` from it.

    Raises:
      FileNotFoundError: prepare.py did not make it.
    """
    lang_dir = Path(params.data_dir) / f"lang_bpe_{params.vocab_size}"
    if not (lang_dir / ".lang_complete.json").is_file():
        raise FileNotFoundError(
            f"vocab_size: got {params.vocab_size}, expected a finished {lang_dir}; run "
            f"prepare.py --data-dir {params.data_dir} --vocab-size {params.vocab_size}"
        )
    sp = spm.SentencePieceProcessor()
    sp.load(str(lang_dir / "bpe.model"))
    params.vocab_size = sp.get_piece_size()
    params.blank_id = sp.piece_to_id("<blk>")
    return sp


def encode_texts(sp: spm.SentencePieceProcessor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Class ids padded with 0, [B, S] int64, and their lengths [B] int64."""
    ids = sp.encode(texts, out_type=int)
    y_lens = torch.tensor([len(i) for i in ids], dtype=torch.int64)
    y = torch.zeros((len(ids), int(y_lens.max())), dtype=torch.int64)
    for row, i in zip(y, ids):
        row[: len(i)] = torch.tensor(i, dtype=torch.int64)
    return y, y_lens
