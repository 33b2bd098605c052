"""Figures on small frames: labelled axes, data drawn as given, bad input refused."""

from collections.abc import Callable
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nemo_kit import plots
from nemo_kit.plots import style

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 255, (2, 3, 8, 8, 3), dtype=np.uint8)  # [prompts, seeds, H, W, 3]
GROUPED = {"prompt": ["a", "b", "c", "d"], "group": ["VM", "VM", "TM", "non-memorized"]}


def scores() -> pd.DataFrame:
    return (
        pd.DataFrame(GROUPED | {"score": [0.9, 0.7, 0.6, 0.2]})
        .loc[[0, 0, 1, 2, 2, 3, 3]]
        .assign(score=[0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1])
    )


def held() -> pd.DataFrame:
    more = pd.DataFrame({"prompt": ["e", "f"], "group": "hold-out", "score": [0.1, 0.3]})
    return pd.concat([scores(), more], ignore_index=True)


def activations() -> pd.DataFrame:
    rows = [(p, g, layer, neuron, z)
            for p, g in zip(GROUPED["prompt"], GROUPED["group"], strict=True)
            for layer in (1, 2)
            for neuron, z in enumerate((0.1, -7.0 if g == "VM" else 1.0, 0.5))]  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt", "group", "layer", "neuron", "z"])


def counts() -> pd.DataFrame:
    return pd.DataFrame(GROUPED | {"initial": [9, 2, 30, 0], "refined": [1, 1, 3, 0]})


def layered() -> pd.DataFrame:
    frame = pd.DataFrame(GROUPED)[:3].merge(pd.DataFrame({"layer": [1, 2]}), how="cross")
    return frame.assign(neurons=[1, 0, 3, 0, 2, 5])


def costs() -> pd.DataFrame:
    frame = pd.DataFrame(GROUPED)[:3].merge(pd.DataFrame({"algorithm": ["1", "2"]}), how="cross")
    return frame.assign(seconds=[1.0, 2, 3, 4, 5, 6], samples=[10, 0, 20, 0, 30, 0])


def shared() -> pd.DataFrame:
    return pd.DataFrame({"layer": [3, 1], "neuron": [7, 2], "prompts": [2, 5]})


def truth() -> pd.DataFrame:
    return pd.DataFrame({"prompt": ["a", "b"], "hit": [2, 1], "missed": [0, 1], "extra": [3, 0]})


def dose() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": list("abcd"),
            "repetitions": [1, 1, 100, 100],
            "score": [0.1, 0.3, 0.8, 0.6],
            "copies": [0, 0, 1, 0.5],
            "neurons": [np.nan, np.nan, 4, 6],
        }
    )


def stages() -> pd.DataFrame:
    frame = activations()[lambda f: f.prompt == "a"]
    return frame.assign(stage=["other", "refined", "other", "other", "candidate", "other"])


FRAMES: dict[str, tuple[Callable[..., Figure], Callable[[], pd.DataFrame], list[str]]] = {
    "pairwise_density": (plots.pairwise_density, scores, ["prompt", "group", "score"]),
    "roc": (plots.roc, scores, ["prompt", "group", "score"]),
    "calibration": (
        lambda f: plots.calibration(f, 0.2, 0.1, 0.3),
        held,
        ["prompt", "group", "score"],
    ),
    "z_density": (plots.z_density, activations, ["prompt", "group", "layer", "z"]),
    "extreme_neurons": (
        plots.extreme_neurons,
        activations,
        ["prompt", "group", "layer", "neuron", "z"],
    ),
    "neuron_histogram": (plots.neuron_histogram, counts, ["prompt", "group", "refined"]),
    "neurons_by_layer": (
        plots.neurons_by_layer,
        layered,
        ["prompt", "group", "layer", "neurons"],
    ),
    "runtime_table": (
        plots.runtime_table,
        costs,
        ["prompt", "group", "algorithm", "seconds", "samples"],
    ),
    "shared_neuron_counts": (plots.shared_neuron_counts, shared, ["layer", "neuron", "prompts"]),
    "ground_truth": (plots.ground_truth, truth, ["prompt", "hit", "missed", "extra"]),
    "dose_response": (
        plots.dose_response,
        dose,
        ["prompt", "repetitions", "score", "copies", "neurons"],
    ),
    "workflow": (
        lambda f: plots.workflow(f, PICTURES[0, 0], PICTURES[0], PICTURES[1], "a $5 prompt"),
        stages,
        ["layer", "neuron", "z", "stage"],
    ),
}
PLAIN = {"runtime_table"}  # a table has no axis to label


