"""Properties of ``apply(model)`` on recipes whose loss is on the full lattice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import toy_full
from hypothesis import strategies as st

import panda_icefall
from drawn import tensors


@dataclass(frozen=True)
class Case:
    """A recipe whose loss is on the full lattice; attributes as of ``toy_full.Transducer``."""

    host: str
    is_modified: bool
    hidden: str
    frames: tuple[int, ...]
    states: tuple[int, ...]
    workspace: int | None
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    host = draw(st.sampled_from(toy_full.HOSTS))
    is_modified = host != "torchaudio" and draw(st.booleans())
    lengths = st.integers(1, 7).flatmap(
        lambda t: st.tuples(st.just(t), st.integers(0, min(4, t - 1) if is_modified else 4))
    )
    frames, states = zip(*draw(st.lists(lengths, min_size=1, max_size=3)))
    return Case(
        host=host,
        is_modified=is_modified,
        hidden=draw(st.sampled_from(["tanh", "relu", "sigmoid"])),
        frames=frames,
        states=states,
        workspace=draw(tensors.workspaces),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """The losses of torchaudio, k2 and optimized_transducer, of a model that is applied."""
    g = torch.Generator().manual_seed(case.seed)
    B, T, S = len(case.frames), max(case.frames), max(case.states)
    y = torch.randint(1, toy_full.C, (B, S), generator=g, dtype=torch.int32)
    data = toy_full.Batch(
        torch.randn(B, T, toy_full.D, generator=g, dtype=torch.float64),
        torch.tensor(case.frames).int(),
        y.masked_fill(torch.arange(S) >= torch.tensor(case.states)[:, None], 0),
        torch.tensor(case.states).int(),
    )
    sites = sum(t * (s + 1) for t, s in zip(case.frames, case.states))
    hidden = getattr(torch, case.hidden)
    model = toy_full.Transducer(case.host, float(case.is_modified), hidden).double()
    expected_loss, expected = toy_full.dense(model, data)
    with toy_full.oracles_as_hosts(with_packed=False):
        panda_icefall.apply()  # once: it looks for other names of what it replaces

        def ours(**options: Any) -> Any:
            with panda_icefall.patched(model, adjoint_tolerance=0, **options):
                before = panda_icefall.status()
                found = toy_full.loss_and_gradients(model, data)
                return *found, panda_icefall.status() - before

        options = {}
        if case.workspace is not None:
            workspace_bytes = tensors.workspace_of(case.workspace, sites * toy_full.C, ours)
            options["workspace_mib"] = tensors.mib(workspace_bytes)
        loss, found, counted = ours(**options)
        panda_icefall.revert()
    assert (counted.losses_routed, counted.losses_dense, counted.materialised) == (1, 0, {})
    assert counted.sites == sites
    tensors.assert_near([loss, *found], [expected_loss, *expected], 1e-10, 1.0)
    return {}
