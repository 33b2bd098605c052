"""The house style, grids of pictures, tables."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_kit import plots
from nemo_kit.plots.style import row_of, show

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    with mpl.rc_context():
        yield
    plt.close("all")


def images(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, (*shape, 8, 8, 3), dtype=np.uint8)


def scores() -> pd.DataFrame:
    groups = ["VM", "VM", "TM", "non-memorized"]
    return pd.DataFrame({"prompt": list("aabc"), "group": groups, "score": [0.9, 0.8, 0.6, 0.2]})


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for one in (figure, *figure.axes) for text in one.texts]


# ----------------------------------------------------------------------------------- style


def test_style_sets_what_pyplot_and_seaborn_draw_with() -> None:
    plots.style()
    fig, ax = plt.subplots()
    assert tuple(fig.get_size_inches()) == (plots.COLUMN, 2.4)
    assert fig.get_layout_engine() is not None
    assert not ax.spines["top"].get_visible()
    assert plt.gcf() is fig, "a figure of pyplot, as everywhere"


def luminance(colour: str) -> float:
    part = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_groups_keep_apart_in_grey_and_from_white() -> None:
    three = [luminance(plots.PALETTE[name]) for name in ("TM", "VM", "non-memorized")]
    assert three == sorted(three)
    assert all(1.05 / (light + 0.05) >= 2.9 for light in three)  # contrast of lines with white
    assert min(np.diff(three)) > 0.05
    assert len(set(plots.MARKERS.values())) == len(plots.PALETTE)


def test_a_legend_tells_the_number_of_prompts_of_each_group() -> None:
    plots.style()
    fig, ax = plt.subplots()
    sns.histplot(scores(), x="score", hue="group", palette=plots.PALETTE, bins=4, ax=ax)
    plots.legend(ax, scores())
    assert ax.get_legend() is None
    assert [text.get_text() for text in fig.legends[0].texts] == [
        "VM (n = 1)", "TM (n = 1)", "non-memorized (n = 1)"
    ]  # fmt: skip
    _, other = plt.subplots()
    other.plot([0, 1], label="a line")
    plots.legend(other)
    assert [text.get_text() for text in other.figure.legends[0].texts] == ["a line"]


def test_a_prompt_as_a_label_is_one_line_and_no_formula() -> None:
    assert plots.plain("a\n $5 to\t$6 😀") == r"a \$5 to \$6 😀"
    assert plots.plain("x" * 99, 10) == "x" * 9 + "…"
    assert "□" in plots.plain("\U0001fae8")


# -------------------------------------------------------------------------------- pictures


def test_pictures_stand_beside_one_another() -> None:
    four = images(4)
    assert np.array_equal(row_of(four)[:, 9:17], four[1])
    _, ax = plt.subplots()
    show(ax, four, columns=2)
    drawn = ax.images[0].get_array()
    assert drawn.shape == (17, 17, 3)  # two rows of two, a pixel between
    assert np.array_equal(drawn[9:, 9:], four[3])
    show(ax, images(3), columns=2)
    assert (ax.images[-1].get_array()[9:, 9:] == 255).all()


def test_noise_differences_become_pictures() -> None:
    noise = np.zeros((2, 4, 5, 6))
    noise[:, 1] = 1
    pictures = plots.noise_pictures(noise)
    assert pictures.shape == (2, 5, 6, 3)
    assert pictures[0, 0, 0].tolist() == [0, 255, 0]
    for bad in (noise[0], noise[:, :2], noise - 1, noise * np.nan):
        with pytest.raises(ValueError, match="differences must"):
            plots.noise_pictures(bad)


def rows() -> list[list[Any]]:
    return [[images(), images(3), "3", images(3)], [None, images(3), "layer 3\n#7", images(3)]]


def test_rows_of_pictures_with_words_beside_and_between() -> None:
    figure = plots.picture_rows(
        rows(), headings=["training", "generated", "neurons", "off"],
        captions=["a $5 prompt", "a red cup on a table, " * 30],
    )  # fmt: skip
    got = texts(figure)
    assert {"training", "neurons", "3", "layer 3\n#7", r"a \$5 prompt"} <= set(got)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == 5  # nothing where there is no training image
    figure.draw_without_rendering()
    assert figure.get_figwidth() == pytest.approx(plots.TEXT)
    assert figure.get_tightbbox().width <= plots.TEXT + 0.05
    sizes = {tuple(np.round(axes.get_position().size[1:], 3)) for axes in drawn}
    assert len(sizes) == 1


def test_pictures_are_no_larger_than_asked_and_fit_the_page() -> None:
    figure = plots.picture_rows([[images(2)]] * 40, labels=[f"value {n}" for n in range(40)])
    assert figure.get_figheight() <= 9.1
    small = plots.picture_rows([[images(2), None]], headings=["a long prompt " * 9, ""], side=0.5)
    assert small.get_figwidth() < 1.3
    assert texts(small)[0].count("\n") == 1
    assert "…" in texts(small)[0]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([["3"]], {}, "at least one picture, got none"),
        ([[images(2)], [images(2), "x"]], {}, "row 2 must have 1 entries, got 2"),
        ([[images(2)]], {"headings": ["a", "b"]}, "headings must have 1 entries, got 2"),
        ([[images(2)]], {"labels": ["a", "b"]}, "labels must have 1 entries, got 2"),
        ([[images(2, 2)]], {}, r"pictures must be uint8 .* got uint8 \[2, 2"),
        ([[images(2) / 255]], {}, "pictures must be uint8"),
    ],
)
def test_rows_of_pictures_refuse(given: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.picture_rows(given, **options)


# ---------------------------------------------------------------------------------- tables


def test_a_table_writes_every_cell_under_its_heading() -> None:
    pairs = [("VM (n = 2)", "seconds"), ("VM (n = 2)", "samples"), ("TM (n = 1)", "seconds")]
    cells = pd.DataFrame(
        [["1.5", "20", "2\n[1, 3]"], ["2.5", "30", "–"]], index=["1 noise", "total"],
        columns=pd.MultiIndex.from_tuples(pairs),
    )  # fmt: skip
    got = texts(plots.table(cells, "means", rules=["1 noise"], width=4.4))
    assert {"VM (n = 2)", "TM (n = 1)", "samples", "total", "2", "[1, 3]", "–", "means"} <= set(got)
    assert got.count("seconds") == 2
    with pytest.raises(ValueError, match="pairs as columns"):
        plots.table(cells.droplevel(0, axis=1))


def test_results_give_planted_and_natural_prompts_rows_of_their_own() -> None:
    columns = ["setting", "origin", "group", "measure", "prompts", "median"]
    rows = [(name, origin, "VM", "orig", count, value)
            for name in ("default", "NeMo")
            for origin, count, value in (("planted", 20, 0.9), ("natural", 10, 0.8))]  # fmt: skip
    figure = plots.results(pd.DataFrame(rows, columns=columns), rules=["default"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "VM (n = 20 planted, 10 natural)" in texts
    assert [t for t in texts if "planted" in t or "natural" in t][1:] == [
        "default, planted", "default, natural", "NeMo, planted", "NeMo, natural"
    ]  # fmt: skip
    thin = [line for line in figure.axes[0].lines if line.get_color() == "#999999"]
    assert len(thin) == 1  # below both rows of the setting
    plain = plots.results(pd.DataFrame(rows[::2], columns=columns).drop(columns="origin"))
    assert "VM (n = 20)" in {text.get_text() for text in plain.axes[0].texts}
    frame = pd.DataFrame(rows, columns=columns)
    for bad, message in (
        (frame.drop(columns="median"), "frame lacks median; it has setting, origin"),
        (frame[:0], "frame has no rows"),
        (frame.assign(group="verbatim"), r"group must be one of VM, TM, .*; got 'verbatim'"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.results(bad)
