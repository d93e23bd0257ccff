"""A small ragged batch for the tiled simple loss, its formula, and the gates that it must pass."""

import torch
import torch.nn.functional as F
from gates import rms

from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.simple_tiled import (
    Logits,
    Projection,
    plan,
    tiled_rnnt_loss_smoothed,
)
from panda_icefall.losses.simple_tiled import loss as tiled_loss
from panda_icefall.losses.smoothed import Scales, rnnt_loss_smoothed, smoothed_arcs
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import TileOptions

B, T, S, C, AM_WIDTH, LM_WIDTH = 5, 11, 4, 37, 7, 6
BLANK = 3
TYPES = ["regular", "modified", "constrained"]
SCALES = [(0.1, 0.1), (0.25, 0.0), (0.0, 0.3), (0.0, 0.0)]
NAMES = ["loss", "px_grad", "py_grad", "d am_input", "d am_weight", "d am_bias"]
NAMES += ["d lm_input", "d lm_weight", "d lm_bias"]


def tensors(kind="flat", dtype=torch.float64, classes=C, seed=1):
    """`am_input, am_weight, am_bias, lm_input, lm_weight, lm_bias` of one kind of logits."""
    g = torch.Generator().manual_seed(seed)
    shapes = (B, T, AM_WIDTH), (classes, AM_WIDTH), (classes,)
    shapes += (B, S + 1, LM_WIDTH), (classes, LM_WIDTH), (classes,)
    data = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    if kind == "peaked":
        data[0], data[3] = data[0] * 6, data[3] * 6
    if kind == "shifted":
        data[2], data[5] = data[2] + 100, data[5] - 300
    if kind == "underflowing":  # am and lm insist on different classes
        data[2][5], data[5][9] = 60, 60
    if kind == "underflowing further":
        data[2][5], data[5][9] = 500, 500
    if kind == "masked classes":
        data[2][:3] = -torch.inf
        data[2][20] = -torch.inf
    return [t.to(dtype) for t in data]


def symbols_and_boundary(kind="flat", classes=C):
    """A ragged batch: an empty utterance, one that begins late, a symbol twice, padding blanks."""
    g = torch.Generator().manual_seed(2)
    symbols = torch.randint(classes, (B, S), generator=g)
    if kind == "masked classes":
        symbols = symbols % 10 + 8
        return symbols, torch.tensor([[0, 0, S, T]] * B)
    symbols[0, 1] = symbols[0, 0]
    symbols[4, 2] = classes - 1
    boundary = torch.tensor([[0, 0, S, T], [0, 0, 3, 9], [0, 0, 0, 5], [0, 0, 2, 7], [1, 1, S, 8]])
    symbols.masked_fill_(torch.arange(S) >= boundary[:, 2:3], BLANK)
    return symbols, boundary


def tiled(
    lm, am, symbols, termination_symbol, lm_only_scale=0.1, am_only_scale=0.1, boundary=None,
    rnnt_type="regular", delay_penalty=0.0, reduction="mean", return_grad=False,
    *, workspace_bytes=None, counters=None, engine="auto", recursion="auto",
):  # fmt: skip
    """The tiled loss with k2's arguments."""
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    return tiled_rnnt_loss_smoothed(
        lm, am, spec, Scales(lm_only_scale, am_only_scale),
        LossOptions(workspace_bytes, engine=engine, recursion=recursion),
        return_grad=return_grad, counters=counters,
    )  # fmt: skip


def of_projections(*data, head_dtype=None, **arguments):
    """The tiled loss of both projections' six tensors."""
    am, lm = (Projection.of(data[i : i + 3], head_dtype) for i in (0, 3))
    return tiled(lm, am, **arguments)


def of_tensors(*data, **arguments):
    """The tiled loss of am and lm that exist."""
    return tiled(F.linear(*data[3:]), F.linear(*data[:3]), **arguments)


def of_am_projection(*data, **arguments):
    """The tiled loss of a projection for am and of an lm that exists."""
    return tiled(F.linear(*data[3:]), Projection.of(data[:3]), **arguments)


def of_lm_projection(*data, **arguments):
    """The tiled loss of an am that exists and of a projection for lm."""
    return tiled(Projection.of(data[3:]), F.linear(*data[:3]), **arguments)


def materialised(*data, **arguments):
    """The same loss on the projections as tensors."""
    am, lm = F.linear(*data[:3]), F.linear(*data[3:])
    return rnnt_loss_smoothed(lm, am, **arguments)


