"""The pruned lattice: from two log-probs per retained site to the loss.

Over the band itself, or, where k2's recursion runs, over the full lattice.
"""

from __future__ import annotations

from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice import banded_recursion, is_k2_chosen
from panda_icefall.lattice.validation import check_site_shape
from panda_icefall.losses.lattices.full import DEFAULT, NEG_INF, close_symbol_arcs, loss_of_arcs
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.sites import RetainedSites
from panda_icefall.losses.spec import LatticeOptions, check_options

__all__ = ["loss_of_retained_sites", "pruned_px_py", "pruned_score"]


@opaque
def pruned_px_py(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None,
    rnnt_type: str,
) -> tuple[Tensor, Tensor]:
    """The arcs of the full lattice from the log-probs of the retained sites.

    Equal to k2's ``get_rnnt_logprobs_pruned`` on logits whose selected log-probs are these.

    Args:
      target_logp: ``[B, T, s_range]`` log-prob of the next symbol at each site, nats; not used
        at ``s == S``, where no symbol is left.
      blank_logp: ``[B, T, s_range]`` log-prob of the termination symbol, nats.
      ranges: int64 ``[B, T, s_range]``, consecutive states in ``[0, S]``.
      S: symbols in the padded batch.
      boundary, rnnt_type: as in ``LatticeOptions``.

    Returns:
      ``(px, py)``: ``[B, S, T+1]`` (regular) or ``[B, S, T]``, and ``[B, S+1, T]``; -inf at states
      that are not retained, and at the symbol arcs of frame ``t_end`` in the regular lattice.
      Differentiable in both log-probs; the finite values of sites outside the boundary have no
      influence on the score.

    Raises:
      ValueError: if a shape does not fit or ``rnnt_type`` is unknown.
    """
    check_options(rnnt_type, "none")
    for name, logp in (("target_logp", target_logp), ("blank_logp", blank_logp)):
        check_site_shape(name, logp, ranges)
    options, T = LatticeOptions(boundary, rnnt_type), ranges.shape[1]
    px = _spread(target_logp, ranges, S, T + options.is_regular)[:, :S]
    py = _spread(blank_logp, ranges, S, T)
    return close_symbol_arcs(px, py, options), py


@opaque
def pruned_score(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None,
    rnnt_type: str,
    delay_penalty: float,
    reduction: str | None,
    tiles: LossOptions = DEFAULT,
) -> Tensor:
    """The transducer loss of the retained sites.

    Equal to ``score`` of ``pruned_px_py``. Where ``is_k2_chosen`` it is just that. Else it is
    ``banded_recursion``, without the arcs of the full lattice and exact to the rounding of the
    result.

    Args:
      target_logp, blank_logp, ranges, S: as in ``pruned_px_py``.
      boundary, rnnt_type, delay_penalty, reduction: as in ``LatticeOptions``.
      tiles: which recursion runs, in which engine.

    Returns:
      The loss in nats, ``[B]`` or a scalar.

    Raises:
      ValueError: if an option is unknown or a shape does not fit.
      TypeError: if a dtype does not fit.
    """
    check_options(rnnt_type, reduction)
    options = LatticeOptions(boundary, rnnt_type, delay_penalty, reduction)
    return _loss(target_logp, blank_logp, ranges, S, options, tiles, is_checked=False)


def loss_of_retained_sites(
    target_logp: Tensor, blank_logp: Tensor, sites: RetainedSites, tiles: LossOptions = DEFAULT
) -> Tensor:
    """``pruned_score`` of the log-probs ``[N]`` of the sites of a checked lattice."""
    spec, S = sites.spec, sites.spec.symbols.shape[1]
    target_logp, blank_logp = (x.view(spec.band.shape) for x in (target_logp, blank_logp))
    return _loss(target_logp, blank_logp, spec.band, S, spec, tiles, is_checked=True)


def _loss(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    options: LatticeOptions,
    tiles: LossOptions,
    is_checked: bool,
) -> Tensor:
    target_logp = options.emitted(target_logp)
    if is_k2_chosen(tiles.recursion, tiles.engine, target_logp.device):
        px, py = pruned_px_py(
            target_logp, blank_logp, ranges, S, options.boundary, options.rnnt_type
        )
        return loss_of_arcs(px, py, options, tiles=tiles, is_checked=is_checked)
    if options.delay_penalty > 0.0:
        T = ranges.shape[1]
        earliness = options.earliness(target_logp, T, T).unsqueeze(2)
        target_logp = target_logp + earliness * options.delay_penalty
    scores = banded_recursion(
        target_logp, blank_logp, ranges, S, options.boundary, options.rnnt_type, tiles.engine,
        is_checked=is_checked,
    )  # fmt: skip
    return options.loss_of(scores)


def _spread(logp: Tensor, ranges: Tensor, S: int, frames: int) -> Tensor:
    """Put ``[B, T, s_range]`` at its states: ``[B, S+1, frames]``, -inf elsewhere."""
    full = logp.new_full((logp.shape[0], frames, S + 1), NEG_INF)
    return full.scatter_(2, ranges, logp).transpose(1, 2)
