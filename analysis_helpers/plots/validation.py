"""Figures about what comes out where the answer is known: tables in, figures out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import ANSWER_COLOURS, COLOURS, SERIES, finding, legend_below, panels


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
