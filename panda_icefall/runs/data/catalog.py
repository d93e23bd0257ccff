"""What the recipes' data folders hold, as data: manifests, vocabularies, and their options.

Read from the recipes' own ``asr_datamodule.py``, ``train.py`` and ``prepare.sh`` (icefall at
36e0420). A data folder stands for a corpus folder's ``data``::

    DATA/fbank/<cut manifests>, DATA/fbank/musan_cuts.jsonl.gz
    DATA/<lang folder>/<what the recipe loads its vocabulary from>
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.options import SWITCH_WORDS, spelt

__all__ = ["CORPORA", "FBANK", "MUSAN", "Corpus", "Lang", "data_arguments", "find_corpus"]

FBANK = "fbank"
MUSAN = "musan_cuts.jsonl.gz"


@dataclass(frozen=True)
class Lang:
    """A kind of vocabulary that recipes of a corpus train with.

    Attributes:
      folder: Its folder in the data folder; ``{C}`` stands for the number of classes.
      counted: The file that the recipe reads the number of classes from.
      opened: Every file that training opens.
      option: The recipe's option; it names the folder, or the model where ``counted`` is one.
      published_classes: C of the published recipes.
      prepare: The command that makes it, in the corpus folder.
      train_py: A script that takes ``option``, in the corpus folder.
    """

    folder: str
    counted: str
    opened: tuple[str, ...]
    option: str
    published_classes: int
    prepare: str
    train_py: str = "zipformer/train.py"

    def folder_in(self, data: Path, vocab_size: int | None = None) -> Path:
        """Its folder for C classes, by default the published ones, in a data folder."""
        return data / self.folder.format(C=vocab_size or self.published_classes)


@dataclass(frozen=True)
class Corpus:
    """A corpus folder of icefall and the data that its pruned-transducer recipes read.

    Attributes:
      title: The corpus, as its owners write it.
      language: Of its speakers.
      folder: Where the recipes and ``prepare.sh`` lie, in an icefall checkout.
      train: The training manifest for each value of ``subset_option``; the first is the recipe's
        default.
      dev, test: The manifests that validation and decoding open.
      langs: Its vocabularies by kind; the first one is the usual one.
      prepare_fbank, prepare_musan: The commands that make the manifests, in the corpus folder.
      subset_option: The recipe's option that chooses the training manifest, "" where it has none.
      opens_unused_noise: Whether the noise manifest is opened with ``--enable-musan 0`` too.
    """

    title: str
    language: str
    folder: str
    train: Mapping[str, str]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    langs: Mapping[str, Lang]
    prepare_fbank: str
    prepare_musan: str
    subset_option: str = ""
    opens_unused_noise: bool = True

    def lang(self, kind: str) -> Lang:
        """The vocabulary of a kind. Raises UsageError where no recipe of the corpus has it."""
        if kind not in self.langs:
            raise UsageError(
                f"lang: got {kind!r}, expected {' or '.join(self.langs)} for {self.title}; "
                "choose what the recipe trains with"
            )
        return self.langs[kind]

    def train_manifest(self, train_arguments: Sequence[str]) -> str:
        """The training manifest that a recipe opens when started with these arguments.

        Raises:
          UsageError: ``subset_option`` names a subset that the recipes do not know.
        """
        default = next(iter(self.train))
        if not self.subset_option:
            return self.train[default]
        subset = _value_of(self.subset_option, train_arguments, default)
        name = spelt(SWITCH_WORDS.get(subset.lower(), subset))
        if name not in self.train:
            raise UsageError(
                f"{self.subset_option}: got {subset!r}, expected {' or '.join(self.train)}; "
                f"choose a training subset of {self.title}"
            )
        return self.train[name]

    def opens_noise(self, train_arguments: Sequence[str]) -> bool:
        """Whether a recipe started with these arguments opens the noise manifest."""
        value = _value_of("--enable-musan", train_arguments, "1").lower()
        return self.opens_unused_noise or SWITCH_WORDS.get(value, False)


def _value_of(option: str, arguments: Sequence[str], default: str) -> str:
    """The value that argparse would give an option: the last one, after a space or a ``=``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(option, dest="value", nargs="?", const="", default=default)
    return str(parser.parse_known_args(list(arguments))[0].value)


