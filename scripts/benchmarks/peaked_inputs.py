"""A batch of a model that is sure, at any size: what training makes of a transducer.

Each utterance has an alignment: a frame for each of its symbols, at random. Every class has a code
of random signs. The decoder's output of a state is the code of the next symbol; the encoder's of a
frame is the code of the symbol that it emits, or of no symbol. Where the two agree, and only there,
tanh of their sum has the full size in the symbol's direction, and the symbol's logit passes the
blank's. So the paths that matter are the alignment and those that emit a symbol or two at other
frames. On a full lattice of the stored trained inputs' lengths PANDA computes backward for 34% of
the sites of such a batch, and for 26% of those of the trained model (`stored_inputs.py`): what is
saved there is not overstated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import BAND_CLASSES, LossInputs, band_of
from benchmarks.shapes import LossShape

# Logits of an agreeing code, in log C: the more classes, the more to outweigh.
SURENESS = 3.0
# The blank's logit by that of an agreeing code, between tanh(2) and the tanh(2) / 2 of two codes.
BLANK_LEVEL = 0.72


def peaked_inputs(shape: LossShape, device: torch.device, seed: int = 0) -> LossInputs:
    """The lengths and symbols of `LossInputs.random`, an alignment, and parameters that know it.

    Raises:
      ValueError: encoder and joiner differ in width.
    """
    if shape.D != shape.H:
        raise ValueError(f"--D: got {shape.D}, expected {shape.H}, as --H; peaked inputs need it")
    inputs = LossInputs.random(shape, torch.device("cpu"), seed)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (shape.C + 1, shape.D), generator=generator) * 2.0 - 1
    no_symbol = shape.C
    emitted = _alignments(inputs.boundary, inputs.symbols, shape.T, no_symbol, generator)
    next_symbol = F.pad(inputs.symbols, (0, 1), value=no_symbol)
    inputs.encoder_out = codes[emitted]
    inputs.decoder_out = codes[next_symbol]
    inputs.ranges = _band(inputs, emitted % shape.C)
    sure = SURENESS * math.log(shape.C)
    weight = codes[: shape.C] * (sure / shape.H)
    weight[0] = 0
    bias = torch.zeros(shape.C)
    bias[0] = BLANK_LEVEL * sure
    inputs.parameters = {
        "joiner.output_linear.weight": weight,
        "joiner.output_linear.bias": bias,
    }
    for layer in ("joiner.encoder_proj", "joiner.decoder_proj"):
        inputs.parameters[f"{layer}.weight"] = torch.eye(shape.H)
        inputs.parameters[f"{layer}.bias"] = torch.zeros(shape.H)
    return inputs.to(device)


def _alignments(
    boundary: Tensor, symbols: Tensor, T: int, no_symbol: int, generator: torch.Generator
) -> Tensor:
    """The class that each frame emits, int64 ``[B, T]``; at most one symbol a frame."""
    emitted = torch.full((len(symbols), T), no_symbol)
    for b, (_, _, states, frames) in enumerate(boundary.tolist()):
        at = torch.randperm(frames, generator=generator)[:states].sort().values
        emitted[b, at] = symbols[b, : len(at)]
    return emitted


def _band(inputs: LossInputs, emitted: Tensor) -> Tensor:
    """The band that a simple loss which knows the alignment gives."""
    B, S1, _ = inputs.decoder_out.shape
    am = 8.0 * F.one_hot(emitted % BAND_CLASSES, BAND_CLASSES).float()
    lm = torch.zeros(B, S1, BAND_CLASSES)
    return band_of(lm, am, inputs.symbols, inputs.boundary, inputs.shape.s_range)
