"""Whether a checkout and a data folder are what a recipe needs, told before anything starts."""

from collections.abc import Sequence
from pathlib import Path

from panda_icefall.runs.corpora.catalog import FBANK, MUSAN, Corpus, Lang, find_corpus
from panda_icefall.runs.corpora.classes import count_classes
from panda_icefall.runs.corpora.manifest_check import check_manifest
from panda_icefall.runs.errors import UsageError

__all__ = ["check_data", "check_icefall_root"]

_CHECKOUT_FILES = ("icefall/__init__.py", "egs")


def check_icefall_root(root: Path) -> Path:
    """The absolute path of an icefall checkout.

    Raises:
      UsageError: the folder is none.
    """
    found = root.expanduser().resolve()
    for name in _CHECKOUT_FILES:
        if not (found / name).exists():
            raise UsageError(
                f"icefall_root: got {str(root)!r}, which has no {name}, expected an icefall "
                "checkout; clone icefall and give its folder"
            )
    return found


def check_data(
    corpus: str,
    lang: str,
    data: Path,
    vocab_size: int,
    corpus_folder: Path,
    train_arguments: Sequence[str] = (),
) -> None:
    """See that a data folder has all that a recipe opens, cuts in it and the right vocabulary.

    Cheap: the first cuts of each manifest and the vocabulary are read, no features.

    Args:
      corpus: a name in `CORPORA`.
      lang: kind of the vocabulary, as `Corpus.langs` has them.
      data: the data folder, in place of the recipe's ``data``.
      vocab_size: classes C that the run was configured for.
      corpus_folder: ``egs/<corpus>/ASR`` of the checkout, where the recipe runs.
      train_arguments: the recipe's arguments; they choose the training subset and the noise.

    Raises:
      UsageError: what is missing or does not fit, with the recipe's own command that makes it.
    """
    layout = find_corpus(corpus)
    vocabulary = layout.lang(lang)
    given, data = data, data.expanduser().resolve()
    if not data.is_dir():
        raise UsageError(
            f"data: got {str(given)!r}, which is no folder, expected {layout.title} prepared by "
            f"icefall; {_run(layout.prepare_fbank, corpus_folder)}, or use synthetic data"
        )
    _check_manifests(layout, data, corpus_folder, train_arguments)
    _check_vocabulary(layout, vocabulary, data, vocab_size, corpus_folder)


def _check_manifests(
    layout: Corpus, data: Path, corpus_folder: Path, train_arguments: Sequence[str]
) -> None:
    speech = _run(layout.prepare_fbank, corpus_folder)
    noise = _run(layout.prepare_musan, corpus_folder)
    wanted = [(name, speech) for name in (layout.train_manifest(train_arguments), *layout.dev)]
    if layout.opens_noise(train_arguments):
        wanted.append((MUSAN, noise))
    for name, prepare in wanted:
        path = data / FBANK / name
        if not path.is_file():
            raise UsageError(
                f"data: got {data}, which has no {FBANK}/{name}, expected what {layout.title}'s "
                f"recipes open; {prepare}"
            )
        check_manifest(path, prepare, corpus_folder, has_supervisions=name != MUSAN)


def _check_vocabulary(
    layout: Corpus, vocabulary: Lang, data: Path, vocab_size: int, corpus_folder: Path
) -> None:
    folder = vocabulary.folder_in(data, vocab_size)
    prepare = _run(vocabulary.prepare, corpus_folder)
    for name in vocabulary.opened:
        if not (folder / name).is_file():
            raise UsageError(
                f"data: got {data}, which has no {folder.name}/{name}, expected the vocabulary of "
                f"{vocab_size} classes; {prepare}"
            )
    counted = folder / vocabulary.counted
    found = count_classes(counted)
    if found != vocab_size:
        raise UsageError(
            f"vocab_size: got {vocab_size} for data whose {counted} has {found} classes, expected "
            f"the two to agree ({layout.title} as published: {vocabulary.published_classes}); set "
            f"vocab_size to {found} or, for other data, {prepare}"
        )


def _run(prepare: str, corpus_folder: Path) -> str:
    return f"run in {corpus_folder}: {prepare}"
