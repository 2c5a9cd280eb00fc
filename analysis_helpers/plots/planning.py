"""Figures about how large a batch to take: tables in, figures out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..inference import QUESTIONS, UNSURE
from .style import (
    ANSWER_COLOURS,
    BACKGROUND,
    COLOURS,
    TRUE_CHANGES,
    finding,
    legend_below,
    log_error_axis,
    log_size_axis,
    panels,
    tolerance_band,
)


def plot_error_by_size(table: pd.DataFrame, *, tolerance: float, probability: float, eta: float) -> Figure:
    """Draw how far off one fresh batch is, against its size: from sampling alone, and in all.

    Parameters
    ----------
    table
        From `analysis_helpers.planning.error_by_size`.
    tolerance, probability
        As given there.
    eta
        Step size, for the title.
    """
    figure, (left, right) = panels(2)
    left.fill_between(table["n"], table["se_low"], table["se_high"], color=COLOURS["ratio"], alpha=0.25, linewidth=0)
    left.plot(table["n"], table["se"], color=COLOURS["ratio"], label="sampling alone, with its 90% interval")
    log_error_axis(left)
    left.set_ylabel(f"standard error\n{TRUE_CHANGES}")
    first, last = table.iloc[0], table.iloc[-1]
    finding(
        left,
        f"eta {eta:g}: ±{first['se']:.2g} with {first['n']:,.0f} sequences, ±{last['se']:.2g} with {last['n']:,.0f}",
    )
    right.fill_between(
        table["n"],
        table["low"],
        table["high"],
        color=COLOURS["ratio"],
        alpha=0.25,
        linewidth=0,
        label=f"where a fresh run falls with probability {probability:.0%}",
    )
    tolerance_band(right, tolerance, upright=False)
    right.axhline(0, color=COLOURS["guide"], linewidth=0.8)
    right.set_ylabel(f"err_rel\n{TRUE_CHANGES}")
    # So that the tolerance is seen, and the end of the band, which the title tells.
    farthest, end = (float(part[["low", "high"]].abs().to_numpy().max()) for part in (table, table.iloc[-1:]))
    reach = max(min(farthest, 4 * tolerance), end)
    right.set_ylim(-1.05 * reach, 1.05 * reach)
    rest = f"with {last['n']:,.0f} sequences still {last['low']:+.2f} to {last['high']:+.2f}"
    finding(right, f"eta {eta:g}, in all: {rest}")
    for ax in (left, right):
        log_size_axis(ax)
        legend_below(ax, 1)
    return figure


def plot_required_sizes(plans: pd.DataFrame, *, goal: str) -> Figure:
    """Draw the required batch size for each eta with its interval; mark where no size is enough.

    Parameters
    ----------
    plans
        From `analysis_helpers.plan_batch_sizes`.
    goal
        What the size is required for, for the title.
    """
    figure, (ax,) = panels(1, width=1.2)
    sizes = plans[["n", "low", "high"]].astype(float).to_numpy()
    top = 4 * float(np.nanmax(sizes)) if np.isfinite(sizes).any() else 4 * 4096.0
    unbounded = None
    for place, (n, low, high) in enumerate(sizes.tolist()):
        least = n if np.isnan(low) else low
        if np.isnan(least):
            ax.annotate("no size is enough", (place, top), ha="center", fontsize=8)
            continue
        ends = [least, top if np.isnan(high) else high]
        span = None if ax.lines else "90% interval over pilots of this size"
        ax.plot([place, place], ends, color=COLOURS["ratio"], linewidth=1.4, label=span)
        if np.isnan(high):
            none = "some pilots: no size is enough" if unbounded is None else None
            [unbounded] = ax.plot(
                place, top, marker="^", color=COLOURS["ratio"], markersize=7, linestyle="", label=none
            )
        if np.isfinite(n):
            ax.plot(place, n, "o", color=COLOURS["ratio"], markersize=6)
        label = f"n = {n:,.0f}" if np.isfinite(n) else "no size\nis enough"
        shown = n if np.isfinite(n) else top
        ax.annotate(label, (place, shown), xytext=(8, -4), textcoords="offset points", fontsize=8)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.set_xticks(range(len(plans)), [f"{eta:g}" for eta in plans["eta"]])
    ax.set_xlim(-0.5, len(plans) - 0.1)
    ax.set_ylim(float(np.nanmin(sizes)) / 2 if np.isfinite(sizes).any() else 32, 1.6 * top)
    ax.set_xlabel("step size eta")
    ax.set_ylabel("sequences required")
    found = ", ".join(
        f"{'no size' if np.isnan(n) else f'{n:,.0f} sequences'} at eta {eta:g}"
        for eta, n in zip(plans["eta"], sizes[:, 0], strict=True)
    )
    finding(ax, f"{goal}:\n{found}")
    if ax.lines:
        legend_below(ax, 2)
    return figure


def plot_verdict_map(table: pd.DataFrame) -> Figure:
    """Draw the answers for each eta and batch size, a panel a question; every cell says its answer.

    Parameters
    ----------
    table
        From `analysis_helpers.verdict.verdict_map`.
    """
    etas, sizes = sorted(table["eta"].unique()), sorted(table["n"].unique())
    figure, axes = panels(2)
    for ax, (column, question) in zip(axes, QUESTIONS.items(), strict=True):
        for row in table.to_dict("records"):
            x, y = sizes.index(row["n"]), etas.index(row["eta"])
            answer = str(row[column])
            look: dict[str, Any] = {"facecolor": ANSWER_COLOURS[answer], "edgecolor": BACKGROUND, "linewidth": 2}
            ax.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, **look)
            ax.text(x, y, answer.replace(" ", "\n"), ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes], fontsize=8)
        ax.set_yticks(range(len(etas)), [f"{eta:g}" for eta in etas], fontsize=8)
        ax.set_xlim(-0.5, len(sizes) - 0.5)
        ax.set_ylim(-0.5, len(etas) - 0.5)
        ax.set_xlabel("sequences n")
        finding(ax, f"{question}\n{_told(table, column)}")
    axes[0].set_ylabel("step size eta")
    return figure


def plot_budget(table: pd.DataFrame, *, sequences: int) -> Figure:
    """Draw how well the mean error is known from one large run or several small ones with as many sequences in all.

    Parameters
    ----------
    table
        From `analysis_helpers.planning.budget_table`.
    sequences
        The budget, for the title.
    """
    figure, (ax,) = panels(1)
    span = "for tau from the lower to the upper end of its 90% interval"
    ax.fill_between(
        table["runs"], table["se_low"], table["se_high"], color=COLOURS["ratio"], alpha=0.25, linewidth=0, label=span
    )
    ax.plot(table["runs"], table["se"], "o-", color=COLOURS["ratio"], label="with tau as estimated")
    ax.set_xscale("log", base=2)
    ax.set_xticks(table["runs"], [f"{k} x {n:,}" for k, n in zip(table["runs"], table["sequences_each"], strict=True)])
    ax.set_ylim(0, 1.25 * float(np.nanmax(table["se_high"].where(np.isfinite(table["se_high"]), table["se"]))))
    ax.set_xlabel("runs x sequences of each")
    ax.set_ylabel(f"standard error\n{TRUE_CHANGES}")
    gain, most = (1 - float(table[name].iloc[-1]) / float(table[name].iloc[0]) for name in ("se", "se_high"))
    at_most = f", at most {most:.0%}" if np.isfinite(most) else ""
    finding(
        ax,
        f"{sequences:,} sequences: splitting makes the standard error of the\nmean error {gain:.0%} smaller{at_most}",
    )
    legend_below(ax, 1)
    return figure


def _told(table: pd.DataFrame, column: str) -> str:
    """Return the answers in words: from which size on a batch is enough, or what is said at which eta."""
    rows = table.drop_duplicates("eta")
    if column == "enough" and set(table[column]) != {UNSURE}:
        sizes = sorted(rows["required_n"].unique())
        span = " to ".join(f"{n:,}" for n in dict.fromkeys((sizes[0], sizes[-1])))
        return f"from about {span} sequences on"
    answers = rows[column].unique()
    if len(answers) == 1:
        return f"{answers[0]}, at every eta"
    return ", ".join(f"{row[column]} at {row['eta']:g}" for row in rows.to_dict("records"))
