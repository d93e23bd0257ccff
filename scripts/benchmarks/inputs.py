"""What a transducer loss is given: frames, predictions, symbols and the band, random or saved."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import k2_of_2025
from benchmarks.shapes import LossShape

# Classes of the loss that random bands are taken from: enough to tell states apart.
BAND_CLASSES = 64
# The unpickler that makes no objects but tensors; torch 1.13's knows no floats.
IS_WEIGHTS_ONLY = int(torch.__version__.partition(".")[0]) >= 2


@dataclass
class LossInputs:
    """One batch.

    Attributes:
      shape: its sizes.
      encoder_out: ``[B, T, D]``, a leaf that takes a gradient.
      decoder_out: ``[B, S+1, D]``, a leaf that takes a gradient.
      symbols: int64 ``[B, S]``; blank is 0.
      boundary: int64 ``[B, 4]``.
      ranges: int64 ``[B, T, s_range]``, for the pruned loss by itself.
      parameters: state of the `TransducerLoss` that belongs to them, or None: a fresh one.
    """

    shape: LossShape
    encoder_out: Tensor
    decoder_out: Tensor
    symbols: Tensor
    boundary: Tensor
    ranges: Tensor
    parameters: dict[str, Tensor] | None = None

    @classmethod
    def random(cls, shape: LossShape, device: torch.device, seed: int = 0) -> LossInputs:
        """Normal frames and predictions, uniform symbols, the band of an unrelated random loss."""
        generator = torch.Generator().manual_seed(seed)
        B, T, S, D = shape.B, shape.T, shape.S, shape.D
        share = torch.linspace(shape.shortest, 1.0, B) if B > 1 else torch.ones(1)
        boundary = torch.zeros(B, 4, dtype=torch.int64)
        boundary[:, 2] = (share * S).round().long().clamp(min=1)
        boundary[:, 3] = (share * T).round().long().clamp(min=1)
        symbols = torch.randint(1, shape.C, (B, S), generator=generator)
        ranges = band_of(
            torch.randn(B, S + 1, BAND_CLASSES, generator=generator),
            torch.randn(B, T, BAND_CLASSES, generator=generator),
            symbols,
            boundary,
            shape.s_range,
        )
        return cls(
            shape,
            torch.randn(B, T, D, generator=generator),
            torch.randn(B, S + 1, D, generator=generator),
            symbols,
            boundary,
            ranges,
        ).to(device)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> LossInputs:
        """What `save` wrote."""
        saved = torch.load(path, map_location="cpu", weights_only=IS_WEIGHTS_ONLY)
        return cls(LossShape(**saved.pop("shape")), **saved).to(device)

    def save(self, path: Path) -> None:
        """Write tensors and sizes to one file."""
        plain = {name: value for name, value in vars(self).items() if name != "shape"}
        plain["encoder_out"] = self.encoder_out.detach()
        plain["decoder_out"] = self.decoder_out.detach()
        torch.save({"shape": vars(self.shape), **plain}, path)

    def repeated(self, times: int) -> LossInputs:
        """The batch so many times over, as one batch."""
        tensors = (self.encoder_out, self.decoder_out, self.symbols, self.boundary, self.ranges)
        batch = [t.detach().repeat(times, *[1] * (t.dim() - 1)) for t in tensors]
        shape = self.shape.with_batch(times * self.shape.B)
        return LossInputs(shape, *batch, self.parameters).to(self.encoder_out.device)

    def in_float64(self) -> LossInputs:
        """The same values in float64, for a step that others are judged by."""
        doubled = replace(
            self, encoder_out=self.encoder_out.double(), decoder_out=self.decoder_out.double()
        )
        return doubled.to(self.encoder_out.device)

    def to(self, device: torch.device) -> LossInputs:
        """The same on a device; frames and predictions become leaves that take a gradient."""
        parameters = self.parameters
        if parameters is not None:
            parameters = {name: value.to(device) for name, value in parameters.items()}
        return LossInputs(
            self.shape,
            self.encoder_out.detach().to(device).requires_grad_(),
            self.decoder_out.detach().to(device).requires_grad_(),
            self.symbols.to(device),
            self.boundary.to(device),
            self.ranges.to(device),
            parameters,
        )


def band_of(lm: Tensor, am: Tensor, symbols: Tensor, boundary: Tensor, s_range: int) -> Tensor:
    """``ranges`` ``[B, T, s_range]`` of a simple loss of ``BAND_CLASSES`` classes."""
    _, (px_grad, py_grad) = k2_of_2025.rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=symbols % BAND_CLASSES,
        termination_symbol=0,
        boundary=boundary,
        return_grad=True,
    )
    return k2_of_2025.get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)


@contextmanager
def saved(inputs: LossInputs) -> Iterator[Path]:
    """A file of these inputs for processes that are measured; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        inputs.save(path)
        yield path
