"""The memory of the transducer losses at their peak, dense and routed, by component.

What the dense path holds is known from its code: k2's ``rnnt_loss_pruned`` and
``rnnt_loss_smoothed`` as of July 2025, and a joiner that adds, takes a tanh and one linear. What
routing holds comes from the plans that cut its tiles. ``scripts/check_plan.py`` compares both with
measured peaks.
"""

from dataclasses import dataclass
from typing import Any

import torch

from panda_icefall.losses.simple_tiled.plan import (
    USEFUL_ROWS,
    USEFUL_ROWS_ON_DEVICE,
    SimpleTilePlan,
)
from panda_icefall.normalizer.plan import LEAST_SHARE_ON_DEVICE, USEFUL_SIDE, TileCosts, TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable

__all__ = ["MEASURED_ERROR", "Batch", "LossSizes", "dense_memory", "routed_memory"]

# The largest error of a whole loss against measured peaks, relative: see scripts/results/plan.json.
MEASURED_ERROR = 0.06

_FLOAT = 4
# Backward of logsumexp: logits, their gradient so far, and three temporaries.
_LOGITS_COPIES = 5
# am and their exponentials are kept for backward, which makes three more of their size.
_SIMPLE_KEPT, _SIMPLE_BACKWARD = 2, 3
# Of a routed site: ids, log-probs, normaliser, indices of its rows, adjoints, their order by size.
_SITE_BYTES = 104
# Hidden rows that a tile's plan has room for, and that are not there at the same time.
_ROWS_TO_SPARE = 2
# Of a state at a frame, [B, S+1, T]: arcs, the recursion, occupations, and their gradients.
_STATE_BYTES = 8 * _FLOAT

Components = dict[str, int]


@dataclass(frozen=True)
class Batch:
    """A padded batch: B utterances, T frames after subsampling, S symbols."""

    B: int
    T: int
    S: int

    @property
    def frames(self) -> int:
        """B T."""
        return self.B * self.T

    @property
    def states(self) -> int:
        """B (S + 1)."""
        return self.B * (self.S + 1)


@dataclass(frozen=True)
class LossSizes:
    """What the losses of a recipe are computed over.

    Attributes:
      C: Classes.
      H: The joiner's dimension.
      am_dim, lm_dim: Of the encoder's and of the predictor's output.
      s_range: Of the pruned lattice, ``--prune-range``.
      half: Whether the recipe trains under autocast in fp16 or bf16; the losses are float32 then,
        too.
    """

    C: int
    H: int
    am_dim: int
    lm_dim: int
    s_range: int
    half: bool = False

    @property
    def layer_bytes(self) -> int:
        """Bytes of a number that a layer gives."""
        return 2 if self.half else _FLOAT

    @property
    def head_bytes(self) -> int:
        """Gradient of the joiner's last linear."""
        return _FLOAT * self.C * (self.H + 1)

    @property
    def joiner_bytes(self) -> int:
        """The same of all its linears."""
        return self.head_bytes + _FLOAT * self.H * (self.am_dim + self.lm_dim + 2)

    @property
    def projection_bytes(self) -> int:
        """Gradients of the simple loss's two projections to classes."""
        return _FLOAT * self.C * (self.am_dim + self.lm_dim + 2)


def dense_memory(batch: Batch, sizes: LossSizes) -> Components:
    """Bytes of each component at the moment when the dense losses hold most, in backward."""
    sites = batch.frames * sizes.s_range
    am_lm = _FLOAT * sizes.C * (batch.frames + batch.states)
    in_pruned = {
        "pruned loss: logits [B, T, s_range, C], 5 times": _LOGITS_COPIES
        * _FLOAT
        * sites
        * sizes.C,
        "pruned loss: joiner [B, T, s_range, H]": sizes.layer_bytes * sites * sizes.H,
        "simple loss: am and lm of C classes, kept": _SIMPLE_KEPT * am_lm,
        "projections of the joiner": sizes.layer_bytes * sizes.H * (batch.frames + batch.states),
        "lattices": _STATE_BYTES * batch.states * batch.T,
    }
    in_simple = {
        "simple loss: am and lm of C classes, 5 times": (_SIMPLE_KEPT + _SIMPLE_BACKWARD) * am_lm,
        "gradients of the joiner": sizes.joiner_bytes,
        "gradients of encoder and predictor outputs": _outputs_bytes(batch, sizes),
        "lattices": _STATE_BYTES * batch.states * batch.T,
    }
    return _largest(in_pruned, in_simple)


