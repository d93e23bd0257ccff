"""Observers of the log-probs of routed losses, and hooks that see no tensor."""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn

from panda_icefall.losses.sites import SiteLogProbs
from panda_icefall.routing.non_finite import forget_watched, watch_for

__all__ = [
    "Observer",
    "blind_hooks",
    "current_observer",
    "forget_blind_hooks",
    "is_observed",
    "observed",
    "say_blind_hooks",
]

Observer = Callable[[SiteLogProbs], None]

_observers: list[Observer] = []
_said_blind: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def observed(callback: Observer) -> Iterator[None]:
    """Call ``callback`` with the log-probs of every routed loss of the enclosed block.

    Args:
      callback: called once per routed loss, in order, with detached ``[B, T, s_range]`` tensors on
        the device of the loss, before the loss is returned. Losses computed from ordinary logits
        are not reported. Blocks may be nested: each callback is called.
    """
    _observers.append(callback)
    try:
        yield
    finally:
        # By identity, the innermost first: the same callback may be given twice.
        index = max(i for i, observer in enumerate(_observers) if observer is callback)
        del _observers[index]


def current_observer() -> Observer | None:
    """What a loss has to report to now; None, and so nothing to gather, when nobody observes."""
    return _report if _observers else None


def is_observed() -> bool:
    """Whether somebody is told the log-probs themselves, the normaliser among them."""
    return bool(_observers)


def _report(log_probs: SiteLogProbs) -> None:
    for observer in tuple(_observers):
        observer(log_probs)


def say_blind_hooks(module: nn.Module) -> None:
    """Log once that the hooks of a module whose output is recorded see no tensor.

    From then on, until ``revert``, routed losses are searched for values that are not finite, as
    icefall's ``--inf-check`` hooks do; that costs a device sync each.

    Args:
      module: gave a stand-in, while hooks may be registered on it.
    """
    kinds = blind_hooks(module)
    if not kinds or module in _said_blind:
        return
    _said_blind.add(module)
    name = _name_on_the_stack(module)
    logging.warning(
        "panda: %s hooks of %s see no tensor: its output is recorded and computed with the loss; "
        "routed losses that are not finite are logged instead; call "
        "panda_icefall.revert() where these hooks have to see it; said once",
        " and ".join(kinds),
        name,
    )
    watch_for(name)


def forget_blind_hooks() -> None:
    """Forget which hooks were reported; check no loss for non-finite values until the next."""
    _said_blind.clear()
    forget_watched()


def blind_hooks(module: nn.Module) -> list[str]:
    """Which of "forward" and "backward" hooks wait for its output; PANDA's and torch's do not."""
    of_all = torch.nn.modules.module  # those that torch registers for every module
    hooks: dict[str, dict[Any, Any]] = {
        "forward": {
            **of_all._global_forward_pre_hooks,
            **of_all._global_forward_hooks,
            **module._forward_pre_hooks,
            **module._forward_hooks,
        },
        "backward": {
            **of_all._global_backward_hooks,
            **getattr(of_all, "_global_backward_pre_hooks", {}),
            **module._backward_hooks,
            **getattr(module, "_backward_pre_hooks", {}),
        },
    }
    return [
        kind
        for kind, registered in hooks.items()
        if any(not _is_own_or_torchs(hook) for hook in registered.values())
    ]


def _is_own_or_torchs(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(("panda_icefall.", "torch."))


def _name_on_the_stack(module: nn.Module) -> str:
    """Its name in the outermost module that is running now; else its class."""
    found = type(module).__name__
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        # Not the locals of frames of other kinds: reading them may keep a batch alive.
        if frame.f_code.co_varnames[:1] == ("self",):
            running = frame.f_locals.get("self")
            if isinstance(running, nn.Module):
                found = next((n for n, m in running.named_modules() if m is module and n), found)
        frame = frame.f_back
    return found
