"""Which operations on a deferred joiner are recorded, and how."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer.autocast import autocast_dtype, no_autocast
from panda_icefall.routing.graph import SiteTensor
from panda_icefall.routing.nodes import Linear, Node, Operand, Operation, Table, linear
from panda_icefall.routing.stand_in import cast_target

# Functions that treat every element by itself and that autocast leaves alone.
_POINTWISE_NAMES = (
    "add sub subtract rsub mul multiply div divide true_divide neg negative tanh relu sigmoid "
    "silu gelu leaky_relu hardtanh "
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__"
).split()
_DROPOUTS = {F.dropout, F.alpha_dropout, torch.dropout}
_CLONES = {torch.clone, Tensor.clone}
_ALIASES = {torch.positive, Tensor.positive, Tensor.__pos__}
_RESHAPES = {Tensor.reshape, Tensor.view, torch.reshape, Tensor.expand}


def _functions(names: list[str]) -> set[Callable[..., Any]]:
    found = set()
    for name in names:
        for home in (torch, Tensor, F):
            if hasattr(home, name):
                found.add(getattr(home, name))
    return found


_POINTWISE = _functions(_POINTWISE_NAMES)
# In-place twin -> the function it stands for.
_IN_PLACE = {
    getattr(home, name + "_"): getattr(home, name)
    for name in _POINTWISE_NAMES
    if not name.startswith("__")
    for home in (torch, Tensor, F)
    if hasattr(home, name + "_") and hasattr(home, name)
} | {
    getattr(Tensor, f"__i{name}__"): getattr(Tensor, f"__{name}__")
    for name in ("add", "sub", "mul", "truediv")
}


def record(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> SiteTensor | None:
    """The deferred result of ``function(*args, **kwargs)``, or None if it cannot be recorded."""
    if any(isinstance(a, (list, tuple)) for a in args) and function not in _RESHAPES:
        return None
    joints = [a for a in (*args, *kwargs.values()) if isinstance(a, SiteTensor)]
    first = joints[0] if joints else None
    if (
        first is None
        or any(j.sites is not first.sites or j.is_materialised for j in joints)
        or torch.is_grad_enabled() != first.grad_enabled
    ):
        return None
    if function in _IN_PLACE or kwargs.get("inplace"):
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        result = record(_IN_PLACE.get(function, function), args, kwargs)
        target = args[0]
        if result is None or not isinstance(target, SiteTensor) or result.shape != target.shape:
            return None
        return target.become(_cast(result, target.dtype).node)
    if function is F.linear:
        return _linear(*args, **kwargs)
    if function in _POINTWISE:
        return _pointwise(function, args, kwargs, first)
    dtype = cast_target(function, args, kwargs)
    if dtype is not None:
        return _cast(first, dtype)
    if function in _DROPOUTS:
        return _dropout(*args, **kwargs)
    if function in _ALIASES:
        return first
    if function in _CLONES:
        return first.derive(first.node)
    if function is Tensor.contiguous:
        # The am that k2 returns is an expanded view: its contiguous() is a copy.
        is_view = isinstance(first.node, Table) and not first.node.by_symbol
        return first.derive(first.node) if is_view else first
    if function in _RESHAPES:
        return _reshape(function, *args, **kwargs)
    return None


def _pointwise(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    joint: SiteTensor,
) -> SiteTensor | None:
    if "out" in kwargs:
        return None
    nodes: list[Any] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, SiteTensor):
            nodes.append(value.node)
        elif isinstance(value, Tensor):
            if value.device != joint.device and value.dim() > 0:
                return None
            nodes.append(Operand(value))
        else:
            nodes.append(value)
    operands = [n for n in nodes if isinstance(n, Operand)]
    if any(not _broadcasts(n.values, joint.shape) for n in operands):
        return None
    arguments = tuple(nodes[: len(args)])
    keywords = dict(zip(kwargs, nodes[len(args) :]))
    tables = {id(n): n for n in nodes if isinstance(n, Table)}
    others = [n for n in nodes if isinstance(n, (Operation, Linear))]
    if len(tables) == 1 and not others and all(n.values.dim() <= 1 for n in operands):
        # One value per table row, however many sites read it: compute it there, now.
        (table,) = tables.values()
        values = [n.values if isinstance(n, (Table, Operand)) else n for n in nodes]
        result = function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :])))
        return joint.derive(Table(result, table.by_symbol))
    sample = _sample(function, arguments, keywords, joint.device)
    if sample is None or sample.shape[0] != 0 or sample.dim() != 2:
        return None
    node = Operation(function, arguments, keywords, sample.shape[1], sample.dtype)
    return joint.derive(node)


def _broadcasts(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether ``tensor`` adds no site to ``[B, T, s_range, X]``; X itself is checked by running."""
    if tensor.dim() > 4:
        return False
    leading = tensor.shape[:-1]
    return all(size in (1, target) for size, target in zip(leading[::-1], shape[:-1][::-1]))


