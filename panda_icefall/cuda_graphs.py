"""What cannot be captured into a CUDA graph says so."""

from __future__ import annotations

import torch


def check_not_captured(what: str) -> None:
    """Refuse work whose sizes depend on values of tensors while a CUDA graph is being captured.

    A graph replays launches of fixed sizes; reading a value back would end the capture with an
    error of CUDA's that names neither the cause nor the place.

    Args:
      what: is being asked for, such as ``a transducer loss under PANDA``.

    Raises:
      RuntimeError: a capture is going on on this thread's current stream.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"CUDA graph: got {what} inside a capture, expected it outside: its tiles are cut by "
            "values that it reads back from the device; capture the encoder alone, as by "
            "torch.cuda.make_graphed_callables(model.encoder, ...), or call panda_icefall.revert()"
        )
