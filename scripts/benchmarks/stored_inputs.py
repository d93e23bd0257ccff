"""The trained inputs that are shipped: small tensors that a batch of full size is made of.

A training takes half an hour and its tensors 30 MB. Stored are, of a narrow model trained at all C
classes: one batch's encoder and decoder outputs in float16, the projections, and of each layer to
classes the rows of the classes that the corpus has. The rows of the others, which training only
pushes down, are drawn from a normal distribution with the mean and the covariance that they have in
the trained model; its numbers are the same on every machine.

Widened to the joiner of a real recipe the model is the same one: every number of the narrow vectors
stands `width / narrow` times, and what reads them is divided by that. So logits, loss and adjoints
are those of the trained model, and matrix products have their real size. With another number of
classes there are more or fewer of those that no text has, drawn from the same distribution.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import LossInputs
from benchmarks.shapes import LossShape

STORED = Path(__file__).with_name("trained_inputs.npz")
SEED = 0
TO_CLASSES = ("simple_am_proj", "simple_lm_proj", "joiner.output_linear")
TO_JOINER = ("joiner.encoder_proj", "joiner.decoder_proj")


def store(inputs: LossInputs, used: Tensor, path: Path) -> None:
    """Write what `load` makes a batch of.

    Args:
      inputs: of a training, with parameters.
      used: int64, the classes that the corpus has, ascending.

    Raises:
      ValueError: the encoder and the joiner differ in width.
    """
    shape, parameters = inputs.shape, inputs.parameters
    assert parameters is not None
    if shape.D != shape.H:
        raise ValueError(
            f"--checkpoint: got --encoder-dim {shape.D} and --joiner-dim {shape.H}, expected equal "
            "ones; train with both alike"
        )
    arrays: dict[str, Any] = {
        "encoder_out": _half(inputs.encoder_out),
        "decoder_out": _half(inputs.decoder_out),
        "symbols": inputs.symbols.numpy().astype(np.int16),
        "boundary": inputs.boundary.numpy().astype(np.int16),
        "first_states": inputs.ranges[:, :, 0].numpy().astype(np.int16),
        "s_range": np.int16(inputs.ranges.shape[2]),
        "classes": np.int32(shape.C),
        "used": used.numpy().astype(np.int32),
    }
    for layer in TO_JOINER:
        for name in ("weight", "bias"):
            arrays[f"{layer}.{name}"] = _half(parameters[f"{layer}.{name}"])
    is_unused = torch.ones(shape.C, dtype=torch.bool)
    is_unused[used] = False
    for layer in TO_CLASSES:
        rows = torch.cat(
            (parameters[f"{layer}.weight"], parameters[f"{layer}.bias"].unsqueeze(1)), dim=1
        )
        arrays[f"{layer}.used"] = _half(rows[used])
        rest = rows[is_unused].double()
        mean = rest.mean(dim=0)
        arrays[f"{layer}.mean"] = mean.numpy().astype(np.float32)
        # Rows times this have the covariance of the rest.
        _, values, axes = torch.linalg.svd(rest - mean, full_matrices=False)
        spread = values.unsqueeze(1) * axes / max(1, len(rest)) ** 0.5
        arrays[f"{layer}.spread"] = spread.numpy().astype(np.float16)
    np.savez_compressed(path, **arrays)


def load(width: int, path: Path = STORED, classes: int | None = None) -> LossInputs:
    """The batch at a width of joiner, encoder and decoder outputs.

    Args:
      width: H and D, a multiple of the trained model's.
      classes: C; None: that of the trained model.

    Raises:
      ValueError: the width is none, or there are fewer classes than the texts have.
    """
    with np.load(path) as arrays:
        stored = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    narrow = stored["encoder_out"].shape[2]
    if width < 1 or width % narrow:
        raise ValueError(f"--H: got {width}, expected a multiple of {narrow}, the trained width")
    if classes is not None:
        _renumber(stored, classes)
    times = width // narrow
    random = np.random.RandomState(SEED)
    parameters: dict[str, Tensor] = {}
    for layer in TO_CLASSES:
        weight, bias = _rows_of_all(stored, layer, random).split((narrow, 1), dim=1)
        parameters[f"{layer}.weight"] = weight.repeat(1, times) / times
        parameters[f"{layer}.bias"] = bias.squeeze(1).contiguous()
    for layer in TO_JOINER:
        weight, bias = (stored[f"{layer}.{name}"].float() for name in ("weight", "bias"))
        parameters[f"{layer}.weight"] = weight.repeat(times, times) / times
        parameters[f"{layer}.bias"] = bias.repeat(times)
    boundary = stored["boundary"].long()
    t_ends = boundary[:, 3]
    s_range = int(stored["s_range"])
    (B, S), T = stored["symbols"].shape, stored["encoder_out"].shape[1]
    shape = LossShape(
        B=B, T=T, S=S, s_range=s_range, C=int(stored["classes"]), H=width, D=width,
        shortest=float(t_ends.min() / t_ends.max()),
    )  # fmt: skip
    return LossInputs(
        shape,
        stored["encoder_out"].float().repeat(1, 1, times),
        stored["decoder_out"].float().repeat(1, 1, times),
        stored["symbols"].long(),
        boundary,
        stored["first_states"].long().unsqueeze(2) + torch.arange(s_range),
        parameters,
    ).to(torch.device("cpu"))


def _renumber(stored: dict[str, Tensor], classes: int) -> None:
    """Add classes that no text has, or leave some out, where the first of those stands.

    Raises:
      ValueError: there are fewer classes than the texts have.
    """
    used, more = stored["used"].long(), classes - int(stored["classes"])
    first = int((used == torch.arange(len(used))).long().cumprod(dim=0).sum())
    if classes < len(used):
        raise ValueError(f"--C: got {classes}, expected at least {len(used)}, the trained symbols")
    for name in ("used", "symbols"):
        ids = stored[name].long()
        stored[name] = torch.where(ids >= first, ids + more, ids)
    assert len(stored["used"].unique()) == len(used), "unused classes stand in one place"
    stored["classes"] = torch.tensor(classes)


def with_own_band(inputs: LossInputs, path: Path) -> None:
    """Store once more with the band that the stored tensors' simple loss gives."""
    from benchmarks.model import TransducerLoss

    loaded = load(inputs.shape.H, path)
    model = TransducerLoss(loaded, has_simple=True)
    model(loaded, "simple")
    assert model.last_ranges is not None
    used = torch.from_numpy(np.load(path)["used"]).long()
    store(replace(inputs, ranges=model.last_ranges), used, path)


def _rows_of_all(stored: dict[str, Tensor], layer: str, random: Any) -> Tensor:
    """``[C, narrow + 1]``, weight and bias of all classes, those not used drawn."""
    classes, used = int(stored["classes"]), stored["used"].long()
    mean, spread = stored[f"{layer}.mean"], stored[f"{layer}.spread"].float()
    drawn = torch.from_numpy(random.standard_normal((classes, spread.shape[0]))).float()
    return (drawn @ spread + mean).index_copy(0, used, stored[f"{layer}.used"].float())


def _half(tensor: Tensor) -> Any:
    return tensor.detach().numpy().astype(np.float16)