def arcs_by_formula(
    *data, symbols, termination_symbol, lm_only_scale, am_only_scale, tiny=None, **_
):
    """Arcs `[B, S, T]`, `[B, S+1, T]` as k2 writes them: gradients flow through the maxima too.

    `tiny` is that of the dtype, or of the one that float64 data stand for.
    """
    am, lm = F.linear(*data[:3]), F.linear(*data[3:])
    tiny = torch.finfo(am.dtype).tiny if tiny is None else tiny
    am_max, lm_max = am.max(dim=2, keepdim=True).values, lm.max(dim=2, keepdim=True).values
    am_probs, lm_probs = (am - am_max).exp(), (lm - lm_max).exp()
    log_z = (torch.matmul(lm_probs, am_probs.transpose(1, 2)) + tiny).log()
    log_z = log_z + lm_max + am_max.transpose(1, 2)  # [B, S+1, T]
    lm_mass = lm_probs.sum(dim=2, keepdim=True)
    unigram = (lm_probs / lm_mass).mean(dim=(0, 1)) + tiny
    am_log_z = torch.matmul(am_probs, unigram).log() + am_max.squeeze(2)  # [B, T]
    joint = am[:, None] + lm[:, :, None] - log_z[..., None]  # [B, S+1, T, C]
    lm_only = (lm - (lm_mass.log() + lm_max))[:, :, None]
    am_only = (am + unigram.log() - am_log_z[..., None])[:, None]
    log_probs = joint * (1 - lm_only_scale - am_only_scale)
    log_probs = log_probs + lm_only * lm_only_scale + am_only * am_only_scale
    ids = symbols[:, :, None, None].expand(-1, -1, am.shape[1], 1)
    return log_probs[:, :-1].gather(3, ids).squeeze(3), log_probs[..., termination_symbol]


def arcs_of_projections(*data, **arguments):
    am, lm = (Projection.of(data[i : i + 3]) for i in (0, 3))
    return _arcs(tiled_loss.tiled_arcs, lm, am, **arguments)


def arcs_of_tensors(*data, **arguments):
    am, lm = (Logits.of((F.linear(*data[i : i + 3]),)) for i in (0, 3))
    return _arcs(tiled_loss.tiled_arcs, lm, am, **arguments)


def dense_arcs(*data, workspace_bytes, **arguments):
    return _arcs(smoothed_arcs, F.linear(*data[3:]), F.linear(*data[:3]), **arguments)


def _arcs(
    arcs, lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, workspace_bytes=None,
    **_,
):  # fmt: skip
    spec = LatticeSpec(symbols=symbols, termination_symbol=termination_symbol)
    options = () if arcs is smoothed_arcs else (TileOptions(workspace_bytes),)
    return arcs(lm, am, spec, Scales(lm_only_scale, am_only_scale), *options)


def run_arcs(op, data, seed=0, **arguments):
    """Arcs and the gradients of all six tensors under random adjoints."""
    g = torch.Generator().manual_seed(seed)
    leaves = [t.clone().requires_grad_() for t in data]
    arcs = op(*leaves, **arguments)
    adjoints = [torch.randn(a.shape, generator=g, dtype=torch.float64).to(a.dtype) for a in arcs]
    return [*(a.detach() for a in arcs), *torch.autograd.grad(arcs, leaves, adjoints)]


def run(op, data, **arguments):
    """Loss, occupations and the gradients of all six tensors, by `NAMES`."""
    leaves = [t.clone().requires_grad_() for t in data]
    losses, occupations = op(*leaves, **arguments, reduction="none", return_grad=True)
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    grads = torch.autograd.grad((losses * weights).sum(), leaves)
    return [losses.detach(), *occupations, *grads]


def arguments_of(scales=(0.1, 0.1), rnnt_type="regular", delay_penalty=0.0, kind="flat"):
    symbols, boundary = symbols_and_boundary(kind)
    return {
        "symbols": symbols,
        "termination_symbol": BLANK,
        "lm_only_scale": scales[0],
        "am_only_scale": scales[1],
        "boundary": boundary,
        "rnnt_type": rnnt_type,
        "delay_penalty": delay_penalty,
    }


def workspace_of(utterances, tile_classes, patch, casts_weight=False, itemsize=8, frames=T):
    """A workspace that gives these tiles of the longest utterances, or of some of their frames."""
    states = S + 1
    patch.setattr(plan, "USEFUL_CLASSES", min(tile_classes, C))
    patch.setattr(tiled_loss, "USEFUL_ROWS", utterances * (T + states))
    widths = AM_WIDTH + LM_WIDTH
    numbers = frames * AM_WIDTH + states * (LM_WIDTH + widths) + tile_classes * (frames + states)
    weight = tile_classes * widths if casts_weight else 0
    return 2 * itemsize * (utterances * numbers + weight)


def structure_gate(
    scales=(0.1, 0.1), rnnt_type="regular", kind="flat", loss=of_projections, **arguments
):
    """float64, relative RMS error at most 1e-12 on loss, occupations and gradients."""
    data, lattice = tensors(kind), arguments_of(scales, rnnt_type, 0.25, kind)
    ours = run(loss, data, **lattice, **arguments)
    truth = run(materialised, data, **lattice)
    for name, x, ref in zip(NAMES, ours, truth):
        assert rms(x - ref) <= 1e-12 * rms(ref), name
