"""Figures of runs: totals, influence of sequences, the two parts of err_rel."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..inference import plus_minus
from . import style

_PAIR = (("o", -0.12), ("D", 0.12))  # marker and shift of two values side by side
_MOST_PANELS, _MOST_NAMES = 8, 8
_POINTS: dict[str, Any] = {"markersize": 5.5, "elinewidth": 1.2}


def plot_totals(totals: pd.DataFrame) -> Figure:
    """Return a figure of the true and the linear total of each run, one panel per eta; of more than 8, evenly chosen.

    Parameters
    ----------
    totals
        From `analysis_helpers.run_totals`.
    """
    etas = np.unique(totals["eta"])
    shown = etas[style.evenly(len(etas), _MOST_PANELS)] if len(etas) else etas
    figure, axes = style.panels(len(shown), height=2.4)
    for ax, eta in zip(axes, shown, strict=True):
        rows = totals[totals["eta"] == eta]
        places = np.arange(len(rows))
        for name, (marker, shift) in zip(("true", "linear"), _PAIR, strict=True):
            values, errors, colour = rows[name] * 1e3, rows[f"{name}_se"] * 1e3, style.COLOURS[name]
            ax.errorbar(places + shift, values, errors, fmt=marker, color=colour, label=name, **_POINTS)
        named = style.evenly(len(rows), _MOST_NAMES)
        ax.set_xticks(named, (rows["batch"] + "\n" + rows["run"]).iloc[named], fontsize=7)
        ax.set_xlim(-0.5, len(rows) - 0.5)
        style.zero_line(ax, upright=False)
        means = rows.groupby("group")[["linear", "true"]].mean()
        shares = ", ".join(f"{share:.2f} ({group})" for group, share in (means["linear"] / means["true"]).items())
        title, columns = f"eta {eta:g}: linear / true = {shares}", 2 if ax is axes[-1] else 0
        style.describe(ax, title, y=style.CHANGE_LABEL, columns=columns, lines=2)
    return figure


def plot_influence_tails(influence: pd.DataFrame) -> Figure:
    """Return a figure of the share of sequences whose influence is farther from the mean than a number of SDs.

    Parameters
    ----------
    influence
        From `analysis_helpers.influence_table`.
    """
    figure, (ax,) = style.panels(1)
    farthest = []
    for name in ("true", "linear"):
        scores = influence.groupby("run")[name].transform(lambda values: (values - values.mean()) / values.std())
        distance = np.sort(scores.abs().dropna())
        if not len(distance):
            continue  # not recorded
        share = 1 - np.arange(len(distance)) / len(distance)
        ax.step(distance, share, color=style.COLOURS[name], where="post", label=name)
        farthest.append((float(distance[-1]), name))
    grid = np.linspace(0, 5, 200)
    normal = [2 * (1 - NormalDist().cdf(x)) for x in grid]
    ax.plot(grid, normal, color=style.COLOURS["guide"], linestyle=":", label="normal distribution")
    ax.set_yscale("log")
    ax.set_ylim(0.5 / len(influence), 1.2)
    title = "Influence is not recorded, or does not vary"
    if farthest:
        title = "Largest influence: {:.1f} SDs from the mean ({} change)".format(*max(farthest))
    style.describe(ax, title, "distance of an influence from the mean (SDs)", "share of sequences farther away")
    ax.legend(fontsize=8, frameon=False)
    return figure


def plot_decomposition(table: pd.DataFrame) -> Figure:
    """Return a figure of the two parts of err_rel, each run and pooled, unadjusted and score-adjusted, a row per eta.

    Parameters
    ----------
    table
        From `analysis_helpers.decomposition_table`.
    """
    etas = sorted(table["eta"].unique())
    figure, axes = style.panels(2 * len(etas), height=2.8)
    for ax, (eta, (part, (name, colour))) in zip(axes, product(etas, style.PARTS.items()), strict=True):
        at_eta = table[table["eta"] == eta]
        raw, adjusted = (at_eta[at_eta["score_adjusted"] == chosen] for chosen in (False, True))
        drawn = ((raw, "unadjusted", colour), (adjusted, "score-adjusted", style.BACKGROUND))
        for (rows, label, face), (marker, shift) in zip(drawn, _PAIR, strict=True):
            look: dict[str, Any] = {"fmt": marker, "color": colour, "mfc": face, **_POINTS}
            ax.errorbar(np.arange(len(rows)) + shift, rows[part], rows[f"{part}_se"], label=label, **look)
        style.zero_line(ax, upright=False)
        ax.axvline(len(raw) - 1.5, color=style.COLOURS["guide"], linewidth=0.8, linestyle=":")
        named = style.evenly(len(raw), _MOST_NAMES)
        ax.set_xticks(named, raw["run"].iloc[named], fontsize=8)
        pooled = raw.iloc[-1]
        title = f"{name}, eta {eta:g}: {plus_minus(pooled[part], pooled[f'{part}_se'])} pooled"
        style.describe(ax, title, y=f"part of err_rel\n{style.TRUE_CHANGES}", columns=2)
    return figure
