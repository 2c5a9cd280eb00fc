"""Figures about what comes out where the answer is known: tables in, figures out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plot_style import ANSWER_COLOURS, COLOURS, ESTIMATOR_LABELS, SERIES, finding, legend_below, panels

_QUANTITIES = {
    "true": COLOURS["true"],
    "linear": COLOURS["linear"],
    "matched": COLOURS["matched"],
    "err_rel": COLOURS["ratio"],
    "partial_sum": COLOURS["partial_sum"],
}


def plot_estimate_calibration(table: pd.DataFrame) -> Figure:
    """Draw, for each batch size, how far the mean estimate is off the truth, and how honest standard errors are.

    Parameters
    ----------
    table
        From `analysis_helpers.known_truth.estimate_calibration`.
    """
    figure, (left, right) = panels(2)
    sizes = sorted(table["n"].unique())
    quantities = table["quantity"].unique().tolist()
    for k, quantity in enumerate(quantities):
        colour = _QUANTITIES[quantity]
        rows = table[table["quantity"] == quantity]
        places = np.arange(len(sizes)) + 0.12 * (k - (len(quantities) - 1) / 2)
        left.plot(places, rows["bias_z"], "o", color=colour, label=ESTIMATOR_LABELS.get(quantity, quantity))
        right.plot(
            places, rows["sd"] / rows["typical_se"], "o", color=colour, label=ESTIMATOR_LABELS.get(quantity, quantity)
        )
    left.axhspan(-2, 2, color=COLOURS["guide"], alpha=0.15, linewidth=0, label="where 95% of them lie by chance")
    left.axhline(0, color=COLOURS["guide"], linewidth=0.8)
    left.set_ylim(-5, 5)
    left.set_ylabel("mean − truth (Monte-Carlo errors)")
    finding(left, f"bias: at most {table['bias_z'].abs().max():.1f} Monte-Carlo errors")
    right.axhline(1, color=COLOURS["guide"], linewidth=0.8)
    ratio = table["sd"] / table["typical_se"]
    reach = max(0.25, 1.2 * float((ratio - 1).abs().max()))
    right.set_ylim(1 - reach, 1 + reach)
    right.set_ylabel("SD over batches / standard error")
    finding(right, f"spread over batches: {ratio.min():.2f} to {ratio.max():.2f} standard errors")
    for ax in (left, right):
        ax.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        ax.set_xlabel("sequences n")
        legend_below(ax, 3)
    return figure


def plot_interval_coverage(table: pd.DataFrame) -> Figure:
    """Draw how often predictive intervals hold the next run, against how often they say so.

    Parameters
    ----------
    table
        From `analysis_helpers.known_truth.interval_coverage`.
    """
    figure, (ax,) = panels(1, width=1.2)
    _draw_coverage(ax, table)
    off = float(((table["covered"] - table["level"]).abs() / table["error"]).max())
    finding(ax, f"at most {off:.1f} binomial errors off what intervals say (bars: 2 errors)")
    legend_below(ax, 2)
    return figure


def plot_calibration(coverage: pd.DataFrame, pit: pd.DataFrame) -> Figure:
    """Draw how often predictive intervals hold the next run, and at which percentile of its prediction it falls.

    Parameters
    ----------
    coverage, pit
        Tables of `analysis_helpers.calibration.calibrate`.
    """
    figure, (left, right) = panels(2)
    _draw_coverage(left, coverage)
    off = 100 * (coverage["covered"] - coverage["level"])
    finding(left, f"coverage is {off.min():+.1f} to {off.max():+.1f} points off the level (bars: 2 errors)")
    shares, widths = pit["count"] / pit.groupby("tau")["count"].transform("sum"), pit["high"] - pit["low"]
    for (tau, rows), (colour, _) in zip(pit.groupby("tau", sort=False), SERIES, strict=False):
        edges = [*rows["low"], rows["high"].iloc[-1]]
        right.stairs(
            shares[rows.index], edges, color=colour, linewidth=1.5, baseline=None, label=f"tau = {float(str(tau)):.2g}"
        )
    width = float(widths.mean())
    band = 2 * np.sqrt(width * (1 - width) * pit["tau"].nunique() / pit["count"].sum())
    right.axhspan(
        width - band, width + band, color=COLOURS["guide"], alpha=0.2, linewidth=0, label="where 95% lie by chance"
    )
    right.set_ylim(0, 1.6 * max(width, float(shares.max()) / 1.3))
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    right.set_xlabel("percentile of its prediction at which the next run falls")
    right.set_ylabel(f"share of runs in each {width:.0%} (%)")
    finding(right, f"each {width:.0%} of percentiles holds {shares.min():.1%} to {shares.max():.1%} of runs")
    legend_below(left, 2)
    legend_below(right, 3)
    return figure


def plot_verdict_rates(table: pd.DataFrame, question: str, label: str) -> Figure:
    """Draw how often a verdict says yes, cannot tell and no, a bar a setting, with the true answer below it.

    Parameters
    ----------
    table
        From `analysis_helpers.known_truth.verdict_rates`.
    question
        "enough" or "linear_trusted".
    label
        What the settings are.
    """
    rows = table[table["question"] == question].reset_index(drop=True)
    figure, (ax,) = panels(1, width=1.3)
    bottom = np.zeros(len(rows))
    for column, answer in (("yes", "yes"), ("cannot_tell", "cannot tell"), ("no", "no")):
        shares = rows[column].to_numpy()
        ax.bar(range(len(rows)), shares, bottom=bottom, color=ANSWER_COLOURS[answer], width=0.8, label=answer)
        for place, (share, start) in enumerate(zip(shares, bottom, strict=True)):
            if share > 0.05:
                ax.text(place, start + share / 2, f"{share:.0%}", ha="center", va="center", fontsize=8)
        bottom += shares
    names = [f"{row['setting']:g}\ntruth: {row['truth']}\n({row['within']:.0%})" for row in rows.to_dict("records")]
    ax.set_xticks(range(len(rows)), names, fontsize=8)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel(label)
    ax.set_ylabel("share of verdicts")
    false = np.where(rows["truth"] == "yes", rows["no"], rows["yes"])
    finding(ax, f"false answers: at most {false.max():.0%} in any setting")
    legend_below(ax, 3, lines=3)
    return figure


def _draw_coverage(ax: Axes, table: pd.DataFrame) -> None:
    """Draw covered - level for each tau and size of the fresh run."""
    keys = ["tau", "n"]
    several = len(table["n"].unique()) > 1
    for k, ((tau, n), rows) in enumerate(table.groupby(keys, sort=False)):
        colour, marker = SERIES[k % len(SERIES)]
        ax.errorbar(
            np.arange(len(rows)) + 0.1 * (k - 0.5),
            rows["covered"] - rows["level"],
            yerr=2 * rows["error"],
            fmt=marker,
            color=colour,
            label=f"tau = {tau:.2g}, run of {n:g}" if several else f"updates differ by tau = {tau:.2g}",
        )
    ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
    levels = sorted(table["level"].unique())
    ax.set_xticks(range(len(levels)), [f"{level:.0%}" for level in levels])
    reach = max(0.1, 1.2 * float((table["covered"] - table["level"]).abs().max() + 2 * table["error"].max()))
    ax.set_ylim(-reach, reach)
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    ax.set_xlabel("level of the interval")
    ax.set_ylabel("covered - level (percentage points)")
