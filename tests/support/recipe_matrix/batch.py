"""The one random batch, and the keyword arguments a recipe's model is called with."""

from __future__ import annotations

from typing import Any

import torch

from recipe_matrix.row import Call, Row

X_LENS = (131, 97, 63, 118)  # frames at 100 Hz
_OF_PRUNING = ("prune_range", "am_scale", "lm_scale")


def transcripts(num_classes: int, *, symbols: int = 13) -> Any:
    """Ragged `[utterance][symbol]`: full, one symbol, none, and a repeated symbol."""
    import k2

    generator = torch.Generator().manual_seed(num_classes + symbols)
    full = torch.randint(1, num_classes, (symbols,), generator=generator).tolist()
    return k2.RaggedTensor([full, [num_classes - 1], [], [7, 7, 3, 7, 1]])


def features(num_classes: int) -> torch.Tensor:
    """`[B, T, 80]` float32."""
    generator = torch.Generator().manual_seed(num_classes)
    return torch.randn(len(X_LENS), max(X_LENS), 80, generator=generator)


def forward_arguments(row: Row, call: Call) -> dict[str, Any]:
    """Features, transcripts, and what the recipe's parser gives for pruning; then the row's own."""
    arguments: dict[str, Any] = {
        "x": features(row.num_classes),
        "x_lens": torch.tensor(X_LENS, dtype=torch.int32),  # as lhotse gives them
        "y": transcripts(row.num_classes),
        **{name: call.params[name] for name in _OF_PRUNING if name in call.params},
        **row.call,
    }
    for adaptation in row.adaptations:
        if adaptation.inputs is not None:
            arguments = adaptation.inputs(call, arguments)
    return arguments
