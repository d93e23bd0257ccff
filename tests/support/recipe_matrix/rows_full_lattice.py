"""Recipes whose loss is on the full lattice: torchaudio's, k2's, optimized_transducer's."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe_matrix.adaptations import started_in
from recipe_matrix.float64_losses import OPTIMIZED_TRANSDUCER, TORCHAUDIO
from recipe_matrix.row import Adaptation, Row
from recipe_matrix.sizes import CONFORMER_WITH_LSTM, LSTM_WITH_LSTM

_CLASSES = 500


@contextmanager
def _word_list() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        lang = Path(folder, "data/lm/frames")
        lang.mkdir(parents=True)
        # A line for each class but the blank.
        (lang / "lexicon_disambig.txt").write_text("word w\n" * (_CLASSES - 1))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


_WORD_LIST = Adaptation(around=_word_list)


def _padded(folder: str) -> Row:
    """A recipe with torchaudio's loss, of logits ``[N, T, U, C]``."""
    return Row(folder, CONFORMER_WITH_LSTM, adaptations=(TORCHAUDIO,))


def _packed(folder: str) -> Row:
    """A recipe with optimized_transducer's loss, of logits ``[sum_all_TU, C]``."""
    return Row(folder, CONFORMER_WITH_LSTM, adaptations=(OPTIMIZED_TRANSDUCER,))


def _with_package(folder: str, *adaptations: Adaptation) -> Row:
    """A recipe that imports its files as the package ``transducer``, for features of 23 bins."""
    parent = started_in(folder.rpartition("/")[0])
    return Row(
        folder,
        CONFORMER_WITH_LSTM,
        params={"feature_dim": 80},
        adaptations=(parent, TORCHAUDIO, *adaptations),
    )


_STATELESS2 = _padded("librispeech/ASR/transducer_stateless2")
_STATELESS = _packed("librispeech/ASR/transducer_stateless")
_MULTI = _packed("librispeech/ASR/transducer_stateless_multi_datasets")
_MODIFIED = _packed("aishell/ASR/transducer_stateless_modified")
_MODIFIED2 = _packed("aishell/ASR/transducer_stateless_modified-2")
_K2 = Row("aishell/ASR/transducer_stateless", CONFORMER_WITH_LSTM)
# Drawn for each batch, by `random.random()`: every one modified, or this one or that.
_ALWAYS = {"modified_transducer_prob": 1.0}
_HALF = {"modified_transducer_prob": 0.5}

FULL_LATTICES = [
    _padded("librispeech/ASR/transducer"),
    Row("librispeech/ASR/transducer_lstm", LSTM_WITH_LSTM, adaptations=(TORCHAUDIO,)),
    _STATELESS2,
    _STATELESS2.but("C=4336", num_classes=4336),
    _with_package("fluent_speech_commands/SLU/transducer", _WORD_LIST),
    _with_package("yesno/ASR/transducer"),
    _K2,
    _K2.but("C=4336", num_classes=4336),
    _STATELESS,
    _STATELESS.but("modified", call=_ALWAYS),
    _MULTI.but("LibriSpeech branch", call={**_HALF, "libri": True}),
    _MULTI.but("GigaSpeech branch", call={**_HALF, "libri": False}),
    _MODIFIED.but("modified in half of the batches", call=_HALF),
    _MODIFIED.but("modified, C=4336", call=_ALWAYS, num_classes=4336),
    _MODIFIED2.but("AISHELL branch", call={**_HALF, "aishell": True}),
    _MODIFIED2.but("Datatang branch", call={**_ALWAYS, "aishell": False}),
    _packed("tedlium3/ASR/transducer_stateless"),
]
