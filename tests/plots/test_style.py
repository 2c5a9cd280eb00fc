"""Colours and labels stand in one place, so that one thing looks the same in every figure."""

import re
from pathlib import Path

import pytest

from analysis_helpers import plots
from analysis_helpers.estimators import ESTIMATORS
from analysis_helpers.plots import style
from analysis_helpers.plots.style import COLOURS


def test_every_estimator_has_a_colour_and_a_label_of_its_own() -> None:
    assert set(ESTIMATORS) <= set(COLOURS)
    assert set(ESTIMATORS) == set(style.ESTIMATOR_LABELS)
    series = [colour for colour, _ in style.SERIES]
    assert len({*COLOURS.values(), style.BACKGROUND, *series}) == len(COLOURS) + 1 + len(series)
    assert set(style.PART_COLOURS) == set(style.PART_LABELS)
    assert set(style.PART_COLOURS.values()) <= set(COLOURS.values())


def test_no_figure_has_a_colour_of_its_own() -> None:
    for path in Path(plots.__file__).parent.glob("*.py"):
        assert path.stem == "style" or not re.findall(r"#[0-9A-Fa-f]{6}\b", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("height", [2.5, 6.0])
@pytest.mark.parametrize("lines", [1, 3])
def test_a_legend_below_hides_no_label_whatever_the_height(height: float, lines: int) -> None:
    figure, (ax,) = style.panels(1)
    figure.set_figheight(height)
    ax.plot([0, 1], [0, 1], label="values")
    ax.set_xticks([0, 1], ["\n".join(["label"] * lines)] * 2, fontsize=8)
    ax.set_xlabel("numbers")
    style.legend_below(ax, 1, lines=lines)
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
    assert legend.get_window_extent().y0 >= 0
