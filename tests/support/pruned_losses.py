"""The selected pruned loss with k2's arguments, to compare it with other pruned losses."""

from panda_icefall.losses.heads import head_of
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import selected_transducer_loss
from panda_icefall.losses.sites import RetainedSites
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import RowLogits, RowProgram


def selected_pruned(
    rows, weight, bias, symbols, ranges, termination_symbol, boundary=None, rnnt_type="regular",
    delay_penalty=0.0, reduction="mean", use_hat_loss=False, *, observer=None, **options,
):  # fmt: skip
    """The loss of `F.linear(rows, weight, bias)`; `options` are those of the tiles."""
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    logits = RowLogits(RowProgram.of(rows), weight, bias)
    return selected_transducer_loss(
        logits, RetainedSites.of(spec, logits.classes), head_of(use_hat_loss),
        LossOptions(**options), observer=observer,
    )  # fmt: skip
