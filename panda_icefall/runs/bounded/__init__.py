"""Bounded runs: a recipe trained dense and routed for a few batches, compared and reported."""
