"""``transducer_loss`` and ``pruned_transducer_loss`` against the float64 oracles."""

import pytest
import torch
import transducer_cases as cases
from dispatch import LargestTensor
from published import VECTORS
from torch import nn
from transducer_cases import KINDS, B, D, S, T, Unrecordable, batch, full, there_and_back

import panda_icefall
from panda_icefall import pruned_transducer_loss, transducer_loss

kinds = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(autouse=True)
def counters():
    panda_icefall.routing.reset_counters()


@kinds
@pytest.mark.parametrize("peak", [1.0, 6.0], ids=["flat", "peaked"])
def test_a_full_lattice_in_float64(name, peak):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner(scale=peak).double(), batch(kind, peak=peak)
    costs = full(joiner, inputs, **options)
    expected, expected_grads = cases.oracle(joiner, inputs, kind)
    cases.assert_close([costs], [expected], 1e-12)
    cases.assert_close(cases.gradients(costs, inputs, joiner), expected_grads, 1e-11)
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_by_calls, status.materialised) == (1, 0, {})
    assert status.sites == T * (S + 1) + 6 + 1 + 3 * (int(inputs["target_lengths"][3]) + 1)


@kinds
def test_a_joiner_that_cannot_be_recorded(name):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner().double(), batch(kind)
    costs = full(Unrecordable(joiner), inputs, workspace_mib=0.003, **options)
    expected, expected_grads = cases.oracle(joiner, inputs, kind)
    cases.assert_close([costs], [expected], 1e-12)
    cases.assert_close(cases.gradients(costs, inputs, joiner), expected_grads, 1e-11)
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_by_calls) == (0, 1)
    assert set(status.materialised) == {"roll"}


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rounding(name, dtype):
    """Costs and gradients are no further from float64 than those of dense logits in this dtype.

    The dense twin rounds its logits and their gradients, and nothing after them.
    """
    options, kind = KINDS[name]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner().to(dtype), batch(kind, dtype=dtype)
    costs = full(joiner, inputs, **options)
    assert costs.dtype == torch.float32
    found = [costs, *cases.gradients(costs, inputs, joiner)]
    truth, truth_grads = cases.oracle(joiner, inputs, kind)
    lengths = inputs["logit_lengths"], inputs["target_lengths"]
    logits = joiner(inputs["am"], inputs["lm"])
    dense = cases.transducer_costs(logits, inputs["targets"], *lengths, kind)
    twin = [dense, *cases.gradients(dense, inputs, joiner)]
    eps = torch.finfo(dtype).eps
    # Costs are float32 sums; half gradients are rounded once.
    ulps = [4 * torch.finfo(torch.float32).eps] + [eps if dtype == torch.bfloat16 else 4 * eps] * 4
    for x, d, ref, ulp in zip(found, twin, [truth, *truth_grads], ulps, strict=True):
        error, dense_error = cases.rms(x.double() - ref), cases.rms(d.double() - ref)
        assert error <= max(1.5 * dense_error, ulp * cases.rms(ref))


@pytest.mark.parametrize("clamp", [1e-1, 1e-3, 1e-5, 1e-7])
def test_a_clamp_leaves_out_no_more_than_without(clamp):
    """Which sites matter is judged by what is left of their gradients."""
    kind = cases.LossKind(clamp=clamp)
    joiner, inputs = cases.PlacingJoiner(scale=6.0), batch(kind, dtype=torch.float32, peak=6.0)
    by_tolerance = [
        cases.gradients(full(joiner, inputs, clamp=clamp, adjoint_tolerance=t), inputs, joiner)
        for t in (None, 0.0)
    ]
    for some, every in zip(*by_tolerance):
        assert cases.rms(some - every) <= 1e-6 * cases.rms(every)


