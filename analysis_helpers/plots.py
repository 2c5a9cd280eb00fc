"""Tables to figures. Nothing here reads a file or draws a random number; styles are set on the axes, never globally."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .checks import ETA_TOLERANCE
from .comparison import Comparison

# One colour for one thing, everywhere; from the colour-blind-safe palette of Okabe and Ito (2008).
COLOURS = {
    "partial_sum": "#0072B2",
    "ratio": "#009E73",
    "matched": "#E69F00",
    "actual": "#D55E00",
    "true": "#000000",
    "linear": "#CC79A7",
    "guide": "#808080",
}
ESTIMATOR_LABELS = {"partial_sum": "partial sum", "ratio": "ratio", "matched": "matched"}
ERR_REL_LABEL = "relative error, (linear - true) / reference"
CHANGE_LABEL = "change of entropy (10⁻³ nats per token)"

_BINS = 60  # as in the published figures
_PANEL = (5.2, 3.6)  # inches
_DPI = 110
_DASHES = ("--", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # so that actual runs differ by more than their label


def plot_err_rel_comparison(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the synthetic subsets as a histogram of 60 bins and each actual run as a dashed line.

    Parameters
    ----------
    comparison
        From `analysis_helpers.compare_err_rel_distributions`.
    ax
        Axes to draw on; None: new ones.

    Returns
    -------
    Axes
        The axes drawn on.

    Examples
    --------
    >>> from analysis_helpers import compare_err_rel_distributions, synthetic_runs
    >>> large, small = synthetic_runs(2, 512), synthetic_runs(3, 64, seed=1)
    >>> comparison = compare_err_rel_distributions(large, small, 1.6e-6, sample_size=64, num_samples=50)
    >>> plot_err_rel_comparison(comparison).get_ylabel()
    'number of subsets'
    """
    target = _panels(1)[1][0] if ax is None else ax
    synthetic = comparison.synthetic["err_rel"]
    label = f"subsets of {comparison.sample_size} drawn from large runs"
    _histogram(target, synthetic, COLOURS[comparison.estimator], label)
    for k, (run, value) in enumerate(zip(comparison.actual["run"], comparison.actual["err_rel"], strict=True)):
        style = _DASHES[k % len(_DASHES)]
        target.axvline(
            value, color=COLOURS["actual"], linestyle=style, linewidth=1.6, label=f"actual {run}: {value:+.2f}"
        )
    target.axvline(0, color=COLOURS["guide"], linewidth=0.8)
    mean, sd = synthetic.mean(), synthetic.std()
    target.set_title(
        f"{ESTIMATOR_LABELS[comparison.estimator]}, eta {comparison.eta:g}: subsets {mean:+.2f} ± {sd:.2f} (mean ± SD)",
        fontsize=10,
    )
    target.set_xlabel(ERR_REL_LABEL)
    target.set_ylabel("number of subsets")
    target.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return target


def plot_err_rel_comparisons(comparisons: Sequence[Comparison]) -> Figure:
    """Draw comparisons side by side on one scale, so that their widths can be compared."""
    figure, axes = _panels(len(comparisons), share_x=True)
    for ax, comparison in zip(axes, comparisons, strict=True):
        plot_err_rel_comparison(comparison, ax=ax)
    return figure


