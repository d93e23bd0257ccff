"""The commands in the documentation are ones that the command line and the scripts take."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from panda_icefall import cli, shipped
from panda_icefall.cli.paths import GivenPath

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("egs", "patches", "panda_icefall", "scripts", ".github")
DOCS = [
    ROOT / "README.md",
    *(doc for folder in FOLDERS for doc in sorted((ROOT / folder).rglob("*.md"))),
]
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# In a sentence a command may be broken over two lines.
INLINE = re.compile(r"`([^`]+)`")
SCRIPT = re.compile(r"scripts/(\w+)\.py")


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
    # The files of its user are not here.
    monkeypatch.setattr(GivenPath, "convert", lambda kind, value, *_: Path(value))
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


class UnderstoodError(Exception):
    """The words were parsed: what a script would do next is not done."""


def scripts():
    """Every call of a script of ours, in blocks and in sentences, once."""
    found = {}
    for doc in DOCS:
        text = doc.read_text(encoding="utf-8")
        lines = [
            part
            for block in BLOCK.findall(text)
            for line in block.replace("\\\n", " ").splitlines()
            for part in line.split("&&")
        ]
        sentences = INLINE.findall(BLOCK.sub("", text))
        for line in [*lines, *(" ".join(code.split()) for code in sentences)]:
            if not SCRIPT.search(line) or "::" in line:
                continue
            words = shlex.split(line, comments=True)
            at = next((i for i, word in enumerate(words[:2]) if SCRIPT.fullmatch(word)), None)
            if at is not None and len(words) > 1:  # a name alone in a sentence is no command
                found.setdefault(" ".join(words[at:]), words[at:])
    return [pytest.param(words, id=line) for line, words in found.items()]


def parse_script(words, monkeypatch):
    def parse_args(parser, *given):
        taken = argparse.ArgumentParser.parse_known_args(parser, *given)
        if taken[1]:
            parser.error(f"unrecognized arguments: {taken[1]}")
        raise UnderstoodError

    if "argparse" not in (ROOT / words[0]).read_text(encoding="utf-8"):
        assert len(words) == 1
        raise UnderstoodError
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module(Path(words[0]).stem).main()


@pytest.mark.parametrize("words", scripts())
def test_a_documented_script_takes_its_words(words, monkeypatch):
    with pytest.raises(UnderstoodError):
        parse_script(words, monkeypatch)


def test_words_that_a_script_does_not_take_would_be_found(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parse_script(["scripts/bench_loss.py", "--adjoint-tolerances", "3"], monkeypatch)
    assert "--adjoint-tolerances" in capsys.readouterr().err


def test_there_are_scripts_to_look_at():
    assert len(scripts()) > 20
