"""A recipe's own defaults, read from its files without running them."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda_icefall.runs.data.catalog import CORPORA
from panda_icefall.runs.doctor.recipe import find_train_py
from panda_icefall.runs.doctor.recipe_sources import RecipeSources
from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.options import SWITCH_WORDS

__all__ = ["Found", "given_sizes", "recipe_defaults"]

_OPTIONS = (
    "prune-range",
    "joiner-dim",
    "encoder-dim",
    "decoder-dim",
    "max-duration",
    "num-buckets",
    "use-fp16",
    "use-bf16",
    "lang-dir",
    "bpe-model",
    "subsampling-factor",
)
_PIECES = re.compile(r"lang_\w+?_(\d+)/")
FRAMES_PER_SECOND = 100  # of the features, before subsampling


@dataclass(frozen=True)
class Found:
    """A number and where it is from."""

    value: Any
    source: str


def recipe_defaults(recipe: Path, words: Sequence[str] = ()) -> dict[str, Found]:
    """Sizes by the names of the planner's options, as far as the recipe's files tell them.

    Args:
      recipe: A recipe's folder or training script.
      words: Of the command line of a run of it; they take the place of its defaults.

    Raises:
      UsageError: There is no such script, it cannot be read, or it has no pruned transducer loss.
    """
    train_py = find_train_py(recipe)
    with reading("RECIPE_DIR", recipe):
        if not train_py.is_file():
            raise UsageError(
                f"RECIPE_DIR: got {recipe}, expected a folder with a train.py, or a script"
            )
        sources = RecipeSources(train_py)
    if train_py in sources.unreadable:
        raise UsageError(f"RECIPE_DIR: {sources.unreadable[train_py]}")
    read: dict[str, Found] = {}
    for source in sources.of_recipe:
        for name, value in _defaults_in(source.tree).items():
            read.setdefault(name, Found(value, source.path.name))
    read |= _given_in(words)
    if "prune-range" not in read:
        raise UsageError(
            f"RECIPE_DIR: {train_py} has no option --prune-range, so no pruned transducer loss to "
            "plan; give --vocab, --joiner-dim and --prune-range in place of RECIPE_DIR"
        )
    found = _planned(read)
    vocab = _vocabulary(train_py, read)
    return found if vocab is None else {**found, "vocab": vocab}


def given_sizes(words: Sequence[str]) -> dict[str, Found]:
    """The same of a run's command line alone, without the number of classes."""
    return _planned(_given_in(words))


_NUMBERS = {"prune-range": int, "num-buckets": int, "max-duration": float}


def _planned(read: Mapping[str, Found]) -> dict[str, Found]:
    """Sizes by the names of the planner's options, of what the recipe's options say."""
    found = {n: Found(to(read[n].value), read[n].source) for n, to in _NUMBERS.items() if n in read}
    found |= {name: _largest(read[name]) for name in _DIMENSIONS if name in read}
    for option in ("use-fp16", "use-bf16"):
        if option in read and SWITCH_WORDS.get(str(read[option].value).lower(), False):
            found["dtype"] = Found(option.removeprefix("use-"), read[option].source)
    if "subsampling-factor" in read:
        factor = read["subsampling-factor"]
        found["frame-rate"] = Found(FRAMES_PER_SECOND / int(factor.value), factor.source)
    return found


_DIMENSIONS = ("joiner-dim", "encoder-dim", "decoder-dim")


def _largest(found: Found) -> Found:
    """The width of what several stacks give: ``192,256,384`` is 384 wide."""
    return Found(max(int(part) for part in str(found.value).split(",")), found.source)


def _given_in(words: Sequence[str]) -> dict[str, Found]:
    """The options of a command line that tell sizes."""
    found = {}
    for word, following in zip(words, [*words[1:], ""]):
        option, is_joined, value = word.partition("=")
        name = option.removeprefix("--")
        if option.startswith("--") and name in _OPTIONS:
            found[name] = Found(value if is_joined else following, "that run")
    return found


def _defaults_in(tree: ast.Module) -> dict[str, Any]:
    """Defaults of ``add_argument("--name", default=...)``, and numbers of ``{"name": ...}``."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            defaults = [k.value for k in node.keywords if k.arg == "default"]
            if names and defaults and isinstance(defaults[0], ast.Constant):
                _note(found, str(names[0]).removeprefix("--"), defaults[0].value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    _note(found, str(key.value).replace("_", "-"), value.value)
    return found


def _note(found: dict[str, Any], name: str, value: Any) -> None:
    if name in _OPTIONS and value is not None:
        found.setdefault(name, value)


def _vocabulary(train_py: Path, read: Mapping[str, Found]) -> Found | None:
    """Classes: of the data folder that is there, of the option's own name, or as published."""
    corpus_folder = train_py.parents[1]
    if "lang-dir" in read:
        tokens = corpus_folder / str(read["lang-dir"].value) / "tokens.txt"
        with reading("RECIPE_DIR", tokens):
            if tokens.is_file():
                return Found(_count_tokens(tokens), str(tokens))
    if "bpe-model" in read:
        pieces = _PIECES.search(str(read["bpe-model"].value))
        if pieces is not None:
            return Found(int(pieces[1]), f"--bpe-model in {read['bpe-model'].source}")
    for corpus in CORPORA.values():
        if corpus_folder.as_posix().endswith(f"/{corpus.folder}"):
            lang = next(iter(corpus.langs.values()))
            return Found(lang.published_classes, f"published for {corpus.title}")
    return None


def _count_tokens(path: Path) -> int:
    """One more than the largest id, without those of disambiguation symbols (``#0``)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    ids = [int(line.split()[-1]) for line in lines if line.strip() and not line.startswith("#")]
    return max(ids) + 1
