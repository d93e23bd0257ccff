"""The joiner matrix: joiners as people write them, and what PANDA makes of each.

A row's joiner is built from four leaves, `am` and `lm` of X columns among them, by plain functions;
its parameters are made from shapes, so that a row is one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import toy
from torch import nn

B, T, S_RANGE, X, H, C = toy.B, toy.T, toy.S_RANGE, toy.X, toy.H, toy.C
RECORDED, KEPT, LOGITS = "recorded", "kept", "logits"


@dataclass(frozen=True)
class Row:
    """One joiner.

    Attributes:
      name: for the table.
      forward: `(am, lm, p)` to logits; `p` holds the parameters by name.
      shapes: of the parameters.
      outcome: RECORDED: no tensor of one row per site exists; KEPT: those of the named operations
        do, of the joiner's width; LOGITS: the logits themselves do.
      operations: what is counted as materialised, a name for each tensor.
      why: of an outcome LOGITS.
      head: "linear" where the logits come from one layer, folded or as it is, "rows" where the
        recorded operations give them themselves.
      width: columns of am and lm.
      needs: the function that torch must have.
      half_needs_torch: the major version that has the dense bfloat16 kernels on CPUs.
    """

    name: str
    forward: Callable[[Any, Any, Any], Any]
    shapes: dict[str, tuple[int, ...]]
    outcome: str = RECORDED
    operations: tuple[str, ...] = ()
    why: str = ""
    head: str = "linear"
    width: int = X
    needs: str = ""
    half_needs_torch: int = 1


class Joiner(nn.Module):
    """A row as the module that a recipe would have."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.row = row
        self.p = nn.ParameterDict(
            {n: nn.Parameter(torch.randn(s, generator=g) * 0.5) for n, s in row.shapes.items()}
        )

    def forward(self, am: Any, lm: Any) -> Any:
        return self.row.forward(am, lm, self.p)


HEAD: dict[str, tuple[int, ...]] = {"w": (C, X), "b": (C,)}
MASK = torch.arange(C) % 7 == 5
MASK[0] = False


def head(x: Any, p: Any) -> Any:
    return F.linear(x, p["w"], p["b"])


def hidden(name: str, function: Callable[..., Any], outcome: str = RECORDED, **more: Any) -> Row:
    """`linear(function(am + lm))`, where the function may take the parameters too."""
    shapes = {**HEAD, **more.pop("shapes", {})}
    takes_parameters = (
        function.__code__.co_argcount == 2 if hasattr(function, "__code__") else False
    )

    def forward(am: Any, lm: Any, p: Any) -> Any:
        x = am + lm
        return head(function(x, p) if takes_parameters else function(x), p)

    return Row(name, forward, shapes, outcome, **more)


def after(name: str, function: Callable[..., Any], outcome: str = RECORDED, **more: Any) -> Row:
    """`function(linear(tanh(am + lm)))`."""
    shapes = {**HEAD, **more.pop("shapes", {})}
    return Row(
        name, lambda am, lm, p: function(head(torch.tanh(am + lm), p), p), shapes, outcome, **more
    )


def convolved(am: Any, lm: Any, p: Any) -> Any:
    x = torch.tanh(am + lm).permute(0, 3, 1, 2)
    x = F.relu(F.conv2d(x, p["k"], p["kb"]))
    return F.conv2d(x, p["w"][:, :, None, None], p["b"]).permute(0, 2, 3, 1)


def convolved_along_symbols(am: Any, lm: Any, p: Any) -> Any:
    x = torch.tanh(am + lm).flatten(0, 1).transpose(1, 2)
    x = F.conv1d(x, p["w"][:, :, None], p["b"])
    x = F.prelu(x, p["slopes"].type_as(x))
    return x.transpose(1, 2).unflatten(0, (B, T))


def low_rank(x: Any, p: Any) -> Any:
    return head(x, p) + F.linear(F.linear(x, p["down"]), p["up"]) * 0.5


def gated(x: Any) -> Any:
    a, b = x.chunk(2, dim=-1)
    return a * torch.sigmoid(b)


def changed_in_place(x: Any) -> Any:
    x = torch.flip(x, (-1,))
    y = x * 2
    x.mul_(3).tanh_()
    return x + y


def changed_view(x: Any) -> Any:
    x = torch.flip(x, (-1,))
    y = x + 1
    x[..., :3].mul_(2)
    x.view(-1, X)[:, 2:].sub_(0.5)
    return torch.tanh(x) * y


