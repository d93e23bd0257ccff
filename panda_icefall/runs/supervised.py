"""What is put around a recipe's training, whether the launcher starts it or the recipe itself."""

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from panda_icefall.routing import PandaError
from panda_icefall.runs.doctor.imports import explained_imports
from panda_icefall.runs.errors import (
    EXIT_VIOLATED,
    MismatchError,
    NothingTrainedError,
    NotRoutedError,
    UsageError,
    exit_status,
)
from panda_icefall.runs.memory.log import check_writable
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.records import RunOutcome, read_outcomes
from panda_icefall.runs.report.console import as_json, print_summary
from panda_icefall.runs.session import TrainingSession
from panda_icefall.runs.spawn import SpawnedChildren
from panda_icefall.runs.termination import ended_by
from panda_icefall.runs.torchrun import TorchrunRank, torchrun_rank

__all__ = ["ExitStatus", "SupervisedRun", "supervised"]

_NAMED_ERRORS = {e.__name__: e for e in (MismatchError, NotRoutedError, UsageError)}


class SupervisedRun:
    """One run of a recipe inside :func:`supervised`.

    Attributes:
      exit_status: After the block: the recipe's exit status, or 1 where it ended well but the
        contract was violated.
      is_installed: Whether the recipe's functions are wrapped.
    """

    def __init__(self, session: TrainingSession, children: SpawnedChildren, train_py: Path) -> None:
        self.exit_status = 0
        self.is_installed = False
        self._session = session
        self._children = children
        self._train_py = train_py

    def install(self, namespace: dict[str, Any]) -> None:
        """Wrap ``compute_loss`` and ``train_one_epoch`` in ``namespace``, the recipe's globals.

        A ``spawn`` that the recipe bound by name before is replaced there too.

        Raises:
          UsageError: A function or one of its parameters is missing.
        """
        self._session.install(namespace, str(self._train_py))
        self._children.replace_in(namespace)
        self.is_installed = True


@contextlib.contextmanager
def supervised(
    options: PandaOptions, train_py: Path, *, is_json: bool = False
) -> Iterator[SupervisedRun]:
    """Do what ``options`` ask for while the block runs a recipe, children of ``mp.spawn`` included.

    A ``sys.exit`` of the block ends it and becomes the exit status; so does a SIGTERM, 143. Where
    training has begun, a summary is printed however it ends. The recipe's functions are its own
    again afterwards.

    Args:
      options: What the user asked for.
      train_py: The recipe's path, for errors.
      is_json: Also print the summary to stdout, as one line of JSON.

    Raises:
      UsageError: The memory log cannot be written, or k2 cannot be imported.
      NotRoutedError: PANDA was asked for, and the first batch, or the run, ended without it.
      MismatchError: The guard that was asked for found a wrong loss.
      NothingTrainedError: The block ended well, and no batch was trained.
      Exception: Whatever the block raises.
    """
    if options.memory_log is not None:
        check_writable(options.memory_log)
    torchrun = torchrun_rank()
    session = TrainingSession(options)
    if torchrun is not None:
        session = TrainingSession(options, torchrun.rank, torchrun.folder)
    status = ExitStatus()
    ranks: list[RunOutcome] = []
    scratch: contextlib.AbstractContextManager[str] = (
        tempfile.TemporaryDirectory(prefix="panda-icefall-")
        if torchrun is None
        else torchrun.sharing_folder()
    )
    with ended_by(signal.SIGTERM), scratch as folder:
        outcomes = Path(folder)
        children = SpawnedChildren(options, train_py, outcomes)
        run = SupervisedRun(session, children, train_py)
        try:
            with _named_error_of_child(outcomes), status, contextlib.ExitStack() as running:
                with explained_imports(train_py):  # applying imports k2
                    running.enter_context(session.running())
                with children:
                    yield run
        finally:
            session.uninstall()
            if run.is_installed:
                ranks = _report(session, children.ranks, outcomes, torchrun)
                if is_json and (torchrun is None or torchrun.is_first):
                    print(as_json(ranks))
    run.exit_status = status.code
    if status.code != 0:
        return
    _verify_trained(options, ranks, train_py)
    is_reported = torchrun is None or torchrun.is_first
    run.exit_status = _contract_status(ranks, session.console if is_reported else None)


class ExitStatus(contextlib.AbstractContextManager):
    """Turns ``sys.exit`` of the block into a status, as the interpreter would."""

    def __init__(self) -> None:
        self.code = 0

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if not isinstance(error, SystemExit):
            return False
        self.code = exit_status(error)
        if not (error.code is None or isinstance(error.code, int)):
            print(error.code, file=sys.stderr)
        return True


def _report(
    session: TrainingSession,
    spawned: list[int],
    outcome_folder: Path,
    torchrun: TorchrunRank | None,
) -> list[RunOutcome]:
    """Print the summary of a run that has begun, however it ended.

    Returns:
      Every rank's outcome; of torchrun's ranks but the first, which print nothing, their own.
    """
    expected = set(spawned)
    if torchrun is not None and not spawned:
        torchrun.leave()
        if not torchrun.is_first:
            return [session.outcome()]
        torchrun.wait()
        expected = set(torchrun.ranks)
    # Where children trained, this process did nothing worth a row of its own.
    ranks = read_outcomes(outcome_folder) if expected else [session.outcome()]
    print_summary(ranks, session.console, session.options)
    silent = sorted(expected - {outcome.rank for outcome in ranks})
    if silent:
        session.console.print(
            f"Rank(s) {', '.join(map(str, silent))} ended without leaving an outcome."
        )
    return ranks


@contextlib.contextmanager
def _named_error_of_child(outcome_folder: Path) -> Iterator[None]:
    """Raise here what a spawned child would bury in the traceback of its process."""
    try:
        yield
    except ProcessRaisedException as error:
        for kind, message in (o.error for o in read_outcomes(outcome_folder) if o.error):
            raise _NAMED_ERRORS.get(kind, PandaError)(message) from error
        raise


def _verify_trained(options: PandaOptions, ranks: list[RunOutcome], train_py: Path) -> None:
    batches = sum(rank.batches for rank in ranks)
    if batches == 0:
        raise NothingTrainedError(
            f"{train_py} ended without a training batch that PANDA saw, so PANDA did nothing; "
            "expected its train_one_epoch() to call compute_loss() at least "
            "once, in this process or in one that torch.multiprocessing.spawn started"
        )
    counted = [rank.counters for rank in ranks]
    if options.use_panda and not any(c.losses_routed + c.ctc_losses_routed for c in counted):
        raise NotRoutedError(
            f"PANDA was asked for, but {train_py} ended after {batches} training batches without a "
            "routed loss"
        )


def _contract_status(outcomes: list[RunOutcome], console: Console | None) -> int:
    """The exit status by the contract; violations are printed, unless another rank does that."""
    violated = [outcome for outcome in outcomes if outcome.violations]
    if console is not None:
        for outcome in violated:
            for violation in outcome.violations:
                line = f"contract violated (rank {outcome.rank}): {violation}"
                console.print(line, style="red", markup=False, soft_wrap=True)
    return EXIT_VIOLATED if violated else 0
