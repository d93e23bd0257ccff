"""Planted bugs of routing, losses that silently fall back, and which tests notice them.

`pytest tests/routing --plant never_routed` plants one under every test. A test in which a loss
fell back has to fail: one that passes is reported as failed.
"""

import functools
import inspect

import pytest

from panda_icefall.losses import dense
from panda_icefall.routing import joiner_loss, routed_full_loss, routed_loss, routed_simple_loss

PLANTED = "planted"


def never_routed(patch, fell_back):
    """Every recorded joiner is refused: of pruned and of full lattices, and of one's own loop."""
    for module in (routed_loss, routed_full_loss, joiner_loss):
        _refuse(patch, fell_back, module)


def simple_never_deferred(patch, fell_back):
    """Every recorded projection is turned into its tensor."""
    _refuse(patch, fell_back, routed_simple_loss)


def _refuse(patch, fell_back, module):
    why_not = module.why_not

    def refuse(value):
        reason = why_not(value)
        if reason is None:
            fell_back.append(reason := PLANTED)
        return reason

    patch.setattr(module, "why_not", refuse)


def simple_never_in_tiles(patch, fell_back):
    """Every simple loss is left to k2."""
    takes = routed_simple_loss.takes

    def refuse(arguments):
        if takes(arguments):
            fell_back.append(PLANTED)
        return False

    patch.setattr(routed_simple_loss, "takes", refuse)


def one_type_never_routed(rnnt_type, patch, fell_back):
    """The pruned loss of one `rnnt_type` makes the logits, counted as routed all the same."""
    compute = routed_loss.compute

    def planted(logits, arguments, *args, **kwargs):
        if arguments["rnnt_type"] != rnnt_type:
            return compute(logits, arguments, *args, **kwargs)
        fell_back.append(PLANTED)
        known = inspect.signature(dense.rnnt_loss_pruned).parameters
        given = {name: value for name, value in arguments.items() if name in known}
        given["logits"] = logits.materialise(PLANTED)
        return dense.rnnt_loss_pruned(**given)

    patch.setattr(routed_loss, "compute", planted)


BUGS = {
    "never_routed": never_routed,
    "simple_never_deferred": simple_never_deferred,
    "simple_never_in_tiles": simple_never_in_tiles,
    "modified_never_routed": functools.partial(one_type_never_routed, "modified"),
    "constrained_never_routed": functools.partial(one_type_never_routed, "constrained"),
}


class Planting:
    """A pytest plugin: a bug in every test, and the opposite outcome where a loss fell back."""

    def __init__(self, bug):
        self.bug = BUGS[bug]
        self.fell_back = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self.fell_back.clear()
        with pytest.MonkeyPatch.context() as patch:
            self.bug(patch, self.fell_back)
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" and self.fell_back:
            if report.passed:
                report.outcome = "failed"
                report.longrepr = f"passes although {len(self.fell_back)} losses fell back"
            elif report.failed:
                report.outcome, report.wasxfail = "skipped", "notices the planted bug"
        return report
