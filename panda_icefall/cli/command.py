"""A command whose help ends with examples and exit statuses, and which needs torch to run only."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_NO_TORCH",
    "INTERRUPTED",
    "RECIPE_COMMAND",
    "Command",
    "Group",
]

EXIT_NO_TORCH = 2
EXIT_INTERRUPTED = 130
INTERRUPTED: dict[int | str, str] = {EXIT_INTERRUPTED: "Interrupted by Ctrl-C."}
# Settings of a command that takes TRAIN_PY and, behind it, words that are the recipe's.
RECIPE_COMMAND: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def require_torch() -> None:
    """End the process with one line where torch is missing or broken.

    The command line is parsed, and its help shown, without torch: it takes a second to import.
    """
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library that it loads
        what = (
            "is not installed"
            if isinstance(error, ModuleNotFoundError) and error.name == "torch"
            else f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        )
        print(
            f"panda-icefall: torch {what} (Python {sys.version.split()[0]} at {sys.executable}); "
            "install the torch for your GPU or CPU first (https://pytorch.org/get-started), then "
            "the k2 that was built for it, then run `panda-icefall doctor`",
            file=sys.stderr,
        )
        sys.exit(EXIT_NO_TORCH)


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Commands as they are typed: never wrapped, so that they can be copied."""
    with formatter.section("Examples"):
        for line in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _write_statuses(formatter: click.HelpFormatter, statuses: Mapping[int | str, str]) -> None:
    with formatter.section("Exit status"):
        formatter.write_dl([(str(code), text) for code, text in statuses.items()])


class Command(click.Command):
    """A command with a section of examples and one of exit statuses.

    Args:
      examples: Command lines, as they are typed.
      exit_statuses: What each status means.
      needs_torch: Whether running it takes a torch that works; its help never does.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        exit_statuses: Mapping[int | str, str],
        needs_torch: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exit_statuses = exit_statuses
        self.needs_torch = needs_torch

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both sections below the options."""
        _write_examples(formatter, self.examples)
        _write_statuses(formatter, self.exit_statuses)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, whose words have been parsed."""
        if self.needs_torch:
            require_torch()
        return super().invoke(ctx)


class Group(click.Group):
    """A group of commands with the same two sections.

    Args:
      examples: Command lines, as they are typed.
      exit_statuses: What each status means, whichever command it is of.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[str],
        exit_statuses: Mapping[int | str, str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exit_statuses = exit_statuses

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added: that in which they are needed."""
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both sections below the commands."""
        _write_examples(formatter, self.examples)
        _write_statuses(formatter, self.exit_statuses)
