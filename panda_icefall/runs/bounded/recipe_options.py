"""Whether a recipe's own parser takes the options of a bounded run, asked without training.

In a process of its own, ``python -m panda_icefall.runs.bounded.recipe_options TRAIN_PY ANSWER
[ARGS]...``, the recipe runs as far as the parser that reads its command line.
"""

import argparse
import difflib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from panda_icefall.runs.bounded.stage import Deadline, Interrupted, run_stage
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_module import RecipeFile

__all__ = ["check_recipe_options"]

_MINUTES = 10.0


def check_recipe_options(
    train_py: Path, words: Sequence[str], configured: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Have the recipe's parser read ``words``, and refuse what it does not take.

    Args:
      train_py: The recipe's training script.
      words: Its whole command line: what is configured, and what a bounded run sets itself.
      configured: The option names under ``train_args``, without dashes.
      environment: The environment of the run's processes.

    Raises:
      UsageError: An option that the parser does not have, with near names, or a value that it
        refuses; or the recipe ended before it parsed anything.
    """
    with tempfile.TemporaryDirectory(prefix="panda-icefall-") as folder:
        answer = Path(folder, "answer.json")
        module = "panda_icefall.runs.bounded.recipe_options"
        command = [sys.executable, "-m", module, str(train_py), str(answer), *words]
        log, deadline = Path(folder, "output.log"), Deadline.after(_MINUTES)
        try:
            outcome = run_stage(command, train_py.parents[1], environment, log, deadline)
        except Interrupted as stop:
            why = f"within {_MINUTES:g} minutes" if deadline.is_over else f"before {stop}"
            raise UsageError(
                f"recipe: {train_py} did not parse its command line {why}; expected an argparse "
                "parser in its main()"
            ) from stop
        if not answer.exists():
            last_words = (outcome.tail.strip().splitlines() or ["it printed nothing"])[-1]
            raise UsageError(
                f"recipe: {train_py} ended with status {outcome.exit_status} before it parsed its "
                f"command line: {last_words}; panda-icefall doctor {train_py.parent} looks for the "
                "cause"
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    problems = [_unknown(word, configured, found["options"]) for word in found["unknown"]]
    if found["error"] is not None:
        problems.append(_refused(found["error"], configured))
    if problems:
        raise UsageError("; ".join(problems))


def _unknown(word: str, configured: Sequence[str], options: Sequence[str]) -> str:
    name = word[2:]
    if name not in configured:
        return (
            f"recipe: its parser has no option {word}, which a bounded run sets; expected a recipe "
            "with icefall's options"
        )
    plain = [option[2:] for option in options if option.startswith("--")]
    close = difflib.get_close_matches(name, plain, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"train_args.{name}: the recipe's parser has no such option{hint}"


def _refused(message: str, configured: Sequence[str]) -> str:
    """The parser's own words on a value, under the key that has it."""
    head, colon, rest = message.partition(": ")
    name = head.removeprefix("argument ").split("/")[-1][2:]
    if colon and name in configured:
        return f"train_args.{name}: {rest}"
    return f"train_args: the recipe's parser says: {message}"


class _Answered(BaseException):
    """The recipe's parser has read the command line: the recipe goes no further."""


class _Refused(Exception):  # noqa: N818 - the parser's, not a user's error
    """What the recipe's parser would have said before it ended the process."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


def _ask(train_py: str, answer: Path, words: list[str]) -> None:
    """In a process of its own: let the recipe parse ``words`` and write what came of it."""
    parse_args = argparse.ArgumentParser.parse_args
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def asking(original: Any, is_strict: bool) -> Any:
        def parse(self: Any, args: Any = None, namespace: Any = None, **others: Any) -> Any:
            if args is not None and list(args) != sys.argv[1:]:
                return original(self, args, namespace, **others)
            self.error = _refuse
            error: str | None = None
            rest: list[str] = []
            try:
                _, rest = parse_known_args(self, args, namespace)
            except _Refused as refused:
                error = str(refused)
            unknown = [word for word in rest if word.startswith("--")] if is_strict else []
            options = list(self._option_string_actions)
            found = {"error": error, "unknown": unknown, "options": options}
            answer.write_text(json.dumps(found), encoding="utf-8")
            raise _Answered

        return parse

    argparse.ArgumentParser.parse_args = asking(parse_args, True)  # type: ignore[method-assign]
    # A recipe that calls this one itself takes words that it does not know.
    argparse.ArgumentParser.parse_known_args = asking(  # type: ignore[method-assign]
        parse_known_args, False
    )
    recipe = RecipeFile(train_py)
    try:
        with recipe.as_main(words) as module:
            recipe.start(module, recipe.define(module))
    except _Answered:
        pass


if __name__ == "__main__":
    _ask(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
