"""Tables to figures. Nothing here reads a file or draws a random number; styles are set on the axes, never globally."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from .checks import ETA_TOLERANCE
from .comparison import Comparison

# One colour for one thing, everywhere; from the colour-blind-safe palette of Okabe and Ito (2008).
COLOURS = {
    "partial_sum": "#0072B2",
    "ratio": "#009E73",
    "matched": "#E69F00",
    "actual": "#D55E00",
    "true": "#000000",
    "linear": "#CC79A7",
    "guide": "#808080",
}
ESTIMATOR_LABELS = {"partial_sum": "partial sum", "ratio": "ratio", "matched": "matched"}
PART_LABELS = {"linear_minus_matched": "linear - matched", "matched_minus_true": "matched - true"}
PART_COLOURS = {"linear_minus_matched": COLOURS["linear"], "matched_minus_true": COLOURS["matched"]}
ERR_REL_LABEL = "relative error, (linear - true) / reference"
CHANGE_LABEL = "change of entropy (10⁻³ nats per token)"

_BINS = 60  # as in the published figures
_PANEL = (5.2, 3.6)  # inches
_DPI = 110
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
    target = _panels(1)[1][0] if ax is None else ax
    synthetic = comparison.synthetic["err_rel"]
    label = f"subsets of {comparison.sample_size} drawn from large runs"
    _histogram(target, synthetic, COLOURS[comparison.estimator], label)
    for k, (run, value) in enumerate(zip(comparison.actual["run"], comparison.actual["err_rel"], strict=True)):
        style = _DASHES[k % len(_DASHES)]
        target.axvline(
            value, color=COLOURS["actual"], linestyle=style, linewidth=1.6, label=f"actual {run}: {value:+.2f}"
        )
    target.axvline(0, color=COLOURS["guide"], linewidth=0.8)
    mean, sd = synthetic.mean(), synthetic.std()
    target.set_title(
        f"{ESTIMATOR_LABELS[comparison.estimator]}, eta {comparison.eta:g}: subsets {mean:+.2f} ± {sd:.2f} (mean ± SD)",
        fontsize=10,
    )
    target.set_xlabel(ERR_REL_LABEL)
    target.set_ylabel("number of subsets")
    _legend_below(target, 2)
    return target


def plot_err_rel_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Draw comparisons side by side on one scale, so that their widths can be compared."""
    figure, axes = _panels(len(comparisons), share_x=True)
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
    panels = [_at_eta(df, eta) for eta in eta_values]
    shown = pd.concat(panels)
    figure, axes = _panels(len(eta_values), share_x=True, share_y=True)
    for ax, eta, values in zip(axes, eta_values, panels, strict=True):
        _histogram(ax, values, COLOURS[estimator], span=(shown.min(), shown.max()))  # one bin width: heights compare
        ax.axvline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.axvline(values.mean(), color=COLOURS["true"], linestyle="--", linewidth=1.2, label="mean")
        if moments is not None:
            at_eta = moments[np.isclose(moments["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0)]
            grid = np.linspace(shown.min(), shown.max(), 300)
            height = len(values) * (grid[-1] - grid[0]) / _BINS
            ax.plot(grid, height * _mixture(grid, at_eta), color=COLOURS["true"], linewidth=1.2, label="closed form")
        ax.set_title(
            f"{ESTIMATOR_LABELS[estimator]}, eta {eta:g}: {values.mean():+.2f} ± {values.std():.2f}", fontsize=10
        )
        ax.set_xlabel(ERR_REL_LABEL)
    axes[0].set_ylabel("number of subsets")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def plot_totals(totals: pd.DataFrame) -> Figure:
    """Draw the true and the linear total of each run, a panel for each eta.

    Parameters
    ----------
    totals
        Columns batch, run, eta, true, linear, true_se, linear_se (nats per token), as from
        `analysis_helpers.health.run_totals`.
    """
    etas = sorted(totals["eta"].unique())
    figure, axes = _panels(len(etas))
    for ax, eta in zip(axes, etas, strict=True):
        rows = totals[totals["eta"] == eta].reset_index(drop=True)
        places = np.arange(len(rows))
        for name, marker, shift in (("true", "o", -0.12), ("linear", "D", 0.12)):
            _points(ax, places + shift, rows[name] * 1e3, rows[f"{name}_se"] * 1e3, COLOURS[name], marker, name)
        ax.set_xticks(places, rows["batch"] + "\n" + rows["run"], fontsize=7)
        ax.set_xlim(-0.5, len(rows) - 0.5)
        ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.set_title(f"eta {eta:g}", fontsize=10)
    axes[0].set_ylabel(CHANGE_LABEL)
    axes[0].legend(fontsize=8)
    return figure


def plot_contribution_tails(contributions: pd.DataFrame) -> Figure:
    """Draw how often a sequence's contribution lies beyond so many SDs, for the true and the linear change.

    Parameters
    ----------
    contributions
        Columns run, true, linear (a row for each sequence), as from `analysis_helpers.health.contribution_table`.
    """
    figure, (ax,) = _panels(1)
    for name in ("true", "linear"):
        values = contributions[name] - contributions.groupby("run")[name].transform("mean")
        distance = np.sort(np.abs(values / contributions.groupby("run")[name].transform("std")))
        ax.step(distance, 1 - np.arange(len(distance)) / len(distance), color=COLOURS[name], where="post", label=name)
    grid = np.linspace(0, 5, 200)
    normal = [2 * (1 - NormalDist().cdf(x)) for x in grid]
    ax.plot(grid, normal, color=COLOURS["guide"], linestyle=":", label="normal distribution")
    ax.set_yscale("log")
    ax.set_ylim(0.5 / max(len(contributions), 1), 1.2)
    ax.set_xlabel("distance of a contribution from its mean (SDs)")
    ax.set_ylabel("share of sequences further out")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _at_eta(df: pd.DataFrame, eta: float) -> pd.Series[float]:
    values: pd.Series[float] = df.loc[np.isclose(df["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0), "err_rel"]
    if values.empty:
        raise ValueError(
            f"df has no row with eta {eta!r}; there are {', '.join(map(repr, df['eta'].unique().tolist()))}"
        )
    return values


def plot_decomposition(table: pd.DataFrame) -> Figure:
    """Draw the two parts of err_rel for each run, pooled last, raw and score-adjusted: a row of panels for each eta.

    Parameters
    ----------
    table
        From `analysis_helpers.decomposition.decomposition_table`.
    """
    etas = sorted(table["eta"].unique())
    figure, axes = _panels(2 * max(len(etas), 1), share_y=True)
    if not etas:
        axes[0].set_title("no run records the score")
        return figure
    for ax, (eta, part) in zip(axes, product(etas, PART_LABELS), strict=True):
        for adjusted, marker, shift in ((False, "o", -0.12), (True, "D", 0.12)):
            rows = table[(table["eta"] == eta) & (table["score_adjusted"] == adjusted)].reset_index(drop=True)
            label, face = ("score-adjusted", "white") if adjusted else ("unadjusted", None)
            places = np.arange(len(rows)) + shift
            _points(ax, places, rows[part], rows[f"{part}_se"], PART_COLOURS[part], marker, label, face)
        ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.axvline(len(rows) - 1.5, color=COLOURS["guide"], linewidth=0.8, linestyle=":")
        ax.set_xticks(np.arange(len(rows)), rows["run"], fontsize=8)
        ax.set_title(f"{PART_LABELS[part]}, eta {eta:g}", fontsize=10)
        _legend_below(ax, 2)
    for ax in axes[::2]:
        ax.set_ylabel("part of err_rel, ± standard error")
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
    figure, (ax,) = _panels(1)
    ax.plot(table["n"], table["fresh"], color=COLOURS["true"], linewidth=1.4, label="a fresh batch of n (closed form)")
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
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.set_xlabel("sequences n")
    ax.set_ylabel("SD of err_rel (ratio)")
    _legend_below(ax, 2)
    return figure


def _points(
    ax: Axes,
    places: NDArray[np.floating[Any]],
    values: pd.Series[float],
    errors: pd.Series[float],
    colour: str,
    marker: str,
    label: str,
    face: str | None = None,
) -> None:
    ax.errorbar(
        places,
        values,
        yerr=errors.fillna(0.0),
        fmt=marker,
        color=colour,
        markerfacecolor=face or colour,
        markersize=5.5,
        elinewidth=1.2,
        label=label,
    )


def _legend_below(ax: Axes, columns: int) -> None:
    """Put the legend under the axes, where it hides no data."""
    space = -0.16 if ax.get_xlabel() else -0.1
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, space), ncols=columns, frameon=False)


def _mixture(grid: NDArray[np.float64], moments: pd.DataFrame) -> NDArray[np.float64]:
    """Return the mean over runs of the normal densities with their means and SDs."""
    densities = [
        np.exp(-0.5 * ((grid - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
        for mean, sd in zip(moments["mean"], moments["sd"], strict=True)
        if sd > 0  # without spread, a subset of all sequences, there is no curve
    ]
    return np.sum(densities, axis=0) / len(moments) if densities else np.zeros_like(grid)


def _panels(count: int, *, share_x: bool = False, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with up to two panels a row, as wide as a page; every panel keeps its tick labels."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_PANEL[0] * columns, _PANEL[1] * rows),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
        sharex=share_x,
        sharey=share_y,
        squeeze=False,
    )
    flat = list(axes.ravel())
    for ax in flat[count:]:
        ax.remove()
    for ax in flat[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=True)
    return figure, flat[:count]


def _histogram(
    ax: Axes,
    values: pd.Series[float],
    colour: str,
    label: str | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> None:
    counts, edges = np.histogram(values, bins=_BINS, range=span)
    ax.stairs(counts, edges, fill=True, alpha=0.55, color=colour, label=label)
