"""warp-rnnt: ``pytorch_binding/warp_rnnt/test.py`` (T of 1, an empty target, a ragged batch)."""

import torch
from lattice_oracle import LossKind

from published.torchaudio import ONE_UTTERANCE
from published.vector import Vector, numbers

SOURCE = "warp-rnnt (1ytic), pytorch_binding/warp_rnnt/test.py, "
FRAMES = ONE_UTTERANCE.logits[0]  # of warp-transducer's small example, [2, 3, 5]

VECTORS = [
    Vector(
        name="warp_rnnt-one_to_many",
        source=SOURCE + "test_one_to_many",
        kind=LossKind(),
        logits=FRAMES[None, :1],
        targets=torch.tensor([[1, 2]]),
        logit_lengths=torch.tensor([1]),
        target_lengths=torch.tensor([2]),
        costs=numbers("4.274244594423859", 1),
        grad=numbers("0 -1 0 0 0   0 0 -1 0 0   -1 0 0 0 0", 1, 1, 3, 5),
        is_by_log_probs=True,
    ),
    Vector(
        name="warp_rnnt-one_to_empty",
        source=SOURCE + "test_one_to_empty",
        kind=LossKind(),
        logits=FRAMES[None, :1, :1],
        targets=torch.zeros(1, 0, dtype=torch.int64),
        logit_lengths=torch.tensor([1]),
        target_lengths=torch.tensor([0]),
        costs=numbers("1.7314291957733714", 1),
        grad=numbers("-1 0 0 0 0", 1, 1, 1, 5),
        is_by_log_probs=True,
    ),
    Vector(
        name="warp_rnnt-ragged",
        source=SOURCE + "test_forward_batch",
        kind=LossKind(),
        logits=torch.stack(
            [
                torch.cat([FRAMES, torch.zeros(1, 3, 5, dtype=torch.float64)]),
                torch.cat([FRAMES, FRAMES[:1]]),
            ]
        ),
        targets=torch.tensor([[1, 2], [1, 2]]),
        logit_lengths=torch.tensor([2, 3]),
        target_lengths=torch.tensor([2, 2]),
        costs=numbers("4.495666773770733 5.7367250428101615", 2),
        grad=numbers(
            """
            -0.308198071906 -0.6918019280939998 0 0 0
            -0.308198071906 0 -0.3836038561880001 0 0
            -0.3836038561880001 0 0 0 0
            0 -0.308198071906 0 0 0
            0 0 -0.6163961438119995 0 0
            -0.9999999999999991 0 0 0 0
            0 0 0 0 0   0 0 0 0 0   0 0 0 0 0

            -0.45920877 -0.54079123 0 0 0   -0.32392462 0 -0.21686661 0 0   -0.21686661 0 0 0 0
            -0.13528414 -0.32392462 0 0 0   -0.29937584 0 -0.3484734 0 0   -0.56534001 0 0 0 0
            0 -0.13528414 0 0 0   0 0 -0.43465999 0 0   -1 0 0 0 0
            """,
            2, 3, 3, 5,
        ),
        is_by_log_probs=True,
    ),
]  # fmt: skip
