"""PANDA applied in a block that fails where a loss in it was not routed."""

from contextlib import contextmanager

import panda_icefall

NOTHING = {}


@contextmanager
def routed(losses=1, *, dense=0, simple_dense=0, materialised=NOTHING, **options):
    """PANDA applied in the block, in which so many pruned losses are routed and dense.

    Args:
      simple_dense: simple losses that are left to the host; any number may be in tiles.
      materialised: what is turned into tensors, and how often; None: not asked.
      options: those of `panda_icefall.patched`.
    """
    with panda_icefall.patched(**options):
        before = panda_icefall.status()
        yield
        found = panda_icefall.status() - before
    assert (found.losses_routed, found.losses_dense) == (losses, dense)
    assert found.simple_losses_dense == simple_dense
    assert materialised in (None, found.materialised)


@contextmanager
def deferred(model, losses=1, *, of_tensors=0, materialised=NOTHING, **options):
    """PANDA applied in the block, in which so many simple losses read the projections' inputs.

    Args:
      model: whose projections are recorded.
      of_tensors: simple losses in tiles of am and lm as tensors.
      materialised, options: as of `routed`.
    """
    with panda_icefall.patched(model, **options):
        before = panda_icefall.status()
        yield
        found = panda_icefall.status() - before
    assert found.simple_losses_dense == 0
    assert (found.simple_losses_deferred, found.simple_losses_of_tensors) == (losses, of_tensors)
    assert materialised in (None, found.materialised)
