"""Files that are there whole or not at all, whatever ends the process that writes them."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["finite_json", "replace_file", "replace_json"]


def replace_file(
    path: Path, data: bytes, *, keep_mode: bool = False, is_synced: bool = False
) -> None:
    """Put ``data`` in the place of a file at once, so that no reader and no crash sees half of it.

    The bytes go to a hidden file beside it first, which an error removes again. One process may
    write a path at a time.

    Args:
      path: The file, which need not exist; a link is replaced, not followed.
      data: Its new bytes.
      keep_mode: The permissions of the file that is there stay; else they are those of any new
        file, as the umask has them.
      is_synced: The bytes are on the disk before the old ones go: for a file that cannot be made
        again. Costs a wait for the disk.

    Raises:
      OSError: The file cannot be written; the one that was there is as before.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # a killed process's may have other permissions
        with partial.open("wb") as file:
            file.write(data)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        if keep_mode:
            shutil.copymode(path, partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def replace_json(path: Path, content: Any) -> None:
    """Put ``content`` in the place of a file as strict JSON, NaN and infinities as text.

    Raises:
      TypeError: It holds something that JSON cannot carry.
      OSError: As of :func:`replace_file`.
    """
    text = json.dumps(finite_json(content), indent=2, allow_nan=False, ensure_ascii=False)
    replace_file(path, f"{text}\n".encode())


def finite_json(value: Any) -> Any:
    """``value`` with every NaN and infinity spelt as a string, which strict JSON can carry."""
    if isinstance(value, dict):
        return {str(k): finite_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
