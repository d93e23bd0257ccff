"""How far routed training may be from dense training before the contract is violated."""

from dataclasses import dataclass

import torch

__all__ = ["Tolerances", "tolerances_for"]


@dataclass(frozen=True)
class Tolerances:
    """Bounds of the contract check.

    Attributes:
      loss_rel: Of the loss, relative to the dense loss.
      gradient_rel_l2: Of one parameter group's gradient, relative to the dense gradient's norm.
      gradient_cosine: The least cosine between both gradients of a group.
      parameter_rel_l2: Of one group's parameters after all updates, relative to their norm; what
        rounding alone is seen to do may be more (see :mod:`panda_icefall.runs.contract.check`).
      negligible_gradient: Groups whose dense gradient norm is below this share of the norm over
        all groups are rounding noise; their difference is compared with that same share.
    """

    loss_rel: float
    gradient_rel_l2: float
    gradient_cosine: float
    parameter_rel_l2: float
    negligible_gradient: float


# fp32: both arms differ by the order of fp32 sums only, some 1e-7; two digits are left for long
# sums and deep models.
_SINGLE = Tolerances(1e-5, 1e-5, 0.99999, 1e-5, negligible_gradient=1e-6)


def tolerances_for(dtype: torch.dtype) -> Tolerances:
    """The bounds for training in ``dtype``.

    Under half-precision autocast the dense arm itself rounds its activations to ``dtype`` in
    every layer, at other places than the routed arm does. Its own error is then a few eps of
    ``dtype``: the loss gets 2 eps, and gradients, whose sums cancel, get 16 eps.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return _SINGLE
    eps = torch.finfo(dtype).eps
    gradient = 16 * eps
    return Tolerances(
        loss_rel=2 * eps,
        gradient_rel_l2=gradient,
        # Two vectors at relative distance d have a cosine of at least 1 - d^2 / 2 for small d.
        gradient_cosine=1 - gradient**2 / 2,
        parameter_rel_l2=gradient,
        negligible_gradient=eps,
    )
