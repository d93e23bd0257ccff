"""WeNet's transducer, its own code from WENET_ROOT: `apply()` reaches it and changes nothing.

Checked with github.com/wenet-e2e/wenet at 0154699. `wenet/__init__.py` (the command line) is not
run; whisper's table of languages and the encoder are stand-ins.
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


class Encoder(nn.Linear):
    def __init__(self):
        super().__init__(toolkit_checkout.D_ENC, toolkit_checkout.D_ENC)

    def output_size(self):
        return self.out_features

    def forward(self, speech, lens):
        return super().forward(speech), (torch.arange(speech.shape[1]) < lens[:, None]).unsqueeze(1)


def transducer(load, joint_options, **options):
    torch.manual_seed(1)
    widths = (toolkit_checkout.D_ENC, toolkit_checkout.D_DEC, toolkit_checkout.JOINT)
    joint = load("wenet.models.transducer.joint").TransducerJoint(toy.C, *widths, **joint_options)
    predictor = load("wenet.models.transducer.predictor").RNNPredictor(
        toy.C, 8, widths[1], embed_dropout=0.1, hidden_size=9, num_layers=1, dropout=0.0
    )
    return load("wenet.models.transducer.transducer").Transducer(
        toy.C, 0, Encoder(), predictor, joint, **options
    )


def loss_of(model, batch, steps=0):
    given = {
        "feats": batch.encoder_out, "feats_lengths": batch.t_lens,
        "target": batch.text, "target_lengths": batch.s_lens, "steps": steps,
    }  # fmt: skip
    return model(given, torch.device("cpu"))["loss"]


JOINTS = [
    {},
    {"activation": "swish", "postjoin_linear": True},
    {"hat_joint": True},
    {"hat_joint": True, "hat_activation": "relu", "postjoin_linear": True},
]


@pytest.mark.wenet
@pytest.mark.parametrize("steps", [1, 9])  # within the warm-up, and after it
@pytest.mark.parametrize("joint", JOINTS, ids=str)
def test_the_pruned_loss_of_wenet_is_routed_exactly(wenet, monkeypatch, joint, steps):
    model = transducer(wenet, joint, enable_k2=True, delay_penalty=0.1, warmup_steps=4)
    batch = toolkit_checkout.Batch()
    toolkit_checkout.compare(model, batch, lambda: loss_of(model, batch, steps), monkeypatch)


@pytest.mark.wenet
@pytest.mark.parametrize("joint", JOINTS, ids=str)
def test_the_torchaudio_loss_of_wenet_is_routed_exactly(wenet, monkeypatch, joint):
    model, batch = transducer(wenet, joint), toolkit_checkout.Batch()
    toolkit_checkout.compare(model, batch, lambda: loss_of(model, batch), monkeypatch, simple=0)
