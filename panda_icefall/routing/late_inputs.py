"""``LateInputs``: tensors that are read only when the loss is computed, and must not change."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from panda_icefall.routing.errors import PandaError


class LateInputs:
    """Mixin of what holds tensors whose values are read only when the loss is computed.

    Attributes:
      reader: what would have read them at once, for errors.
    """

    reader: ClassVar[str] = "the joiner"

    def tensors(self) -> tuple[Tensor, ...]:
        raise TypeError("late inputs say which tensors they hold")

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", [version_of(t) for t in self.tensors()])

    def check_unchanged(self) -> None:
        """Refuse to go on with values that their reader never saw.

        Raises:
          PandaError: a tensor was changed in place since it was recorded, or its memory is gone.
        """
        for tensor, version in zip(self.tensors(), self._versions):  # type: ignore[attr-defined]
            if _is_freed(tensor):
                raise PandaError(
                    f"a tensor of shape {tuple(tensor.shape)} that {self.reader} read was freed "
                    f"before the loss: got no memory for it; where FSDP shards parameters again "
                    f"after forward, compute the loss inside the sharded module"
                )
            if version_of(tensor) != version:
                raise PandaError(
                    f"a tensor of shape {tuple(tensor.shape)} that {self.reader} read was changed "
                    f"in place before the loss: got version {version_of(tensor)}, expected "
                    f"{version}; PANDA computes {self.reader} with the loss, so give it a copy "
                    f"(clone())"
                )


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    # Inference tensors count no versions.
    return 0 if tensor.is_inference() else tensor._version


def _is_freed(tensor: Tensor) -> bool:
    # Only a plain tensor has memory of its own; torch 1.13 does not tell.
    if type(tensor) not in (Tensor, nn.Parameter) or not hasattr(tensor, "untyped_storage"):
        return False
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0
