"""What torch does with an object past ``__torch_function__``, and is replaced while applied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import distributed

from panda_icefall.routing.custom_functions import find_tensors, function_apply
from panda_icefall.routing.module_calls import module_call
from panda_icefall.routing.replacements import MISSING, Replacement
from panda_icefall.routing.tensors_only import given_tensors, scripted_call


def interceptions() -> list[Replacement]:
    """Replacements that make torch take a stand-in, or hand a tensor on in its place."""
    function: Any = torch.autograd.Function
    replacements = [
        Replacement.of(function, "apply", function_apply(vars(function).get("apply", MISSING))),
        Replacement.of(nn.Module, "__call__", module_call(nn.Module.__call__)),
    ]
    for compiled in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        replacements.append(Replacement.of(compiled, "__call__", scripted_call(compiled.__call__)))
    # torch 1.13 does not ask there.
    ours = given_tensors(torch.autograd.backward)
    replacements.append(Replacement.of(torch.autograd, "backward", ours))
    if hasattr(distributed, "_find_tensors"):
        ours = find_tensors(distributed._find_tensors)
        replacements.append(Replacement.of(distributed, "_find_tensors", ours))
    return replacements