def _sample(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    device: torch.device,
) -> Tensor | None:
    """The operation on rows of zero sites: gives width and dtype, and torch's own errors, for free.

    None when autocast would change the result's dtype: the replay, which runs without autocast,
    would then compute something else.
    """

    def empty(value: Any) -> Any:
        if isinstance(value, Operand):
            tensor = value.values
            return tensor if tensor.dim() == 0 else tensor.new_empty((0, tensor.shape[-1]))
        if isinstance(value, (Table, Operation, Linear)):
            return torch.empty((0, value.width), dtype=value.dtype, device=device)
        return value

    positional = [empty(value) for value in args]
    keywords = {key: empty(value) for key, value in kwargs.items()}
    with torch.no_grad():
        result = function(*positional, **keywords)
        with no_autocast(device):
            plain = function(*positional, **keywords)
    return result if result.dtype == plain.dtype else None


def _linear(
    input: Any,
    weight: Any,
    bias: Any = None,
) -> SiteTensor | None:
    if not isinstance(input, SiteTensor) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    if not (bias is None or isinstance(bias, Tensor)):
        return None
    node: Node = input.node
    if isinstance(node, Table):
        return input.derive(Table(F.linear(node.values, weight, bias), node.by_symbol))
    # float64 is left alone by autocast.
    cast = None if node.dtype == torch.float64 else autocast_dtype(input.device)
    with torch.no_grad(), no_autocast(input.device):
        sample = torch.empty((0, node.width), dtype=node.dtype, device=input.device)
        dtype = linear(sample, weight, bias, cast).dtype
    return input.derive(Linear(node, weight, bias, cast, dtype))


def _cast(joint: SiteTensor, dtype: torch.dtype) -> SiteTensor:
    if dtype == joint.dtype:
        return joint
    node = joint.node
    if isinstance(node, Table):
        return joint.derive(Table(node.values.to(dtype), node.by_symbol))
    return joint.derive(Operation(Tensor.to, (node, dtype), {}, node.width, dtype))


def _dropout(
    input: Any,
    p: float = 0.5,
    training: Any = None,
    train: Any = None,
    inplace: bool = False,
) -> SiteTensor | None:
    """Dropout that drops nothing; a random mask materialises, so that the draw stays the same."""
    if train is None:
        train = True if training is None else training
    return input if not train or p == 0.0 else None


def _reshape(
    function: Callable[..., Any], joint: Any, *shape: Any, **kwargs: Any
) -> SiteTensor | None:
    """A reshape to the shape it has already."""
    if kwargs or not isinstance(joint, SiteTensor) or not shape:
        return None
    if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
        shape = tuple(shape[0])
    sizes = [s for s in shape if isinstance(s, int)]
    if len(sizes) != 4 or len(shape) != 4:
        return None
    matches = all(s in (-1, n) for s, n in zip(sizes, joint.shape))
    # In expand, -1 says "as it is"; elsewhere it is one size left to be worked out.
    is_legal = function is Tensor.expand or sizes.count(-1) <= 1
    return joint if matches and is_legal else None
