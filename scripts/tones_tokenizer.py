"""A tokenizer of few pieces among many classes, for training a large head to convergence.

    python scripts/tones_tokenizer.py --data-dir DATA --pieces 100 --classes 4336

Reads the text that egs/tones' prepare.py wrote and writes DATA/lang_bpe_4336, which train.py takes
with `--vocab-size 4336`. All but `--pieces` of the classes are pieces that no text has. Such a
recipe learns in minutes what 4336 pieces of the same text would not, and its head has their size:
the unused classes start as any others do, and it is training that pushes them down.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

MARKER = ".lang_complete.json"


def train_tokenizer(data_dir: Path, pieces: int, classes: int) -> Path:
    """Write ``data_dir/lang_bpe_<classes>``; blank is class 0, unknown class 1.

    Returns:
      The folder.

    Raises:
      ValueError: the sizes do not fit, the text is missing or the folder is there.
    """
    import sentencepiece

    if not 2 < pieces <= classes:
        raise ValueError(f"--pieces: got {pieces}, expected 2 < pieces <= --classes {classes}")
    texts = [data_dir / "text" / f"{name}.txt" for name in ("lexicon", "transcripts_train")]
    missing = [str(path) for path in texts if not path.is_file()]
    if missing:
        raise ValueError(
            f"--data-dir: got {data_dir} without {missing[0]}, expected a folder that prepare.py "
            "wrote; run it first"
        )
    lang_dir = data_dir / f"lang_bpe_{classes}"
    if lang_dir.exists():
        raise ValueError(f"--classes: {lang_dir} is there; delete it or choose another --data-dir")
    lang_dir.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for path in texts for line in path.read_text().splitlines()),
        model_prefix=str(lang_dir / "bpe"),
        model_type="bpe",
        vocab_size=classes,
        character_coverage=1.0,
        user_defined_symbols=["<blk>", *(f"<unused{i}>" for i in range(classes - pieces))],
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=1,
    )
    (lang_dir / MARKER).write_text(json.dumps({"vocab_size": classes, "pieces": pieces}))
    return lang_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="what prepare.py wrote")
    parser.add_argument("--pieces", type=int, default=100, help="classes that texts have")
    parser.add_argument("--classes", type=int, default=4336, help="classes in all, C")
    args = parser.parse_args()
    try:
        print(train_tokenizer(args.data_dir, args.pieces, args.classes))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
