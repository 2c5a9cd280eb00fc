"""Figures of validation against a known answer: coverage, percentiles, verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import style


def plot_calibration(coverage: pd.DataFrame, pit: pd.DataFrame) -> Figure:
    """Return a figure of how often prediction intervals cover the next run, and of its percentile (PIT).

    Parameters
    ----------
    coverage, pit
        Tables of `analysis_helpers.synthetic.read_calibration`.
    """
    figure, (left, right) = style.panels(2)
    off = coverage["covered"] - coverage["level"]
    for k, ((tau, n), rows) in enumerate(coverage.groupby(["tau", "n"], sort=False)):
        colour, marker = style.SERIES[k % len(style.SERIES)]
        places, label = np.arange(len(rows)) + 0.1 * (k - 0.5), f"tau = {tau:.2g}, run of {n:g}"
        left.errorbar(places, off[rows.index], yerr=2 * rows["error"], fmt=marker, color=colour, label=label)
    style.zero_line(left, upright=False)
    levels = sorted(coverage["level"].unique())
    left.set_xticks(range(len(levels)), [f"{level:.0%}" for level in levels])
    reach = max(0.1, 1.2 * float(off.abs().max() + 2 * coverage["error"].max()))
    left.set_ylim(-reach, reach)
    left.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.0f}")
    title = f"coverage − level: {100 * off.min():+.1f} to {100 * off.max():+.1f} points (bars: 2 SE)"
    style.describe(left, title, "level of the prediction interval", "coverage − level (points)", columns=2)

    shares = pit["count"] / pit.groupby("tau")["count"].transform("sum")
    width = float((pit["high"] - pit["low"]).mean())
    for ((tau,), rows), (colour, _) in zip(pit.groupby(["tau"], sort=False), style.SERIES, strict=False):
        edges, label = [*rows["low"], rows["high"].iloc[-1]], f"tau = {tau:.2g}"
        right.stairs(shares[rows.index], edges, color=colour, linewidth=1.5, baseline=None, label=label)
    noise = 2 * np.sqrt(width * (1 - width) * pit["tau"].nunique() / pit["count"].sum())
    low, high, label = width - noise, width + noise, "95% range if calibrated"
    right.axhspan(low, high, color=style.COLOURS["guide"], alpha=0.2, linewidth=0, label=label)
    right.set_ylim(0, 1.6 * max(width, float(shares.max()) / 1.3))
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    title = f"each {width:.0%} of percentiles holds {shares.min():.1%} to {shares.max():.1%} of runs"
    percentile = "percentile of the next run in its prediction (PIT)"
    style.describe(right, title, percentile, f"share of runs in each {width:.0%} (%)", columns=3)
    return figure


def plot_verdict_rates(table: pd.DataFrame, setting: str, label: str) -> Figure:
    """Return a figure of how often a verdict says yes, cannot tell and no, one bar per setting, with the true answer.

    Parameters
    ----------
    table
        Rows of table "answers" or "enough" of `analysis_helpers.synthetic.read_calibration`, one for each bar.
    setting
        Column that distinguishes them.
    label
        What it is.
    """
    rows = table.reset_index(drop=True)
    figure, (ax,) = style.panels(1)
    bottom = np.zeros(len(rows))
    for answer, colour in style.ANSWER_COLOURS.items():
        shares = rows[answer.replace(" ", "_")]
        bars = ax.bar(range(len(rows)), shares, bottom=bottom, color=colour, width=0.8, label=answer)
        ax.bar_label(bars, fmt=lambda share: f"{share:.0%}" if share > 0.05 else "", label_type="center", fontsize=8)
        bottom += shares.to_numpy()
    names = [f"{value:g}\ntruth: {truth}" for value, truth in rows[[setting, "truth"]].itertuples(index=False)]
    ax.set_xticks(range(len(rows)), names, fontsize=8)
    ax.yaxis.set_major_formatter("{x:.0%}")
    false = np.where(rows["truth"] == "yes", rows["no"], rows["yes"])
    title = f"false answers: at most {false.max():.0%} in the settings shown"
    style.describe(ax, title, label, "share of verdicts", columns=3, lines=2)
    return figure


def plot_samplers(table: pd.DataFrame) -> Figure:
    """Return a figure of what samplers leave in runs: log-probability excess, support, and inflated linear change.

    Parameters
    ----------
    table
        Table "samplers" of `analysis_helpers.synthetic.read_calibration`.
    """
    names = table["sampler"].drop_duplicates().tolist()
    figure, (excess, support, inflation) = style.panels(3, height=2.2)
    for k, (n, rows) in enumerate(table.groupby("n")):
        colour, marker = style.SERIES[k]
        places = np.array([names.index(name) for name in rows["sampler"]]) + 0.2 * (k - 0.5)
        look: dict[str, Any] = {"color": colour, "fmt": marker, "label": f"runs of {n:g}", "markersize": 5}
        excess.errorbar(rows["excess"], places, **look)
        ends = np.abs(rows[["support_low", "support_high"]].to_numpy().T - rows["support"].to_numpy())
        support.errorbar(rows["support"], places, xerr=ends, **look)
        inflation.errorbar(rows["linear"], places, xerr=2 * rows["linear_error"], **look)
        inflation.plot(rows["matched"], places, "|", color="black", markersize=9, label="matched" if k == 0 else None)
    for ax in (excess, support, inflation):
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
    style.zero_line(excess)
    support.set_xscale("log")
    inflation.axvline(1, color=style.COLOURS["guide"], linewidth=0.8)
    off = table[table["excess"] > table["excess"].iloc[0]]
    cut = table[table["truncated"] > 0.5]
    style.describe(excess, "sampled tokens are too probable", "log-probability excess (nats per token)")
    found = f"{cut['support_low'].min():.0f} to {cut['support_high'].max():.0f} tokens where the sampler truncates"
    style.describe(support, found, "support (tokens; bars: 5 to 95% of runs)")
    factor = f"the linear change is {off['linear'].min():.1f} to {off['linear'].max():.1f} times the exact one"
    style.describe(inflation, factor, "linear change over the exact change (bars: 2 SE)", columns=3)
    return figure
