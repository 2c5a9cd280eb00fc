"""Figures of linearity: the true change against eta with its trend, and the nonlinearity at each eta."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .._checks import same_eta
from ..inference import plus_minus
from . import style


def plot_trend(trend: pd.DataFrame, totals: pd.DataFrame) -> Figure:
    """Return a figure of the true change of each run against eta, its fitted trend, and the pooled straight line.

    Parameters
    ----------
    trend
        From `analysis_helpers.entropy_trend`.
    totals
        From `analysis_helpers.run_totals`, of the same runs.
    """
    if trend.empty:
        return style.panels(0)[0]
    figure, (ax,) = style.panels(1)
    grid = np.linspace(0, 1.05 * float(totals["eta"].max()), 100)
    fits, pooled = trend.iloc[:-1], trend.iloc[-1]
    for k, (run, slope, curvature) in enumerate(fits[["run", "slope", "curvature"]].itertuples(index=False)):
        rows = totals[totals["run"] == run]
        label = "true change of a run ± SE, and its trend" if k == 0 else None
        values, errors = 1e3 * rows["true"], 1e3 * rows["true_se"]
        ax.errorbar(rows["eta"], values, errors, fmt="o", color=style.COLOURS["true"], markersize=4)
        fitted = grid[grid <= 1.05 * trend["up_to"].max()]
        ax.plot(
            fitted,
            1e3 * (slope * fitted + curvature * fitted**2),
            color=style.COLOURS["true"],
            linewidth=1,
            label=label,
        )
    line = 1e3 * pooled["slope"] * grid
    ax.plot(grid, line, color=style.COLOURS["linear"], linestyle="--", linewidth=1.8, label="pooled straight line")
    style.zero_line(ax, upright=False)
    fit = f"; lack of fit: chi² {pooled['chi2']:.1f} on {pooled['df']:.0f}" if pooled["df"] else ""
    change = plus_minus(1e-3 * pooled["slope"], 1e-3 * pooled["slope_se"])
    title = f"slope {change} (10⁻³ nats per token per 10⁻⁶){fit}"
    style.describe(ax, title, "step size eta", style.CHANGE_LABEL, columns=2)
    return figure


def plot_nonlinearity(table: pd.DataFrame, *, tolerance: float) -> Figure:
    """Return a figure of nonlinearity against eta: trend with the 90 % interval of the next update, matched - true.

    Parameters
    ----------
    table
        From `analysis_helpers.nonlinearity`, with a column batch where it is of several.
    tolerance
        Drawn as a band.
    """
    if table.empty:
        return style.panels(0)[0]
    figure, (ax,) = style.panels(1)
    estimates = []
    batches = table["batch"] if "batch" in table else pd.Series("", index=table.index)
    several = len(batches.unique()) > 1
    for (batch, method), rows in table.groupby([batches, "method"], sort=False):
        last, of = rows.iloc[-1], f", {batch}" if several else ""
        if last["eta"] == table["eta"].max():
            estimates.append(f"{plus_minus(last['nonlinearity'], last['se'])} ({method})")
        fill = "full" if batch == batches.iloc[0] else "none"
        look: dict[str, Any] = {"color": style.COLOURS[str(method)], "fillstyle": fill}
        if method == "trend":
            low, high, band = rows["low"], rows["high"], f"90% interval of the next update (trend{of})"
            ax.fill_between(rows["eta"], low, high, color=look["color"], alpha=0.15, linewidth=0, label=band)
            ax.plot(rows["eta"], rows["nonlinearity"], "o-", markersize=4, label=f"trend over etas{of}", **look)
        else:
            label = f"matched − true ± SE{of}"
            ax.errorbar(rows["eta"], rows["nonlinearity"], yerr=rows["se"], fmt="D", label=label, **look)
    style.tolerance_band(ax, tolerance, upright=False)
    style.zero_line(ax, upright=False)
    ax.set_xscale("log", base=2)
    etas = sorted(table["eta"].unique())
    ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
    ax.minorticks_off()
    seen = float(table["nonlinearity"].abs().max() + table["se"].max())
    reach = 1.1 * max(tolerance, min(seen, 4 * tolerance))
    ax.set_ylim(-reach, reach)
    title = f"nonlinearity at eta {etas[-1]:g}: {'; '.join(estimates)}"
    style.describe(
        ax, title, "step size eta", f"nonlinearity (line − true)\n{style.TRUE_CHANGES}", columns=1 if several else 2
    )
    return figure


def plot_change_by_origin(table: pd.DataFrame, eta: float) -> Figure:
    """Return a figure of the true and the linear change at one eta: on the same states, and by visiting other states.

    Of more than 40 runs, 40 are shown, evenly.

    Parameters
    ----------
    table
        From `analysis_helpers.change_by_origin`.
    eta
        Step size.
    """
    if table.empty:
        return style.panels(0)[0]
    rows = table[table["eta"].map(partial(same_eta, eta))]
    names = rows["run"].drop_duplicates().tolist()
    names = [names[place] for place in style.evenly(len(names), 40)]
    drawn = [name for name in ("true", "linear") if rows[name].notna().all()]
    figure, axes = style.panels(len(drawn), share_x=True, height=1.5 + 0.3 * len(names))
    places = np.arange(len(names))
    same, whole = (rows[rows["part"] == part].set_index("run").loc[names] for part in ("same states", "total"))
    for ax, name in zip(axes, drawn, strict=True):
        part, total, error = 1e3 * same[name], 1e3 * whole[name], f"{name}_se"
        look: dict[str, Any] = {"height": 0.6, "edgecolor": "black", "linewidth": 0.6}
        ax.barh(places, part, color=style.COLOURS["adjusted"], label="on the same states", **look)
        ax.barh(places, total - part, left=part, color="white", hatch="///", label="by visiting other states", **look)
        bars: dict[str, Any] = {"fmt": "none", "ecolor": "black", "capsize": 2}
        ax.errorbar(part, places + 0.12, xerr=1e3 * same[error], elinewidth=2.5, **bars)
        ax.errorbar(total, places - 0.12, xerr=1e3 * whole[error], elinewidth=1, **bars)
        ax.plot(total, places - 0.12, "D", color="black", markersize=3.5, label="total (lines: ± SE of part and total)")
        ax.set_yticks(places, names)
        ax.invert_yaxis()
        style.zero_line(ax)
        parts = f"{total['pooled']:+.2f}, of which {part['pooled']:+.2f} on the same states"
        title = f"{name} change at eta {eta:g}, pooled: {parts}"
        style.describe(ax, title, style.CHANGE_LABEL.replace("\n", " "), columns=2 if ax is axes[-1] else 0)
    return figure
