"""Figures about runs: totals, contributions, the parts of the error. Tables in, figures out."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import (
    BACKGROUND,
    CHANGE_LABEL,
    COLOURS,
    PART_COLOURS,
    PART_LABELS,
    TRUE_CHANGES,
    finding,
    legend_below,
    panels,
    points,
)


def plot_totals(totals: pd.DataFrame) -> Figure:
    """Draw the true and the linear total of each run, a panel for each eta.

    Parameters
    ----------
    totals
        Columns batch, run, eta, true, linear, true_se, linear_se (nats per token), as from
        `analysis_helpers.run_tables.run_totals`.
    """
    etas = sorted(totals["eta"].unique())
    figure, axes = panels(len(etas))
    for ax, eta in zip(axes, etas, strict=True):
        rows = totals[totals["eta"] == eta].reset_index(drop=True)
        places = np.arange(len(rows))
        for name, marker, shift in (("true", "o", -0.12), ("linear", "D", 0.12)):
            points(ax, places + shift, rows[name] * 1e3, rows[f"{name}_se"] * 1e3, COLOURS[name], marker, name)
        ax.set_xticks(places, rows["batch"] + "\n" + rows["run"], fontsize=7)
        ax.set_xlim(-0.5, len(rows) - 0.5)
        ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
        means = rows.groupby("batch")[["linear", "true"]].mean()
        shares = ", ".join(f"{share:.2f} ({batch})" for batch, share in (means["linear"] / means["true"]).items())
        finding(ax, f"eta {eta:g}: linear / true is {shares}")
    axes[0].set_ylabel(CHANGE_LABEL)
    legend_below(axes[0], 2, lines=2)
    return figure


def plot_contribution_tails(contributions: pd.DataFrame) -> Figure:
    """Draw how often a sequence's contribution lies beyond so many SDs, for the true and the linear change.

    Parameters
    ----------
    contributions
        Columns run, true, linear (a row for each sequence), as from `analysis_helpers.run_tables.contribution_table`.
    """
    figure, (ax,) = panels(1)
    furthest: list[tuple[float, str]] = [(0.0, "no")]
    for name in ("true", "linear"):
        values = contributions[name] - contributions.groupby("run")[name].transform("mean")
        distance = np.sort(np.abs(values / contributions.groupby("run")[name].transform("std")))
        ax.step(distance, 1 - np.arange(len(distance)) / len(distance), color=COLOURS[name], where="post", label=name)
        furthest += [(float(last), name) for last in distance[-1:]]
    grid = np.linspace(0, 5, 200)
    normal = [2 * (1 - NormalDist().cdf(x)) for x in grid]
    ax.plot(grid, normal, color=COLOURS["guide"], linestyle=":", label="normal distribution")
    ax.set_yscale("log")
    ax.set_ylim(0.5 / max(len(contributions), 1), 1.2)
    ax.set_xlabel("distance of a contribution from its mean (SDs)")
    ax.set_ylabel("share of sequences further out")
    ax.legend(fontsize=8, frameon=False)
    finding(ax, "The furthest contribution lies {:.1f} SDs out, in the {} change".format(*max(furthest)))
    return figure


def plot_decomposition(table: pd.DataFrame) -> Figure:
    """Draw the two parts of err_rel for each run, pooled last, raw and score-adjusted: a row of panels for each eta.

    Parameters
    ----------
    table
        From `analysis_helpers.decomposition.decomposition_table`.
    """
    etas = sorted(table["eta"].unique())
    figure, axes = panels(2 * max(len(etas), 1), share_y="col")
    if not etas:
        finding(axes[0], "no run records the score")
        return figure
    for ax, (eta, part) in zip(axes, product(etas, PART_LABELS), strict=True):
        for adjusted, marker, shift in ((False, "o", -0.12), (True, "D", 0.12)):
            rows = table[(table["eta"] == eta) & (table["score_adjusted"] == adjusted)].reset_index(drop=True)
            label, face = ("score-adjusted", BACKGROUND) if adjusted else ("unadjusted", None)
            places = np.arange(len(rows)) + shift
            points(ax, places, rows[part], rows[f"{part}_se"], PART_COLOURS[part], marker, label, face)
        ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.axvline(len(rows) - 1.5, color=COLOURS["guide"], linewidth=0.8, linestyle=":")
        ax.set_xticks(np.arange(len(rows)), rows["run"], fontsize=8)
        finding(ax, f"{PART_LABELS[part]}, eta {eta:g}: {_pooled(table[table['eta'] == eta], part)}")
        legend_below(ax, 2)
    for ax in axes[::2]:
        ax.set_ylabel(f"part of err_rel {TRUE_CHANGES}")
    return figure


def _pooled(table: pd.DataFrame, part: str) -> str:
    raw = table[(table["run"] == "pooled") & ~table["score_adjusted"].astype(bool)].iloc[0]
    return f"{raw[part]:+.2g} ± {raw[f'{part}_se']:.2g} pooled"
