"""What a routed loss cannot be faster than: its matrix products, at its own sizes.

One step runs under a dispatch mode that notes every product and its operands' layout. They are run
again by plain `torch.mm` and `torch.bmm` on memory that is there: no tile is cut, no exponential
taken, no sum made. So the limit has one product over the sites that are evaluated, three over the
sites that matter, the simple loss's own, and those of the joiner's projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.precision import float32_products
from benchmarks.steps import TrainingStep

# Where the two operands stand among the arguments.
_OPERANDS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}

# Size and strides.
Layout = tuple


@dataclass(frozen=True)
class Product:
    """One matrix product, or a batch of them.

    Attributes:
      left, right: layouts of the operands.
      dtype, device: of both.
    """

    left: Layout
    right: Layout
    dtype: torch.dtype
    device: torch.device

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        size, columns = self.left[0], self.right[0][-1]
        return 2 * torch.Size(size).numel() * columns

    @property
    def bytes(self) -> int:
        """Of both operands and of the result, each once and all in the operands' dtype."""
        left, right = self.left[0], self.right[0]
        numbers = sum(torch.Size(size).numel() for size in (left, right, (*left[:-1], right[-1])))
        return numbers * torch.empty((), dtype=self.dtype).element_size()


class _Notes(TorchDispatchMode):
    """Notes the products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # addmm, addmm_ and addmm.out are one product.
        at = _OPERANDS.get(func.__name__.split(".")[0].rstrip("_"))
        if at is not None:
            left, right = args[at], args[at + 1]
            layouts = [(tuple(t.shape), t.stride()) for t in (left, right)]
            self.products.append(Product(*layouts, left.dtype, left.device))
        return func(*args, **(kwargs or {}))


def products_of(step: TrainingStep) -> list[Product]:
    """The products of one forward and backward, in their order."""
    notes = _Notes()
    with notes:
        step.run()
    return notes.products


def recorded_gemms(step: TrainingStep) -> Callable[[], None]:
    """The products of a step as work to be timed, on operands that are made once."""
    work = list(_prepared(products_of(step)))

    def run() -> None:
        with float32_products(step.precision):
            for product, left, right, out in work:
                product(left, right, out=out)

    run()
    return run


def _prepared(products: list[Product]) -> Iterator[tuple[Any, Tensor, Tensor, Tensor]]:
    """Each product with its operands; products of one layout share them, as tiles do scratch."""
    made: dict[Product, tuple[Any, Tensor, Tensor, Tensor]] = {}
    for product in products:
        if product not in made:
            left, right = (
                _random(layout, product.dtype, product.device)
                for layout in (product.left, product.right)
            )
            function = torch.mm if left.dim() == 2 else torch.bmm
            made[product] = (function, left, right, function(left, right))
        yield made[product]


def _random(layout: Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
    size, strides = layout
    # Rows of an expanded tensor share their memory, which cannot be written through it.
    reach = 1 + sum((n - 1) * step for n, step in zip(size, strides))
    memory = torch.empty(max(0, reach), dtype=dtype, device=device).uniform_(-1, 1)
    return memory.as_strided(size, strides)