PRUNED = [name for name, (options, _) in KINDS.items() if "one_sym_per_frame" not in options]


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "by_calls"])
def test_a_pruned_lattice_in_float64(name, recorded):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner().double(), batch(kind)
    frames, states = inputs["logit_lengths"], inputs["target_lengths"]
    s_range = 4
    first = (torch.arange(T) * (S + 2 - s_range) // T).clamp(max=S + 1 - s_range).expand(B, T)
    first = torch.where(torch.arange(B)[:, None] == 0, first, torch.zeros_like(first))
    inputs["target_lengths"] = states = torch.minimum(states, torch.tensor([S, 0, 0, 3]))
    ranges = first.unsqueeze(2) + torch.arange(s_range)
    boundary = torch.stack((0 * frames, 0 * frames, states, frames), dim=1)
    beyond = torch.arange(S) >= states[:, None]
    symbols = inputs["targets"].masked_fill(beyond, 99).int()  # padding is not read
    others = {key: value for key, value in options.items() if key != "blank"}

    def at_sites(am, lm):
        logits = joiner.output(torch.tanh(am + lm)) * joiner.scale
        return logits if recorded else there_and_back(logits)

    costs = pruned_transducer_loss(
        at_sites, inputs["am"], inputs["lm"], symbols, ranges, options.get("blank", 0), boundary,
        reduction="none", adjoint_tolerance=0.0, **others,
    )  # fmt: skip
    expected, expected_grads = cases.oracle(joiner, inputs, kind, ranges=ranges)
    assert expected.isfinite().all()
    cases.assert_close([costs], [expected], 1e-12)
    cases.assert_close(cases.gradients(costs, inputs, joiner), expected_grads, 1e-11)
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_by_calls) == (int(recorded), int(not recorded))


def options_of(kind):
    """The loss's options from an oracle's."""
    options = {"blank": kind.blank, "clamp": kind.clamp, "fastemit_lambda": kind.fastemit_lambda}
    options |= {"sigma": kind.sigma, "delay_penalty": kind.delay_penalty}
    if kind.rnnt_type == "one_sym_per_frame":
        options["one_sym_per_frame"] = True
    else:
        options["rnnt_type"] = kind.rnnt_type
    return options | {
        "use_hat_loss": kind.head == "hat",
        "durations": kind.durations or None,
        "big_blank_durations": kind.big_blank_durations or None,
    }


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_published_vectors(vector):
    logits = vector.logits.double()
    B, T, states, _ = logits.shape
    table = logits.clone().requires_grad_()

    class Looked(nn.Module):
        """Gives the vector's logits of a site, which am and lm number."""

        def forward(self, am, lm):
            b, t, u = am[..., 0].long(), am[..., 1].long(), lm[..., 0].long()
            return table[b, t, u]

    frame = torch.stack(
        torch.meshgrid(torch.arange(B), torch.arange(T), indexing="ij"), dim=-1
    ).double()
    state = torch.arange(states).double().expand(B, states).unsqueeze(-1)
    costs = transducer_loss(
        Looked(), frame.unsqueeze(2), state.unsqueeze(1), vector.targets, vector.logit_lengths,
        vector.target_lengths, reduction="none", **options_of(vector.kind),
    )  # fmt: skip
    torch.testing.assert_close(costs, vector.costs.double(), rtol=0, atol=vector.cost_tolerance)
    if vector.grad is not None and not vector.is_by_log_probs:
        (grad,) = torch.autograd.grad(costs.sum(), table)
        torch.testing.assert_close(grad, vector.grad.double(), rtol=0, atol=vector.grad_tolerance)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction):
    options, kind = KINDS["clamp_fastemit"]
    joiner, inputs = cases.PlacingJoiner().double(), batch(kind)
    costs = full(joiner, inputs, **options)
    loss = full(joiner, inputs, **{**options, "reduction": reduction})
    torch.testing.assert_close(loss, getattr(costs, reduction)())
    # A clamp comes before the mean.
    leaves = [inputs["am"], *joiner.parameters()]
    reduced = torch.autograd.grad(loss, leaves)
    by_hand = torch.autograd.grad(getattr(costs, reduction)(), leaves)
    torch.testing.assert_close(reduced, by_hand)


def test_nothing_of_the_lattice_is_made():
    torch.manual_seed(0)
    classes, frames, states = 301, 40, 12
    joiner = nn.Linear(D, classes)
    am, lm = torch.randn(2, frames, D, requires_grad=True), torch.randn(2, states, D)
    targets = torch.randint(1, classes, (2, states - 1))
    lengths = torch.tensor([frames, 30]), torch.tensor([states - 1, 4])

    def call(e, d):
        return joiner(torch.tanh(e.unsqueeze(2) + d.unsqueeze(1)))

    for joint in (call, lambda e, d: there_and_back(call(e, d))):
        with LargestTensor() as largest:
            transducer_loss(joint, am, lm, targets, *lengths, workspace_mib=0.06).backward()
        assert largest.bytes <= 0.06 * 2**20 + 4 * classes
    assert panda_icefall.status().losses_routed == 1
    assert panda_icefall.status().losses_by_calls == 1


