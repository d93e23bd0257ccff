"""The simple loss's row kernels in Triton, and what a whole loss launches with and without them.

Without a GPU the kernels run in Triton's interpreter.
"""

import math

import pytest
import torch
from dispatch import Launches
from simple_losses import arguments_of as lattice_of
from simple_losses import of_projections, of_tensors, run, structure_gate, tensors, workspace_of

from panda_icefall.losses.simple_tiled import rows, source

# In the interpreter numpy tells of inf minus inf, and of what older Tritons do with it.
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


@pytest.fixture
def triton_rows():
    pytest.importorskip("triton", reason="needs triton: pip install triton")
    from panda_icefall.losses.simple_tiled import triton_rows

    return triton_rows


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).to(device())


def padded(tile):
    """The tile as a view of wider rows of NaN."""
    wide = torch.full((*tile.shape[:2], tile.shape[2] + 5), math.nan, dtype=tile.dtype)
    wide = wide.to(tile.device)
    wide[:, :, : tile.shape[2]] = tile
    return wide[:, :, : tile.shape[2]], wide[:, :, tile.shape[2] :]


N, LENGTH = 2, 5
every_width = pytest.mark.parametrize("c", [1, 3, 64, 5_001])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tolerance(dtype):
    return {"rtol": 64 * torch.finfo(dtype).eps, "atol": 64 * torch.finfo(dtype).eps}


@every_width
@every_dtype
@pytest.mark.parametrize("has_more", [True, False])
def test_a_tile_is_folded_into_the_sums_as_in_torch(triton_rows, c, dtype, has_more):
    tile = random(N, LENGTH, c, dtype=dtype) * 4
    tile[0, 1] = -math.inf  # and nothing before
    tile[0, 2] -= 100  # below the peak so far
    peak, mass, weighted = (random(N, LENGTH, seed=s, dtype=dtype) for s in (1, 2, 3))
    peak[0, 1] = peak[1, 0] = -math.inf
    bias = random(c, seed=4, dtype=torch.bfloat16) if has_more else None
    weights = random(c, seed=5, dtype=dtype) if has_more else None
    given = {"mass": mass, "weights": weights, "weighted": weighted if has_more else None}
    results = []
    for kernels in (rows, triton_rows):
        view, rest = padded(tile)
        raised = peak.clone()
        sums = {k: None if v is None else v.clone() for k, v in given.items()}
        factor = kernels.fold_(view, raised, bias, **sums)
        assert rest.isnan().all()
        results.append([view, raised, factor, sums["mass"], sums["weighted"]])
    for expected, got in zip(*results):
        if expected is not None:
            torch.testing.assert_close(got, expected, **tolerance(dtype))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_shows_in_the_sums(triton_rows, value):
    tile = random(N, LENGTH, 9)
    tile[1, 2, 4] = value
    peak, mass = torch.full((2, N, LENGTH), -math.inf, dtype=torch.float64, device=tile.device)
    mass.zero_()
    triton_rows.fold_(tile, peak, mass=mass)
    expected = torch.zeros(N, LENGTH, dtype=torch.bool)
    expected[1, 2] = True
    assert torch.equal(mass.isnan().cpu(), expected)


@every_width
@every_dtype
@pytest.mark.parametrize("has_bias", [True, False])
def test_exponentials_below_the_peak_are_those_of_torch(triton_rows, c, dtype, has_bias):
    tile, peak = random(N, LENGTH, c, dtype=dtype), random(LENGTH, N, seed=1, dtype=dtype).t()
    peak[1, 1] = tile[1, 1] = -math.inf
    bias = random(c, seed=4, dtype=torch.float16) if has_bias else None
    got, expected = (k.exp_below_(padded(tile)[0], peak, bias) for k in (triton_rows, rows))
    torch.testing.assert_close(got, expected, **tolerance(dtype))
    assert (got[1, 1] == 0).all()


