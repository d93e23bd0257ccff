"""WeNet's transducer, its own code from WENET_ROOT: `apply()` reaches it and changes nothing.

Checked with github.com/wenet-e2e/wenet at 0154699. `wenet/__init__.py` (the command line) is not
run and whisper's table of languages is a stand-in; the encoder is one too: the loss takes its
output.
"""

import pytest
import toolkit_checkout
import torch
import toy
from torch import nn

WHISPER = {"whisper": {}, "whisper__tokenizer": {"LANGUAGES": {}}}


@pytest.fixture(scope="module")
def wenet():
    with toolkit_checkout.checkout("WENET_ROOT", "wenet", **WHISPER) as load:
        yield load


class Encoder(nn.Module):
    def output_size(self):
        return toolkit_checkout.D_ENC


def transducer(load, delay_penalty=0.0, **joint_options):
    torch.manual_seed(1)
    joint = load("wenet.models.transducer.joint").TransducerJoint(
        toy.C,
        toolkit_checkout.D_ENC,
        toolkit_checkout.D_DEC,
        toolkit_checkout.JOINT,
        **joint_options,
    )
    predictor = load("wenet.models.transducer.predictor").RNNPredictor(
        toy.C,
        8,
        toolkit_checkout.D_DEC,
        embed_dropout=0.1,
        hidden_size=9,
        num_layers=1,
        dropout=0.0,
    )
    model = load("wenet.models.transducer.transducer").Transducer(
        toy.C, 0, Encoder(), predictor, joint, enable_k2=True, delay_penalty=delay_penalty,
        warmup_steps=4,
    )  # fmt: skip
    model.device = torch.device("cpu")  # forward() sets it
    return model


@pytest.mark.wenet
@pytest.mark.parametrize("steps", [1, 9])  # within the warm-up, and after it
@pytest.mark.parametrize(
    "joint",
    [
        {},
        {"activation": "swish", "postjoin_linear": True},
        {"hat_joint": True},
        {"hat_joint": True, "hat_activation": "relu", "postjoin_linear": True},
    ],
    ids=str,
)
def test_the_loss_of_wenet_is_routed_exactly(wenet, monkeypatch, joint, steps):
    model, batch = transducer(wenet, delay_penalty=0.1, **joint), toolkit_checkout.Batch()

    def loss():
        return model._compute_loss(
            batch.encoder_out, batch.t_lens, batch.mask, batch.text, batch.s_lens, steps=steps
        )

    toolkit_checkout.compare(model, batch, loss, monkeypatch)
