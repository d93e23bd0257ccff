"""What a recorded joiner does to a site, in words."""

from __future__ import annotations

from panda_icefall.routing.graph import in_order
from panda_icefall.routing.nodes import Linear, Node, Operand, Operation


def joiner_kind(node: Node) -> str:
    """Its recorded operations in order, casts left out: `add, tanh, linear`.

    An operation with a further tensor than the recorded ones is marked, `add (context)`.
    """
    words = []
    for item in in_order(node):
        if isinstance(item, Linear):
            words.append("linear")
        elif isinstance(item, Operation) and item.function.__name__ != "to":
            arguments = (*item.args, *item.kwargs.values())
            has_context = any(isinstance(a, Operand) and a.values.dim() for a in arguments)
            name = item.function.__name__.strip("_")
            words.append(f"{name} (context)" if has_context else name)
    return ", ".join(words)
