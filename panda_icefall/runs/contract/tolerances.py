"""How far routed training may be from dense training: the configured bounds, and rounding's."""

import dataclasses
import math
from dataclasses import dataclass

import torch

__all__ = ["Leeway", "Tolerances", "parse_tolerances", "tolerances_for"]

# Routed gradients and parameters may be this many times as far from dense ones as those of a dense
# pass or run that is the same but for rounding: one draw of a distance that varies by a few times
# from draw to draw.
_TWIN_FACTOR = 4.0
_TELLING = 0.1  # a bound above this says nothing


@dataclass(frozen=True)
class Tolerances:
    """Bounds of the contract check.

    Attributes:
      loss_rel: Of the loss, and of each pruned loss in it, relative to the dense one.
      gradient_rel_l2: Of one parameter group's gradient, relative to the dense gradient's norm;
        what rounding alone is seen to do may be more, as for ``parameter_rel_l2``.
      gradient_cosine: The least cosine between both gradients of a group.
      parameter_rel_l2: Of one group's parameters after all updates, relative to their norm; what
        rounding alone is seen to do may be more (see :mod:`panda_icefall.runs.contract.check`).
      negligible_gradient: Groups whose dense gradient norm is below this share of the norm over
        all groups are rounding noise; their difference is compared with that same share.
      log_prob_rel_l2: Of the selected log-probs of one pruned loss, over its sites inside the
        boundary, relative to the norm of the dense ones.
      log_z_rel_l2: The same of the normalisers.
      log_prob_elementwise: Of one log-prob or normaliser at one site: its difference over one plus
        its dense absolute value. A norm over many sites would hide a single wrong one.
    """

    loss_rel: float
    gradient_rel_l2: float
    gradient_cosine: float
    parameter_rel_l2: float
    negligible_gradient: float
    log_prob_rel_l2: float
    log_z_rel_l2: float
    log_prob_elementwise: float


# fp32: both arms differ by the order of fp32 sums only, some 1e-7 in one number; a digit is left
# for that, and two for gradients over a float32 recursion, which is one more such sum, over
# hundreds of frames. A single log-prob has the error of its largest logit, whose terms may be many
# times its own size: two digits too.
_SINGLE = Tolerances(
    loss_rel=1e-6,
    gradient_rel_l2=1e-5,
    gradient_cosine=0.999999,
    parameter_rel_l2=1e-5,
    negligible_gradient=1e-6,
    log_prob_rel_l2=1e-6,
    log_z_rel_l2=1e-6,
    log_prob_elementwise=1e-5,
)
_SINGLE_EXACT = dataclasses.replace(_SINGLE, gradient_rel_l2=1e-6, parameter_rel_l2=1e-6)


def tolerances_for(dtype: torch.dtype, *, is_recursion_exact: bool = False) -> Tolerances:
    """The bounds for training in ``dtype``.

    Under half-precision autocast the dense arm itself rounds its activations to ``dtype`` in
    every layer, at other places than the routed arm does. Its own error is then a few eps of
    ``dtype``: the loss gets 2 eps, and gradients, whose sums cancel, get 16 eps. At one site only
    the rounding of the logits is between both arms, half an eps of each logit; a log-prob is a
    difference of two such numbers and may be smaller than them: 4 eps. A single log-prob near 0
    beside logits of up to 64 may be off by half an eps of those: 32 eps.

    Args:
      dtype: Of the recipe's autocast, or of its parameters.
      is_recursion_exact: Both arms run the recursion in float64.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return _SINGLE_EXACT if is_recursion_exact else _SINGLE
    eps = torch.finfo(dtype).eps
    gradient = 16 * eps
    return Tolerances(
        loss_rel=2 * eps,
        gradient_rel_l2=gradient,
        # Two vectors at relative distance d have a cosine of at least 1 - d^2 / 2 for small d.
        gradient_cosine=1 - gradient**2 / 2,
        parameter_rel_l2=gradient,
        negligible_gradient=eps,
        log_prob_rel_l2=4 * eps,
        log_z_rel_l2=4 * eps,
        log_prob_elementwise=32 * eps,
    )


def parse_tolerances(text: str) -> dict[str, float]:
    """Single bounds from the words ``NAME=VALUE,NAME=VALUE``.

    Args:
      text: Names of the fields of :class:`Tolerances`; values above 0, a cosine at most 1.

    Returns:
      The bounds by name, for :func:`dataclasses.replace`.

    Raises:
      ValueError: A part that is no ``NAME=VALUE``, an unknown or repeated name, a value that is
        no number or out of range.
    """
    known = [field.name for field in dataclasses.fields(Tolerances)]
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if not equals or not name or not number:
            raise ValueError(f"got {part!r}, expected NAME=VALUE,NAME=VALUE")
        if name not in known:
            raise ValueError(f"got the name {name!r}, expected one of {', '.join(known)}")
        if name in bounds:
            raise ValueError(f"got {name} twice, expected it once")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        most = 1.0 if name == "gradient_cosine" else math.inf
        if not (0 < value <= most and math.isfinite(value)):
            limit = "" if most == math.inf else f", at most {most:g}"
            raise ValueError(f"got {name}={number}, expected a number above 0{limit}")
        bounds[name] = value
    return bounds


@dataclass(frozen=True)
class Leeway:
    """What a distance from the dense run is held against.

    Attributes:
      configured: The configured bound.
      twin: The dense twin's distance; None where there is none (yet).
      twin_name: What the twin is, in words.
    """

    configured: float
    twin: float | None
    twin_name: str = "dense twin"

    @property
    def bound(self) -> float:
        """The larger of the configured bound and a few times the twin's distance."""
        # A twin that itself went wrong excuses nothing.
        if self.twin is None or not math.isfinite(self.twin):
            return self.configured
        return max(self.configured, _TWIN_FACTOR * self.twin)

    def holds(self, distance: float) -> bool | None:
        """Whether ``distance`` is within the bound; None where the bound says nothing."""
        if distance <= self.configured:
            return True
        if self.twin is None and math.isfinite(distance):
            return None
        if not distance <= self.bound:
            return False
        return True if self.bound <= _TELLING else None

    def __str__(self) -> str:
        if self.twin is None:
            return f"configured {self.configured:g}; no {self.twin_name} yet"
        if self.bound == self.configured:
            return f"allowed {self.configured:g} as configured; {self.twin_name} at {self.twin:.1e}"
        return (
            f"allowed {self.bound:.1e} = {_TWIN_FACTOR:g} x {self.twin:.1e} ({self.twin_name}), "
            f"configured {self.configured:g}"
        )
