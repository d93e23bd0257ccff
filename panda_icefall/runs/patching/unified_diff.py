"""Insertions as a patch file that carries no line of the file it patches."""

from collections.abc import Sequence

from panda_icefall.runs.patching.placement import Insertion

__all__ = ["zero_context_diff"]


def zero_context_diff(path: str, insertions: Sequence[Insertion]) -> bytes:
    """The diff that ``git apply --unidiff-zero`` takes, as ``diff -U0`` would write it.

    Args:
      path: The patched file's path in its checkout, with forward slashes.
      insertions: In the order of the file.

    Returns:
      The patch; a hunk header holds line numbers only.
    """
    lines = [f"--- a/{path}\n".encode(), f"+++ b/{path}\n".encode()]
    for count, insertion in enumerate(insertions, start=1):
        lines.append(f"@@ -{insertion.after},0 +{insertion.after + count} @@\n".encode())
        lines.append(b"+" + insertion.text + insertion.ending)
    return b"".join(lines)
