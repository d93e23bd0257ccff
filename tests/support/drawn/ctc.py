"""Properties of ``apply(ctc=True)``: the CTC loss of a recorded head."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from dispatch import LargestTensor
from hypothesis import strategies as st
from torch import Tensor, nn

import panda_icefall
from drawn import own_loop, tensors


@dataclass(frozen=True)
class Case:
    """A CTC loss of a head ``ctc_output``."""

    classes: int
    blank: int
    frames: tuple[int, ...]
    counts: tuple[int, ...]
    is_padded: bool
    is_time_first: bool
    zero_infinity: bool
    trained: str
    workspace: int | None
    reduction: str
    mode: str
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    classes = draw(st.sampled_from([2, 3, 7, 40, 150]))
    utterances = draw(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=4)
    )
    frames, counts = zip(*utterances)
    return Case(
        classes=classes,
        blank=draw(st.integers(0, classes - 1)),
        frames=frames,
        counts=counts,
        is_padded=draw(st.booleans()),
        is_time_first=draw(st.booleans()),
        zero_infinity=draw(st.booleans()),
        trained=draw(st.sampled_from(["all", "all", "no bias", "head alone", "nothing"])),
        workspace=draw(tensors.workspaces),
        reduction=draw(st.sampled_from(["none", "sum", "mean"])),
        mode=draw(st.sampled_from(own_loop.MODES)),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """The recorded head's loss is torch's own of a log-softmax."""
    B, T, C = len(case.frames), max(case.frames), case.classes
    torch.manual_seed(case.seed)
    model = nn.Module()
    model.ctc_output = nn.Sequential(nn.Dropout(0.0), nn.Linear(4, C), nn.LogSoftmax(dim=-1))
    model.double()
    x = 2 * torch.randn(B, T, 4, dtype=torch.float64)
    for name, leaf in {"x": x, **dict(model.named_parameters())}.items():
        leaf.requires_grad_(
            {"all": True, "no bias": "bias" not in name, "head alone": name != "x"}.get(
                case.trained, False
            )
        )
    leaves = [leaf for leaf in (x, *model.parameters()) if leaf.requires_grad]
    labels = torch.randint(0, C - 1, (B, max(case.counts)))
    labels += labels >= case.blank
    if not case.is_padded:
        labels = torch.cat([row[:n] for row, n in zip(labels, case.counts)])
    lengths = torch.tensor(case.frames), torch.tensor(case.counts)
    weights = torch.randn(B, dtype=torch.float64)

    def loss_of() -> Tensor:
        if case.is_time_first:
            log_probs = model.ctc_output(x.transpose(0, 1))
        else:
            log_probs = model.ctc_output(x).permute(1, 0, 2)
        return F.ctc_loss(
            log_probs, labels, *lengths, blank=case.blank, reduction=case.reduction,
            zero_infinity=case.zero_infinity,
        )  # fmt: skip

    applied = functools.partial(panda_icefall.patched, model, ctc=True)

    def once(**options: Any) -> None:
        with applied(**options):
            loss_of()

    options: dict[str, Any] = {}
    if case.workspace is not None:
        workspace_bytes = tensors.workspace_of(case.workspace, B * T * C, once)
        options["workspace_mib"] = tensors.mib(workspace_bytes)
    expected = own_loop.expected_outcome(case.mode, loss_of, leaves, weights)
    with applied(**options), LargestTensor() as largest:
        before = panda_icefall.status()
        found = own_loop.outcome(case.mode, loss_of, leaves, weights)
        counted = panda_icefall.status() - before
    assert counted.ctc_losses_routed == own_loop.losses_of(case.mode)
    assert (counted.ctc_losses_dense, counted.materialised) == (0, {})
    tensors.assert_near(found[:1], expected[:1], 1e-11, 1.0)
    if bool(expected[0].isfinite().all()):  # else torch's gradients mean nothing
        tensors.assert_near(found[1:], expected[1:], 1e-9, 1.0)
    if case.workspace is None:
        return {}
    limit = max(workspace_bytes, 8 * max(B * T * 12, 5 * C))
    assert largest.bytes <= limit, (largest.bytes, limit)
    return {"watched": 1, "dense logits were larger": int(limit < 8 * B * T * C)}