def _characters(published_classes: int, prepare: str) -> Lang:
    opened = ("tokens.txt", "words.txt", "L.pt")
    return Lang("lang_char", "tokens.txt", opened, "--lang-dir", published_classes, prepare)


def _pieces(kind: str, prepare: str, train_py: str = "zipformer/train.py") -> Lang:
    model = f"{kind}.model"
    return Lang(f"lang_{kind}_{{C}}", model, (model,), "--bpe-model", 500, prepare, train_py)


CORPORA: Mapping[str, Corpus] = {
    "aishell": Corpus(
        title="AISHELL",
        language="Chinese",
        folder="egs/aishell/ASR",
        train={"": "aishell_cuts_train.jsonl.gz"},
        dev=("aishell_cuts_dev.jsonl.gz",),
        test=("aishell_cuts_test.jsonl.gz",),
        langs={
            "char": _characters(4336, "./prepare.sh --stage 5 --stop-stage 6"),
            "bbpe": _pieces(
                "bbpe", "./prepare.sh --stage 5 --stop-stage 7", "zipformer/train_bbpe.py"
            ),
        },
        prepare_fbank="./prepare.sh --stage 0 --stop-stage 3",
        prepare_musan="./prepare.sh --stage 0 --stop-stage 4",
    ),
    "wenetspeech": Corpus(
        title="WenetSpeech",
        language="Chinese",
        folder="egs/wenetspeech/ASR",
        train={subset: f"cuts_{subset}_fixed.jsonl.gz" for subset in ("L", "M", "S")},
        dev=("cuts_DEV_fixed.jsonl.gz",),
        test=("cuts_TEST_NET.jsonl.gz", "cuts_TEST_MEETING.jsonl.gz"),
        langs={
            "char": _characters(5537, "./prepare.sh --stage 15 --stop-stage 16"),
        },
        # Stage 23 corrects the transcripts of DEV and L: the recipes open the `_fixed` manifests.
        prepare_fbank=(
            "./prepare.sh --stage 0 --stop-stage 13 && ./prepare.sh --stage 23 --stop-stage 23"
        ),
        prepare_musan=(
            "./prepare.sh --stage 2 --stop-stage 2 && ./prepare.sh --stage 14 --stop-stage 14"
        ),
        subset_option="--training-subset",
    ),
    "librispeech": Corpus(
        title="LibriSpeech",
        language="English",
        folder="egs/librispeech/ASR",
        train={
            "1": "librispeech_cuts_train-all-shuf.jsonl.gz",
            "0": "librispeech_cuts_train-clean-100.jsonl.gz",
        },
        dev=("librispeech_cuts_dev-clean.jsonl.gz", "librispeech_cuts_dev-other.jsonl.gz"),
        test=("librispeech_cuts_test-clean.jsonl.gz", "librispeech_cuts_test-other.jsonl.gz"),
        langs={
            "bpe": _pieces("bpe", "./prepare.sh --stage 5 --stop-stage 5"),
        },
        prepare_fbank="./prepare.sh --stage 0 --stop-stage 3",
        prepare_musan="./prepare.sh --stage 0 --stop-stage 4",
        subset_option="--full-libri",
        opens_unused_noise=False,
    ),
}


def find_corpus(name: str) -> Corpus:
    """The corpus of a name. Raises UsageError, with the names there are, for another."""
    if name not in CORPORA:
        raise UsageError(
            f"corpus: got {name!r}, expected {', '.join(CORPORA)}; choose one of these"
        )
    return CORPORA[name]


def data_arguments(corpus: str, lang: str, data: Path, vocab_size: int | None = None) -> list[str]:
    """The recipe's options that point it at a data folder.

    Args:
      corpus: A name in ``CORPORA``.
      lang: Kind of the vocabulary, as ``Corpus.langs`` has them.
      data: The data folder; made absolute, since recipes run in their own folder.
      vocab_size: Classes C; by default the published ones.

    Raises:
      UsageError: No such corpus, or no such vocabulary in it.
    """
    vocabulary = find_corpus(corpus).lang(lang)
    data = data.expanduser().resolve()
    named = vocabulary.folder_in(data, vocab_size)
    if vocabulary.counted.endswith(".model"):
        named = named / vocabulary.counted
    return ["--manifest-dir", str(data / FBANK), vocabulary.option, str(named)]
