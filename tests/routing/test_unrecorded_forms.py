"""Operations that have a rule, in forms that are not recorded: done on tensors, and counted."""

import counted
import pytest
import torch
import torch.nn.functional as F
import toy

import panda_icefall

X = toy.X


def convolved(x, own):
    rows = x.flatten(0, 1).transpose(1, 2)  # [B * T, X, s_range]
    return F.conv1d(rows, own.kernel, padding=1).transpose(1, 2).reshape(x.shape)


FORMS = {
    "layer_norm over sites": lambda x, own: F.layer_norm(x, x.shape[-2:]),
    "prelu by frame": lambda x, own: F.prelu(x, own.slopes[: x.shape[1]]),
    "cat of sites": lambda x, own: torch.cat([x, 0.5 * x], dim=2)[:, :, 1 : 1 + x.shape[2]],
    "mean over frames": lambda x, own: x - x.mean(dim=1, keepdim=True),
    "softmax over states": lambda x, own: x * x.softmax(dim=2),
    "matmul of matrices": lambda x, own: x @ own.kernel[:, :, :1].movedim(2, 0),
    "einsum of three": lambda x, own: torch.einsum("btsh,hc,c->btsc", x, own.square, own.square[0]),
    "einsum without a result": lambda x, own: torch.einsum("...h,hc", x, own.square),
    "einsum over states": lambda x, own: x + torch.einsum("btsh,sr->btrh", x, own.states),
    "convolution over states": convolved,
    "dropout of all": lambda x, own: x + F.dropout(x, 1.0),
    "prelu by name": lambda x, own: torch.prelu(x, weight=own.slopes[:1]),
    "addmm with a row for each site": lambda x, own: torch.addmm(
        own.square[:1].expand(x[..., 0].numel(), X), x.flatten(0, 2), own.square
    ).view(x.shape),
    "linear layer of a vector": lambda x, own: x + F.linear(x, own.square[0])[..., None],
    "cast that copies": lambda x, own: x.to(torch.float64, copy=True) * 0.5,
    "hstack of sites": lambda x, own: torch.hstack([x, 0.5 * x])[:, 1 : 1 + x.shape[1]],
    "view of one column": lambda x, own: x + x[..., :1].transpose(1, 2).transpose(1, 2),
    "einsum over an axis twice": lambda x, own: (
        x + torch.einsum("bttc,cc->btc", x[:, :4], own.square)[:, :1, None]
    ),
}


# Their results are views, which may share memory: they stay ordinary tensors.
VIEWS = {"cat of sites", "hstack of sites", "einsum of three", "einsum without a result"}


class Formed(toy.TanhJoiner):
    def __init__(self, form):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        for name, shape in (
            ("kernel", (X, X, 3)), ("square", (X, X)), ("slopes", (toy.T,)),
            ("states", (toy.S_RANGE, toy.S_RANGE)),
        ):  # fmt: skip
            self.register_buffer(name, 0.3 * torch.randn(shape, generator=generator))
        self.form = form

    def forward(self, am, lm):
        return self.output_linear(torch.tanh(self.form(am + lm, self)))


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_is_not_recorded_is_computed_as_dense_and_counted(k2, name):
    torch.manual_seed(1)
    joiner, data = Formed(FORMS[name]).double(), toy.batch(k2, torch.float64)
    dense = toy.loss_and_gradients(k2, joiner, data)
    is_view = name in VIEWS
    with counted.routed(
        int(not is_view), dense=int(is_view), materialised=None, adjoint_tolerance=0
    ):
        routed = toy.loss_and_gradients(k2, joiner, data)
        assert sum(panda_icefall.status().materialised.values()) >= 1
    toy.assert_same(routed, dense, 1e-10)
