"""DDP on two ranks: the embedded recipe's model, routed, has the gradients of the joint batch."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from rank_checks import checks_of, ranks_fixture
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import panda_icefall

pytestmark = pytest.mark.slow
found = ranks_fixture(__file__, world_size=2)

RECIPE = Path(__file__).parents[2] / "egs" / "tones" / "ASR" / "pruned_transducer"
C, S, FRAMES = 61, 4, [83, 61, 75, 40, 57]


@pytest.mark.parametrize("check", checks_of(__file__))
def test_on_two_ranks(found, check):
    assert found[check] == []


def transducer(with_unused=False):
    if str(RECIPE) not in sys.path:
        sys.path.insert(0, str(RECIPE))
    from decoder import Decoder
    from encoder import Encoder
    from joiner import Joiner
    from model import Transducer

    torch.manual_seed(3)
    encoder = Encoder(encoder_dim=24, num_layers=1, kernel_size=5, dropout=0.0)
    model = Transducer(encoder, Decoder(C, decoder_dim=8), Joiner(24, 8, 12, C), C)
    if with_unused:
        model.unused = nn.Linear(3, 3)
    # The recipe computes its losses from float(), which is double() on these ranks.
    torch.Tensor.float = torch.Tensor.double
    return model.double()


def utterances(low, high):
    """Some of a ragged batch, padded as all of it: what the model's forward takes."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(len(FRAMES), max(FRAMES), 80, generator=g, dtype=torch.float64)
    y = torch.randint(1, C, (len(FRAMES), S), generator=g)
    y_lens = torch.tensor([4, 2, 0, 3, 1])
    y[torch.arange(S) >= y_lens[:, None]] = 0
    return x[low:high], torch.tensor(FRAMES)[low:high], y[low:high], y_lens[low:high]


OF_RANK = [(0, 3), (3, 5)]  # three utterances, and two


def loss_of(model, low, high):
    # am_scale is 0: k2 takes its unigram from the whole batch, so that parts would not add up.
    simple, pruned = model(*utterances(low, high), prune_range=3, am_scale=0.0, lm_scale=0.25)
    return 0.5 * simple + pruned


def of_one_process(model, *parts):
    """Dense gradients of the summed losses of the parts, averaged over two ranks."""
    sum(loss_of(model, *part) for part in parts).div(2).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same(model, expected):
    for name, parameter in model.module.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            apart = (parameter.grad - expected[name]).norm() / expected[name].norm()
            assert apart <= 1e-10, (name, apart)


@contextlib.contextmanager
def routed(model, losses):
    """PANDA with the model's projections, and a proof that it was active on this rank."""
    with panda_icefall.patched(model, adjoint_tolerance=0):
        yield
        status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense) == (losses, 0)
    assert (status.simple_losses_deferred, status.simple_losses_dense) == (losses, 0)
    assert status.materialised == {}


def check_gradients_are_those_of_the_joint_batch(rank):
    for options in (
        {},
        {"find_unused_parameters": True},
        {"gradient_as_bucket_view": True},
        {"static_graph": True},
        {"find_unused_parameters": True, "gradient_as_bucket_view": True},
    ):
        with_unused = "find_unused_parameters" in options
        expected = of_one_process(transducer(with_unused), (0, 5))
        model = DistributedDataParallel(transducer(with_unused), **options)
        with routed(model, losses=2):
            for _ in range(2):  # what the first step leaves behind is used in the second
                model.zero_grad()
                loss_of(model, *OF_RANK[rank]).backward()
                assert_same(model, expected)


def check_no_sync_accumulates_until_the_last_part(rank):
    expected = of_one_process(transducer(), (0, 5), (1, 5))
    model = DistributedDataParallel(transducer())
    with routed(model, losses=2):
        with model.no_sync():
            loss_of(model, *OF_RANK[rank]).backward()
        second = (1, 3) if rank == 0 else (3, 5)
        loss_of(model, *second).backward()
    assert_same(model, expected)


def check_a_rank_that_runs_out_of_batches_first(rank):
    expected = of_one_process(transducer(), (3, 4))
    model = DistributedDataParallel(transducer())
    batches = [(0, 3), (3, 4)] if rank == 0 else [(3, 5)]
    with routed(model, losses=len(batches)), model.join():
        for part in batches:
            model.zero_grad()
            loss_of(model, *part).backward()
    if rank == 0:
        assert_same(model, expected)
