"""LibriSpeech's pruned_transducer_stateless: `output_linear(relu(inner_linear(tanh(am + lm))))`."""

import pytest
import torch

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

RECIPE = "egs/librispeech/ASR/pruned_transducer_stateless"


def make_model(train, vocab_size):
    params = train.get_params()
    params.update(
        encoder_dim=32,
        nhead=2,
        dim_feedforward=48,
        num_encoder_layers=2,
        embedding_dim=40,
        vocab_size=vocab_size,
        blank_id=0,
        unk_id=2,
        context_size=2,
        dynamic_chunk_training=False,
        short_chunk_size=25,
        num_left_chunks=4,
        causal_convolution=False,
    )
    torch.manual_seed(11)
    return train.get_transducer_model(params)


@pytest.mark.parametrize("vocab_size", [500, 4336])
def test_the_dense_recipe_takes_the_batch(train, make_batch, run_dense, vocab_size):
    outcome = run_dense(make_model(train, vocab_size), make_batch(vocab_size), is_training=True)
    assert outcome.pruned_losses == 1
    assert torch.isfinite(outcome.pruned_loss)
    assert outcome.gradients["joiner.inner_linear.weight"].norm() > 0


@pytest.mark.parametrize("vocab_size", [500, 4336])
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "validation"])
def test_routed_losses_and_gradients_are_the_dense_ones(
    train, make_batch, assert_routed_equals_dense, vocab_size, is_training
):
    model = make_model(train, vocab_size)
    assert_routed_equals_dense(model, make_batch(vocab_size), is_training=is_training)
