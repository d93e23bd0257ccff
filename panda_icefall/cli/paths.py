"""Files and folders on the command line, looked at before any work is done."""

from pathlib import Path
from typing import Any

import click

__all__ = ["AS_TYPED", "FILE_TO_READ", "FILE_TO_WRITE", "FOLDER_TO_WRITE", "GIVEN", "RUN_TO_READ"]


class PathError(click.ClickException):
    """A path that cannot be what the command needs: one line, exit status 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print it as the package's own errors are printed."""
        click.echo(f"panda-icefall: {self.message}", file=file, err=True)


class GivenPath(click.Path):
    """A path that is looked at while the command line is read.

    Args:
      expected: ``file``, ``folder`` or ``folder or file``.
      is_read: It has to be there; else it, or its folder, may have to be made.
    """

    def __init__(self, expected: str, *, is_read: bool) -> None:
        super().__init__(file_okay="file" in expected, dir_okay="folder" in expected)
        self.expected, self.is_read = expected, is_read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path, with the home folder in the place of ``~``.

        Raises:
          PathError: It is not there, is of the other kind, or lies below a file.
        """
        name, wanted = "path" if param is None else param.opts[0], f"expected a {self.expected}"
        try:
            return self._checked(Path(value).expanduser(), name, wanted)
        except (OSError, RuntimeError) as error:  # no such user, a name too long, a closed folder
            reason = getattr(error, "strerror", None) or error
            raise PathError(f"{name}: got {value}, {reason}; {wanted}") from error

    def _checked(self, path: Path, name: str, wanted: str) -> Path:
        if path.is_dir() and not self.dir_okay:
            raise PathError(f"{name}: got {path}, a folder; {wanted}")
        if path.exists() and not path.is_dir() and not self.file_okay:
            raise PathError(f"{name}: got {path}, a file; {wanted}")
        if self.is_read and not path.exists():
            raise PathError(f"{name}: got {path}, which does not exist; {wanted}")
        above = next((place for place in path.absolute().parents if place.exists()), path.parent)
        if not path.exists() and not above.is_dir():
            raise PathError(f"{name}: got {path}, below the file {above}; {wanted}")
        return path


# Whoever reads it says what is wrong with it, in one line.
GIVEN = click.Path(path_type=Path, readable=False)
AS_TYPED = click.Path(readable=False)  # the same, as the recipe's sys.argv has it
FILE_TO_READ = GivenPath("file", is_read=True)
FILE_TO_WRITE = GivenPath("file", is_read=False)
FOLDER_TO_WRITE = GivenPath("folder", is_read=False)
RUN_TO_READ = GivenPath("folder or file", is_read=True)  # of a run, or its memory log
