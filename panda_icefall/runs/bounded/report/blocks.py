"""What a report is made of, before it is Markdown or HTML. All texts are plain, never markup."""

from dataclasses import dataclass, field
from typing import Optional, Union

__all__ = ["Block", "Code", "Document", "Picture", "Section", "Table", "Text", "Verdict"]


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
      text: Its words.
      is_alert: It must not be overlooked.
    """

    text: str
    is_alert: bool = False


@dataclass(frozen=True)
class Code:
    """Commands or a configuration, to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; the first column names the row, the others are figures.

    Attributes:
      columns: Texts of the header.
      rows: As long as ``columns`` each.
      caption: What the table shows.
      is_textual: The other columns are words rather than figures.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    is_textual: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure that was drawn.

    Attributes:
      file_name: Its file, beside the report.
      caption: What it shows.
    """

    file_name: str
    caption: str


Block = Union[Text, Code, Table, Picture]


@dataclass(frozen=True)
class Section:
    """A headed part of the report."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Verdict:
    """One question that the run answers.

    Attributes:
      name: What was judged.
      holds: The answer; ``None`` while there is none.
      text: The figure and its bound, in words.
    """

    name: str
    holds: Optional[bool]
    text: str

    @property
    def answer(self) -> str:
        """The answer as one or two words."""
        return {True: "holds", False: "VIOLATED", None: "not judged"}[self.holds]

    @property
    def sign(self) -> str:
        """The answer as a sign that needs no colour."""
        signs = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "\N{EN DASH}"}
        return signs[self.holds]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
      title: What was run.
      label: State of the run in capitals: HOLDS, VIOLATED, PARTIAL, ...
      tone: ``good``, ``bad``, ``open`` or ``partial``: how the label is coloured.
      sentence: What the label rests on.
      details: More on that, in lines, as the end of a log.
      verdicts: The answers.
      headline: Loss, memory and time of both arms in one table.
      facts: What was run on what: names and values.
      commands: What one may type next, with the command: the same run again, and to continue one
        that is not complete.
      sections: Everything else.
    """

    title: str
    label: str
    tone: str
    sentence: str
    details: Optional[str]
    verdicts: tuple[Verdict, ...]
    headline: Optional[Table]
    facts: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...] = field(default=())
