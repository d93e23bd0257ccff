"""The trained inputs that the repository ships, from a training of the embedded recipe.

    prepare=egs/tones/ASR/pruned_transducer/prepare.py
    python $prepare --data-dir DATA --vocab-size 100 --num-train 4000
    python scripts/tones_tokenizer.py --data-dir DATA --pieces 100 --classes 4336
    OMP_NUM_THREADS=1 panda-icefall run egs/tones/ASR/pruned_transducer/train.py --use-panda 1 \\
      --data-dir DATA --exp-dir EXP --vocab-size 4336 --encoder-dim 64 --decoder-dim 64 \\
      --joiner-dim 64 --num-encoder-layers 2 --max-duration 20 --num-epochs 5
    python scripts/make_trained_inputs.py --checkpoint EXP/epoch-5.pt

The head has 4336 classes from the start, of which the corpus uses 100 (see tones_tokenizer.py).
benchmarks/stored_inputs.py says what is written, and how a batch is made of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.shapes import CORPORA
from benchmarks.stored_inputs import STORED, store, with_own_band
from benchmarks.trained import trained_inputs, used_classes


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--checkpoint", type=Path, required=True, help="epoch-N.pt of egs/tones")
    p.add_argument("--out", type=Path, default=STORED, help="the file to write, .npz")
    p.add_argument("--B", type=int, default=CORPORA["aishell"].B, help="utterances")
    p.add_argument("--T", type=int, default=CORPORA["aishell"].T, help="frames of the longest one")
    args = p.parse_args()
    shape = CORPORA["aishell"]
    try:
        inputs = trained_inputs(args.checkpoint, args.B, args.T, shape.s_range, shape.shortest)
        store(inputs, used_classes(args.checkpoint), args.out)
    except (FileNotFoundError, ValueError) as error:
        p.error(str(error))
    with_own_band(inputs, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB, {inputs.shape}")


if __name__ == "__main__":
    main()