def drawn(figure: Figure, place: int = 0) -> Axes:
    return figure.axes[place]


# ------------------------------------------------------------------------ what all figures do


@pytest.mark.parametrize("name", FRAMES)
def test_axes_are_labelled_and_texts_keep_apart(name: str) -> None:
    draw, frame, _ = FRAMES[name]
    figure = draw(frame())
    for axes in figure.axes:
        if name not in PLAIN and not axes.images:
            shared = axes.get_shared_x_axes().get_siblings(axes)
            assert any(one.get_xlabel() for one in shared), name
            beside = axes.get_shared_y_axes().get_siblings(axes)
            assert axes.get_ylabel() or any(b.get_yticklabels() for b in beside) or shared[1:], name
    figure.draw_without_rendering()
    assert figure.get_tightbbox().width <= figure.get_figwidth() + 0.3  # saved about as wide
    boxes = {text: text.get_window_extent() for text in written(figure)}
    for one, other in combinations(boxes, 2):
        assert not boxes[one].padded(-1).overlaps(boxes[other].padded(-1)), (one, other)


def written(figure: Figure) -> list[mpl.text.Text]:
    """The texts that can be seen, without tick labels beyond an axis's ends."""
    ticks, inside = set(), set()
    for axis in [a for axes in figure.axes for a in (axes.xaxis, axes.yaxis)]:
        every = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        ticks |= {label for tick in every for label in (tick.label1, tick.label2)}
        if axis.axes.axison:
            inside |= {tick.label1 for tick in axis._update_ticks()}
    found = [t for t in figure.findobj(mpl.text.Text) if t.get_text().strip() and t.get_visible()]
    return [text for text in found if text not in ticks or text in inside]


@pytest.mark.parametrize(("name", "column"), [(n, c) for n, row in FRAMES.items() for c in row[2]])
def test_a_missing_column_is_named(name: str, column: str) -> None:
    draw, frame, _ = FRAMES[name]
    with pytest.raises(ValueError, match=f"frame lacks {column}; needed are .*{column}"):
        draw(frame().drop(columns=column))


@pytest.mark.parametrize("name", sorted(set(FRAMES) - {"ground_truth"}))
def test_an_empty_frame_is_refused(name: str) -> None:
    draw, frame, _ = FRAMES[name]
    with pytest.raises(ValueError, match="frame has no rows"):
        draw(frame()[:0])


@pytest.mark.parametrize("name", [n for n, row in FRAMES.items() if "group" in row[2]])
def test_an_unknown_group_is_refused(name: str) -> None:
    draw, frame, _ = FRAMES[name]
    with pytest.raises(ValueError, match=r"group must be one of VM, TM, .* got \['verbatim'\]"):
        draw(frame().assign(group="verbatim"))


@pytest.mark.parametrize("name", FRAMES)
def test_the_frame_and_matplotlib_s_settings_stay_as_they_were(name: str) -> None:
    draw, frame, _ = FRAMES[name]
    given, settings = frame(), dict(mpl.rcParams)
    draw(given)
    pd.testing.assert_frame_equal(given, frame())
    assert dict(mpl.rcParams) == settings


