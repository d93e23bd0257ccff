"""Joiners put together from the operations that can be recorded, and from one that cannot.

A joiner combines am and lm, does some things to the sum, has a head and does something to the
logits: each of it drawn. Its forward is the same code for stand-ins and for tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st

P = dict[str, torch.Tensor]


def _gated(x: Any) -> Any:
    a, b = torch.cat([x, x.sin()], dim=-1).chunk(2, dim=-1)
    return a * torch.sigmoid(b)


def _flat(x: Any) -> Any:
    return torch.tanh(x.reshape(-1, x.shape[-1])).reshape(x.shape)


# Name -> what becomes of x; parameters by name: "w" of width x is [W], "ww" [W, W].
HIDDEN: dict[str, Callable[[Any, P], Any]] = {
    "tanh": lambda x, p: torch.tanh(x),
    "relu": lambda x, p: F.relu(x),
    "silu": lambda x, p: F.silu(x),
    "softplus": lambda x, p: F.softplus(x),
    "scale": lambda x, p: x * 0.7 + 0.1,
    "vector": lambda x, p: x * p["w_scale"] + p["w_shift"],
    "inner": lambda x, p: F.linear(x, p["ww_inner"], p["w_inner"]),
    "layer_norm": lambda x, p: F.layer_norm(x, x.shape[-1:], p["w_norm"], p["w_shift"]),
    "rms_norm": lambda x, p: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1),
    "softmax": lambda x, p: torch.softmax(x, dim=-1),
    "clamp": lambda x, p: x.clamp(-1, 1),
    "where": lambda x, p: torch.where(x > 0, x, 0.3 * x),
    "gate": lambda x, p: _gated(x),
    "residual": lambda x, p: x + torch.tanh(x),
    "in_place": lambda x, p: (x * 1.5).tanh_(),
    "views": lambda x, p: x.unsqueeze(1).squeeze(1) * 1.1,
    "flat": lambda x, p: _flat(x),
    "dropout": lambda x, p: F.dropout(x, 0.3, training=True),
    "cumprod": lambda x, p: torch.cumprod(x.sigmoid() + 0.5, dim=-1),  # has no rule
}
UNRECORDABLE = "cumprod"
COMBINED: dict[str, Callable[[Any, Any, P], Any]] = {
    "sum": lambda am, lm, p: am + lm,
    "difference": lambda am, lm, p: lm - am,
    "product": lambda am, lm, p: am * lm,
    "gate of lm": lambda am, lm, p: am * torch.sigmoid(lm) + lm,
    "maximum": lambda am, lm, p: torch.maximum(am, lm),
    "projected": lambda am, lm, p: F.linear(am, p["ww_am"]) + F.linear(lm, p["ww_lm"], p["w_lm"]),
    "normed": lambda am, lm, p: F.layer_norm(am, am.shape[-1:]) + lm,
    "context": lambda am, lm, p: am + lm + p["w_context"],
}


def _low_rank(x: Any, p: P) -> Any:
    return F.linear(x, p["cw_head"], p["c_head"]) + F.linear(F.linear(x, p["1w_a"]), p["c1_b"])


HEADS: dict[str, Callable[[Any, P], Any]] = {
    "linear": lambda x, p: F.linear(x, p["cw_head"], p["c_head"]),
    "no bias": lambda x, p: F.linear(x, p["cw_head"]),
    "matmul": lambda x, p: x @ p["cw_head"].t() + p["c_head"],
    "einsum": lambda x, p: torch.einsum("...h,ch->...c", x, p["cw_head"]),
    "computed weight": lambda x, p: F.linear(x, p["cw_head"] * p["s_head"].exp(), p["c_head"]),
    "low rank": _low_rank,
    "two heads": lambda x, p: torch.cat(
        [F.linear(x, p["1w_a"], p["1_a"]), F.linear(torch.tanh(x), p["dw_rest"])], dim=-1
    ),
    "rows": lambda x, p: x,  # as wide as there are classes
}
AFTER: dict[str, Callable[[Any, P], Any]] = {
    "": lambda z, p: z,
    "temperature": lambda z, p: z / 2.5,
    "learned temperature": lambda z, p: z * p["s_after"].exp(),
    "each class": lambda z, p: 0.3 - z * p["c_after"],
    "mask": lambda z, p: z.masked_fill(torch.arange(z.shape[-1]) % 3 == 2, -20.0),
    "log_softmax": lambda z, p: F.log_softmax(z, dim=-1),
    "cap": lambda z, p: 3 * torch.tanh(z / 3),
}


class _Made(dict):
    """Parameters that are made when they are first looked up: ``"cw_head"`` is ``[C, W]``."""

    def __init__(self, sizes: dict[str, int], seed: int) -> None:
        self.sizes, self.g = sizes, torch.Generator().manual_seed(seed)

    def __missing__(self, name: str) -> torch.Tensor:
        shape = tuple(self.sizes[letter] for letter in name.partition("_")[0] if letter != "s")
        scale = 0.8 if len(shape) < 2 else 1.5 / shape[1] ** 0.5
        self[name] = scale * torch.randn(shape, generator=self.g, dtype=torch.float64)
        return self[name]


@dataclass
class Joiner:
    """A drawn joiner of am and lm that are at their places, ``[B, T, 1 or s_range, W]`` and alike.

    Attributes:
      combined, hidden, head, after: names of the above.
      width: W; the number of classes where the head is "rows".
      classes: C.
      parameters: by name, float64.
    """

    combined: str
    hidden: tuple[str, ...]
    head: str
    after: str
    width: int
    classes: int
    seed: int
    parameters: P = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.head == "rows":
            self.width = self.classes
        sizes = {"w": self.width, "c": self.classes, "d": self.classes - 1, "1": 1}
        self.parameters = _Made(sizes, self.seed)
        x = torch.zeros(1, 1, 1, self.width, dtype=torch.float64)
        self(x, x)

    def __call__(self, am: Any, lm: Any) -> Any:
        x = COMBINED[self.combined](am, lm, self.parameters)
        for name in self.hidden:
            x = HIDDEN[name](x, self.parameters)
        return AFTER[self.after](HEADS[self.head](x, self.parameters), self.parameters)

    @property
    def is_recordable(self) -> bool:
        return UNRECORDABLE not in self.hidden

    @property
    def draws(self) -> bool:
        return "dropout" in self.hidden


@st.composite
def joiners(draw: Any, classes: int, *, may_be_given: bool = True) -> Joiner:
    """Joiners of so many classes; the simplest is ``linear(am + lm)``.

    Args:
      may_be_given: whether the logits may be what comes out of the operation that has no rule.
    """
    hidden = draw(st.lists(st.sampled_from([n for n in HIDDEN if n != UNRECORDABLE]), max_size=3))
    if draw(st.integers(0, 11)) == 11 and "dropout" not in hidden:
        hidden.append(UNRECORDABLE)
    heads = [name for name in HEADS if name != "rows" or may_be_given]
    return Joiner(
        combined=draw(st.sampled_from([*COMBINED])),
        hidden=tuple(hidden),
        head=draw(st.sampled_from(heads)),
        after=draw(st.sampled_from([*AFTER])),
        # Views do not say where a single column went: they give a tensor then.
        width=draw(st.sampled_from([1, 3, 6][bool({"views", "flat"} & {*hidden}) :])),
        classes=classes,
        seed=draw(st.integers(0, 2**16)),
    )
