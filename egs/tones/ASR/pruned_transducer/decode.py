#!/usr/bin/env python3
"""Greedy search over the test set, and its token error rate.

Usage:

  ./pruned_transducer/decode.py --data-dir data --exp-dir exp --epoch 5

writes to exp/greedy_search: recogs-<suffix>.txt (reference and hypothesis of every utterance),
errs-<suffix>.txt (insertions, deletions, substitutions) and prints a few of them. The model's sizes
are read from the checkpoint.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from asr_datamodule import TonesAsrDataModule
from checkpoint import read_checkpoint
from model import Transducer
from params import AttributeDict
from tokens import load_bpe_model
from torch import Tensor
from train import get_model


@dataclass(frozen=True)
class Errors:
    """What turns a reference into a hypothesis, in tokens, with the length of the reference."""

    insertions: int = 0
    deletions: int = 0
    substitutions: int = 0
    num_tokens: int = 0

    @property
    def total(self) -> int:
        """The edit distance."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors per hundred reference tokens; of an empty reference, per one token."""
        return 100.0 * self.total / max(1, self.num_tokens)

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.substitutions + other.substitutions,
            self.num_tokens + other.num_tokens,
        )


def count_errors(reference: Sequence[object], hypothesis: Sequence[object]) -> Errors:
    """The errors of a best alignment (unit costs)."""
    # Each cell: (distance, insertions, deletions, substitutions).
    row = [(j, j, 0, 0) for j in range(len(hypothesis) + 1)]
    for i, expected in enumerate(reference, start=1):
        above, row = row, [(i, 0, i, 0)]
        for j, got in enumerate(hypothesis, start=1):
            d, ins, dele, sub = above[j - 1]
            wrong = int(expected != got)
            across = (d + wrong, ins, dele, sub + wrong)
            d, ins, dele, sub = row[j - 1]
            insert = (d + 1, ins + 1, dele, sub)
            d, ins, dele, sub = above[j]
            row.append(min(across, insert, (d + 1, ins, dele + 1, sub)))
    _, insertions, deletions, substitutions = row[-1]
    return Errors(insertions, deletions, substitutions, len(reference))


@torch.no_grad()
def greedy_search(model: Transducer, encoder_out: Tensor, max_sym_per_frame: int = 3) -> list[int]:
    """The most likely class at every step.

    Args:
      model: the transducer, in eval mode.
      encoder_out: the frames of one utterance, [T, encoder_dim].
      max_sym_per_frame: symbols after which the next frame is taken in any case.

    Returns:
      The class ids, without blanks.
    """
    blank_id, context_size = model.decoder.blank_id, model.decoder.context_size
    hypothesis = [blank_id] * context_size

    def predict() -> Tensor:
        context = torch.tensor([hypothesis[-context_size:]], device=encoder_out.device)
        return model.joiner.decoder_proj(model.decoder(context, need_pad=False))[0, 0]

    frames = model.joiner.encoder_proj(encoder_out)
    prediction = predict()
    for frame in frames:
        for _ in range(max_sym_per_frame):
            token = int(model.joiner(frame, prediction, project_input=False).argmax())
            if token == blank_id:
                break
            hypothesis.append(token)
            prediction = predict()
    return hypothesis[context_size:]


def get_parser() -> argparse.ArgumentParser:
    """The command line of this script, without the data options."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--exp-dir", type=str, default="pruned_transducer/exp", help="Of train.py.")
    parser.add_argument("--epoch", type=int, default=5, help="Decode with epoch-<this>.pt.")
    parser.add_argument("--split", type=str, default="test", help="dev or test.")
    parser.add_argument(
        "--max-sym-per-frame", type=int, default=3, help="Most symbols at one frame."
    )
    parser.add_argument("--num-shown", type=int, default=5, help="Utterances to print.")
    return parser


def main() -> None:
    """Decode one split, write the results, print the token error rate."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    parser = get_parser()
    TonesAsrDataModule.add_arguments(parser)
    args = parser.parse_args()

    saved = read_checkpoint(Path(args.exp_dir) / f"epoch-{args.epoch}.pt")
    params = AttributeDict(saved["params"])
    params.data_dir = args.data_dir
    sp = load_bpe_model(params)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = get_model(params).to(device).eval()
    model.load_state_dict(saved["model"])

    tones = TonesAsrDataModule(args)
    results: list[tuple[str, str, Errors]] = []
    for batch in tones.valid_dataloader(tones.cuts(args.split)):
        texts = batch["supervisions"]["text"]
        lens = batch["supervisions"]["num_frames"].to(device=device, dtype=torch.int64)
        with torch.no_grad():
            encoder_out, encoder_out_lens = model.encoder(batch["inputs"].to(device), lens)
        for text, frames, num in zip(texts, encoder_out, encoder_out_lens.tolist()):
            tokens = greedy_search(model, frames[:num], args.max_sym_per_frame)
            errors = count_errors(sp.encode(text, out_type=int), tokens)
            results.append((text, sp.decode(tokens), errors))

    total = sum((errors for _, _, errors in results), Errors())
    words = sum((count_errors(text.split(), hyp.split()) for text, hyp, _ in results), Errors())
    summary = (
        f"{args.split}: token error rate {total.rate:.2f}% [{total.total} / {total.num_tokens}, "
        f"{total.insertions} ins, {total.deletions} del, {total.substitutions} sub ], "
        f"word error rate {words.rate:.2f}%, {len(results)} utterances"
    )
    pairs = [f"ref={text}\nhyp={hyp}\n" for text, hyp, _ in results]
    out_dir = Path(args.exp_dir) / "greedy_search"
    out_dir.mkdir(exist_ok=True)
    suffix = f"{args.split}-epoch-{args.epoch}-max-sym-per-frame-{args.max_sym_per_frame}"
    (out_dir / f"recogs-{suffix}.txt").write_text("".join(pairs))
    wrong = [pair for pair, (_, _, errors) in zip(pairs, results) if errors.total]
    (out_dir / f"errs-{suffix}.txt").write_text(summary + "\n" + "".join(wrong))
    for pair in pairs[: args.num_shown]:
        print(pair, end="")
    logging.info("%s; written to %s", summary, out_dir)


if __name__ == "__main__":
    main()
