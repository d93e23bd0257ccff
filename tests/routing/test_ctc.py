"""A CTC head in icefall's own sequence of calls, recorded where it is asked for."""

import logging

import ctc_batch
import pytest
import torch
import torch.nn.functional as F
from dispatch import LargestTensor
from torch import nn

import panda_icefall
from panda_icefall.routing import PandaError, find_ctc_heads, suspended
from panda_icefall.routing.ctc_head import CtcLogProbs

B, T, C, D = ctc_batch.B, ctc_batch.T, ctc_batch.C, ctc_batch.D
X = 4


class Model(nn.Module):
    """Encoder and head; `forward_ctc` and `forward_cr_ctc` as zipformer's model.py has them."""

    def __init__(self, name="ctc_output", classes=C, dropout=0.3):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(X, D)
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(D, classes), nn.LogSoftmax(dim=-1))
        setattr(self, name, head)
        self.name = name

    def forward(self, x, data, loss="forward_ctc"):
        lens = [data.concatenated.int(), data.frames.int(), data.counts.int()]
        return getattr(self, loss)(self.encoder(x), *lens)

    def forward_ctc(self, encoder_out, targets, encoder_out_lens, target_lengths):
        ctc_output = getattr(self, self.name)(encoder_out)
        return torch.nn.functional.ctc_loss(
            log_probs=ctc_output.permute(1, 0, 2),
            targets=targets.cpu(),
            input_lengths=encoder_out_lens.cpu(),
            target_lengths=target_lengths.cpu(),
            reduction="sum",
        )

    def forward_cr_ctc(self, encoder_out, targets, encoder_out_lens, target_lengths):
        ctc_output = self.ctc_output(encoder_out)
        ctc_loss = torch.nn.functional.ctc_loss(
            log_probs=ctc_output.permute(1, 0, 2), targets=targets.cpu(),
            input_lengths=encoder_out_lens.cpu(), target_lengths=target_lengths.cpu(),
            reduction="sum",
        )  # fmt: skip
        exchanged_targets = torch.roll(ctc_output.detach(), ctc_output.shape[0] // 2, dims=0)
        cr_loss = F.kl_div(
            input=ctc_output, target=exchanged_targets, reduction="none", log_target=True
        )
        is_padding = torch.arange(ctc_output.shape[1]) >= encoder_out_lens[:, None]
        return ctc_loss + cr_loss.masked_fill(is_padding.unsqueeze(-1), 0.0).sum()


class Own(Model):
    """What a test does with the head's input, and the batch."""

    def __init__(self, loss_of):
        super().__init__()
        self.loss_of = loss_of

    def forward(self, x, data):
        return self.loss_of(self, self.encoder(x), data)


def loss_of_log_probs(log_probs, data):
    return F.ctc_loss(log_probs, data.targets, data.frames, data.counts, reduction="mean")


def features(dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    return torch.randn(B, T, X, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def step(model, *args, dtype=torch.float64, classes=C):
    """Loss, gradients of the features and of all parameters, and the random state afterwards."""
    x, data = features(dtype), ctc_batch.batch(classes=classes)
    torch.manual_seed(5)
    loss = model(x, data, *args)
    grads = torch.autograd.grad(loss, [x, *model.parameters()])
    return [loss.detach(), *grads, torch.get_rng_state()]


def compare(model, *args, routed=1, dense=0, materialised=None, **options):
    """Dense against routed, with the counters."""
    expected = step(model.double(), *args)
    with panda_icefall.patched(model, ctc=True, **options):
        before = panda_icefall.status()
        found = step(model, *args)
        status = panda_icefall.status() - before
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert (status.ctc_losses_routed, status.ctc_losses_dense) == (routed, dense)
    assert status.materialised == (materialised or {})


@pytest.fixture(autouse=True)
def reverted():
    yield
    panda_icefall.revert()


def test_icefalls_loss_and_its_dropout_are_as_without_panda():
    compare(Model())
    compare(Model().eval())
    compare(Model(), workspace_mib=0.001)


def test_no_tensor_of_all_frames_and_classes_is_made_forward_or_backward():
    classes = 1501
    model = Model(classes=classes)
    with LargestTensor() as largest:
        step(model, dtype=torch.float32, classes=classes)
    assert largest.elements == B * T * classes
    panda_icefall.apply(model, ctc=True, workspace_mib=0.03)
    with LargestTensor() as largest:
        step(model, dtype=torch.float32, classes=classes)
    assert panda_icefall.status().ctc_losses_routed == 1
    assert largest.elements <= classes * D < B * T * classes / 8


def test_nothing_of_it_is_replaced_where_it_is_not_asked_for():
    original = F.ctc_loss
    model = Model().double()
    panda_icefall.apply(model)
    assert F.ctc_loss is original
    step(model)
    assert panda_icefall.status().ctc_losses_dense == 0
    panda_icefall.apply(model, ctc=True)
    assert F.ctc_loss is not original
    assert "torch.nn.functional.ctc_loss" in panda_icefall.status().replaced
    assert "ctc_output.forward" in panda_icefall.status().replaced
    with suspended():
        assert F.ctc_loss is original
    with panda_icefall.patched(model):
        assert F.ctc_loss is original
        step(model)
    step(model)
    assert panda_icefall.status().ctc_losses_routed == 1
    panda_icefall.apply(model)
    assert F.ctc_loss is original
    assert not any("ctc" in name for name in panda_icefall.status().replaced)
    with panda_icefall.patched(model, ctc=True):
        assert F.ctc_loss is not original
    assert F.ctc_loss is original
    panda_icefall.apply(ctc=True)
    panda_icefall.revert()
    assert F.ctc_loss is original


def by_function(model, encoded, data):
    return loss_of_log_probs(torch.log_softmax(model.head(encoded), 2).transpose(0, 1), data)


def by_method(model, encoded, data):
    log_probs = model.head(encoded).log_softmax(dim=-1)
    return loss_of_log_probs(log_probs.transpose(1, 0).contiguous(), data)


def with_time_first(model, encoded, data):
    return loss_of_log_probs(model.ctc_output(encoded.transpose(0, 1)), data)


def by_a_module(model, encoded, data):
    log_probs = model.ctc_output(encoded).permute((1, 0, 2)).double()
    return nn.CTCLoss(zero_infinity=True)(log_probs, data.targets, data.frames, data.counts)


def with_a_temperature(model, encoded, data):
    log_probs = F.log_softmax(model.head(encoded) / 0.7 + 0.1, dim=-1)
    return loss_of_log_probs(log_probs.swapaxes(0, 1), data)


def twice(model, encoded, data):
    log_probs = model.ctc_output(encoded)
    losses = [loss_of_log_probs(log_probs.permute(1, 0, 2), data) for _ in range(2)]
    return losses[0] - 3 * losses[1]


@pytest.mark.parametrize(
    "loss_of",
    [by_function, by_method, with_time_first, by_a_module, with_a_temperature, twice],
    ids=lambda f: f.__name__,
)
def test_other_ways_to_the_loss_are_recorded(loss_of):
    model = Own(loss_of)
    if loss_of in (by_function, by_method, with_a_temperature):
        model.head = model.ctc_output[1]
        del model.ctc_output
        compare(model, routed=1, projections={"ctc": "head"})
    else:
        compare(model, routed=2 if loss_of is twice else 1)


def beside(operation):
    def loss_of(model, encoded, data):
        log_probs = model.ctc_output(encoded)
        loss = loss_of_log_probs(log_probs.permute(1, 0, 2), data)
        return loss + operation(log_probs) + operation(log_probs.permute(1, 0, 2))

    return loss_of


OTHER_USES = {
    "argmax": lambda x: x.argmax(dim=2).double().mean() + 0 * x.sum(),
    "exp": lambda x: x.exp().square().mean(),
    "__getitem__": lambda x: x[:, :, 0].mean(),
    "permute": lambda x: x.permute(2, 0, 1).mean(),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1).mean(),
    "cat": lambda x: torch.cat([x, x]).mean(),
}


@pytest.mark.parametrize("name", OTHER_USES)
def test_any_other_use_gets_the_tensor_and_is_said_once(caplog, name):
    model = Own(beside(OTHER_USES[name]))
    compare(model, materialised={f"ctc_output: {name}": 1})
    assert caplog.text.count(f"ctc_output: {name} needs the projection's tensor") == 1


def test_the_consistency_term_is_dense_and_the_loss_beside_it_is_not(caplog):
    compare(Model(), "forward_cr_ctc", materialised={"ctc_output: detach": 1})
    assert "ctc_output: detach needs the projection's tensor, of C classes" in caplog.text


def after_a_look(model, encoded, data):
    log_probs = model.ctc_output(encoded)
    look = log_probs.exp().sum()
    return loss_of_log_probs(log_probs.permute(1, 0, 2), data) + 0 * look


def without_log_softmax(model, encoded, data):
    return loss_of_log_probs(model.ctc_output[1](encoded).log_softmax(2).permute(1, 0, 2), data)


@pytest.mark.parametrize(
    ("loss_of", "materialised"),
    [(after_a_look, {"ctc_output: exp": 1}), (without_log_softmax, {})],
    ids=["used before", "another module"],
)
def test_a_loss_of_tensors_is_torchs_and_counted(loss_of, materialised):
    model = Own(loss_of)
    compare(model, routed=0, dense=1, materialised=materialised)
    panda_icefall.apply(model, ctc=True, strict=True)
    with pytest.raises(PandaError, match=r"strict=True: torch\.ctc_loss would be computed as with"):
        step(model)


def test_logits_without_a_log_softmax_are_torchs_too():
    model = Own(lambda m, x, data: loss_of_log_probs(m.head(x).transpose(0, 1), data))
    model.head = model.ctc_output[1]
    del model.ctc_output
    compare(
        model, routed=0, dense=1, materialised={"head: transpose": 1}, projections={"ctc": "head"}
    )


def test_validation_without_gradients_is_routed_and_a_mixed_one_is_not():
    model = Model().double()
    data = ctc_batch.batch()
    with torch.no_grad():
        torch.manual_seed(1)
        expected = model(features(), data)
        panda_icefall.apply(model, ctc=True)
        torch.manual_seed(1)
        torch.testing.assert_close(model(features(), data), expected, rtol=1e-12, atol=0)
        log_probs = model.ctc_output(model.encoder(features())).permute(1, 0, 2)
    assert not log_probs.requires_grad
    loss_of_log_probs(log_probs, data)
    status = panda_icefall.status()
    assert (status.ctc_losses_routed, status.ctc_losses_dense) == (1, 1)
    assert status.materialised == {
        "ctc_output: ctc_loss (loss in another grad mode than the head)": 1
    }


def test_under_autocast_it_is_at_least_as_exact_as_dense():
    model, data = Model(dropout=0.0), ctc_batch.batch()

    def run(is_half, dtype):
        x = features(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            encoded = model.to(dtype).encoder(x)
            log_probs = model.ctc_output(encoded).float() if is_half else model.ctc_output(encoded)
            loss = loss_of_log_probs(log_probs.permute(1, 0, 2), data)
        assert loss.dtype == (torch.float32 if is_half else dtype)
        return [loss.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])]

    dense = run(True, torch.float32)
    with panda_icefall.patched(model, ctc=True):
        panda_icefall.routing.reset_counters()
        ours = run(True, torch.float32)
        status = panda_icefall.status()
    assert (status.ctc_losses_routed, status.materialised) == (1, {})
    exact = run(False, torch.float64)
    for x, y, z in zip(ours, dense, exact, strict=True):
        assert x.dtype == y.dtype
        assert (x - z).norm() <= 1.25 * (y - z).norm() + 2**-8 * z.norm()


def test_it_looks_like_the_tensor_it_stands_for():
    model = Model()
    panda_icefall.apply(model, ctc=True)
    log_probs = model.ctc_output(model.encoder(features(torch.float32)))
    assert isinstance(log_probs, CtcLogProbs)
    assert (log_probs.shape, log_probs.dtype, log_probs.size(0)) == ((B, T, C), torch.float32, B)
    swapped = log_probs.transpose(0, 1)
    assert (swapped.shape, swapped.requires_grad) == ((T, B, C), True)
    assert swapped.transpose(0, 1) is log_probs.contiguous() is log_probs.float() is log_probs
    assert panda_icefall.status().materialised == {}
    assert torch.equal(swapped[0], log_probs[:, 0])
    assert swapped.is_materialised
    assert log_probs.is_materialised
    assert panda_icefall.status().materialised == {"ctc_output: __getitem__": 1}


def test_what_the_head_read_must_not_change_before_the_loss():
    model, data = Model().eval(), ctc_batch.batch()
    panda_icefall.apply(model, ctc=True)
    with torch.no_grad():
        log_probs = model.ctc_output(model.encoder(features(torch.float32)))
        model.ctc_output[1].weight.zero_()
    with torch.no_grad(), pytest.raises(PandaError, match="a projection to classes read was chang"):
        loss_of_log_probs(log_probs.permute(1, 0, 2), data)


def test_a_recorded_head_is_a_tensor_after_revert():
    model, data = Model().double().eval(), ctc_batch.batch()
    expected = model(features(), data)
    panda_icefall.apply(model, ctc=True)
    log_probs = model.ctc_output(model.encoder(features())).permute(1, 0, 2)
    routed = F.ctc_loss
    panda_icefall.revert()
    for loss in (F.ctc_loss, routed):
        found = loss(log_probs, data.targets, data.frames, data.counts, reduction="sum")
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_wrong_arguments_are_refused_by_name():
    model = Own(lambda m, x, data: loss_of_log_probs(m.ctc_output(x).permute(1, 0, 2), data))
    panda_icefall.apply(model.double(), ctc=True)
    data = ctc_batch.batch()
    data.targets[1, 0] = C
    with pytest.raises(ValueError, match="targets: got label 23 in utterance 1"):
        model(features(), data)


def test_heads_are_found_by_their_names():
    model = nn.Module()
    model.ctc_output = nn.Sequential(nn.Dropout(0.1), nn.Linear(3, 2))
    model.st_ctc_output, model.ctc_output_module = nn.Linear(3, 2), nn.Linear(3, 2)
    model.ctc_outputs, model.other = nn.Linear(3, 2), nn.Sequential(nn.Sequential(nn.Linear(3, 2)))
    model.no_ctc_output = nn.Sequential(nn.ReLU())
    found = ["ctc_output", "st_ctc_output", "ctc_output_module"]
    assert list(find_ctc_heads(model)) == found
    assert list(find_ctc_heads(nn.Sequential(model), {"am": "x"})) == [f"0.{n}" for n in found]
    assert list(find_ctc_heads(model, {"ctc": "other"})) == ["other"]
    with pytest.raises(ValueError, match="projections: got ctc='ouput', expected the name of a"):
        find_ctc_heads(model, {"ctc": "ouput"})


def test_a_head_of_another_name_is_recorded_where_it_is_named(caplog):
    model = Model("output_layer")
    with caplog.at_level(logging.WARNING):
        compare(model, routed=0, dense=1)
    assert caplog.text.count("no ctc_output in Model") == 1
    assert 'projections={"ctc": NAME}' in caplog.text
    compare(model, projections={"ctc": "output_layer"})
    with pytest.raises(ValueError, match=r"projections: got ctc='x' with ctc=False; give ctc=True"):
        panda_icefall.apply(model, projections={"ctc": "x"})
    with pytest.raises(ValueError, match="projections: got ctc='x', expected the name of a module"):
        panda_icefall.apply(model, ctc=True, projections={"ctc": "x"})
    assert panda_icefall.status().replaced == ()
