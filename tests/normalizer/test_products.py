"""The products of a tile by oneDNN: exact, repeatable, no worse than torch's, and when chosen."""

import platform

import pytest
import torch
import torch.nn.functional as F
from gates import in_dtype, rms, rounding_gate, run, values

from panda_icefall.normalizer import products, selected_log_probs
from panda_icefall.normalizer.head import Head

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


def tile(n, c, hidden_dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=g) for s in ((n, hidden_dim), (c, hidden_dim), (c,), (n, c))]


def computed(made, weight, bias, grad):
    logits = made.logits(weight, bias).clone()
    hidden_grad, weight_grad = torch.ones(grad.shape[0], weight.shape[1]), torch.ones_like(weight)
    made.add_gradients(grad, weight, hidden_grad, weight_grad)
    return logits, hidden_grad, weight_grad


# Sums of one piece and of several, in each of the three directions; rows to be filled up.
@needs_onednn
@pytest.mark.parametrize(
    ("n", "c", "hidden_dim", "least_rows"),
    [(1, 1, 1, 1), (5, 7, 3, 64), (64, 193, 13, 64), (192, 50, 401, 64), (577, 400, 191, 64)],
)
def test_products_are_those_in_float64_and_are_added(n, c, hidden_dim, least_rows):
    hidden, weight, bias, grad = tile(n, c, hidden_dim)
    exact = [t.double() for t in (hidden, weight, bias, grad)]
    truth = (
        F.linear(exact[0], exact[1], exact[2]),
        1 + exact[3] @ exact[1],
        1 + exact[3].t() @ exact[0],
    )
    by_torch = products.TorchProducts(hidden, torch.empty(n * c), False)
    by_onednn = products.OneDnnProducts(hidden, least_rows)
    dense = computed(by_torch, weight, bias, grad)
    for ours, theirs, ref in zip(computed(by_onednn, weight, bias, grad), dense, truth):
        assert ours.shape == ref.shape
        assert rms(ours - ref) <= max(1.5 * rms(theirs - ref), 2 * 2**-23 * rms(ref))


@needs_onednn
def test_gradients_that_are_not_wanted_are_not_computed():
    hidden, weight, _, grad = tile(70, 30, 20)
    hidden_grad, weight_grad = torch.zeros(70, 20), torch.zeros(30, 20)
    made = products.OneDnnProducts(hidden, 64)
    made.add_gradients(grad, weight, hidden_grad, None)
    made.add_gradients(grad, weight, None, weight_grad)
    torch.testing.assert_close(hidden_grad, grad @ weight)
    torch.testing.assert_close(weight_grad, grad.t() @ hidden)


@needs_onednn
@pytest.mark.parametrize("hidden_dim", [13, 401])
def test_a_logit_is_bitwise_the_same_in_a_tile_of_any_size(hidden_dim):
    hidden, weight, bias, _ = tile(577, 300, hidden_dim)
    whole = products.OneDnnProducts(hidden, 64).logits(weight, bias)
    for n, c in ((1, 2), (64, 17), (192, 300), (300, 122)):
        part = products.OneDnnProducts(hidden[:n].contiguous(), 64)
        assert torch.equal(part.logits(weight[:c], bias[:c]), whole[:n, :c])


@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted", "negative"])
def test_at_the_width_of_a_recipe_float32_rounds_no_worse_than_the_dense_path(kind):
    rounding_gate(torch.float32, kind, hidden=512, classes=701, workspace_bytes=2**21)


@needs_onednn
def test_the_op_takes_onednn_and_torchs_own_switch_turns_it_off(monkeypatch):
    made = []
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("TorchProducts", "OneDnnProducts"):
        kind = getattr(products, name)

        def record(*args, name=name, kind=kind):
            made.append(name)
            return kind(*args)

        monkeypatch.setattr(products, name, record)
    data = in_dtype(values(), torch.float32)
    first = run(selected_log_probs, *data)
    assert set(made) == {"OneDnnProducts"}
    made.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        second = run(selected_log_probs, *data)
    assert set(made) == {"TorchProducts"}
    for x, y in zip(first, second):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("machine", "dtype", "device"),
    [
        ("x86_64", torch.float64, "cpu"),
        ("aarch64", torch.float32, "cpu"),
        ("x86_64", torch.float32, "meta"),
    ],
)
def test_elsewhere_products_are_torchs(monkeypatch, machine, dtype, device):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    weight = torch.zeros(3, 2, dtype=dtype, device=device)
    assert not products.is_onednn_chosen(Head.of(weight, None, None, dtype))
