"""NeMo: ``tests/collections/asr/numba/rnnt_loss/test_rnnt_pytorch.py``."""

import torch
from lattice_oracle import LossKind

from published.torchaudio import ONE_UTTERANCE
from published.vector import Vector, numbers

SOURCE = "NeMo, tests/collections/asr/numba/rnnt_loss/test_rnnt_pytorch.py, "
# warp-transducer's small example.
SMALL = {
    "logits": ONE_UTTERANCE.logits,
    "targets": torch.tensor([[1, 2]]),
    "logit_lengths": torch.tensor([2]),
    "target_lengths": torch.tensor([2]),
}

VECTORS = [
    Vector(
        name="nemo-small",
        source=SOURCE + "TestRNNTLossPytorch.test_case_small",
        kind=LossKind(),
        **SMALL,
        costs=numbers("4.495666", 1),
        grad=numbers(
            """
            -0.13116688 -0.3999269 0.17703125 0.17703125 0.17703125
            -0.18572757 0.12247056 -0.18168412 0.12247056 0.12247056
            -0.32091254 0.06269141 0.06928472 0.12624499 0.06269141
            0.05456069 -0.21824276 0.05456069 0.05456069 0.05456069
            0.12073959 0.12073959 -0.48295835 0.12073959 0.12073959
            -0.6925882 0.16871116 0.18645467 0.16871116 0.16871116
            """,
            1, 2, 3, 5,
        ),
    ),
    Vector(
        name="nemo-clamp",
        source=SOURCE + "TestRNNTLossPytorch.test_case_small_clamp",
        kind=LossKind(clamp=0.1),
        **SMALL,
        costs=numbers("4.495666", 1),
        grad=numbers(
            """
            -0.1 -0.1 0.1 0.1 0.1   -0.1 0.1 -0.1 0.1 0.1
            -0.1 0.06269141 0.06928472 0.1 0.06269141
            0.05456069 -0.1 0.05456069 0.05456069 0.05456069
            0.1 0.1 -0.1 0.1 0.1   -0.1 0.1 0.1 0.1 0.1
            """,
            1, 2, 3, 5,
        ),
    ),
    *(
        Vector(
            name=f"nemo-fastemit-{fastemit_lambda}",
            source=SOURCE + "TestRNNTLossPytorch.test_case_small_fastemit_clamp",
            kind=LossKind(fastemit_lambda=fastemit_lambda, clamp=0.1),
            **SMALL,
            costs=numbers("4.495666", 1) * (1 + fastemit_lambda),
            cost_tolerance=2e-6,
        )
        for fastemit_lambda in (1.0, 0.01, 0.00001)
    ),
    Vector(
        name="nemo-tdt",
        source=SOURCE + "TestTDTLoss.test_case_fixed_case_act_label",
        kind=LossKind(blank=3, durations=(0, 1, 2), sigma=0.05),
        logits=torch.zeros(1, 3, 2, 7, dtype=torch.float64),
        targets=torch.tensor([[0]]),
        logit_lengths=torch.tensor([3]),
        target_lengths=torch.tensor([1]),
        costs=numbers("4.155739", 1),
        grad=numbers(
            """
            -0.64962804 0.25 0.25 0.14962798 0.2672583 -0.16792619 -0.09933221
            0.01651875 0.01651875 0.01651875 -0.04955626 0.022025 -0.01227201 -0.009753
            -0.04892651 0.01714851 0.01714851 0.01462949 -0.01143234 -0.01143234 0.02286467
            0.12531489 0.12531489 0.12531489 -0.37594467 0.16708651 0.13027048 -0.29735702
            -0.02572276 0.00857425 0.00857425 0.00857425 -0.02286468 0.01143234 0.01143234
            0.13388914 0.13388914 0.13388914 -0.40166742 0.17851885 -0.35703772 0.17851885
            """,
            1, 3, 2, 7,
        ),
    ),
]  # fmt: skip