def routed_memory(
    batch: Batch, sizes: LossSizes, workspace_bytes: int, *, on_gpu: bool = True
) -> Components:
    """The same where the losses are routed.

    Args:
      batch, sizes: Of the loss.
      workspace_bytes: Upper bound of a tile's scratch.
      on_gpu: Where more utterances share a tile of the simple loss, and the pruned one's are wider.

    Raises:
      ValueError: The workspace is too small for a tile.
    """
    sites = batch.frames * sizes.s_range
    projected = sizes.H * (batch.frames + batch.states)
    in_pruned = {
        "pruned loss: a tile": _pruned_tile_bytes(sites, sizes, workspace_bytes, on_gpu),
        "pruned loss: ids, log-probs and adjoints of the sites": _SITE_BYTES * sites,
        "projections of the joiner and their gradients": (sizes.layer_bytes + _FLOAT) * projected,
        "gradients of the joiner": sizes.head_bytes,
        "lattices": _STATE_BYTES * batch.states * batch.T,
    }
    in_simple = {
        "simple loss: a tile": _simple_tile_bytes(batch, sizes, workspace_bytes, on_gpu),
        "gradients of the simple projections": sizes.projection_bytes,
        "gradients of the joiner": sizes.joiner_bytes,
        "gradients of encoder and predictor outputs": 2 * _outputs_bytes(batch, sizes),
        "lattices": _STATE_BYTES * batch.states * batch.T,
    }
    return _largest(in_pruned, in_simple)


def _largest(*moments: Components) -> Components:
    return max(moments, key=lambda components: sum(components.values()))


def _outputs_bytes(batch: Batch, sizes: LossSizes) -> int:
    return _FLOAT * (batch.frames * sizes.am_dim + batch.states * sizes.lm_dim)


def _pruned_tile_bytes(sites: int, sizes: LossSizes, workspace_bytes: int, on_gpu: bool) -> int:
    """Scratch of a tile in backward, of a joiner that adds and takes a tanh."""
    dtype = torch.float16 if sizes.half else torch.float32
    table = RowTable(torch.empty(1, sizes.H, dtype=dtype, device="meta"))
    program = RowProgram((table, table))
    for step in (torch.relu, torch.tanh):  # only their sizes are read: a sum, and its tanh
        program = program.then(step, width=sizes.H)
    # Where torch has no half GEMMs into float32 the weight is widened; where it has, the gradient
    # is a second tile. There is room for both.
    costs = TileCosts.of(
        program, _FLOAT, class_bytes=_FLOAT * sizes.H * sizes.half, half_gradient=sizes.half,
        with_gradients=True,
    )  # fmt: skip
    least = costs.tile_bytes(USEFUL_SIDE, min(sizes.C, USEFUL_SIDE))
    plan = TilePlan.make(
        sites, sizes.C, costs, max(workspace_bytes, least),
        least_share=LEAST_SHARE_ON_DEVICE if on_gpu else 1.0,
    )  # fmt: skip
    # The plan has room for the gradients of all values of a row; they follow each other.
    return plan.tile_bytes - plan.tile_rows * _ROWS_TO_SPARE * _FLOAT * sizes.H


def _simple_tile_bytes(batch: Batch, sizes: LossSizes, workspace_bytes: int, on_gpu: bool) -> int:
    # Where torch has half GEMMs into float32, on a GPU only, they read half copies of the weights
    # and write half gradients; else a tile of each weight is cast. There is room for either.
    forms: list[dict[str, Any]] = [{"casts_weight": sizes.half}]
    if sizes.half and on_gpu:
        copy_bytes = sizes.layer_bytes * (sizes.am_dim + sizes.lm_dim + 2)
        forms.append({"copy_bytes": copy_bytes, "rounds_gradient": True})
    plans = (
        SimpleTilePlan.make(
            [batch.T] * batch.B,
            batch.S + 1,
            sizes.C,
            (sizes.am_dim, sizes.lm_dim),
            _FLOAT,
            workspace_bytes,
            useful_rows=USEFUL_ROWS_ON_DEVICE if on_gpu else USEFUL_ROWS,
            **form,
        )
        for form in forms
    )
    return max(plan.tile_bytes for plan in plans)
