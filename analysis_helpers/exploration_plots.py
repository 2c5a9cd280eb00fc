"""The figure of an exploration: subsets, closed form and actual runs on one scale. A table in, a figure out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .answers import QUESTIONS
from .exploration import ClosedForm
from .plot_style import (
    BINS,
    COLOURS,
    ESTIMATOR_LABELS,
    err_rel_label,
    finding,
    histogram,
    legend_below,
    panels,
    tolerance_band,
)
from .plots import draw_actual_runs, mixture_density


def plot_exploration(found: ClosedForm, draws: pd.DataFrame | None = None) -> Figure:
    """Draw the closed form, the actual runs and, where subsets are drawn, their histogram.

    The scale follows from the closed form and the actual runs, so it stays where it is when subsets join.

    Parameters
    ----------
    found
        From `analysis_helpers.exploration.Exploration.closed_form`.
    draws
        From `analysis_helpers.exploration.Exploration.draws`; None: not drawn yet.
    """
    choice = found.choice
    figure, (ax,) = panels(1, width=1.5)
    low, high = _span(found)
    count = choice.num_samples * len(found.moments)
    if draws is not None:
        label = f"{count:,} subsets of {choice.subset_size} drawn from large runs"
        histogram(ax, draws["err_rel"].clip(low, high), COLOURS[choice.estimator], label, span=(low, high))
    grid = np.linspace(low, high, 400)
    height = count * (high - low) / BINS
    if (found.moments["sd"] > 0).any():  # a subset of all sequences does not scatter
        density = mixture_density(grid, found.moments)
        ax.plot(grid, height * density, color=COLOURS[choice.estimator], linewidth=1.8, label="subsets, closed form")
    draw_actual_runs(ax, found.actual, found.actual["n"].tolist(), choice.subset_size)
    tolerance_band(ax, choice.tolerance)
    ax.set_xlim(low, high)
    finding(ax, _title(found))
    ax.set_xlabel(err_rel_label(choice.estimator))
    ax.set_ylabel("number of subsets")
    legend_below(ax, 2)
    return figure


def _span(found: ClosedForm) -> tuple[float, float]:
    """Return an interval that holds nearly all subsets, every actual run and a tolerance that is not far off."""
    reach = 4 * found.moments["sd"]
    ends = pd.concat([found.moments["mean"] - reach, found.moments["mean"] + reach, found.actual["err_rel"]])
    low, high = float(ends.min()), float(ends.max())
    # A tolerance far beyond all of them would press them into one line.
    tolerance = min(found.choice.tolerance, 2 * max(abs(low), abs(high)))
    low, high = min(low, -tolerance), max(high, tolerance)
    margin = 0.03 * (high - low) or 1.0
    return low - margin, high + margin


def _title(found: ClosedForm) -> str:
    choice, name = found.choice, ESTIMATOR_LABELS[found.choice.estimator]
    compared = "\n(not comparable with actual runs)" if choice.estimator == "partial_sum" else ""
    spread = f"subsets of {choice.subset_size} scatter by ±{found.sd:.2g} about {found.mean:+.2g}{compared}"
    by_ratio = "" if choice.estimator == "ratio" else "By the ratio: "
    enough = f"{by_ratio}Is a batch of {choice.subset_size} enough? {found.verdict.enough.capitalize()}."
    trusted = f"{QUESTIONS['linear_trusted']} {found.verdict.linear_trusted.capitalize()}."
    return f"{name.capitalize()}, eta {choice.eta:g}: {spread}\n{enough} {trusted}"
