"""Figures of planning: error against batch size, required sizes, answers, and how to split a budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..inference import QUESTIONS, counted, low_to_high
from . import style

_NO_SIZE = "no size is enough"


def plot_error_by_size(table: pd.DataFrame, *, tolerance: float, probability: float, eta: float) -> Figure:
    """Return a figure of the error of one fresh batch against its size: from sampling alone, and in total.

    Parameters
    ----------
    table
        From `analysis_helpers.error_by_size`.
    tolerance, probability
        Those of the table.
    eta
        Step size, for the title.
    """
    figure, (left, right) = style.panels(2)
    n, first, last = table["n"], table.iloc[0], table.iloc[-1]
    style.band(left, n, table["se_low"], table["se_high"])
    left.plot(n, table["se"], color=style.COLOURS["ratio"], label="from sampling alone, with its 90% interval")
    style.log_error_axis(left)
    smallest, largest = (counted(int(row["n"]), "sequence") for row in (first, last))
    title = f"eta {eta:g}: SE {first['se']:.2g} on {smallest}, {last['se']:.2g} on {largest}"
    style.describe(left, title, "sequences n", f"standard error\n{style.TRUE_CHANGES}", columns=1)
    style.band(right, n, table["low"], table["high"], f"{probability:.0%} prediction interval of a fresh run")
    style.tolerance_band(right, tolerance, upright=False)
    style.zero_line(right, upright=False)
    # The scale includes the tolerance and the last interval, which the title gives.
    farthest, end = (float(part[["low", "high"]].abs().to_numpy().max()) for part in (table, table.iloc[-1:]))
    reach = max(min(farthest, 4 * tolerance), end)
    right.set_ylim(-1.05 * reach, 1.05 * reach)
    title = f"eta {eta:g}, in all: {low_to_high(last['low'], last['high'])} on {largest}"
    style.describe(right, title, "sequences n", f"err_rel\n{style.TRUE_CHANGES}", columns=1)
    for ax in (left, right):
        style.log_size_axis(ax)
    return figure


def plot_required_sizes(plans: pd.DataFrame, *, goal: str) -> Figure:
    """Return a figure of the required batch size per eta with its interval; it marks etas at which none is enough.

    Parameters
    ----------
    plans
        From `analysis_helpers.plan_batch_sizes`.
    goal
        What the size is required for, for the title.
    """
    figure, (ax,) = style.panels(1)
    colour = style.COLOURS["ratio"]
    sizes = plans[["n", "low", "high"]].astype(float).to_numpy()
    known = sizes[np.isfinite(sizes)]
    bottom, top = (known.min() / 2, 4 * known.max()) if known.size else (32.0, 4 * 4096.0)
    labels = {"-": "90% interval over pilots of this size", "^": "interval without upper end"}  # once each
    for place, (n, low, high) in enumerate(sizes.tolist()):
        least = n if np.isnan(low) else low
        if np.isnan(least):
            ax.annotate(_NO_SIZE, (place, top), ha="center", fontsize=8)
            continue
        ends = [least, top if np.isnan(high) else high]
        ax.plot([place, place], ends, color=colour, linewidth=1.4, label=labels.pop("-", None))
        if np.isnan(high):
            ax.plot(place, top, "^", color=colour, markersize=7, label=labels.pop("^", None))
        ax.plot(place, n, "o", color=colour, markersize=6)
        label, shown = (_NO_SIZE.replace(" is", "\nis"), top) if np.isnan(n) else (f"n = {n:,.0f}", n)
        ax.annotate(label, (place, shown), xytext=(8, -4), textcoords="offset points", fontsize=8)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xticks(range(len(plans)), [f"{eta:g}" for eta in plans["eta"]])
    ax.set(xlim=(-0.5, len(plans) - 0.1), ylim=(bottom, 1.6 * top))
    words = [_NO_SIZE if np.isnan(n) else counted(int(n), "sequence") for n in sizes[:, 0]]
    required = ", ".join(f"{size} at eta {eta:g}" for eta, size in zip(plans["eta"], words, strict=True))
    columns = 2 if ax.lines else 0
    style.describe(ax, f"{goal}: {required}", "step size eta", "sequences required", columns=columns)
    return figure


def plot_verdict_map(table: pd.DataFrame) -> Figure:
    """Return a figure of the two answers at each eta, each with the sequences that one batch needs.

    Parameters
    ----------
    table
        From `analysis_helpers.verdict_map`.
    """
    figure, (ax,) = style.panels(1)
    for x, question in enumerate(QUESTIONS):
        for y, row in enumerate(table.to_dict("records")):
            answer, size = str(row[question]), row[f"{question}_required_n"]
            colour, edge = style.ANSWER_COLOURS[answer], style.BACKGROUND
            ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, facecolor=colour, edgecolor=edge, linewidth=2)
            by = "" if pd.isna(size) else f"\n{counted(size, 'sequence')}, {row[f'{question}_estimator']}"
            ax.text(x, y, f"{answer}{by}", ha="center", va="center", fontsize=8)
    questions = [question.replace(" linear change", "\nlinear change") for question in QUESTIONS.values()]
    ax.set_xticks(range(len(questions)), questions)
    ax.set_yticks(range(len(table)), [f"{eta:g}" for eta in table["eta"]], fontsize=8)
    ax.set(xlim=(-0.5, len(QUESTIONS) - 0.5), ylim=(-0.5, len(table) - 0.5))
    linear, recorded = (f"yes at {(table[name] == 'yes').sum()} of {len(table)} etas" for name in QUESTIONS)
    style.describe(ax, f"step linear: {linear}; recorded change right: {recorded}", y="step size eta")
    return figure


def plot_budget(table: pd.DataFrame, *, sequences: int) -> Figure:
    """Return a figure of the standard error of the mean err_rel when a budget is split over several runs.

    Parameters
    ----------
    table
        From `analysis_helpers.budget_table`.
    sequences
        The budget, for the title.
    """
    figure, (ax,) = style.panels(1)
    runs, se, high = table["runs"], table["se"], table["se_high"]  # infinite where tau has no upper end
    style.band(ax, runs, table["se_low"], high, "tau over its 90% interval")
    ax.plot(runs, se, "o-", color=style.COLOURS["ratio"], label="tau as estimated")
    ax.set_xscale("log", base=2)
    ax.set_xticks(runs, [f"{k} × {n:,}" for k, n in zip(runs, table["sequences_each"], strict=True)])
    ax.set_ylim(0, 1.25 * high.where(np.isfinite(high), se).max())
    gain, most = (1 - float(column.iloc[-1]) / float(column.iloc[0]) for column in (se, high))
    at_most = f" (at most {most:.0%})" if np.isfinite(most) else ""
    split = f"{counted(sequences, 'sequence')} as {counted(runs.iloc[-1], 'run')}"
    title = f"{split}: SE of the mean err_rel {gain:.0%} smaller{at_most}"
    style.describe(ax, title, "runs × sequences per run", f"standard error\n{style.TRUE_CHANGES}", columns=1)
    return figure