def test_figures_are_the_same_bytes_twice(tmp_path: object) -> None:
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in files:
        plots.extreme_neurons(activations()).savefig(path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_notebook_shows_the_figure_without_pyplot() -> None:
    figure = plots.neuron_histogram(counts())
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert not pyplot.get_fignums()


# ------------------------------------------------------------------------------- detection


def test_density_is_the_kernel_estimate_of_the_rows() -> None:
    from scipy.stats import gaussian_kde

    figure = plots.pairwise_density(scores(), threshold=0.4)
    lines = {line.get_label(): line.get_xydata() for line in drawn(figure).lines}
    x, y = lines["VM (n = 2)"].T
    inside = (x > 0.3) & (x < 0.99)
    assert y[inside] == pytest.approx(gaussian_kde([0.9, 0.8, 0.7])(x[inside]), rel=0.02)
    assert any(line.get_xdata()[0] == 0.4 for line in drawn(figure).lines)


def test_density_of_a_single_value_is_a_line() -> None:
    frame = scores().assign(score=0.5)
    figure = plots.pairwise_density(frame)
    assert [line.get_xdata()[0] for line in drawn(figure).lines] == [0.5] * 3


def test_roc_draws_the_curve_by_hand_and_the_operating_point() -> None:
    frame = pd.DataFrame(
        {"prompt": list("abcd"), "group": ["VM", "VM", "non-memorized", "non-memorized"]}
    ).assign(score=[0.9, 0.4, 0.5, 0.1])
    figure = plots.roc(frame, threshold=0.45)
    curve, point = drawn(figure).lines[:2]
    assert curve.get_label() == "VM (n = 2), AUROC 0.750"
    edge = 0.25  # half a false alarm of two
    assert curve.get_xdata().tolist() == [edge, edge, 0.5, 0.5, 1]
    assert curve.get_ydata().tolist() == [0, 0.5, 0.5, 1, 1]
    assert point.get_xydata().tolist() == [[0.5, 0.5]]


def test_roc_needs_non_memorized_prompts() -> None:
    with pytest.raises(ValueError, match=r"rows of group non-memorized .* got none"):
        plots.roc(scores()[lambda f: f.group == "VM"])


def test_calibration_draws_counts_lines_and_shares() -> None:
    figure = plots.calibration(
        held(), mean=0.2, std=0.1, threshold=0.3, unit="prompt", measure="MS-SSIM"
    )
    left, right = figure.axes
    assert sum(patch.get_height() for patch in left.patches) == 2
    places = [line.get_xdata()[0] for line in left.lines]
    assert places == pytest.approx([0.1, 0.2, 0.4, 0.3])
    assert left.get_xlabel() == "memorization score of a prompt (MS-SSIM)"
    share = next(line for line in right.lines if line.get_label() == "VM (n = 2)")
    at = dict(zip(share.get_xdata().round(3), share.get_ydata(), strict=True))
    assert [at[0.65], at[0.75], at[0.95]] == pytest.approx([1, 2 / 3, 0])
    with pytest.raises(ValueError, match="rows of group hold-out, got none"):
        plots.calibration(scores(), 0.2, 0.1, 0.3)


def test_noise_differences_are_shown_as_they_are() -> None:
    values = RNG.random((3, 4, 6, 6))
    figure = plots.noise_differences({"memorized": values, "other": values}, {"memorized": 0.7})
    image = drawn(figure).images[0].get_array()
    assert np.array_equal(image[:, :6], (values[0, :3].transpose(1, 2, 0) * 255).round())
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts == ["memorized\nscore 0.70", "other"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": np.zeros((2, 2, 4, 4))}, r"rows\['a'\] must have shape .* got \[2, 2, 4, 4\]"),
        ({"a": np.full((2, 4, 4, 4), 1.5)}, r"rows\['a'\] must lie in \[0, 1\], got 1.5"),
        ({"a": np.zeros((2, 4, 4, 4)), "b": np.zeros((3, 4, 4, 4))}, "same number of seeds"),
        ({}, "at least one row"),
    ],
)
def test_noise_differences_refuse(rows: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.noise_differences(rows)


# ----------------------------------------------------------------------------- activations


def test_z_density_is_the_histogram_of_the_layer() -> None:
    figure = plots.z_density(activations(), layer=2)
    stairs = {patch.get_label(): patch.get_data() for patch in drawn(figure).patches}
    values, edges, _ = stairs["VM (n = 2)"]
    assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    assert values[0] * (edges[1] - edges[0]) == pytest.approx(1 / 3)  # one neuron of three at -7
    assert edges[[0, -1]].tolist() == pytest.approx([-7, 1])
    with pytest.raises(ValueError, match=r"layer must be one of \[.*1.*2.*\], got 9"):
        plots.z_density(activations(), layer=9)


def test_extreme_neurons_draw_the_largest_z_of_each_prompt() -> None:
    figure = plots.extreme_neurons(activations())
    points = {line.get_label(): line.get_ydata() for line in drawn(figure).lines}
    assert points["VM (n = 2)"].tolist() == [7] * 4  # two prompts, two layers
    assert points["TM (n = 1)"].tolist() == [1] * 2
    names = [text.get_text() for text in drawn(figure).texts]
    assert names[:2] == ["#1", "#1"]


def test_furthest_keeps_one_row_a_prompt_and_layer() -> None:
    rows = plots.furthest(activations())
    assert len(rows) == 8
    assert set(rows.neuron) == {1}


# --------------------------------------------------------------------------------- neurons


def test_histogram_counts_prompts_by_their_number_of_neurons() -> None:
    figure = plots.neuron_histogram(counts()[:3], "refined")
    heights = [[patch.get_height() for patch in axes.patches] for axes in figure.axes]
    assert heights == [[0, 2, 0, 0], [0, 0, 0, 1]]  # VM: twice one neuron; TM: once three
    assert figure.axes[0].patches[1].get_x() == 0.5
    assert figure.axes[1].get_xlabel() == "refined neurons of a prompt"


def test_histogram_shows_the_small_numbers_apart_where_some_are_large() -> None:
    frame = counts().assign(initial=[3, 400, 7, 0])
    figure = plots.neuron_histogram(frame[:3], "initial", detail=50)
    assert len(figure.axes) == 4
    detail = figure.axes[1]
    assert sum(patch.get_height() for patch in detail.patches) == 1  # 3; not 400
    assert detail.get_xlim() == (-0.5, 50.5)
    total = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert total == 2


def test_histogram_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="refined must be counts, 0 or more, got -1"):
        plots.neuron_histogram(counts().assign(refined=-1))


