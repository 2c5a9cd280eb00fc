from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch

from analysis_helpers import Comparison, Runs, check_prediction, compare_err_rel_distributions, predict_err_rel
from analysis_helpers.plots import (
    plot_err_rel_comparison,
    plot_err_rel_histograms,
    plot_prediction,
    plot_spread_by_size,
)
from tests.building import refused


@pytest.fixture(scope="module")
def comparison(large_runs: Runs, small_runs: Runs) -> Comparison:
    return compare_err_rel_distributions(large_runs, small_runs, 1.6e-6, num_samples=50, estimator="ratio")


def bars(ax: Axes) -> StepPatch:
    [patch] = [p for p in ax.patches if isinstance(p, StepPatch)]
    return patch


def test_a_comparison_is_a_histogram_of_60_bins_and_a_dashed_line_per_actual_run(comparison: Comparison) -> None:
    before = dict(plt.rcParams)
    _, own_axes = plt.subplots()
    ax = plot_err_rel_comparison(comparison, ax=own_axes)
    assert ax is own_axes
    assert len(plt.get_fignums()) == 1
    assert dict(plt.rcParams) == before  # no global style
    counts, edges, _ = bars(ax).get_data()
    assert (len(counts), counts.sum()) == (60, len(comparison.synthetic))
    assert (edges[0], edges[-1]) == (comparison.synthetic["err_rel"].min(), comparison.synthetic["err_rel"].max())
    lines = [line for line in ax.lines if str(line.get_label()).startswith("actual")]
    assert [np.asarray(line.get_xdata())[0] for line in lines] == comparison.actual["err_rel"].tolist()
    assert all(line.get_linestyle() != "-" for line in lines)
    legend = ax.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 5
    assert all((ax.get_xlabel(), ax.get_ylabel()))


@pytest.mark.parametrize(("size", "paler"), [(256, 0), (64, 4)])
def test_actual_runs_of_another_size_than_the_subsets_are_paler(comparison: Comparison, size: int, paler: int) -> None:
    ax = plot_err_rel_comparison(replace(comparison, sample_size=size))
    assert sum((line.get_alpha() or 1) < 1 for line in ax.lines) == paler


def test_histograms_have_a_panel_an_eta_on_one_scale_and_count_every_row() -> None:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"eta": [1e-6] * 300 + [2e-6] * 200, "err_rel": rng.normal(size=500)})
    axes = plot_err_rel_histograms(df, [1e-6, 2e-6 * (1 + 1e-9)], estimator="ratio").axes
    assert [bars(ax).get_data()[0].sum() for ax in axes] == [300, 200]
    assert axes[0].get_shared_y_axes().joined(*axes)
    assert np.array_equal(bars(axes[0]).get_data()[1], bars(axes[1]).get_data()[1])
    with refused("df has no row with eta 3e-06", "1e-06"):
        plot_err_rel_histograms(df, [3e-6])


def test_the_closed_form_over_a_histogram_has_the_area_of_the_bars() -> None:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"eta": 1e-6, "err_rel": rng.normal(0.5, 2.0, 3000)})
    moments = pd.DataFrame({"run": ["run_01"], "eta": [1e-6], "mean": [0.5], "sd": [2.0]})
    [ax] = plot_err_rel_histograms(df, [1e-6], estimator="ratio", moments=moments).axes
    [curve] = [line for line in ax.lines if len(np.asarray(line.get_xdata())) > 2]
    x, y = np.asarray(curve.get_xydata(), dtype=float).T
    counts, edges, _ = bars(ax).get_data()
    assert np.sum((y[1:] + y[:-1]) / 2 * np.diff(x)) == pytest.approx(np.sum(counts * np.diff(edges)), rel=0.01)
    assert x[np.argmax(y)] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("sd", "ratio"), [(1.9, ""), (1.5, "1.33"), (2.5, "0.80")])
def test_a_figure_says_where_draws_differ_from_the_closed_form_by_more_than_a_tenth(sd: float, ratio: str) -> None:
    df = pd.DataFrame({"eta": 1e-6, "err_rel": np.random.default_rng(0).normal(0.5, 2.0, 30_000)})
    moments = pd.DataFrame({"run": ["run_01"], "eta": [1e-6], "mean": [0.5], "sd": [sd]})
    compared = Comparison(1e-6, 64, "ratio", 1.0, df, df.iloc[:0].assign(run=""), pd.DataFrame())
    spread = pd.DataFrame({"n": [64, 128], "fresh": sd, "subset": sd, "drawn": [2.0, np.nan]})
    [histogram] = plot_err_rel_histograms(df, [1e-6], estimator="ratio", moments=moments).axes
    [sizes] = plot_spread_by_size(spread, 64).axes
    for ax in (histogram, plot_err_rel_comparison(compared, moments=moments), sizes):
        assert ratio in ax.get_title()
        assert ("closed form" in ax.get_title()) == bool(ratio)


def test_a_prediction_is_drawn_with_interval_runs_and_percentiles(large_runs: Runs, small_runs: Runs) -> None:
    predicted, checked = predict_err_rel(large_runs, 1.6e-6, 256), check_prediction(large_runs, small_runs, 1.6e-6)
    [ax] = plot_prediction(predicted, checked).axes
    assert all(f"{end:+.2f}" in ax.get_title() for end in predicted.interval(0.9))
    for text, row in zip(ax.texts, checked.to_dict("records"), strict=True):
        assert row["run"] in text.get_text()
        assert f"{row['pit']:.0%}" in text.get_text()
    peak = float(np.max(np.asarray(ax.lines[0].get_ydata())))
    assert peak == pytest.approx(predicted.density(np.array([predicted.mean]))[0], rel=1e-3)
    without_error = pd.DataFrame({"run": ["run_09"], "n": [99], "err_rel": [5.0], "se": [np.nan], "pit": [1.0]})
    assert plot_prediction(predicted, without_error).axes[0].get_xlim()[1] > 5
