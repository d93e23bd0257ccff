"""Bugs of the recording: losses that fall back, and joiners that are computed as another one."""

from __future__ import annotations

import planted
import torch

from mutants.mutation import Mutation
from panda_icefall.normalizer import tile_loop
from panda_icefall.routing import heads, routed_loss, row_operations


def fall_back(bug):
    """A bug of ``planted``, without its list."""
    return lambda patch: planted.BUGS[bug](patch, [])


def temperature_dropped(patch):
    arithmetic = heads._arithmetic

    def wrong(sign, a, b, classes):
        return arithmetic(sign, a, 1.0 if sign == "/" else b, classes)

    patch.setattr(heads, "_arithmetic", wrong)


def shift_of_a_scale_dropped(patch):
    """A factor after the last layer reaches the weight, and not the bias."""

    def wrong(head, function):
        return heads.replace(head, weight=function(head.weight))

    patch.setattr(heads, "_each", wrong)


def log_softmax_always_dropped(patch):
    linear_head = heads.linear_head
    patch.setattr(
        routed_loss, "linear_head", lambda node, *, is_shift_free: linear_head(
            node, is_shift_free=True
        )
    )  # fmt: skip


def dropout_drawn_again(patch):
    def dropped(x, kept, p):
        return torch.nn.functional.dropout(x, p, training=True)

    patch.setattr(row_operations, "_dropped", dropped)


def gradient_of_lm_cut(patch):
    """The replay reads lm as it was, without a gradient."""
    rows_backward = tile_loop._rows_backward

    def wrong(program, sites, rows, leaves, output, output_grad, wanted):
        kept = wanted.tables[:1] + [None] * (len(wanted.tables) - 1)
        cut = tile_loop.Gradients(kept, wanted.parameters, wanted.weight, wanted.bias)
        rows_backward(program, sites, rows, leaves, output, output_grad, cut)

    patch.setattr(tile_loop, "_rows_backward", wrong)


K2, FULL = "k2's pruned loss", "full lattice"
ROUTING = [
    Mutation("never routed", "routed_loss.why_not", fall_back("never_routed"), K2),
    Mutation("modified never routed", "routed_loss.compute",
             fall_back("modified_never_routed"), K2),
    Mutation("constrained never routed", "routed_loss.compute",
             fall_back("constrained_never_routed"), K2),
    Mutation("simple never deferred", "routed_simple_loss.why_not",
             fall_back("simple_never_deferred"), "k2's simple loss"),
    Mutation("simple never in tiles", "routed_simple_loss.takes",
             fall_back("simple_never_in_tiles"), "k2's simple loss"),
    Mutation("temperature dropped", "heads._arithmetic", temperature_dropped, K2),
    Mutation("a scale forgets the bias", "heads._each", shift_of_a_scale_dropped, K2),
    Mutation("log_softmax dropped where it counts", "heads.linear_head",
             log_softmax_always_dropped, FULL),
    Mutation("dropout drawn again", "row_operations._dropped", dropout_drawn_again, FULL),
    Mutation("gradient of lm cut", "tile_loop._rows_backward", gradient_of_lm_cut, FULL),
]  # fmt: skip