def test_bars_by_layer_are_means() -> None:
    figure = plots.neurons_by_layer(layered())
    heights = [patch.get_height() for patch in drawn(figure).patches]
    assert heights == [2, 0, 2, 5]  # VM layers 1 and 2: means of (1, 3), (0, 0); TM: 2 and 5
    assert drawn(figure).get_xticks().tolist() == [1, 2]


def test_runtime_summary_is_the_mean_with_totals() -> None:
    table = plots.runtime_summary(costs()).set_index(["group", "algorithm"])
    assert table.loc[("VM", "1")].tolist() == [2, 15, 2]
    assert table.loc[("VM", "total")].tolist() == [5, 15, 2]
    assert table.loc[("TM", "total")].tolist() == [11, 30, 1]


def test_runtime_table_writes_the_summary() -> None:
    texts = [text.get_text() for text in drawn(plots.runtime_table(costs())).texts]
    assert texts[:2] == ["VM (n = 2)", "TM (n = 1)"]
    assert texts[-5:] == ["total", "5.00", "15", "11.00", "30"]


def test_shared_neurons_come_most_frequent_first() -> None:
    axes = drawn(plots.shared_neuron_counts(shared()))
    assert [patch.get_width() for patch in axes.patches] == [5, 2]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["layer 1, #2", "layer 3, #7"]
    assert len(drawn(plots.shared_neuron_counts(shared(), most=1)).patches) == 1


