"""The commands in the documentation are ones that the command line takes."""

import re
import shlex
from pathlib import Path

import click
import pytest

from panda_icefall import cli, shipped

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "egs").rglob("*.md")), ROOT / "patches/README.md"]
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands():
    for doc in DOCS:
        for block in FENCE.findall(doc.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["panda-icefall"]:
                        yield pytest.param(words[1:], id=f"{doc.parent.name}: {part.strip()}")


def parse(words):
    """Parse a command line as far as the command that it calls; nothing is run."""
    group = cli.cli
    while True:
        context = group.make_context("panda-icefall", list(words), resilient_parsing=False)
        if not isinstance(group, click.Group):
            return group, context
        rest = [*context._protected_args, *context.args]
        _, group, words = group.resolve_command(context, rest)


@pytest.mark.parametrize("words", list(commands()))
def test_a_documented_command_is_understood(words, monkeypatch):
    monkeypatch.setenv("ICEFALL_ROOT", "/path/to/icefall")
    try:
        command, context = parse(words)
    except click.exceptions.Exit:  # --help, --list
        return
    if command.name == "bounded" and context.params["config"].suffix != ".yaml":
        assert shipped.find_config(str(context.params["config"]), "cpu").is_file()
    elif command.name == "bounded" and context.params["config"].parts[0] == "egs":
        assert (ROOT / context.params["config"]).is_file()


@pytest.mark.parametrize("words", [["plan"], ["rum"], ["doctor", "--jason"], ["bounded", "x"]])
def test_a_command_that_is_not_understood_would_be_found(words, monkeypatch):
    monkeypatch.delenv("ICEFALL_ROOT", raising=False)
    with pytest.raises(click.UsageError):
        parse(words)


def test_there_are_commands_to_look_at():
    assert len(list(commands())) > 20