def watched(x: Any) -> Any:
    assert x.abs().max().item() > 0
    return torch.tanh(x)


LORA = {"down": (2, X), "up": (C, 2)}
ROWS = [
    hidden("tanh", torch.tanh),
    hidden("two layers, relu", lambda x, p: F.linear(F.relu(F.linear(x, p["a"], p["ab"])), p["c"]),
           shapes={"a": (H, X), "ab": (H,), "c": (X, H)}),
    hidden("relu in place", lambda x: F.relu(x, inplace=True)),
    hidden("elu, selu, celu", lambda x: F.elu(F.selu(F.celu(x, 1.3)), 0.7)),
    hidden("mish, softplus, logsigmoid", lambda x: F.logsigmoid(F.softplus(F.mish(x))),
           half_needs_torch=2),
    hidden("gelu, silu, hardswish", lambda x: F.hardswish(F.silu(F.gelu(x)))),
    hidden("relu6, softsign, hardsigmoid", lambda x: F.hardsigmoid(
           F.softsign(F.relu6(x) + x)), half_needs_torch=2),
    hidden("prelu, one slope", lambda x, p: F.prelu(x, p["slope"]), shapes={"slope": (1,)}),
    hidden("glu", lambda x: F.glu(torch.cat([x, x * 2], dim=-1), dim=-1)),
    hidden("gate by chunks", lambda x: gated(torch.cat([x, x.tanh()], dim=3))),
    hidden("clamp, pow, exp", lambda x: (x.clamp(-1, 1) ** 2).exp()),
    hidden("maximum, minimum, where", lambda x: torch.where(x > 0, torch.maximum(x, x ** 2),
           torch.minimum(x, x.sin()))),
    hidden("masked_fill by a comparison", lambda x: x.masked_fill(x > 0.5, 0.5)),
    hidden("lerp, addcmul", lambda x, p: torch.addcmul(torch.lerp(x, x.tanh(), 0.3), x, p["v"]),
           shapes={"v": (X,)}),
    hidden("layer_norm", lambda x, p: F.layer_norm(x, (X,), p["g"], p["s"]),
           shapes={"g": (X,), "s": (X,)}),
    hidden("rms_norm", lambda x, p: F.rms_norm(x, (X,), p["g"]), shapes={"g": (X,)},
           needs="rms_norm"),
    hidden("rms norm by hand", lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
    hidden("softmax over X", lambda x: torch.softmax(x, dim=-1)),
    hidden("dropout", lambda x: F.dropout(torch.tanh(x), 0.4, training=True)),
    hidden("dropout in place", lambda x: F.dropout(x.tanh() + 1, 0.4, True, inplace=True)),
    Row("dropout of am, then of lm", lambda am, lm, p: head(
        torch.tanh(F.dropout(am, 0.3) + F.dropout(lm, 0.3)), p), HEAD),
    Row("cat of am and lm", lambda am, lm, p: F.linear(torch.tanh(torch.cat([am, lm], -1)), p["w"]),
        {"w": (C, 2 * X)}),
    Row("am * lm, norms of each", lambda am, lm, p: head(
        F.layer_norm(am, (X,)) * F.normalize(lm, dim=-1), p), HEAD),
    hidden("type_as, expand_as, squeeze",
           lambda x: torch.tanh(x.type_as(x).expand_as(x).unsqueeze(1).squeeze(1))),
    Row("flatten, linear, unflatten", lambda am, lm, p: head(
        torch.tanh(am + lm).view(-1, X), p).view(B, T, S_RANGE, C), HEAD),
    Row("addmm of flat rows", lambda am, lm, p: torch.addmm(
        p["b"], torch.tanh(am + lm).flatten(0, 2), p["w"].t()).unflatten(0, (B, T, S_RANGE)), HEAD),
    Row("1x1 convolutions", convolved, {"k": (X, X, 1, 1), "kb": (X,), **HEAD}),
    Row("1x1 convolution, prelu of C slopes", convolved_along_symbols, {"slopes": (C,), **HEAD},
        head="rows"),
    Row("x @ W.t() + b", lambda am, lm, p: torch.tanh(am + lm) @ p["w"].t() + p["b"], HEAD),
    Row("einsum", lambda am, lm, p: torch.einsum(
        "btsh,ch->btsc", torch.tanh(am + lm), p["w"]) + p["b"], HEAD),
    Row("einsum with dots", lambda am, lm, p: torch.einsum(
        "hc,...h->...c", p["w"].t(), torch.tanh(am + lm)), {"w": (C, X)}),
    Row("LoRA head", lambda am, lm, p: low_rank(torch.tanh(am + lm), p), {**HEAD, **LORA}),
    Row("sum of heads of am and lm, tanh between", lambda am, lm, p: F.linear(
        torch.tanh(am + lm), p["w"], p["b"]) + F.linear(F.relu(am - lm), p["w2"]),
        {**HEAD, "w2": (C, X)}),
    Row("blank and labels by two heads", lambda am, lm, p: torch.cat([
        F.linear(torch.tanh(am + lm), p["w1"], p["b1"]), F.linear(F.relu(am + lm), p["w2"])], -1),
        {"w1": (1, X), "b1": (1,), "w2": (C - 1, X)}),
    Row("two heads of the same rows", lambda am, lm, p: (lambda x: torch.cat(
        [F.linear(x, p["w1"], p["b1"]), F.linear(x, p["w2"])], -1))(torch.tanh(am + lm)),
        {"w1": (1, X), "b1": (1,), "w2": (C - 1, X)}),
    after("temperature", lambda z, p: z / 2.5),
    after("learned temperature", lambda z, p: z * p["t"].exp(), shapes={"t": ()}),
    after("scale and bias of each class", lambda z, p: 0.3 - z * p["v"] + p["u"],
          shapes={"v": (C,), "u": (C,)}),
    # Some of them are targets: at -1e30 rounding would choose among their paths.
    after("mask of classes, filled", lambda z, p: z.masked_fill(MASK, -30.0)),
    after("mask of classes, added", lambda z, p: z + torch.zeros(C).masked_fill(MASK, -30.0)),
    Row("slice of the classes", lambda am, lm, p: head(torch.tanh(am + lm), p)[..., :C],
        {"w": (C + 5, X), "b": (C + 5,)}),
    after("log_softmax", lambda z, p: F.log_softmax(z, dim=-1)),
    after("log_softmax of a temperature", lambda z, p: (z * 0.7).log_softmax(-1)),
    after("tanh of the logits", lambda z, p: 5 * torch.tanh(z / 5), head="rows"),
    after("bias of each utterance and class", lambda z, p: z + p["u"],
          shapes={"u": (B, 1, 1, C)}, head="rows"),
    Row("no linear: am + lm", lambda am, lm, p: am + lm, {}, width=C, head="rows"),
    Row("no linear: sigmoid(am + lm)", lambda am, lm, p: torch.sigmoid(am + lm), {},
        width=C, head="rows"),
    Row("linear of am plus linear of lm", lambda am, lm, p: head(am, p) + F.linear(lm, p["w2"]),
        {**HEAD, "w2": (C, X)}, head="rows"),
    hidden("statistics of the sum", watched, KEPT, operations=("max",)),
    hidden("detached branch", lambda x: torch.tanh(x) + x.detach(), KEPT, operations=("detach",)),
    hidden("operation without a rule", lambda x: torch.tanh(torch.cumprod(x.sigmoid(), -1)), KEPT,
           operations=("cumprod",)),
    hidden("attention over symbols", lambda x: torch.softmax(x, dim=2) * x, KEPT,
           operations=("softmax",)),
    hidden("batch norm", lambda x: F.batch_norm(x.reshape(-1, X), None, None, training=True).view(
           x.shape).tanh(), KEPT, operations=("batch_norm",)),
    hidden("alpha_dropout", lambda x: F.selu(F.alpha_dropout(x, 0.2, training=True)), KEPT,
           operations=("alpha_dropout",)),
    hidden("kept, then changed in place", changed_in_place, KEPT, operations=("flip",)),
    hidden("kept, then changed through a view", changed_view, KEPT, operations=("flip",)),
    hidden("stack and sum", lambda x: torch.stack([x, x.tanh()]).sum(0), LOGITS,
           operations=("stack", "stack"), why="a result with more dimensions ends the recording"),
    after("cumulative maximum of the logits", lambda z, p: torch.cummax(z, dim=-1)[0], LOGITS,
          operations=("cummax",), why="an operation without a rule makes the logits"),
    after("statistics of the logits", lambda z, p: z + 0 * z.max(), LOGITS,
          operations=("max", "C classes at every site"), why="they are looked at"),
]  # fmt: skip
