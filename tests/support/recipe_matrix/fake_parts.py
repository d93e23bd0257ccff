"""Tiny stand-ins for parts that recipes take from packages outside icefall's requirements."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_matrix.adaptations import Arguments, module
from recipe_matrix.batch import X_LENS
from recipe_matrix.isolation import stand_in_modules
from recipe_matrix.row import Adaptation, Call

TEXT_DIM = 768  # asserted by the recipe
TEXT_LENS = (11, 5, 8, 3)
STYLE_LENS = (4, 2, 3, 3)
CODEBOOK_SIZE = 256


class TextEncoder(nn.Module):
    """An embedding with the interface that the recipe uses of `transformers.BertModel`."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=TEXT_DIM)
        self.embedding = nn.Embedding(30, TEXT_DIM)

    @classmethod
    def from_pretrained(cls, name: str) -> TextEncoder:
        return cls()

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.embedding(input_ids)}


class ContextFuser(nn.Module):
    """The mean over the prompt's tokens, as wide as the joiner's context projection expects."""

    def forward(self, memory: Tensor, padding_mask: Tensor) -> Tensor:
        kept = (~padding_mask).unsqueeze(2).to(memory.dtype)
        mean = (memory * kept).sum(dim=1) / kept.sum(dim=1)  # [B, TEXT_DIM]
        return mean.repeat(1, 4)


def _prompts(call: Call, arguments: Arguments) -> Arguments:
    lens = torch.tensor(TEXT_LENS)
    generator = torch.Generator().manual_seed(7)
    input_ids = torch.randint(30, (len(X_LENS), int(lens.max())), generator=generator)
    encoded = {"input_ids": input_ids, "length": lens}
    return {**arguments, "encoded_inputs": encoded, "style_lens": torch.tensor(STYLE_LENS)}


FAKE_TEXT_ENCODER = Adaptation(
    note="tiny text encoder in place of BERT",
    around=partial(
        stand_in_modules, {"transformers": module("transformers", BertModel=TextEncoder)}
    ),
    inputs=_prompts,
)


def _with_fuser(model: nn.Module) -> nn.Module:
    model.context_fuser = ContextFuser()
    return model


CONTEXT_FUSER = Adaptation(note="tiny context fuser (the recipe passes none)", model=_with_fuser)


def sample_combined(log_probs: Tensor, K: int, input_is_log: bool) -> tuple[None, Tensor, Tensor]:
    """The K most probable classes of each softmax, joined over the softmaxes, with equal weights.

    Args:
      log_probs: `[*, N, M]`.

    Returns:
      None, the joined classes `[*, K]` int64 in `[0, M ** N)`, the weights `[*, K]`.
    """
    *_, N, M = log_probs.shape
    classes = log_probs.topk(K, dim=-1).indices  # [*, N, K]
    joined = (classes * M ** torch.arange(N)[:, None]).sum(dim=-2)
    return None, joined, log_probs.new_full(joined.shape, 1 / K)


FAKE_SAMPLING = Adaptation(
    note="top classes in place of torch_scheduled_sampling",
    around=partial(
        stand_in_modules,
        {
            "torch_scheduled_sampling": module(
                "torch_scheduled_sampling", sample_combined=sample_combined
            )
        },
    ),
)


class CodebookLoss(nn.Module):
    """One classifier per codebook, with the interface of `JointCodebookLoss`."""

    def __init__(self, predictor_channels: int, num_codebooks: int, is_joint: bool) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.linear = nn.Linear(predictor_channels, num_codebooks * CODEBOOK_SIZE)

    def forward(self, predictor: Tensor, indexes: Tensor) -> Tensor:
        logits = self.linear(predictor).reshape(-1, CODEBOOK_SIZE)
        return F.cross_entropy(logits, indexes.reshape(-1), reduction="sum")


def _codebooks(call: Call, arguments: Arguments) -> Arguments:
    frames = ((max(X_LENS) - 1) // 2 - 1) // 2  # the encoder's
    generator = torch.Generator().manual_seed(6)
    shape = (len(X_LENS), frames, call.params.num_codebooks)
    indexes = torch.randint(CODEBOOK_SIZE, shape, generator=generator)
    is_distilled = call.is_training and call.params.enable_distillation
    return {**arguments, "codebook_indexes": indexes if is_distilled else None}


_PREDICTION = module("multi_quantization.prediction", JointCodebookLoss=CodebookLoss)
FAKE_CODEBOOK_LOSS = Adaptation(
    note="plain codebook loss in place of multi_quantization",
    around=partial(
        stand_in_modules,
        {
            "multi_quantization": module("multi_quantization", prediction=_PREDICTION),
            "multi_quantization.prediction": _PREDICTION,
        },
    ),
    inputs=_codebooks,
)
