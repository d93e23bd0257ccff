"""The documentation says what is there: links, messages, scripts."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import panda_icefall

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in ("", ".github", "panda_icefall", "egs", "scripts")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_pages_are_found():
    names = {name_of(page) for page in PAGES}
    assert {"README.md", "egs/README.md", "egs/TUTORIAL.md", "panda_icefall/README.md"} <= names


def anchor(heading: str) -> str:
    """As renderers of Markdown make it."""
    words = re.sub(r"[^\w\s-]", "", heading.lower().replace("`", ""))
    return re.sub(r"\s", "-", words.strip())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), f"{name_of(page)}: {target}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
            assert fragment in map(anchor, headings), f"{name_of(page)}: {target}"


def texts_of_the_package() -> Iterator[str]:
    """Every string of the package, the values in it as `...`."""
    for path in Path(panda_icefall.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "..."
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("%s", "...")


def test_messages_that_are_explained_exist():
    table = (ROOT / "egs/FAQ.md").read_text().split("## Messages")[1].split("## Limits")[0]
    quoted = [
        message
        for row in re.findall(r"^\| (`[^|]*) \|", table, flags=re.M)
        for message in re.findall(r"`([^`]+)`", row)
    ]
    assert len(quoted) > 10
    texts = list(texts_of_the_package())
    for message in quoted:
        pattern = ".*".join(map(re.escape, filter(None, message.split("..."))))
        assert any(re.search(pattern, text, flags=re.S) for text in texts), message


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of every command of ours in the pages' blocks, and where it stands."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace("$PWD", "."), comments=True)
                while words and "=" in words[0]:
                    words = words[1:]
                if words:
                    yield name_of(page), words


def test_scripts_in_commands_exist():
    scripts = [
        (page, word)
        for page, words in commands()
        for word in words
        if re.fullmatch(r"(python )?scripts/\S+\.(py|sh)", word)
    ]
    assert len(scripts) > 5
    for page, script in scripts:
        assert (ROOT / script).is_file(), f"{page}: {script}"


@pytest.mark.parametrize(("lane", "python"), [("modern", "3.11"), ("k2", "3.10")])
def test_the_versions_called_tested_are_those_of_the_lanes(lane, python):
    files = (ROOT / "scripts").glob(f"requirements-{lane}*.txt")
    pins = dict(
        re.findall(r"^(torch|k2|lhotse)==(\S+)", "\n".join(map(Path.read_text, files)), re.M)
    )
    row = f"| {pins['torch']} | {pins.get('k2', 'none')} | {python} | {pins['lhotse']} |"
    assert row in (ROOT / "egs" / "FAQ.md").read_text()
