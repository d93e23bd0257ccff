"""Running the recipes' own ``local/`` scripts, which own the format of a lang folder."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run_recipe_script"]

_LINES_QUOTED = 8


def run_recipe_script(icefall_root: Path, script: Path, *arguments: str) -> None:
    """Run a script of a checkout in its corpus folder; the checkout is only read.

    Args:
      icefall_root: the checkout.
      script: ``egs/<corpus>/ASR/local/<script>.py``, relative to it.
      arguments: the script's.

    Raises:
      FileNotFoundError: the checkout has no such script.
      RuntimeError: the script failed; its last words are quoted.
    """
    path = icefall_root / script
    if not path.is_file():
        raise FileNotFoundError(
            f"icefall_root: got {icefall_root}, which has no {script}, expected the recipe's own "
            "script; take the commit that the README names"
        )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(icefall_root), os.environ.get("PYTHONPATH")])
        ),
        # The checkout is the user's: not even byte code is left in it.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=path.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last_words = "\n".join(done.stderr.splitlines()[-_LINES_QUOTED:])
        raise RuntimeError(
            f"{script}: got exit status {done.returncode}, expected 0; run it by hand or "
            f"install what it misses. It said:\n{last_words}"
        )
