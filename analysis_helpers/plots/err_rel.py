"""Figures of err_rel: random subsets, closed form, predictions and actual runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from statistics import NormalDist

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._checks import ETA_TOLERANCE
from ..err_rel import Comparison
from ..estimators import EstimatorName
from ..inference import Prediction, counted, low_to_high, moments_over_runs, plus_minus
from . import style

_DASHES = ("--", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # so that actual runs differ by more than their label

_NOTED_DIFFERENCE = 0.1  # of the SD in closed form: where that of the draws differs by more, the title says so


def plot_err_rel_comparison(
    comparison: Comparison,
    *,
    ax: Axes | None = None,
    moments: pd.DataFrame | None = None,
    tolerance: float | None = None,
) -> Axes:
    """Return axes with the random subsets as a histogram of 60 bins and each actual run as a dashed line.

    Parameters
    ----------
    comparison
        From `analysis_helpers.compare_err_rel_distributions`.
    ax
        Axes to draw on; None: new ones.
    moments
        From `analysis_helpers.subset_moments`, for the same subsets: the closed form, drawn over the histogram.
    tolerance
        Drawn as a band.

    Examples
    --------
    >>> from analysis_helpers import compare_err_rel_distributions, synthetic_runs
    >>> large, small = synthetic_runs(2, 512), synthetic_runs(3, 64, seed=1)
    >>> comparison = compare_err_rel_distributions(large, small, 1.6e-6, sample_size=64, num_samples=50)
    >>> plot_err_rel_comparison(comparison).get_ylabel()
    'number of subsets'
    """
    target = style.panels(1)[1][0] if ax is None else ax
    estimator, size, subsets = comparison.estimator, comparison.sample_size, comparison.synthetic["err_rel"]
    style.histogram(target, subsets, estimator, f"subsets of {size} drawn from large runs")
    title = f"{_spread(estimator, comparison.eta, subsets)}; {_nearness(comparison)}"
    if moments is not None:
        title += _draw_closed_form(target, moments, estimator, subsets)
    _draw_actual_runs(target, comparison)
    if tolerance is not None:
        style.tolerance_band(target, tolerance)
    style.zero_line(target)
    style.describe(target, title, style.err_rel_label(estimator), "number of subsets", columns=2)
    return target


def plot_err_rel_histograms(
    df: pd.DataFrame,
    eta_values: Sequence[float],
    *,
    estimator: EstimatorName = "partial_sum",
    moments: pd.DataFrame | None = None,
) -> Figure:
    """Return a figure with one histogram of err_rel per eta, one below the other on shared axes.

    Parameters
    ----------
    df
        Columns eta and err_rel, as from `analysis_helpers.sample_err_rel_across_runs`.
    eta_values
        Step sizes, one panel each.
    estimator
        Which estimator the values are from; sets colour and title.
    moments
        From `analysis_helpers.subset_moments`: the closed form, drawn over the histograms.

    Raises
    ------
    ValueError
        If ``df`` has no row for one of the etas.

    Examples
    --------
    >>> from analysis_helpers import sample_err_rel_across_runs, synthetic_runs
    >>> df = sample_err_rel_across_runs(synthetic_runs(2, 512), [1.6e-6, 3.2e-6], subset_size=64, samples_per_eta=50)
    >>> len(plot_err_rel_histograms(df, [1.6e-6, 3.2e-6]).axes)
    2
    """
    of_etas = [_at_eta(df, eta)["err_rel"] for eta in eta_values]
    shown, colour = pd.concat(of_etas), style.COLOURS[estimator]
    span = (shown.min(), shown.max())
    figure, axes = style.panels(len(eta_values), share_x=True, share_y=True, height=2.8)
    for ax, eta, values in zip(axes, eta_values, of_etas, strict=True):
        style.histogram(ax, values, estimator, span=span)  # one bin width, so that heights compare
        style.zero_line(ax)
        ax.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.4, label="mean")
        title = _spread(estimator, eta, values)
        if moments is not None:
            title += _draw_closed_form(ax, _at_eta(moments, eta), estimator, values, span)
        style.describe(ax, title, style.err_rel_label(estimator), "number of subsets")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def plot_prediction(prediction: Prediction, checked: pd.DataFrame) -> Figure:
    """Return a figure of the predictive density of a fresh run, with the actual runs and their standard errors below.

    Parameters
    ----------
    prediction
        From `analysis_helpers.predict_err_rel`.
    checked
        From `analysis_helpers.check_prediction`; runs of another size than the prediction are paler.
    """
    figure, (ax,) = style.panels(1)
    (low, high), (least, most) = prediction.interval(0.9), prediction.interval(0.999)
    values = checked["err_rel"]
    grid = np.linspace(min([least, *values]), max([most, *values]), 400)
    density, inside = prediction.density(grid), (grid >= low) & (grid <= high)
    label = f"predictive density of a fresh run of {prediction.n:g}"
    ax.plot(grid, density, color=style.COLOURS["ratio"], label=label)
    style.band(ax, grid[inside], density[inside], 0, "90% prediction interval")
    step, colour = density.max() / 8, style.COLOURS["actual"]
    rows = checked[["run", "n", "err_rel", "se", "pit"]].itertuples(index=False)
    for k, (run, n, value, se, pit) in enumerate(rows, start=1):
        size, alpha = ("", 1.0) if n == prediction.n else (f" (n = {n:,})", 0.45)
        ax.errorbar(value, -k * step, xerr=se, fmt="o", color=colour, alpha=alpha, elinewidth=1.2)
        side, align = (-1, "right") if value > prediction.mean else (1, "left")  # where there is room
        label, end = f"{run}{size}: percentile {pit:.0%}", (value + side * np.nan_to_num(se), -k * step)
        ax.annotate(label, end, xytext=(6 * side, -3), textcoords="offset points", ha=align, fontsize=8)
    style.zero_line(ax)
    style.zero_line(ax, upright=False)
    ax.set_ylim(-(len(checked) + 0.6) * step, 1.08 * density.max())
    ax.set_yticks([])
    alike = values[checked["n"] == prediction.n]
    inside_of = f"{alike.between(low, high).sum()} of {counted(len(alike), 'actual run')} of this size in the "
    title = f"eta {prediction.eta:g}: {inside_of if len(alike) else ''}90% prediction interval {low_to_high(low, high)}"
    style.describe(ax, title, f"{style.ERR_REL_LABEL}; bars: standard errors", "predictive density", columns=2)
    return figure


def plot_spread_by_size(table: pd.DataFrame, n: int) -> Figure:
    """Return a figure of the SD of err_rel against the number of sequences: closed form (lines), draws (points).

    Parameters
    ----------
    table
        From `analysis_helpers.spread_by_size`.
    n
        Number of sequences to mark.
    """
    figure, (ax,) = style.panels(1)
    colour, n_of = style.COLOURS["ratio"], table["n"]
    ax.plot(n_of, table["fresh"], color=colour, label="fresh batch of n (closed form)")
    ax.plot(n_of, table["subset"], "--", color=colour, label="subset of a run (closed form, with FPC)")
    ax.plot(n_of, table["drawn"], "o", color=colour, markersize=5, label="random subsets")
    ax.axvline(n, color=style.COLOURS["guide"], linestyle=":", linewidth=1.2, label=f"n = {n}")
    style.log_size_axis(ax)
    style.log_error_axis(ax)
    at_n = "".join(f"SD on a fresh batch of {n:,}: {sd:.2g}; " for sd in table.loc[n_of == n, "fresh"])
    product, ratios = table["fresh"] * np.sqrt(n_of), table["drawn"] / table["subset"]
    halved = "halve it" if product.min() > 0.99 * product.max() else "do more than halve it"
    title = f"{at_n}four times the sequences {halved}"
    if (abs(ratios - 1) > _NOTED_DIFFERENCE).any():
        title += f"; subsets drawn: {ratios.min():.2f} to {ratios.max():.2f} times the closed form"
    style.describe(ax, title, "sequences n", f"SD of err_rel\n{style.TRUE_CHANGES}", columns=2)
    return figure


def _draw_actual_runs(ax: Axes, comparison: Comparison) -> None:
    """Draw a dashed line per actual run; runs of another size than the subsets paler, with their size."""
    actual = zip(comparison.actual["run"], comparison.actual["err_rel"], comparison.actual_sizes, strict=True)
    for dashes, (run, value, size) in zip(cycle(_DASHES), actual, strict=False):
        number, alpha = ("", 1.0) if size == comparison.sample_size else (f" (n = {size:,})", 0.5)
        label = f"actual {run}{number}: {value:+.2g}"
        ax.axvline(value, color=style.COLOURS["actual"], linestyle=dashes, linewidth=1.6, alpha=alpha, label=label)


def _draw_closed_form(
    ax: Axes, moments: pd.DataFrame, estimator: str, values: pd.Series[float], span: tuple[float, float] | None = None
) -> str:
    """Draw the mean over runs of normal densities (columns mean, sd), on the scale of the histogram of the values.

    Return a part of the title, if the spread of the values differs beyond Monte-Carlo error.
    """
    spread = moments[moments["sd"] > 0]
    if spread.empty:  # subsets of all sequences
        return ""
    low, high = span or (values.min(), values.max())
    grid = np.linspace(low, high, 400)
    densities = [np.vectorize(NormalDist(mean, sd).pdf)(grid) for mean, sd in spread[["mean", "sd"]].to_numpy()]
    expected = len(values) * (high - low) / style.BINS * sum(densities) / len(moments)
    ax.plot(grid, expected, color=style.COLOURS[estimator], linewidth=1.8, label="closed form")
    ratio = values.std() / moments_over_runs(moments)[1]
    off = abs(ratio - 1) > max(_NOTED_DIFFERENCE, 3 / np.sqrt(2 * len(values)))
    return f"; SD of the draws: {ratio:.2f} times the closed form" if off else ""


def _spread(estimator: str, eta: float, values: pd.Series[float]) -> str:
    name = estimator.replace("_", " ").capitalize()
    return f"{name}, eta {eta:g}: subsets {plus_minus(values.mean(), values.std())} (mean ± SD)"


def _nearness(comparison: Comparison) -> str:
    """Return the part of the title on the actual runs."""
    if comparison.estimator == "partial_sum":
        return "not comparable with actual runs"
    if comparison.actual.empty:
        return "no actual runs to compare with"
    if sizes := comparison.other_sizes:
        return f"actual runs have {', '.join(map(str, sizes))} sequences, not {comparison.sample_size}"
    return f"{comparison.num_near} of {counted(len(comparison.actual), 'actual run')} within 2 SD of the mean"


def _at_eta(df: pd.DataFrame, eta: float) -> pd.DataFrame:
    rows = df[np.isclose(df["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0)]
    if rows.empty:
        there = ", ".join(map(repr, df["eta"].unique().tolist()))
        raise ValueError(f"df has no row with eta {eta!r}; there are {there}")
    return rows
