"""Hooks of modules that look for tensors: who learns that they do not see a recorded one."""

from __future__ import annotations

import logging
import sys
import weakref
from types import FrameType
from typing import Any

import torch
from torch import nn

from panda_icefall.routing.observing import watch_finite

_said: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def say_blind_hooks(module: nn.Module) -> None:
    """Log once that the hooks of a module whose output is recorded see no tensor.

    The routed losses are looked at for values that are not finite from then on, until ``revert``,
    since that is what icefall's ``--inf-check`` hooks look for.

    Args:
      module: gave a stand-in, while hooks may be registered on it.
    """
    kinds = blind_hooks(module)
    if not kinds or module in _said:
        return
    _said.add(module)
    name = _name_on_the_stack(module)
    logging.warning(
        "panda: %s hooks of %s see no tensor: its output is recorded and computed with the loss; "
        "routed losses whose log-probs are not finite are reported instead; call "
        "panda_icefall.revert() where these hooks have to see it; said once",
        " and ".join(kinds),
        name,
    )
    watch_finite(name)


def forget_blind_hooks() -> None:
    """Say it again from now on, and look at no loss until then."""
    _said.clear()
    watch_finite(None)


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
        if any(not _is_at_home_here(hook) for hook in registered.values())
    ]


def _is_at_home_here(hook: object) -> bool:
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
