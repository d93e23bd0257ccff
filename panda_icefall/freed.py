"""Tensors whose memory somebody has taken away, as sharding does with parameters between passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

REMEDY = (
    "where parameters are sharded again after a module's forward (FSDP, ZeRO-3), compute the loss "
    "inside the sharded module, or shard with torch.distributed.fsdp.fully_shard, whose modules "
    "gather them for the loss"
)


def shapes_of(tensors: Iterable[Tensor | None]) -> list[torch.Size | None]:
    """For ``refuse_freed``, while they are there."""
    return [None if tensor is None else tensor.shape for tensor in tensors]


def is_freed(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor that had this shape has no memory any more.

    FSDP frees the storage; ZeRO-3 leaves an empty tensor in its place.
    """
    if tensor.shape != shape:
        return True
    # Only a plain tensor has memory of its own.
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.numel() == 0:
        return False
    # torch 1.13 has no untyped_storage.
    return bool(getattr(tensor, "untyped_storage", tensor.storage)().nbytes() == 0)


def refuse_freed(tensors: Sequence[Tensor | None], shapes: Sequence[torch.Size | None]) -> None:
    """Stop a backward whose saved tensors were freed after its forward, before it reads them.

    Args:
      shapes: what ``shapes_of`` gave in forward.

    Raises:
      RuntimeError: naming the first one's shape.
    """
    for tensor, shape in zip(tensors, shapes):
        if tensor is not None and shape is not None and is_freed(tensor, shape):
            raise RuntimeError(
                f"backward: a tensor of shape {tuple(shape)} that the loss read was freed since: "
                f"got no memory for it; {REMEDY}"
            )