def plot_err_rel_histograms(df: pd.DataFrame, eta_values: Sequence[float], *, estimator: str = "partial_sum") -> Figure:
    """Draw one histogram of err_rel for each eta, side by side on shared axes.

    Parameters
    ----------
    df
        Columns eta and err_rel, as from `analysis_helpers.sample_err_rel_across_runs`.
    eta_values
        Step sizes, one panel each.
    estimator
        Which estimator the values are from; sets colour and title.

    Returns
    -------
    Figure
        The figure drawn.

    Raises
    ------
    ValueError
        If ``df`` has no row for one of the etas.

    Examples
    --------
    >>> from analysis_helpers import sample_err_rel_across_runs, synthetic_runs
    >>> df = sample_err_rel_across_runs(synthetic_runs(2, 512), [1.6e-6, 3.2e-6], subset_size=64, samples_per_eta=50)
    >>> len(plot_err_rel_histograms(df, [1.6e-6, 3.2e-6]).axes)
    2
    """
    panels = [_at_eta(df, eta) for eta in eta_values]
    shown = pd.concat(panels)
    figure, axes = _panels(len(eta_values), share_x=True, share_y=True)
    for ax, eta, values in zip(axes, eta_values, panels, strict=True):
        _histogram(ax, values, COLOURS[estimator], span=(shown.min(), shown.max()))  # one bin width: heights compare
        ax.axvline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.axvline(values.mean(), color=COLOURS["true"], linestyle="--", linewidth=1.2, label="mean")
        ax.set_title(
            f"{ESTIMATOR_LABELS[estimator]}, eta {eta:g}: {values.mean():+.2f} ± {values.std():.2f}", fontsize=10
        )
        ax.set_xlabel(ERR_REL_LABEL)
    axes[0].set_ylabel("number of subsets")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def plot_totals(totals: pd.DataFrame) -> Figure:
    """Draw the true and the linear total of each run, a panel for each eta.

    Parameters
    ----------
    totals
        Columns batch, run, eta, true, linear (nats per token), as from `analysis_helpers.health.run_totals`.
    """
    etas = sorted(totals["eta"].unique())
    figure, axes = _panels(len(etas))
    for ax, eta in zip(axes, etas, strict=True):
        rows = totals[totals["eta"] == eta].reset_index(drop=True)
        places = np.arange(len(rows))
        for name, marker in (("true", "o"), ("linear", "D")):
            ax.plot(places, rows[name] * 1e3, marker, color=COLOURS[name], markersize=6, label=name, linestyle="none")
        ax.vlines(places, rows["true"] * 1e3, rows["linear"] * 1e3, color=COLOURS["guide"], linewidth=1, zorder=0)
        ax.set_xticks(places, rows["batch"] + "\n" + rows["run"], fontsize=7)
        ax.set_xlim(-0.5, len(rows) - 0.5)
        ax.axhline(0, color=COLOURS["guide"], linewidth=0.8)
        ax.set_title(f"eta {eta:g}", fontsize=10)
    axes[0].set_ylabel(CHANGE_LABEL)
    axes[0].legend(fontsize=8)
    return figure


def plot_contribution_tails(contributions: pd.DataFrame) -> Figure:
    """Draw how often a sequence's contribution lies beyond so many SDs, for the true and the linear change.

    Parameters
    ----------
    contributions
        Columns run, true, linear (a row for each sequence), as from `analysis_helpers.health.contribution_table`.
    """
    figure, (ax,) = _panels(1)
    for name in ("true", "linear"):
        values = contributions[name] - contributions.groupby("run")[name].transform("mean")
        distance = np.sort(np.abs(values / contributions.groupby("run")[name].transform("std")))
        ax.step(distance, 1 - np.arange(len(distance)) / len(distance), color=COLOURS[name], where="post", label=name)
    grid = np.linspace(0, 5, 200)
    normal = [2 * (1 - NormalDist().cdf(x)) for x in grid]
    ax.plot(grid, normal, color=COLOURS["guide"], linestyle=":", label="normal distribution")
    ax.set_yscale("log")
    ax.set_ylim(0.5 / max(len(contributions), 1), 1.2)
    ax.set_xlabel("distance of a contribution from its mean (SDs)")
    ax.set_ylabel("share of sequences further out")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _at_eta(df: pd.DataFrame, eta: float) -> pd.Series[float]:
    values: pd.Series[float] = df.loc[np.isclose(df["eta"], eta, rtol=ETA_TOLERANCE, atol=0.0), "err_rel"]
    if values.empty:
        raise ValueError(
            f"df has no row with eta {eta!r}; there are {', '.join(map(repr, df['eta'].unique().tolist()))}"
        )
    return values


def _panels(count: int, *, share_x: bool = False, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure with up to two panels a row, as wide as a page; every panel keeps its tick labels."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_PANEL[0] * columns, _PANEL[1] * rows),
        dpi=_DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1),
        sharex=share_x,
        sharey=share_y,
        squeeze=False,
    )
    flat = list(axes.ravel())
    for ax in flat[count:]:
        ax.remove()
    for ax in flat[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=True)
    return figure, flat[:count]


def _histogram(
    ax: Axes,
    values: pd.Series[float],
    colour: str,
    label: str | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> None:
    counts, edges = np.histogram(values, bins=_BINS, range=span)
    ax.stairs(counts, edges, fill=True, alpha=0.55, color=colour, label=label)
