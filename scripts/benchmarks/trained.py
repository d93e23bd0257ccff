"""A batch and parameters from a training of the embedded recipe: its own adjoints.

Utterances of the training set are joined, features and transcripts, up to the frames that are asked
for, and go through the checkpoint's encoder and decoder. The corpus has more symbols per second
than AISHELL has characters; so the slowest speech is taken.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import IS_WEIGHTS_ONLY, LossInputs
from benchmarks.model import TransducerLoss
from benchmarks.shapes import LossShape

RECIPE = Path(__file__).resolve().parents[2] / "egs/tones/ASR/pruned_transducer"
# What TransducerLoss has of the recipe's model; the names are the same.
HEAD = ("simple_am_proj.", "simple_lm_proj.", "joiner.")


def trained_inputs(checkpoint: Path, B: int, T: int, s_range: int, shortest: float) -> LossInputs:
    """One batch of a trained model.

    Args:
      checkpoint: an ``epoch-N.pt`` of egs/tones' train.py; its data folder must still be there.
      B: utterances, each joined from several of the corpus.
      T: frames after subsampling that the longest one is to have.
      s_range: states kept at each frame.
      shortest: length of the shortest utterance as a share of T, see `LossShape`.

    Raises:
      FileNotFoundError: the checkpoint, or the data it was trained on, is missing.
      ValueError: its encoder and decoder differ in width.
    """
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"--checkpoint: got {checkpoint}, expected an epoch-N.pt that egs/tones' train.py "
            "wrote; the docstring of make_trained_inputs.py has the commands"
        )
    saved = torch.load(checkpoint, map_location="cpu", weights_only=IS_WEIGHTS_ONLY)
    with _recipe_on_path():
        train = importlib.import_module("train")
        params = train.get_params()
        params.update(saved["params"])
        tokenizer = importlib.import_module("tokens").load_bpe_model(params)
        model = train.get_model(params)
        model.load_state_dict(saved["model"])
        model.eval()
        wanted = torch.linspace(shortest, 1.0, B) * T if B > 1 else torch.tensor([float(T)])
        batch = list(_joined_utterances(params, tokenizer, wanted.tolist()))
    return _inputs(model, [f for f, _ in batch], [s for _, s in batch], s_range)


def used_classes(checkpoint: Path) -> Tensor:
    """The classes that texts of a checkpoint's corpus have, and blank; int64, ascending."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=IS_WEIGHTS_ONLY)
    with _recipe_on_path():
        params = importlib.import_module("train").get_params()
        params.update(saved["params"])
        tokenizer = importlib.import_module("tokens").load_bpe_model(params)
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]
    return torch.tensor([i for i, piece in enumerate(pieces) if not piece.startswith("<unused")])


@contextmanager
def _recipe_on_path() -> Iterator[None]:
    """The recipe's files import their neighbours."""
    sys.path.insert(0, str(RECIPE))
    try:
        yield
    finally:
        sys.path.remove(str(RECIPE))


def _joined_utterances(
    params: Any, tokenizer: Any, wanted_frames: list[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """``([T_in, F], [S])`` for each wanted number of subsampled frames, slowest speech first."""
    manifest = Path(params.data_dir) / "fbank" / "tones_cuts_train.jsonl.gz"
    lhotse = importlib.import_module("lhotse")
    unused = [(c, tokenizer.encode(c.supervisions[0].text)) for c in lhotse.load_manifest(manifest)]
    unused.sort(key=lambda pair: len(pair[1]) / pair[0].num_frames)
    for frames in wanted_frames:
        # What the encoder's two strided convolutions need beside the multiple.
        room = frames * params.subsampling_factor + 3
        features: list[Tensor] = []
        symbols: list[int] = []
        while fitting := next((pair for pair in unused if pair[0].num_frames <= room), None):
            unused.remove(fitting)
            cut, ids = fitting
            features.append(torch.from_numpy(cut.load_features()))
            symbols += ids
            room -= cut.num_frames
        yield torch.cat(features), torch.tensor(symbols)


@torch.no_grad()
def _inputs(model: Any, features: list[Tensor], symbols: list[Tensor], s_range: int) -> LossInputs:
    pad = torch.nn.utils.rnn.pad_sequence
    lens = torch.tensor([len(f) for f in features])
    encoder_out, encoder_lens = model.encoder(pad(features, batch_first=True), lens)
    y = pad(symbols, batch_first=True)
    decoder_out = model.decoder(torch.nn.functional.pad(y, (1, 0)))
    boundary = torch.zeros(len(lens), 4, dtype=torch.int64)
    boundary[:, 2] = torch.tensor([len(s) for s in symbols])
    boundary[:, 3] = encoder_lens
    state = {n: v for n, v in model.state_dict().items() if n.startswith(HEAD)}
    H, D = state["joiner.encoder_proj.weight"].shape
    if decoder_out.shape[2] != D:
        raise ValueError(
            f"--checkpoint: got --encoder-dim {D} and --decoder-dim {decoder_out.shape[2]}, "
            "expected equal ones; train with both alike"
        )
    shape = LossShape(
        B=len(lens), T=encoder_out.shape[1], S=y.shape[1], s_range=s_range,
        C=state["simple_am_proj.weight"].shape[0], H=H, D=D,
        shortest=float(encoder_lens.min() / encoder_lens.max()),
    )  # fmt: skip
    no_ranges = torch.zeros(0, dtype=torch.int64)
    inputs = LossInputs(shape, encoder_out, decoder_out, y, boundary, no_ranges, state)
    inputs = inputs.to(encoder_out.device)
    trained = TransducerLoss(inputs, has_simple=True)
    trained(inputs, "simple")  # takes the band from the simple loss, as training does
    assert trained.last_ranges is not None
    inputs.ranges = trained.last_ranges
    return inputs
