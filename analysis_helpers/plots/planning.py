"""Figures of planning: error against batch size, required sizes, answers, and how to split a budget."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..inference import QUESTIONS, allowed, counted, low_to_high, percent_range, sizes
from . import style

_NO_SIZE = "no size is enough"
_MOST_LINES, _MOST_ETAS = 40, 16
_FOREST = {  # marker, width of the line and colour
    "large run": ("o", 1.2, style.COLOURS["true"]),
    "mean": ("D", 2.4, style.COLOURS["true"]),
    "next update": ("|", 4.0, style.COLOURS["ratio"]),
    "small run": ("s", 1.0, style.COLOURS["actual"]),
}


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


def plot_forest(table: pd.DataFrame, *, tolerance: float) -> Figure:
    """Return a forest plot for each question: a line per run with its interval, their mean, and the next update.

    Of more than 40 runs of a kind, 40 are shown, spread evenly over their errors.

    Parameters
    ----------
    table
        From `analysis_helpers.inference.errors_by_run`.
    tolerance
        Drawn as a band.
    """
    panels = [(str(question), every, _thinned(every)) for question, every in table.groupby("question", sort=False)]
    figure, axes = style.panels(len(panels), height=1.5 + 0.19 * max((len(rows) for *_, rows in panels), default=0))
    for ax, (question, every, rows) in zip(axes, panels, strict=True):
        for place, row in enumerate(rows.to_dict("records")):
            marker, width, colour = _FOREST[row["kind"]]
            ends = [[row["error"] - row["low"]], [row["high"] - row["error"]]]
            ax.errorbar(row["error"], place, xerr=ends, fmt=marker, color=colour, elinewidth=width, markersize=5)
        style.tolerance_band(ax, tolerance)
        style.zero_line(ax)
        names = [_line_name(row) for row in rows.to_dict("records")]
        ax.set_yticks(range(len(rows)), names, fontsize=8)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        hidden = len(every) - len(rows)
        note = f"; {counted(hidden, 'run')} not shown" if hidden else ""
        label = f"error (% of the true change); band: tolerance {allowed(tolerance)}{note}"
        style.describe(ax, _forest_title(question, rows), label)
    return figure


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, of many runs of a kind some evenly over their errors."""
    parts = [of_kind for _, of_kind in rows.groupby("kind", sort=False)]
    many = [part.sort_values("error") if len(part) > _MOST_LINES else part for part in parts]
    return pd.concat([part.iloc[style.evenly(len(part), _MOST_LINES)] for part in many])


def _line_name(row: dict[Hashable, Any]) -> str:
    small = "actual " if row["kind"] == "small run" else ""
    return f"{small}{row['run']} ({row['sequences']:,})" if row["run"] else str(row["kind"])


def _forest_title(question: str, rows: pd.DataFrame) -> str:
    of_next = rows[rows["kind"] == "next update"]
    kind, last = ("next update", of_next) if len(of_next) else ("this update", rows.head(1))
    [(low, high)] = last[["low", "high"]].to_numpy()
    return f"{QUESTIONS[question]} Error of the {kind}: {percent_range(low, high)}".replace("the this", "this")


def plot_verdict_map(table: pd.DataFrame) -> Figure:
    """Return a figure of the two answers at each eta, each with the error of the next update and the batch it needs.

    Of more than 16 etas, 16 are shown, evenly.

    Parameters
    ----------
    table
        From `analysis_helpers.verdict_map`.
    """
    shown = table.iloc[style.evenly(len(table), _MOST_ETAS)]
    figure, (ax,) = style.panels(1, height=1.2 + 0.42 * len(shown))
    for x, question in enumerate(QUESTIONS):
        for y, row in enumerate(shown.to_dict("records")):
            answer, edge = str(row[question]), style.COLOURS["guide"]
            look: dict[str, Any] = {"facecolor": style.ANSWER_COLOURS[answer], "edgecolor": edge, "linewidth": 0.8}
            ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, **look)
            low, high, n = (row[f"{question}_{name}"] for name in ("low", "high", "required_n"))
            interval = "" if pd.isna(low) else f" ({percent_range(low, high)})"
            batch = "" if pd.isna(n) else f"\nbatch: {sizes(n, None, None)}, by {row[f'{question}_estimator']}"
            ax.text(x, y, f"{answer}{interval}{batch}", ha="center", va="center", fontsize=8)
    questions = [question.replace(" linear change", "\nlinear change") for question in QUESTIONS.values()]
    ax.set_xticks(range(len(questions)), questions)
    ax.set_yticks(range(len(shown)), [f"{eta:g}" for eta in shown["eta"]], fontsize=8)
    ax.set(xlim=(-0.5, len(QUESTIONS) - 0.5), ylim=(-0.5, len(shown) - 0.5))
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
