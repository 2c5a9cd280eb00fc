"""Figures about err_rel: tables in, axes out. Nothing here reads a file or draws a random number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .._checks import ETA_TOLERANCE
from ..err_rel import Comparison
from ..inference import Prediction
from .style import (
    BINS,
    COLOURS,
    ERR_REL_LABEL,
    ESTIMATOR_LABELS,
    TRUE_CHANGES,
    err_rel_label,
    finding,
    histogram,
    legend_below,
    log_error_axis,
    log_size_axis,
    panels,
    tolerance_band,
    zero_line,
)

_DASHES = ("--", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # so that actual runs differ by more than their label


def plot_err_rel_comparison(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the synthetic subsets as a histogram of 60 bins and each actual run as a dashed line.

    Parameters
    ----------
    comparison
        From `analysis_helpers.compare_err_rel_distributions`.
    ax
        Axes to draw on; None: new ones.

    Returns
    -------
    Axes
        The axes drawn on.

    Examples
    --------
    >>> from analysis_helpers import compare_err_rel_distributions, synthetic_runs
    >>> large, small = synthetic_runs(2, 512), synthetic_runs(3, 64, seed=1)
    >>> comparison = compare_err_rel_distributions(large, small, 1.6e-6, sample_size=64, num_samples=50)
    >>> plot_err_rel_comparison(comparison).get_ylabel()
    'number of subsets'
    """
    target = panels(1)[1][0] if ax is None else ax
    synthetic = comparison.synthetic["err_rel"]
    label = f"subsets of {comparison.sample_size} drawn from large runs"
    histogram(target, synthetic, COLOURS[comparison.estimator], label)
    _draw_actual_runs(target, comparison.actual, comparison.actual_sizes, comparison.sample_size)
    zero_line(target)
    finding(target, f"{_scatter(comparison.estimator, comparison.eta, synthetic)}\n{_actual_among(comparison)}")
    target.set_xlabel(err_rel_label(comparison.estimator))
    target.set_ylabel("number of subsets")
    legend_below(target, 2)
    return target


