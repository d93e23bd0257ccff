"""Row kernels of the simple loss: what happens to a tile of logits beside its products.

Here in plain torch; ``triton_rows`` has the same functions, of one launch each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.source import Selected


def fold_(
    tile: Tensor,
    peak: Tensor,
    bias: Tensor | None = None,
    mass: Tensor | None = None,
    weights: Tensor | None = None,
    weighted: Tensor | None = None,
) -> Tensor:
    """Take a tile of classes into the running sums of its rows, in place.

    Args:
      tile: ``[n, length, c]``, float32 or float64, of any row stride; becomes
        ``exp(tile + bias - peak)`` with the raised peak.
      peak: ``[n, length]``, the largest logits so far, -inf before the first tile; raised. One that
        stays -inf is not subtracted, so that rows of only -inf give 0 and no NaN.
      bias: ``[c]``, of any float dtype; None where the tile has it already.
      mass: ``[n, length]``, the sums of ``exp(logit - peak)`` so far; rescaled and added to.
      weights, weighted: ``[c]`` and ``[n, length]``, the same sums with a weight for each class.

    Returns:
      ``[n, length]``, the factors of what was summed before: 0 where that was nothing.
    """
    if bias is not None:
        tile.add_(bias)
    factor = _raise_peak(peak, tile)
    _shifted_exp_(tile, peak)
    if mass is not None:
        mass.mul_(factor).add_(tile.sum(dim=2))
    if weights is not None:
        assert weighted is not None
        weighted.mul_(factor).add_(torch.matmul(tile, weights))
    return factor


def exp_below_(tile: Tensor, peak: Tensor, bias: Tensor | None = None) -> Tensor:
    """``exp(tile + bias - peak)`` in place, and the tile; arguments as in ``fold_``.

    In forward and backward alike: rounded in another way, the gradient of a softmax would no
    longer sum to 0.
    """
    if bias is not None:
        tile.add_(bias)
    return _shifted_exp_(tile, peak)


def gradient_(
    grad: Tensor,
    exp: Tensor,
    out: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    weights: Tensor | None = None,
    selected: Selected | None = None,
) -> Tensor:
    """``(grad + shift + scale * weights) * exp``, rounded once to the dtype of ``out``.

    Args:
      grad, exp: ``[n, length, c]``; ``grad`` is overwritten.
      out: of their shape, where the result is written; may be ``grad`` itself.
      shift, scale: ``[n, length]``.
      weights: ``[c]``, given together with ``scale``.
      selected: classes, of which those in the tile count and which may repeat, and what is added
        there.

    Returns:
      ``out``.
    """
    if scale is not None:
        assert weights is not None
        grad.addcmul_(scale.unsqueeze(2), weights)
    if shift is not None:
        grad.add_(shift.unsqueeze(2))
    if selected is None:
        return torch.mul(grad, exp, out=out)
    ids, low, values = selected
    n, length, c = grad.shape
    columns = ids.unsqueeze(2) - low
    inside = (columns >= 0) & (columns < c)
    utterance = torch.arange(n, device=grad.device).view(-1, 1, 1)
    row = torch.arange(length, device=grad.device)
    # Not scatter_add_, whose sums on CUDA come in any order.
    grad.mul_(exp).index_put_(
        (utterance, row, columns.masked_fill(~inside, 0)),
        values.masked_fill(~inside, 0.0),
        accumulate=True,
    )
    return out.copy_(grad)


def _raise_peak(peak: Tensor, tile: Tensor) -> Tensor:
    before = peak.clone()
    torch.maximum(peak, tile.amax(dim=2), out=peak)
    return before.sub_(_subtrahend(peak)).exp_()


def _shifted_exp_(tile: Tensor, peak: Tensor) -> Tensor:
    return tile.sub_(_subtrahend(peak).unsqueeze(2)).exp_()


def _subtrahend(peak: Tensor) -> Tensor:
    """0 for -inf, which minus itself is no number; NaN and +inf stay, so that they show."""
    return peak.masked_fill(peak == float("-inf"), 0.0)