def test_sites_that_do_not_matter_have_no_backward():
    """A model that is sure has its occupation on few sites."""
    frames, states = 60, 20
    am = torch.zeros(1, frames, states + 1)
    am[0, torch.arange(frames), torch.arange(frames) * (states + 1) // frames] = 60.0
    lm = 60 * torch.eye(states + 1).unsqueeze(0)
    weight = torch.eye(states + 1, requires_grad=True)

    def joiner(e, d):
        return torch.tanh(e.unsqueeze(2) + d.unsqueeze(1) - 90).matmul(40 * weight)

    targets = torch.arange(1, states + 1).unsqueeze(0) % (states + 1)
    loss = transducer_loss(joiner, am, lm, targets, torch.tensor([frames]), torch.tensor([states]))
    loss.backward()
    status = panda_icefall.status()
    assert status.sites == frames * (states + 1)
    assert status.sites_backward < 0.5 * status.sites
    assert status.adjoint_mass_skipped <= 2**-24 * status.adjoint_mass


def test_omega_chooses_the_loss_of_the_tokens():
    kind = cases.LossKind(durations=(0, 1, 2))
    joiner, inputs = cases.PlacingJoiner().double(), batch(kind)
    costs = full(joiner, inputs, durations=[0, 1, 2], omega=1.0, sigma=0.3)
    logits = joiner(inputs["am"], inputs["lm"])[..., :-3]
    lengths = inputs["logit_lengths"], inputs["target_lengths"]
    expected = cases.transducer_costs(logits, inputs["targets"], *lengths, cases.LossKind())
    torch.testing.assert_close(costs, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(costs.sum(), joiner.output.weight)[0]
    assert (grads[-3:] == 0).all()
    assert (grads[:-3] != 0).any()


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_no_utterance_has_no_loss(is_recorded, reduction):
    inputs = {key: value[:0] for key, value in batch(cases.LossKind()).items()}
    joiner = cases.PlacingJoiner().double()
    loss = full(joiner if is_recorded else Unrecordable(joiner), inputs, reduction=reduction)
    assert loss.sum() == 0
    assert (torch.autograd.grad(loss.sum(), joiner.output.weight)[0] == 0).all()


def test_a_wide_joiner_that_cannot_be_recorded_stays_within_the_workspace():
    torch.manual_seed(0)
    wide, narrow = nn.Linear(D, 512), nn.Linear(512, 7)
    inputs = torch.randn(2, 30, D, requires_grad=True), torch.randn(2, 6, D)
    targets = torch.randint(1, 7, (2, 5))
    lengths = torch.tensor([30, 20]), torch.tensor([5, 2])

    def joiner(am, lm):
        return narrow(there_and_back(wide(am.unsqueeze(2) + lm.unsqueeze(1))))

    with LargestTensor() as largest:
        transducer_loss(joiner, *inputs, targets, *lengths, workspace_mib=0.1).backward()
    assert largest.bytes <= 0.1 * 2**20
    assert panda_icefall.status().losses_by_calls == 1


def test_a_joiner_that_once_raised_is_recorded_again():
    class Choosy(cases.PlacingJoiner):
        def forward(self, am, lm):
            assert am.shape[-1] == D
            return super().forward(am, lm)

    joiner, inputs = Choosy().double(), batch(cases.LossKind())
    narrow = {**inputs, "am": inputs["am"][..., :-1], "lm": inputs["lm"][..., :-1]}
    with pytest.raises(AssertionError):
        full(joiner, narrow)
    full(joiner, inputs)
    assert panda_icefall.status().losses_routed == 1


def test_a_joiner_s_own_error_is_its_own():
    def joiner(e, d):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        full(joiner, batch(cases.LossKind()))


def test_torch_is_put_back():
    before = nn.Module.__call__, torch.autograd.backward
    full(cases.PlacingJoiner().double(), batch(cases.LossKind()))
    assert (nn.Module.__call__, torch.autograd.backward) == before
