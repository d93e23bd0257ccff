"""Processes that ``torchrun`` started: the first on a machine reports for all of them.

They have no parent that knows of PANDA. Each leaves its outcome in one folder, as spawned children
do, and the first waits until the others are done.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TorchrunRank", "torchrun_rank"]

WAIT_SECONDS = 10.0  # torchrun kills what goes on for 30 seconds after another has failed


@dataclass(frozen=True)
class TorchrunRank:
    """One of the processes that a torchrun started on this machine.

    Attributes:
      rank: Of this process, among those of all machines.
      ranks: Those on this machine.
      folder: Where they leave their outcomes.
    """

    rank: int
    ranks: range
    folder: Path

    @property
    def is_first(self) -> bool:
        """Whether this process reports."""
        return self.rank == self.ranks[0]

    @contextlib.contextmanager
    def sharing_folder(self) -> Iterator[str]:
        """The folder is there in the block; the first removes it afterwards.

        Raises:
          PermissionError: It is somebody else's.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and self.folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self.folder}: belongs to another user; remove it")
        try:
            yield str(self.folder)
        finally:
            if self.is_first:
                shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self) -> None:
        """Say that this process's outcome is its last."""
        with contextlib.suppress(FileNotFoundError):  # the first did not wait any longer
            (self.folder / f"{self.rank}.over").touch()

    def wait(self, seconds: float = WAIT_SECONDS) -> None:
        """Until the others have left, or for so long."""
        end = time.monotonic() + seconds
        others = [self.folder / f"{rank}.over" for rank in self.ranks if rank != self.rank]
        while time.monotonic() < end and not all(path.exists() for path in others):
            time.sleep(0.05)


def torchrun_rank() -> TorchrunRank | None:
    """Which of torchrun's processes this is; None where torchrun did not start it."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    rank, local_rank, size = (
        int(environment[name]) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    # All of a machine have one parent, which starts all of them again where one fails.
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    name = f"panda-icefall-torchrun-{os.getppid()}-{restart}"
    first = rank - local_rank
    return TorchrunRank(rank, range(first, first + size), Path(tempfile.gettempdir(), name))