def test_neurons_of_one_prompt_are_drawn_only_where_none_is_shared() -> None:
    some = shared().assign(prompts=[1, 5])
    assert len(drawn(plots.shared_neuron_counts(some)).patches) == 1
    assert len(drawn(plots.shared_neuron_counts(some.assign(prompts=1))).patches) == 2


def test_ground_truth_stacks_hits_and_misses_beside_extras() -> None:
    left, right = plots.ground_truth(truth()).axes
    spans = [[(p.get_x(), p.get_width()) for p in axes.patches] for axes in (left, right)]
    assert spans == [[(0, 2), (0, 1), (2, 0), (1, 1)], [(0, 3), (0, 0)]]


def test_ground_truth_says_where_no_neurons_are_known() -> None:
    axes = drawn(plots.ground_truth(truth()[:0]))
    assert [text.get_text() for text in axes.texts] == ["no prompt with known neurons"]


# ------------------------------------------------------------------------------------ dose


def test_dose_response_joins_the_means_of_each_rate() -> None:
    figure = plots.dose_response(dose(), threshold=0.4)
    points, means = drawn(figure).lines[:2]
    assert points.get_ydata().tolist() == [0.1, 0.3, 0.8, 0.6]
    assert means.get_xdata().tolist() == [1, 100]
    assert means.get_ydata().tolist() == pytest.approx([0.2, 0.7])
    assert drawn(figure, 2).lines[0].get_ydata().tolist() == [4, 6]  # without the NaN rows
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    with pytest.raises(ValueError, match="repetitions must be above 0, got 0"):
        plots.dose_response(dose().assign(repetitions=0))


def test_dose_response_without_any_localized_prompt() -> None:
    figure = plots.dose_response(dose().assign(neurons=np.nan))
    assert len(drawn(figure, 2).lines[0].get_ydata()) == 0


# -------------------------------------------------------------------------------- pictures


def test_interventions_show_the_pictures_they_were_given() -> None:
    figure = plots.interventions(
        PICTURES[:, 0], PICTURES, PICTURES[::-1], ["cat $1", "dog"], [3, "layer 1\n#2"]
    )
    training, before, after = (figure.axes[i].images[0].get_array() for i in range(3))
    assert np.array_equal(training, PICTURES[0, 0])
    assert np.array_equal(before[:, :8], PICTURES[0, 0])
    assert np.array_equal(before[:, 9:17], PICTURES[0, 1])  # one white column between
    assert np.array_equal(after[:, :8], PICTURES[1, 0])
    texts = [text.get_text() for text in figure.texts]
    assert {"3", "layer 1\n#2", "cat $1", "dog", "training", "neurons deactivated"} <= set(texts)


def test_interventions_without_training_images() -> None:
    figure = plots.interventions(None, PICTURES, PICTURES, ["a", "b"], [1, 2], "shared neuron off")
    assert len(figure.axes) == 4
    texts = [text.get_text() for text in figure.texts]
    assert "shared neuron off" in texts
    assert "training" not in texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"before": PICTURES[0]}, r"must both be \[P, S, H, W, 3\], got \[3, 8, 8, 3\]"),
        ({"after": PICTURES / 255}, "after must be uint8 .* got float64"),
        ({"prompts": ["a"]}, "one entry a prompt .* before 2, prompts 1"),
    ],
)
def test_interventions_refuse(change: dict, message: str) -> None:
    given = {"before": PICTURES, "after": PICTURES, "prompts": ["a", "b"], "boxes": [1, 2]}
    with pytest.raises(ValueError, match=message):
        plots.interventions(None, **(given | change))


