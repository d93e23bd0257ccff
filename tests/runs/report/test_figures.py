"""What the figures show, asked of the drawn matplotlib objects."""

import itertools
import math
import struct

import bounded_content as made
import pytest
from matplotlib.colors import to_hex

from panda_icefall.runs.report.figures import contract as contract_figure
from panda_icefall.runs.report.figures import draw_figures
from panda_icefall.runs.report.figures import loss as loss_figure
from panda_icefall.runs.report.figures import memory as memory_figure
from panda_icefall.runs.report.figures.style import COLOURS, styled

LONG = tuple(
    f"encoder.encoders.{i}.encoder.layers.{i % 3}.feed_forward1.balanced_double_swish.weight"
    for i in range(40)
)


@pytest.fixture
def drawn():
    """Draw with one of the figure modules and get the figure, laid out."""

    def draw(module, content, name=None):
        name = name or module.__name__.rsplit(".", 1)[1]
        with styled():
            figure = getattr(module, f"draw_{name}")(made.record(content))
            if figure is not None:
                figure.draw_without_rendering()
        return figure

    return draw


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def curves_by_colour(axes, count):
    """The lines of at least ``count`` points, by the arm whose colour they have."""
    names = {colour: name for name, colour in COLOURS.items()}
    return {
        names[to_hex(line.get_color())]: list(line.get_ydata())
        for line in axes.get_lines()
        if to_hex(line.get_color()) in names and len(line.get_ydata()) >= count
    }


def test_figures_are_pngs_of_some_size_and_the_same_bytes_each_time():
    figures = draw_figures(made.record(made.complete()))
    assert set(figures) == {"loss.png", "memory.png", "phases.png", "contract.png"}
    for png in figures.values():
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", png[16:24])
        assert min(width, height) > 300
        assert len(png) > 10_000
    assert draw_figures(made.record(made.complete())) == figures


def test_drawing_leaves_the_callers_matplotlib_settings_alone():
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "black"}):
        figures = draw_figures(made.record(made.complete()))
        assert matplotlib.rcParams["font.size"] == 31.0
    assert figures == draw_figures(made.record(made.complete()))


def test_nothing_measured_gives_no_figure():
    assert draw_figures(made.record(made.young())) == {}
    assert set(draw_figures(made.record(made.after_contract()))) == {"contract.png"}


def test_the_losses_and_their_differences_are_those_of_the_content(drawn):
    content = made.complete()
    curves, differences = drawn(loss_figure, content).axes
    arms = {n: [s["loss"] for s in content["arms"][n]["steps"]] for n in COLOURS}
    assert curves_by_colour(curves, 30) == arms
    expected = [abs(b - a) / abs(a) for a, b in zip(arms["dense"], arms["routed"])]
    shown = curves_by_colour(differences, 30)["routed"]
    floor = min(shown)
    assert [0.0 if y == floor else y for y in shown] == pytest.approx(expected, rel=1e-12)
    assert "identical" in [label.get_text() for label in differences.get_yticklabels()]


def test_losses_that_coincide_everywhere_are_said_to_be_identical(drawn):
    content = made.complete()
    for name in ("routed", "twin"):
        content["arms"][name]["steps"] = content["arms"]["dense"]["steps"]
    _, differences = drawn(loss_figure, content).axes
    assert texts_of(differences) == ["identical to the last bit in every step"]


def test_steps_without_a_finite_loss_are_marked(drawn):
    content = made.complete()
    content["arms"]["routed"]["steps"][20]["loss"] = math.nan
    content["arms"]["routed"]["steps"][21]["loss"] = "inf"
    curves, _ = drawn(loss_figure, content).axes
    (marks,) = [x for x in curves.get_lines() if x.get_label() == "routed: NaN or infinite"]
    assert list(marks.get_xdata()) == [21, 22]


def test_losses_that_are_all_nan_still_give_a_figure(drawn):
    content = made.complete(steps=4)
    for name in COLOURS:
        for row in content["arms"][name]["steps"]:
            row["loss"] = math.nan
    _, differences = drawn(loss_figure, content).axes
    assert texts_of(differences) == ["no step with finite losses in both runs"]


def test_rounding_does_not_fill_the_panel_of_a_constant_loss(drawn):
    curves, _ = drawn(loss_figure, made.complete(steps=1)).axes
    low, high = curves.get_ylim()
    assert high - low > 0.005 * high


def test_the_bound_of_the_trajectory_is_drawn_where_it_is_known(drawn):
    content = made.complete()
    content["trajectory"]["bound"] = 1.2e-6
    _, differences = drawn(loss_figure, content).axes
    assert "bound (1.2e-06)" in [line.get_label() for line in differences.get_lines()]


@pytest.mark.parametrize(
    ("scales", "panels"),
    [(None, 2), ([1.0] * 30, 2), ([1024.0] * 12 + [2048.0] * 18, 3)],
)
def test_the_loss_scale_is_drawn_only_where_it_moves(drawn, scales, panels):
    content = made.complete()
    content["arms"]["dense"] = made.arm("dense", grad_scales=scales)
    figure = drawn(loss_figure, content)
    assert len(figure.axes) == panels
    if panels == 3:
        assert list(figure.axes[2].get_lines()[0].get_ydata()) == scales


