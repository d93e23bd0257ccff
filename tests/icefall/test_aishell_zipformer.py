"""AISHELL's zipformer: `output_linear(tanh(am + lm))` on inputs projected before the pruning."""

import pytest
import torch

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

RECIPE = "egs/aishell/ASR/zipformer"

SMALL = {
    "--num-encoder-layers": "1,1,1,1,1,1",
    "--feedforward-dim": "64,64,64,64,64,64",
    "--num-heads": "2,2,2,2,2,2",
    "--encoder-dim": "48,48,48,48,48,48",
    "--encoder-unmasked-dim": "32,32,32,32,32,32",
    "--decoder-dim": "56",
    "--joiner-dim": "72",
}


def make_model(train, vocab_size):
    params = train.get_params()
    arguments = [word for pair in SMALL.items() for word in pair]
    params.update(vars(train.get_parser().parse_args(arguments)))
    params.update(vocab_size=vocab_size, blank_id=0)
    torch.manual_seed(12)
    model = train.get_model(params)
    train.set_batch_count(model, 0.0)
    return model


@pytest.mark.parametrize("vocab_size", [500, 4336])
def test_the_dense_recipe_takes_the_batch(train, make_batch, run_dense, vocab_size):
    outcome = run_dense(make_model(train, vocab_size), make_batch(vocab_size), is_training=True)
    assert outcome.pruned_losses == 1
    assert torch.isfinite(outcome.pruned_loss)
    assert outcome.gradients["joiner.output_linear.weight"].norm() > 0


@pytest.mark.parametrize("vocab_size", [500, 4336])
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "validation"])
def test_routed_losses_and_gradients_are_the_dense_ones(
    train, make_batch, assert_routed_equals_dense, vocab_size, is_training
):
    model = make_model(train, vocab_size)
    assert_routed_equals_dense(model, make_batch(vocab_size), is_training=is_training)
