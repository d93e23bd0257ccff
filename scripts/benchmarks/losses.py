"""Every transducer loss from a joiner: its dense form, other projects' and PANDA's, as one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import panda_icefall
from benchmarks import other_losses
from benchmarks.dense_losses import dense_loss, dense_pruned_loss
from benchmarks.inputs import LossInputs
from benchmarks.model import Joiner
from benchmarks.packages import is_installed, package_version
from benchmarks.steps import TrainingStep
from panda_icefall.lattice.validation import widened

BIG_BLANKS = [2, 4, 8]
DURATIONS = [0, 1, 2, 3, 4]


@dataclass(frozen=True)
class LossForm:
    """One loss of the field.

    Attributes:
      options: of `panda_icefall.transducer_loss`, or of its sibling where it is pruned.
      is_pruned: whether it is one over the band.
      others: names of the other projects' functions that compute it.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    is_pruned: bool = False
    others: tuple[str, ...] = ()

    @property
    def blanks(self) -> int:
        """Big blanks."""
        return len(self.options.get("big_blank_durations", ()))

    @property
    def durations(self) -> int:
        """Classes of durations."""
        return len(self.options.get("durations", ()))


_MULTI_BLANK = {"big_blank_durations": BIG_BLANKS, "sigma": 0.05}
_TDT = {"durations": DURATIONS, "sigma": 0.05}

LOSSES: dict[str, LossForm] = {
    "regular": LossForm(others=("torchaudio", "k2", "warprnnt_numba")),
    "modified": LossForm({"rnnt_type": "modified"}, others=("k2",)),
    "one-symbol-per-frame": LossForm({"one_sym_per_frame": True}),
    "constrained": LossForm({"rnnt_type": "constrained"}, others=("k2",)),
    "HAT": LossForm({"use_hat_loss": True}),
    "FastEmit": LossForm({"fastemit_lambda": 0.01}),
    "multi-blank": LossForm(_MULTI_BLANK),
    "TDT": LossForm(_TDT),
    "regular, pruned": LossForm(is_pruned=True),
    "modified, pruned": LossForm({"rnnt_type": "modified"}, is_pruned=True),
    "constrained, pruned": LossForm({"rnnt_type": "constrained"}, is_pruned=True),
    "HAT, pruned": LossForm({"use_hat_loss": True}, is_pruned=True),
    "multi-blank, pruned": LossForm(_MULTI_BLANK, is_pruned=True),
    "TDT, pruned": LossForm(_TDT, is_pruned=True),
}

# The label of each method, in the order of the tables; the first is what others are compared with.
LABELS = {
    "dense": "dense",
    "torchaudio": f"torchaudio {package_version('torchaudio')}",
    "k2": f"k2 {package_version('k2')}",
    "warprnnt_numba": f"warprnnt_numba {package_version('warprnnt_numba')}",
    "panda": "PANDA",
    "panda-all-sites": "PANDA, tolerance 0",
}


def arms_of(loss: str) -> list[str]:
    """Names of the methods that compute a loss and are installed."""
    others = [name for name in LOSSES[loss].others if is_installed(name)]
    return ["dense", *others, "panda", "panda-all-sites"]