@every_width
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        (torch.float32, None),
        (torch.float64, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
)
@pytest.mark.parametrize("has_more", [True, False])
def test_gradients_are_those_of_torch(triton_rows, c, dtype, out_dtype, has_more):
    grad, exp = random(N, LENGTH, c, dtype=dtype), random(N, LENGTH, c, seed=1, dtype=dtype).exp()
    shift, scale = (random(N, LENGTH, seed=s, dtype=dtype) for s in (2, 3))
    # Classes of the tile before and after, and one twice.
    ids = 7 + torch.tensor([[-2, 0, c, 0], [c - 1, c + 7, -1, c - 1]], device=grad.device)
    values = random(LENGTH, 4, N, seed=4, dtype=dtype).permute(2, 1, 0)
    more = {}
    if has_more:
        weights = random(c, seed=5, dtype=dtype)
        more = {"shift": shift, "scale": scale, "weights": weights, "selected": (ids, 7, values)}
    results = []
    for kernels in (rows, triton_rows):
        view = padded(grad)[0]
        out = view if out_dtype is None else torch.empty_like(grad, dtype=out_dtype)
        results.append(kernels.gradient_(view, padded(exp)[0], out, **more))
        assert results[-1] is out
    bounds = tolerance(dtype) if out_dtype is None else {"rtol": 2**-7, "atol": 1e-6}
    torch.testing.assert_close(results[1], results[0], **bounds)


def test_a_gradient_holds_the_selected_classes_before_it_is_rounded():
    grad, exp = torch.full((1, 1, 1), -1.0), torch.ones(1, 1, 1)
    values = torch.full((1, 1, 1), 1 + 2**-12)
    selected = torch.zeros(1, 1, dtype=torch.int64), 0, values
    out = torch.empty(1, 1, 1, dtype=torch.bfloat16)
    assert rows.gradient_(grad, exp, out, selected=selected).item() == 2**-12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "scales", "tiles", "kind"),
    [
        (of_projections, (0.1, 0.1), (2, 19), "flat"),
        (of_tensors, (0.0, 0.0), (2, 19), "flat"),
        (of_projections, (0.1, 0.1), (5, 100), "masked classes"),
        (of_tensors, (0.1, 0.1), (5, 100), "peaked"),
    ],
)
def test_a_whole_loss_in_triton_is_the_formulas(
    triton_rows, loss, scales, tiles, kind, monkeypatch
):
    workspace_bytes = workspace_of(*tiles, monkeypatch)
    more = {"workspace_bytes": workspace_bytes, "engine": "triton", "recursion": "exact"}
    structure_gate(scales, kind=kind, loss=loss, **more)


@pytest.mark.parametrize("loss", [of_projections, of_tensors])
def test_rows_of_a_ragged_tile_may_begin_where_those_of_a_full_one_would(loss, monkeypatch):
    monkeypatch.setattr(source, "ALIGNMENT", 4)
    workspace_bytes = workspace_of(2, 7, monkeypatch)
    monkeypatch.setattr(source.LogitSource, "pads_rows", True)
    structure_gate(loss=loss, workspace_bytes=workspace_bytes)


def launches_of_a_step(engine, recursion="exact", **arguments):
    data = [t.requires_grad_() for t in tensors(dtype=torch.float32)]
    lattice = lattice_of((0.25, 0.0))
    more = {"engine": engine, "recursion": recursion, "return_grad": True}
    with Launches() as counted:
        loss, _ = of_projections(*data, **lattice, **more, **arguments)
        loss.backward()
    return counted


@pytest.mark.slow
def test_a_tile_takes_few_launches_in_triton(triton_rows, monkeypatch):
    """By the difference between one class tile and two, of a single block."""
    totals = {}
    for engine in ("torch", "triton"):
        by_tiles = [
            launches_of_a_step(
                engine, workspace_bytes=workspace_of(5, c, monkeypatch, itemsize=4)
            ).total
            for c in (100, 19)
        ]
        totals[engine] = by_tiles[1] - by_tiles[0]
    # Forward: two GEMMs, two folds, two to rescale the masses, one product. Backward: two GEMMs,
    # two exponentials, two products, two gradients, and four for each projection's gradients.
    assert totals["triton"] <= 7 + 16
    assert totals["torch"] > 2 * totals["triton"]


def test_a_step_launches_no_more_than_this_in_triton(triton_rows):
    before, after = (launches_of_a_step(engine) for engine in ("torch", "triton"))
    # Folds, exponentials and gradients of am and lm, and the recursion's two.
    assert after.counts["triton"] == 2 + 2 + 2 + 2
    assert after.total <= 175
    assert before.total >= 1.6 * after.total


def test_both_engines_give_the_same_loss_and_gradients(triton_rows):
    data, arguments = tensors(dtype=torch.float32), lattice_of()
    more = {"recursion": "exact", "workspace_bytes": 2**20}
    got, expected = (
        run(of_projections, data, **arguments, **more, engine=engine)
        for engine in ("triton", "torch")
    )
    for x, ref in zip(got, expected):
        torch.testing.assert_close(x, ref, rtol=1e-4, atol=1e-5)
