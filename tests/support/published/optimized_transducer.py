"""optimized_transducer at commit 863667a, its ``csrc/cpu.cc`` compiled and run on inputs of ours.

Its tests publish no numbers: they compare random inputs with torchaudio's loss.
"""

import torch
from lattice_oracle import LossKind

from published.vector import Vector, made_logits, numbers

VECTORS = [
    Vector(
        name="optimized_transducer-one_sym_per_frame",
        source="optimized_transducer 863667a, compute_transducer_loss(one_sym_per_frame=True)",
        kind=LossKind(rnnt_type="one_sym_per_frame"),
        logits=made_logits(2, 4, 3, 4),
        targets=torch.tensor([[2, 1], [1, 1]]),
        logit_lengths=torch.tensor([4, 3]),
        target_lengths=torch.tensor([2, 1]),
        costs=numbers("4.388349533081055 3.1578192710876465", 2),
        grad=numbers(
            """
            0.0348363 0.1677802 -0.2595937 0.0569774   0 0 0 0   0 0 0 0
            0.0004646 0.0020412 -0.0031990 0.0006932   -0.2643058 0.0116510 0.2345251 0.0181299
            0 0 0 0   0 0 0 0   0.1326433 -0.3755689 0.0450451 0.1978806
            -0.0273873 0.0011092 0.0048727 0.0214054   0 0 0 0   0 0 0 0
            -0.9618067 0.1677802 0.7370492 0.0569774   -0.5962532 -0.0333767 0.1167506 0.5128793
            0 0 0 0   0 0 0 0   0.0359033 -0.7823251 0.6928606 0.0535614
            -0.0516548 0.0364562 0.0028182 0.0123804   0 0 0 0   0 0 0 0
            -0.3070726 0.0535666 0.2353151 0.0181910   0 0 0 0   0 0 0 0   0 0 0 0   0 0 0 0
            """,
            2, 4, 3, 4,
        ),
    ),
]  # fmt: skip