@dataclass
class LossStep(TrainingStep):
    """Forward and backward of the projections, the joiner and one loss, with one method.

    Attributes:
      arm: name of the method.
      part: name of the loss.
      inputs: the batch.
      model: the projections and the joiner.
      symbols, blank: in the order of the loss's classes. With big blanks or durations that is the
        symbols, the big blanks, the blank, the durations; else the blank is 0.
      workspace_mib: of PANDA; None: its default.
      precision, scaled: see `TrainingStep`.
      panda_options: further ones of `panda_icefall.transducer_loss` and its sibling.
    """

    arm: str
    part: str
    inputs: LossInputs
    model: Joiner
    symbols: Tensor
    blank: int
    workspace_mib: float | None = None
    precision: str = "fp32"
    scaled: Callable[[Tensor], Tensor] | None = None
    panda_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        arm: str,
        part: str,
        inputs: LossInputs,
        workspace_mib: float | None = None,
        precision: str = "fp32",
    ) -> LossStep:
        """With a joiner of its own, which has a class more for each big blank and duration."""
        form, shape = LOSSES[part], inputs.shape
        torch.manual_seed(0)
        model = Joiner(shape.D, shape.H, shape.C)
        if inputs.parameters is not None:
            wanted = {name: inputs.parameters[f"joiner.{name}"] for name in model.state_dict()}
            model.load_state_dict(wanted)
        symbols, blank = inputs.symbols, 0
        if form.blanks or form.durations:
            _add_classes(model, form)
            symbols, blank = symbols - 1, shape.C - 1 + form.blanks
        model.to(device=inputs.encoder_out.device, dtype=inputs.encoder_out.dtype)
        return cls(arm, part, inputs, model, symbols, blank, workspace_mib, precision)

    def compute(self) -> Tensor:
        self.begin()
        return self.forward_and_backward(self._loss)

    def check(self) -> None:
        if self.arm.startswith("panda"):
            self.check_counts(LABELS[self.arm], losses_routed=1, materialised={})

    def _loss(self) -> Tensor:
        am = self.model.encoder_proj(self.inputs.encoder_out)
        lm = self.model.decoder_proj(self.inputs.decoder_out)
        return self._method()(am, lm)

    def _method(self) -> Callable[[Tensor, Tensor], Tensor]:
        is_pruned = LOSSES[self.part].is_pruned
        if self.arm.startswith("panda"):
            return self._panda_pruned if is_pruned else self._panda
        if self.arm == "dense":
            return self._dense_pruned if is_pruned else self._dense
        return self._other

    def _panda(self, am: Tensor, lm: Tensor) -> Tensor:
        return panda_icefall.transducer_loss(
            self.model, am.unsqueeze(2), lm.unsqueeze(1), self.symbols, self._frames(),
            self._states(), self.blank, "sum", **self._options(), **self._panda_options(),
        )  # fmt: skip

    def _panda_pruned(self, am: Tensor, lm: Tensor) -> Tensor:
        return panda_icefall.pruned_transducer_loss(
            self.model, am, lm, self._padded_symbols(), self.inputs.ranges, self.blank,
            self.inputs.boundary, reduction="sum", **self._options(), **self._panda_options(),
        )  # fmt: skip

    def _dense(self, am: Tensor, lm: Tensor) -> Tensor:
        logits = widened(self.model(am.unsqueeze(2), lm.unsqueeze(1)))  # [B, T, S+1, C]
        return dense_loss(
            logits, self.symbols, self._frames(), self._states(), self.blank, **self._options()
        )

    def _dense_pruned(self, am: Tensor, lm: Tensor) -> Tensor:
        am_pruned, lm_pruned = panda_icefall.losses.do_rnnt_pruning(am, lm, self.inputs.ranges)
        logits = widened(self.model(am_pruned, lm_pruned))  # [B, T, s_range, C]
        return dense_pruned_loss(
            logits, self._padded_symbols(), self.inputs.ranges, self.inputs.boundary, self.blank,
            **self._options(),
        )  # fmt: skip

    def _other(self, am: Tensor, lm: Tensor) -> Tensor:
        logits = widened(self.model(am.unsqueeze(2), lm.unsqueeze(1)))
        return other_losses.FUNCTIONS[self.arm](logits, self.inputs, **self._options())

    def _options(self) -> dict[str, Any]:
        return dict(LOSSES[self.part].options)

    def _panda_options(self) -> dict[str, Any]:
        tolerance = 0.0 if self.arm == "panda-all-sites" else None
        return {
            "workspace_mib": self.workspace_mib,
            "adjoint_tolerance": tolerance,
            **self.panda_options,
        }

    def _states(self) -> Tensor:
        return self.inputs.boundary[:, 2]

    def _frames(self) -> Tensor:
        return self.inputs.boundary[:, 3]

    def _padded_symbols(self) -> Tensor:
        is_padding = torch.arange(self.symbols.shape[1]).to(self.symbols) >= self._states()[:, None]
        return self.symbols.masked_fill(is_padding, self.blank)


@torch.no_grad()
def _add_classes(model: Joiner, form: LossForm) -> None:
    """Symbols, then big blanks, the blank and durations; what is new is drawn."""
    old = model.output_linear
    H, C = old.in_features, old.out_features
    new = torch.nn.Linear(H, C + form.blanks + form.durations)
    model.output_linear = new
    blank = C - 1 + form.blanks
    for name in ("weight", "bias"):
        values, given = getattr(new, name), getattr(old, name)
        values[: C - 1] = given[1:]
        values[blank] = given[0]
