"""A ragged CTC batch with every kind of utterance, and torch's loss of it by a log-softmax."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

B, T, C, D = 6, 11, 23, 5
FRAMES = [11, 9, 5, 3, 11, 8]
LABELS = [5, 3, 0, 2, 4, 1]


@dataclass
class Batch:
    """Rows `[B, T, D]` of a head, its weight and bias, and what the utterances say."""

    rows: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    targets: torch.Tensor
    frames: torch.Tensor
    counts: torch.Tensor
    blank: int

    @property
    def leaves(self):
        return [self.rows, self.weight, self.bias]

    @property
    def concatenated(self):
        """The targets of all utterances, without padding."""
        return torch.cat([row[:n] for row, n in zip(self.targets, self.counts)])

    def to(self, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in self.leaves]
        return Batch(*leaves, self.targets, self.frames, self.counts, self.blank)


def batch(kind="flat", blank=0, dtype=torch.float64, classes=C, width=D):
    """Utterances: labels that repeat; three; none; as many as fit; one label only; a single one.

    Beyond an utterance's labels `targets` hold -1, which must not be read.
    """
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(B, T, width, generator=g, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=g, dtype=torch.float64) / 2
    bias = torch.randn(classes, generator=g, dtype=torch.float64)
    if kind == "peaked":
        rows = rows * 6
    if kind == "shifted":
        bias = bias + 100
    targets = torch.randint(0, classes - 1, (B, max(LABELS)), generator=g)
    targets += targets >= blank
    targets[0, 1] = targets[0, 0]
    targets[0, 4] = targets[0, 0]
    targets[4] = targets[4, :1]
    counts = torch.tensor(LABELS)
    targets.masked_fill_(torch.arange(targets.shape[1]) >= counts[:, None], -1)
    found = Batch(rows, weight, bias, targets, torch.tensor(FRAMES), counts, blank)
    return found.to(dtype)


def dense_loss(data: Batch, **options: Any):
    """By the log-softmax of all classes."""
    log_probs = F.linear(data.rows, data.weight, data.bias).log_softmax(dim=2)
    options = {"reduction": "sum", **options}
    return F.ctc_loss(
        log_probs.transpose(0, 1), data.concatenated, data.frames, data.counts,
        blank=data.blank, **options,
    )  # fmt: skip


def with_gradients(loss, data: Batch, **options: Any):
    """The loss, and the gradients of the rows, the weight and the bias, all detached."""
    found = loss(data, **options)
    weights = torch.linspace(1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), data.leaves)]
