"""Colours and labels stand in one place, so that one thing looks the same in every figure."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from analysis_helpers import Runs, entropy_trend, nonlinearity, plots
from analysis_helpers.estimators import ESTIMATORS
from analysis_helpers.inference import run_totals
from analysis_helpers.plots import style
from analysis_helpers.plots.style import COLOURS


def test_every_estimator_has_a_colour_of_its_own() -> None:
    assert set(ESTIMATORS) <= set(COLOURS)
    series = [colour for colour, _ in style.SERIES]
    assert len({*COLOURS.values(), style.BACKGROUND, *series}) == len(COLOURS) + 1 + len(series)


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
    style.describe(ax, "values", "numbers", columns=1, lines=lines)
    figure.draw_without_rendering()
    legend = ax.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0
    assert legend.get_window_extent().y0 >= 0


def test_a_figure_states_the_numbers_of_its_table_as_its_alternative_text(large_runs: Runs) -> None:
    totals, trend, off = run_totals({"E_2048": large_runs}), entropy_trend(large_runs), nonlinearity(large_runs)
    last, means = off.iloc[-1], totals[totals["eta"] == 1.6e-6][["linear", "true"]].mean()
    for figure, number in (
        (plots.plot_trend(trend, totals), f"{trend.iloc[-1]['slope'] / 1e3:+.2f}"),
        (plots.plot_nonlinearity(off, tolerance=0.25), f"{last['nonlinearity']:+.4f} ± {last['se']:.4f} (matched)"),
        (plots.plot_totals(totals), f"{means['linear'] / means['true']:.2f} (E_2048)"),
    ):
        assert isinstance(figure, style.StatedFigure)
        assert number in figure.finding
        assert "\n" not in figure.finding
        text, metadata = figure._repr_mimebundle_()  # asked for by IPython
        assert text["text/plain"] == metadata["image/png"]["alt"] == figure.finding


def test_completion_and_help_list_the_plots_alone() -> None:
    assert "plot_totals" in dir(plots)
    assert all(getattr(plots, name).__doc__.startswith("Return ") for name in dir(plots))


def test_without_rows_there_is_no_panel_and_nothing_that_a_notebook_would_show() -> None:
    assert plots.plot_decomposition(pd.DataFrame({"eta": []})).axes == []
    assert plots.plot_nonlinearity(pd.DataFrame(), tolerance=0.25).axes == []
    assert plots.plot_change_by_origin(pd.DataFrame(), 1e-6).axes == []
    assert plt.get_fignums() == []
