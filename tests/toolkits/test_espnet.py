"""ESPnet's transducer, its own code from ESPNET_ROOT: `apply()` reaches it and changes nothing.

Checked with espnet 202511 of the registry, unpacked. `espnet2/__init__.py` is not run; the encoder
is an empty one of ESPnet's class: the loss takes its output.
"""

import pytest
import toolkit_checkout
import torch
import toy
from torch import nn

from panda_icefall.routing import find_projections


@pytest.fixture(scope="module")
def espnet():
    with toolkit_checkout.checkout("ESPNET_ROOT", "espnet", "espnet2") as load:
        yield load


def transducer(load, warmup_steps, loss_type, **joint_options):
    torch.manual_seed(1)
    in_folder = "espnet2.asr_transducer.{}".format

    class Encoder(load(in_folder("encoder.encoder")).Encoder):
        output_size = toolkit_checkout.D_ENC

        def __init__(self):
            nn.Module.__init__(self)

    decoder = load(in_folder("decoder.stateless_decoder")).StatelessDecoder(
        toy.C, embed_size=toolkit_checkout.D_DEC
    )
    joint = load(in_folder("joint_network")).JointNetwork(
        toy.C,
        toolkit_checkout.D_ENC,
        toolkit_checkout.D_DEC,
        toolkit_checkout.JOINT,
        **joint_options,
    )
    return load(in_folder("espnet_transducer_model")).ESPnetASRTransducerModel(
        toy.C, [str(i) for i in range(toy.C)], None, None, None, Encoder(), decoder, joint,
        use_k2_pruned_loss=True, k2_pruned_loss_args={"loss_type": loss_type},
        warmup_steps=warmup_steps,
    )  # fmt: skip


@pytest.mark.espnet
@pytest.mark.parametrize(
    ("joint", "loss_type", "scales", "warmup_steps"),
    [
        ({}, "regular", (0.0, 0.0), 0),
        ({"joint_activation_type": "swish"}, "regular", (0.25, 0.1), 10),
        ({"joint_activation_type": "hardtanh", "lin_dec_bias": False}, "modified", (0.2, 0.0), 0),
        ({"joint_activation_type": "mish"}, "constrained", (0.0, 0.0), 0),
    ],
    ids=str,
)
def test_the_loss_of_espnet_is_routed_exactly(
    espnet, monkeypatch, joint, loss_type, scales, warmup_steps
):
    model, batch = transducer(espnet, warmup_steps, loss_type, **joint), toolkit_checkout.Batch()
    assert list(find_projections(model)) == ["am_proj", "lm_proj"]
    task_io = espnet("espnet2.asr_transducer.utils").get_transducer_task_io
    decoder_in, _, t_lens, s_lens = task_io(batch.text, batch.t_lens, ignore_id=-1)
    model.decoder.set_device(torch.device("cpu"))

    def loss():
        model.steps_num = -1
        return model._calc_k2_transducer_pruned_loss(
            batch.encoder_out, model.decoder(decoder_in), batch.text, t_lens, s_lens,
            prune_range=toy.S_RANGE, lm_scale=scales[0], am_scale=scales[1], loss_type=loss_type,
        )  # fmt: skip

    toolkit_checkout.compare(model, batch, loss, monkeypatch)