def test_runs_of_different_length_keep_all_their_steps_in_sight(drawn):
    content = made.complete()
    content["arms"]["routed"]["steps"] = content["arms"]["routed"]["steps"][:5]
    for module in (loss_figure, memory_figure):
        low, high = drawn(module, content).axes[0].get_xlim()
        assert low < 1
        assert high > 30


def test_memory_is_drawn_in_mib_from_zero_with_the_start_of_the_process(drawn):
    content = made.complete()
    (axes,) = drawn(memory_figure, content).axes
    for name in ("dense", "routed"):
        peaks = [s["peak_bytes"] / made.MIB for s in content["arms"][name]["steps"]]
        assert curves_by_colour(axes, 30)[name] == pytest.approx(peaks)
    assert axes.get_ylim()[0] == 0
    assert "before step 1, 412 MiB" in [line.get_label() for line in axes.get_lines()]
    assert "process RSS" in axes.get_title(loc="left")


def test_phases_are_medians_without_the_first_step_in_the_order_of_a_step(drawn):
    content = made.complete(steps=3)
    for row, peak in zip(content["arms"]["dense"]["steps"], (9000, 700, 800)):
        row["phases"]["encoder"]["peak_bytes"] = peak * made.MIB
        row["phases"]["a_hook"] = {"seconds": 0.5}
    peaks, times = drawn(memory_figure, content, "phases").axes
    phases = [label.get_text() for label in peaks.get_yticklabels()]
    assert phases == [*(p.replace("_", " ") for p in made.PHASES), "a hook"]
    dense = peaks.containers[0]
    assert dense[0].get_width() == pytest.approx(750)
    assert texts_of(peaks)[6] == "not measured"
    assert texts_of(times)[6] == "0.50"


def test_a_violated_cell_differs_from_all_others_without_colour(drawn):
    axes = drawn(contract_figure, made.violated()).axes[0]
    lightness = [sum(patch.get_facecolor()[:3]) / 3 for patch in axes.patches]
    darkest = lightness.index(min(lightness))
    assert sorted(lightness)[1] - lightness[darkest] > 0.2
    assert texts_of(axes)[darkest] == "3.1e-03"


@pytest.mark.parametrize(("factor", "is_violated"), [(1.0, False), (0.999, False), (1.001, True)])
def test_the_colour_changes_exactly_at_the_bound(drawn, factor, is_violated):
    content = made.complete()
    batch = content["contract"]["batches"][0]
    batch["loss_rel"] = made.BOUNDS["loss_rel"] * factor
    value = made.BOUNDS["gradient_rel_l2"] * factor
    batch["gradients"][0] = made.distance("encoder_embed", value)
    patches = drawn(contract_figure, content).axes[0].patches
    # The gradient is below loss, the log-probs of two pruned losses and log_z, three batches each.
    for cell in (patches[0], patches[4 * 3]):
        assert (sum(cell.get_facecolor()[:3]) / 3 < 0.4) is is_violated


def test_cells_that_are_not_numbers_are_shown_as_violations_and_noise_is_not_judged(drawn):
    content = made.complete()
    content["contract"]["batches"][0]["gradients"][0]["rel_l2"] = "nan"
    axes = drawn(contract_figure, content).axes[0]
    assert texts_of(axes)[12] == "nan"
    assert sum(axes.patches[12].get_facecolor()[:3]) / 3 < 0.4
    assert texts_of(axes).count("noise") == 3


def test_forty_long_names_neither_overlap_nor_leave_the_figure(drawn):
    content = made.complete(groups=LONG)
    content["contract"] = made.contract(updates=20, groups=LONG)
    figure = drawn(contract_figure, content)
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == 44
    boxes = [label.get_window_extent() for label in labels]
    assert min(box.x0 for box in boxes) >= 0
    spans = sorted((box.y0, box.y1) for box in boxes)
    assert all(upper[0] >= lower[1] - 1 for lower, upper in itertools.pairwise(spans))
    assert len({label.get_text() for label in labels}) == 44, "shortened names stay apart"


def test_a_group_missing_from_one_batch_leaves_its_cell_empty(drawn):
    content = made.complete()
    del content["contract"]["batches"][1]["gradients"][0]
    axes = drawn(contract_figure, content).axes[0]
    assert texts_of(axes)[13] == "\u2013"


def test_a_quantity_without_a_known_bound_is_shown_without_a_judgement(drawn):
    content = made.complete()
    del content["contract"]["tolerances"]["log_z_rel_l2"]
    content["contract"]["batches"][0]["log_z"][0]["rel_l2"] = 0.5
    axes = drawn(contract_figure, content).axes[0]
    assert texts_of(axes)[9] == "5.0e-01"
    assert sum(axes.patches[9].get_facecolor()[:3]) / 3 > 0.8
    (right,) = axes.child_axes
    assert [label.get_text() for label in right.get_yticklabels()].count("no bound") == 1
