"""The first cuts of a lhotse manifest, looked at before a recipe meets them.

Only the head of the file is read, as the JSON lines it is: neither lhotse nor the features'
contents are needed to see that a data folder holds nothing to train on.
"""

import gzip
import itertools
import json
from pathlib import Path
from typing import Any, Optional

from panda_icefall.runs.errors import UsageError

__all__ = ["check_manifest"]

_CUTS_LOOKED_AT = 8
# lhotse's writers of these kinds leave the features elsewhere than in a local file.
_NOT_IN_FILES = ("memory", "url", "msgpack", "shar")


def check_manifest(path: Path, prepare: str, relative_to: Path, has_supervisions: bool) -> None:
    """See that a manifest's first cuts are something a recipe can load.

    Args:
      path: ``*.jsonl.gz``, which must exist.
      prepare: what to run for a good one, for the messages.
      relative_to: the folder in which the recipe runs, that relative feature paths start from.
      has_supervisions: whether the cuts must have transcripts; noise has none.

    Raises:
      UsageError: the file is no gzipped list of cuts, it is empty, or a cut has no features, no
        transcript, or features whose file is gone.
    """
    cuts = _first_cuts(path, prepare)
    if not cuts:
        raise UsageError(f"{path}: got no cut in it, expected cuts to train on; {prepare}")
    for cut in cuts:
        name = f"{path}: got cut {cut.get('id')!r}"
        features = cut.get("features")
        if not features:
            raise UsageError(f"{name} without features, expected precomputed ones; {prepare}")
        stored = _stored_features(features, relative_to)
        if stored is not None and not stored.exists():
            raise UsageError(
                f"{name} with features in {stored}, which does not exist, expected them where the "
                f"manifest says; restore that file or {prepare}"
            )
        supervisions = cut.get("supervisions") or []
        if has_supervisions and not any(_has_text(supervision) for supervision in supervisions):
            raise UsageError(f"{name} without a transcript, expected a supervision; {prepare}")


def _first_cuts(path: Path, prepare: str) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            cuts = [json.loads(line) for line in itertools.islice(lines, _CUTS_LOOKED_AT)]
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(
            f"{path}: got a file that does not read as gzipped JSON lines ({error}), expected a "
            f"lhotse cut manifest; {prepare}"
        ) from error
    if not all(isinstance(cut, dict) and _is_cut(cut) for cut in cuts):
        raise UsageError(f"{path}: got lines that are no cuts, expected a cut a line; {prepare}")
    return cuts


def _is_cut(cut: dict[str, Any]) -> bool:
    supervisions = cut.get("supervisions") or []
    return (
        isinstance(cut.get("features") or {}, dict)
        and isinstance(supervisions, list)
        and all(isinstance(supervision, dict) for supervision in supervisions)
    )


def _has_text(supervision: dict[str, Any]) -> bool:
    return bool(str(supervision.get("text") or "").strip())


def _stored_features(features: dict[str, Any], relative_to: Path) -> Optional[Path]:
    """The file of one cut's features; the archive where many share one; None if not in files."""
    kind = str(features.get("storage_type", ""))
    if any(word in kind for word in _NOT_IN_FILES):
        return None
    path = relative_to / str(features.get("storage_path", ""))
    is_one_file_each = kind.endswith("_files")
    return path / str(features.get("storage_key", "")) if is_one_file_each else path
