"""Tensors as people hand them over: strides, expanded dimensions, frozen leaves; and workspaces."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

FORMS = ("plain", "transposed", "strided", "expanded", "offset")
forms = st.sampled_from(FORMS)


def laid_out(form: str, shape: tuple[int, int, int], g: torch.Generator) -> tuple[Tensor, Any]:
    """A leaf in float64, and the function that makes ``[B, R, X]`` of it by views alone."""
    B, R, X = shape

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    if form == "transposed":
        return randn(B, X, R), lambda leaf: leaf.transpose(1, 2)
    if form == "strided":
        return randn(B, 2 * R, X + 1), lambda leaf: leaf[:, ::2, 1:]
    if form == "expanded":
        return randn(1, R, X), lambda leaf: leaf.expand(B, R, X)
    if form == "offset":
        return randn(B + 1, R, X), lambda leaf: leaf[1:]
    return randn(B, R, X), lambda leaf: leaf


# Which leaves have a gradient: am, lm and the joiner's parameters, by name.
TRAINED: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "frozen encoder": lambda name: name != "am",
    "frozen am and lm": lambda name: name not in ("am", "lm"),
    "frozen head": lambda name: "head" not in name,
    "frozen joiner": lambda name: name in ("am", "lm"),
    "biases alone": lambda name: name.startswith("c_") or name == "w_shift",
    "weights alone": lambda name: name.startswith(("cw_", "ww_")),
    "nothing": lambda name: False,
}
trained = st.sampled_from([*TRAINED, "all", "all", "all"])


def choose_trained(named: dict[str, Tensor], which: str) -> list[Tensor]:
    """Set ``requires_grad`` of all, and give those that have it."""
    for name, leaf in named.items():
        leaf.requires_grad_(TRAINED[which](name))
    return [leaf for leaf in named.values() if leaf.requires_grad]


# None: by the device. Else so many times what the smallest tile takes.
workspaces = st.sampled_from([None, 1, 1, 2, 5, 30])


def workspace_of(times: int, numbers: int, call: Callable[..., Any]) -> int:
    """So many bytes; more where that would cut as many logits into thousands of tiles."""
    return max(times, numbers // 300) * smallest_workspace(call)


def smallest_workspace(call: Callable[..., Any]) -> int:
    """The bytes that ``call(workspace_mib=...)`` asks for when it is given too few, 1 at first."""
    workspace_bytes = 1
    while True:
        try:
            call(workspace_mib=mib(workspace_bytes))
        except ValueError as error:
            asked = re.search(r"workspace_bytes: got \d+, expected at least (\d+)", str(error))
            if asked is None:
                raise
            workspace_bytes = int(asked[1])
        else:
            return workspace_bytes


def mib(workspace_bytes: int) -> float:
    """So that ``int(mib * 2**20)`` is that number again."""
    return workspace_bytes / 2**20


def gradients(loss: Tensor, leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """Of what has one; zeros where the loss does not depend on a leaf."""
    if not leaves:
        assert not loss.requires_grad
        return []
    found = torch.autograd.grad(loss, leaves, allow_unused=True, **options)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found)]


def assert_near(found: list[Tensor], expected: list[Tensor], bound: float, scale: float) -> None:
    """Each within ``bound`` of the largest of its own numbers and of the ``scale``."""
    assert len(found) == len(expected)
    for x, ref in zip(found, expected):
        assert x.shape == ref.shape
        assert torch.equal(x.isfinite(), ref.isfinite()), (x, ref)
        finite = ref.isfinite()
        if finite.any():
            error = (x[finite].double() - ref[finite].double()).abs().max().item()
            assert error <= bound * max(ref[finite].abs().max().item(), scale), (error, x, ref)
        assert torch.equal(x[~finite].nan_to_num(7.0), ref[~finite].to(x.dtype).nan_to_num(7.0))
