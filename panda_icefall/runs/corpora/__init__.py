"""What the recipes' data folders must hold, and whether a given one does."""

from panda_icefall.runs.corpora.catalog import CORPORA, Corpus, Lang, data_arguments, find_corpus
from panda_icefall.runs.corpora.check import check_data, check_icefall_root
from panda_icefall.runs.corpora.classes import count_classes

__all__ = [
    "CORPORA",
    "Corpus",
    "Lang",
    "check_data",
    "check_icefall_root",
    "count_classes",
    "data_arguments",
    "find_corpus",
]