def plot_err_rel_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Draw comparisons side by side on one scale, so that their widths can be compared."""
    figure, axes = panels(len(comparisons), share_x=True)
    for ax, comparison in zip(axes, comparisons, strict=True):
        plot_err_rel_comparison(comparison, ax=ax)
    return figure


def plot_err_rel_histograms(
    df: pd.DataFrame,
    eta_values: Sequence[float],
    *,
    estimator: str = "partial_sum",
    moments: pd.DataFrame | None = None,
) -> Figure:
    """Draw one histogram of err_rel for each eta, side by side on shared axes.

    Parameters
    ----------
    df
        Columns eta and err_rel, as from `analysis_helpers.sample_err_rel_across_runs`.
    eta_values
        Step sizes, one panel each.
    estimator
        Which estimator the values are from; sets colour and title.
    moments
        From `analysis_helpers.inference.subset_moments`: drawn over the histograms, a normal curve for each run, added
        up.

    Returns
    -------
    Figure
        The figure drawn.

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
    of_etas = [_at_eta(df, eta) for eta in eta_values]
    shown = pd.concat(of_etas)
    figure, axes = panels(len(eta_values), share_x=True, share_y=True)
    for ax, eta, values in zip(axes, eta_values, of_etas, strict=True):
        histogram(ax, values, COLOURS[estimator], span=(shown.min(), shown.max()))  # one bin width: heights compare
        zero_line(ax)
        ax.axvline(values.mean(), color=COLOURS[estimator], linestyle="--", linewidth=1.4, label="mean")
        if moments is not None:
            at_eta = moments[np.isclose(moments["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0)]
            grid = np.linspace(shown.min(), shown.max(), 300)
            height = len(values) * (grid[-1] - grid[0]) / BINS
            expected = height * _mixture_density(grid, at_eta)
            ax.plot(grid, expected, color=COLOURS[estimator], linewidth=1.8, label="closed form")
        finding(ax, _scatter(estimator, eta, values))
        ax.set_xlabel(err_rel_label(estimator))
    axes[0].set_ylabel("number of subsets")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def plot_prediction(prediction: Prediction, checked: pd.DataFrame, *, level: float = 0.9) -> Figure:
    """Draw the predictive density of a fresh run and the actual runs below it, each with its own standard error.

    Parameters
    ----------
    prediction
        From `analysis_helpers.predict_err_rel`.
    checked
        From `analysis_helpers.check_prediction`; runs of another size than the prediction are drawn paler.
    level
        Level of the interval that is shaded.
    """
    figure, (ax,) = panels(1, width=1.5)
    low, high = prediction.interval(level)
    wide = prediction.interval(0.999)
    grid = np.linspace(min(wide[0], checked["err_rel"].min()), max(wide[1], checked["err_rel"].max()), 400)
    density = prediction.density(grid)
    ax.plot(
        grid, density, color=COLOURS["ratio"], linewidth=1.5, label=f"predicted for a fresh run of {prediction.n:g}"
    )
    inside = (grid >= low) & (grid <= high)
    ax.fill_between(
        grid[inside], density[inside], color=COLOURS["ratio"], alpha=0.25, linewidth=0, label=f"{level:.0%} interval"
    )
    step = density.max() / 8
    for k, row in enumerate(checked.to_dict("records"), start=1):
        label = f"actual {row['run']} (n = {row['n']}), percentile {row['pit']:.0%}"
        half = 0.0 if np.isnan(row["se"]) else row["se"]
        # On the side where there is room.
        end, shift, side = (
            (row["err_rel"] - half, -6, "right")
            if row["err_rel"] > prediction.mean
            else (row["err_rel"] + half, 6, "left")
        )
        fade = 1.0 if row["n"] == prediction.n else 0.45
        ax.errorbar(
            row["err_rel"], -k * step, xerr=row["se"], fmt="o", color=COLOURS["actual"], alpha=fade, elinewidth=1.2
        )
        ax.annotate(label, (end, -k * step), xytext=(shift, -3), textcoords="offset points", ha=side, fontsize=8)
    zero_line(ax)
    ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
    ax.set_ylim(-(len(checked) + 0.6) * step, 1.08 * density.max())
    ax.set_yticks([])
    alike = checked[checked["n"] == prediction.n]
    within = int(alike["err_rel"].between(low, high).sum())
    count = (
        f"{within} of {len(alike)} actual runs of this size lie" if len(alike) else "no actual run of this size to lie"
    )
    finding(ax, f"eta {prediction.eta:g}: {count} in the {level:.0%} interval {low:+.2f} to {high:+.2f}")
    ax.set_xlabel(f"{ERR_REL_LABEL}; bars: own standard error")
    ax.set_ylabel("predictive density")
    legend_below(ax, 2)
    return figure


def plot_spread_by_size(table: pd.DataFrame, n: int) -> Figure:
    """Draw the SD of err_rel against the number of sequences: closed form as lines, draws as points, n marked.

    Parameters
    ----------
    table
        From `analysis_helpers.inference.spread_by_size`.
    n
        The number of sequences to mark.
    """
    figure, (ax,) = panels(1)
    ax.plot(table["n"], table["fresh"], color=COLOURS["ratio"], linewidth=1.6, label="a fresh batch of n (closed form)")
    ax.plot(
        table["n"],
        table["subset"],
        color=COLOURS["ratio"],
        linestyle="--",
        linewidth=1.4,
        label="a subset of a run (closed form, with FPC)",
    )
    ax.plot(table["n"], table["drawn"], "o", color=COLOURS["ratio"], markersize=5, label="subsets drawn")
    ax.axvline(n, color=COLOURS["guide"], linestyle=":", linewidth=1.2, label=f"n = {n}")
    log_size_axis(ax)
    log_error_axis(ax)
    ax.set_ylabel(f"SD of err_rel\n{TRUE_CHANGES}")
    error = table.set_index("n")["fresh"].get(n)
    known = "" if error is None else f"One fresh batch of {n:,} is off by ±{error:.2f}; "
    finding(ax, f"{known}four times the batch halves it")
    legend_below(ax, 2)
    return figure


def plot_exploration(
    moments: pd.DataFrame,
    actual: pd.DataFrame,
    draws: pd.DataFrame | None = None,
    *,
    subset_size: int,
    num_samples: int,
    estimator: str,
    tolerance: float,
    note: str = "",
) -> Figure:
    """Draw err_rel over subsets in closed form, the actual runs and, where given, a histogram of subsets drawn.

    The scale follows from the closed form and the actual runs, so it does not move when draws are added.

    Parameters
    ----------
    moments
        From `analysis_helpers.subset_moments`.
    actual
        Actual runs: columns run, err_rel, n.
    draws
        Columns err_rel; None: not drawn.
    subset_size, num_samples
        Sequences of a subset, and subsets drawn from each run.
    estimator
        Sets colour and title.
    tolerance
        Drawn as a band.
    note
        Second line of the title.
    """
    figure, (ax,) = panels(1, width=1.5)
    low, high = _span(moments, actual, tolerance)
    count = num_samples * len(moments)
    if draws is not None:
        label = f"{count:,} subsets of {subset_size} drawn from large runs"
        histogram(ax, draws["err_rel"].clip(low, high), COLOURS[estimator], label, span=(low, high))
    if (moments["sd"] > 0).any():  # a subset of all sequences does not scatter
        grid = np.linspace(low, high, 400)
        density = count * (high - low) / BINS * _mixture_density(grid, moments)
        ax.plot(grid, density, color=COLOURS[estimator], linewidth=1.8, label="subsets, closed form")
    _draw_actual_runs(ax, actual, actual["n"].tolist(), subset_size)
    tolerance_band(ax, tolerance)
    ax.set_xlim(low, high)
    sd = float(np.sqrt((moments["sd"] ** 2).mean() + moments["mean"].var(ddof=0)))
    compared = "\n(not comparable with actual runs)" if estimator == "partial_sum" else ""
    spread = f"subsets of {subset_size} scatter by ±{sd:.2g} about {moments['mean'].mean():+.2g}{compared}"
    finding(ax, f"{ESTIMATOR_LABELS[estimator].capitalize()}, eta {moments['eta'].iloc[0]:g}: {spread}\n{note}")
    ax.set_xlabel(err_rel_label(estimator))
    ax.set_ylabel("number of subsets")
    legend_below(ax, 2)
    return figure


def _draw_actual_runs(ax: Axes, actual: pd.DataFrame, sizes: Sequence[int], size: int) -> None:
    """Draw a dashed line for each actual run (columns run, err_rel); those not of ``size`` paler, with their size."""
    for k, (row, own) in enumerate(zip(actual.to_dict("records"), sizes, strict=True)):
        other = own != size
        told = f" (n = {own:,})" if other else ""
        ax.axvline(
            row["err_rel"],
            color=COLOURS["actual"],
            linestyle=_DASHES[k % len(_DASHES)],
            linewidth=1.6,
            alpha=0.5 if other else 1.0,
            label=f"actual {row['run']}{told}: {row['err_rel']:+.2g}",
        )


def _scatter(estimator: str, eta: float, values: pd.Series[float]) -> str:
    name = ESTIMATOR_LABELS[estimator].capitalize()
    return f"{name}, eta {eta:g}: subsets scatter by ±{values.std():.2f} about {values.mean():+.2f}"


def _actual_among(comparison: Comparison) -> str:
    if comparison.estimator == "partial_sum":
        return "(not comparable with actual runs)"
    others = sorted({size for size in comparison.actual_sizes if size != comparison.sample_size})
    if others:
        return f"actual runs have {', '.join(f'{n:,}' for n in others)} sequences, not {comparison.sample_size:,}"
    values, subsets = comparison.actual["err_rel"], comparison.synthetic["err_rel"]
    near = int(((values - subsets.mean()).abs() <= 2 * subsets.std()).sum())
    return f"{near} of {len(values)} actual runs lie within 2 SD"


def _at_eta(df: pd.DataFrame, eta: float) -> pd.Series[float]:
    values: pd.Series[float] = df.loc[np.isclose(df["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0), "err_rel"]
    if values.empty:
        raise ValueError(
            f"df has no row with eta {eta!r}; there are {', '.join(map(repr, df['eta'].unique().tolist()))}"
        )
    return values


def _mixture_density(grid: NDArray[np.float64], moments: pd.DataFrame) -> NDArray[np.float64]:
    """Return the mean over runs of the normal densities with their means and SDs (columns mean, sd)."""
    densities = [
        np.exp(-0.5 * ((grid - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
        for mean, sd in zip(moments["mean"], moments["sd"], strict=True)
        if sd > 0  # without spread, a subset of all sequences, there is no curve
    ]
    return np.sum(densities, axis=0) / len(moments) if densities else np.zeros_like(grid)


def _span(moments: pd.DataFrame, actual: pd.DataFrame, tolerance: float) -> tuple[float, float]:
    """Return an interval that holds nearly all subsets, every actual run and a tolerance that is not far off."""
    reach = 4 * moments["sd"]
    ends = pd.concat([moments["mean"] - reach, moments["mean"] + reach, actual["err_rel"]])
    low, high = float(ends.min()), float(ends.max())
    shown = min(tolerance, 2 * max(abs(low), abs(high)))  # one far beyond would press all else into one line
    low, high = min(low, -shown), max(high, shown)
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin
