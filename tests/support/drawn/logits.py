"""Properties of the losses of logits that exist: torchaudio's and optimized_transducer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from drawn import own_loop, tensors
from drawn.lattices import Lattice, lattices
from panda_icefall.losses.of_logits import rnnt_loss, transducer_loss


@dataclass(frozen=True, eq=False)
class Case:
    """A loss of logits; they are packed where they are optimized_transducer's."""

    lattice: Lattice
    is_packed: bool
    is_normalised: bool
    peak: float
    reduction: str
    mode: str
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    is_packed = draw(st.booleans())
    families = ("regular", "one_sym_per_frame") if is_packed else ("regular",)
    lattice = draw(lattices(families=families))
    kind = lattice.kind
    is_plain = kind.delay_penalty <= 0 and kind.fastemit_lambda == 0
    if not is_plain or (is_packed and kind.clamp > 0):
        plain = type(kind)(
            blank=kind.blank, rnnt_type=kind.rnnt_type, clamp=-1.0 if is_packed else kind.clamp
        )
        lattice = type(lattice)(**{**vars(lattice), "kind": plain})
    return Case(
        lattice=lattice,
        is_packed=is_packed,
        is_normalised=lattice.kind.clamp <= 0 and draw(st.booleans()),
        peak=draw(st.sampled_from([1.0, 8.0])),
        reduction=draw(st.sampled_from(["none", "sum", "mean"])),
        mode=draw(st.sampled_from(own_loop.MODES)),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """The loss and the gradient of the logits are the oracle's."""
    lattice, g = case.lattice, torch.Generator().manual_seed(case.seed)
    B, T, S = lattice.shape
    shape = (B, T, S + 1, lattice.classes)
    logits = case.peak * torch.randn(shape, generator=g, dtype=torch.float64)
    logits.requires_grad_()
    weights = torch.randn(B, generator=g, dtype=torch.float64)
    lengths = torch.tensor(lattice.frames), torch.tensor(lattice.states)

    def ours() -> Tensor:
        x = logits.log_softmax(-1) if case.is_normalised else logits
        kind = lattice.kind
        if not case.is_packed:
            return rnnt_loss(
                x, lattice.targets, *lengths, kind.blank, kind.clamp, case.reduction,
                fused_log_softmax=not case.is_normalised,
            )  # fmt: skip
        rows = [x[b, :t, : s + 1].flatten(0, 1) for b, (t, s) in enumerate(zip(*lengths))]
        return transducer_loss(
            torch.cat(rows), lattice.targets, *lengths, kind.blank, case.reduction,
            kind.rnnt_type == "one_sym_per_frame", case.is_normalised,
        )  # fmt: skip

    def dense() -> Tensor:
        costs = lattice.costs(logits)
        return costs if case.reduction == "none" else getattr(costs, case.reduction)()

    expected = own_loop.expected_outcome(case.mode, dense, [logits], weights)
    found = own_loop.outcome(case.mode, ours, [logits], weights)
    tensors.assert_near(found[:1], expected[:1], 1e-11, 1.0)
    tensors.assert_near(found[1:], expected[1:], 1e-9, 1.0)
    return {}