def test_workflow_marks_candidates_and_refined_neurons() -> None:
    figure = plots.workflow(stages(), PICTURES[0, 0], PICTURES[0], PICTURES[1], "cat")
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    assert lines["refined (1)"].get_ydata().tolist() == [-7.0]
    assert lines["2  candidates (2)"].get_ydata().tolist() == [-7.0]  # the refined one is one
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["training image", "1  generated", "", "3  1 neuron off"]
    with pytest.raises(ValueError, match=r"stage must be other, candidate or refined, got \['x'\]"):
        plots.workflow(stages().assign(stage="x"), None, PICTURES[0], PICTURES[1], "cat")


# ----------------------------------------------------------------------------------- style


def test_labels_are_one_short_line_of_signs_the_font_has() -> None:
    assert style.plain("a\n b") == "a b"
    assert style.plain("x" * 80, 10) == "x" * 9 + "…"
    assert style.plain("猫 cat") == "□ cat"


def test_group_colours_differ_in_grey_or_in_line_and_marker() -> None:
    looks = list(style.GROUPS.values())
    for attribute in ("colour", "line", "marker", "hatch"):
        assert len({getattr(look, attribute) for look in looks}) == len(looks)


def test_tile_puts_pictures_in_rows() -> None:
    page = style.tile(PICTURES[0], columns=2)
    assert page.shape == (17, 17, 3)
    assert np.array_equal(page[9:, :8], PICTURES[0, 2])
    assert (page[9:, 9:] == 255).all()


# ------------------------------------------------------------------------- honest scales


def thresholds(median: list[float]) -> pd.DataFrame:
    pairs = {"initial": ["μ", "μ", "μ + σ"], "refinement": ["μ", "μ + σ", "μ + σ"]}
    return pd.DataFrame({"group": "VM", **pairs, "median": median, "mad": 0.5, "prompts": 3})


@pytest.mark.parametrize(
    ("median", "digits", "limits", "first"),
    [
        ([2.0, 2.0, 2.0], 0, (0, 2), "2\n± 0.5"),
        ([-0.25, 0.0, 0.004], 2, (-0.25, 1), "−0.25\n± 0.50"),
    ],
)
def test_a_threshold_map_is_shaded_from_0_to_at_least_1(
    median: list[float], digits: int, limits: tuple[float, float], first: str
) -> None:
    axes = drawn(plots.threshold_map(thresholds(median), "what", digits))
    assert axes.collections[0].get_clim() == limits
    assert axes.texts[0].get_text() == first
    colours = [text.get_color() for text in axes.texts]
    assert colours == ["black" if digits == 0 else "white"] * 3


def test_histograms_of_both_groups_have_one_scale() -> None:
    high, low = plots.neuron_histogram(counts()[:3], "refined").axes
    assert high.get_ylim() == low.get_ylim() == (0, pytest.approx(2.1))
    frame = counts().assign(initial=[3, 400, 7, 0])
    wide = plots.neuron_histogram(frame[:3], "initial", detail=50).axes[2]
    assert wide.get_xlabel() == "initial neurons of a prompt (7 numbers a bar)"


def test_similarities_over_layers_begin_at_0() -> None:
    frame = pd.DataFrame({"kind": ["none", "value", "key"], "layer": [0, 1, 1], "block": "mid"})
    frame = frame.assign(prompt="a", group="VM", reference="training image")
    figure = plots.layer_effects(frame.assign(median=0.8, maximum=0.9, alignment=0.7))
    limits = [axes.get_ylim() for axes in figure.axes]
    assert [low for low, _ in limits] == [0, 0, 0]
    assert limits[0] == limits[1]


def test_many_rows_of_pictures_fit_on_a_page() -> None:
    images = np.repeat(PICTURES[None, :1, :1], 30, axis=0)
    figure = plots.picture_rows(images, [f"row {i}" for i in range(30)], ["a"])
    assert figure.get_figheight() == pytest.approx(9)
