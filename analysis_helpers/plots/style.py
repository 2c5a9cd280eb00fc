"""What all figures share: one colour and one label for one thing, panels, points, legends, histograms.

Nothing is set globally: styles are those of the axes.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

# One colour for one thing, everywhere, whether it is drawn or follows in closed form; from the palette of Okabe and Ito
# (2008), which colour-blind readers tell apart.
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
PART_LABELS = {"linear_minus_matched": "linear − matched", "matched_minus_true": "matched − true"}
ANSWER_COLOURS = {"yes": "#56B4E9", "cannot tell": "#E5E5E5", "no": "#F0A27F"}  # light: words stand on them
PART_COLOURS = {"linear_minus_matched": COLOURS["linear"], "matched_minus_true": COLOURS["matched"]}
SERIES = (("#332288", "o"), ("#882255", "s"), ("#999933", "D"))
"""Colour and marker of settings side by side, none of which is an estimator; from the muted palette of Tol (2021)."""
TRUE_CHANGES = "(units of the true change)"
ERR_REL_LABEL = f"relative error err_rel {TRUE_CHANGES}"
PARTIAL_SUM_LABEL = "relative error err_rel (units of each run's own true change)"
CHANGE_LABEL = "change of entropy (10⁻³ nats per token)"

BACKGROUND = "white"
BINS = 60  # as in the published figures
_PANEL = (5.2, 3.6)  # inches
_DPI = 110


def panels(
    count: int, *, share_x: bool = False, share_y: bool | Literal["col"] = False, width: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure with up to two panels a row, as wide as a page; every panel keeps its tick labels.

    ``width`` widens a panel that stands alone.
    """
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(_PANEL[0] * columns * width, _PANEL[1] * rows),
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
        ax.tick_params(labelbottom=True, labelleft=True)
    return figure, flat[:count]


def err_rel_label(estimator: str) -> str:
    """Return the label of an axis of err_rel, with the unit: the partial sum is over each run's own true change."""
    return PARTIAL_SUM_LABEL if estimator == "partial_sum" else ERR_REL_LABEL


def log_size_axis(ax: Axes) -> None:
    """Make the x axis one of sequences, by powers of two."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlabel("sequences n")


def log_error_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with labels that do not run into each other."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def points(
    ax: Axes,
    places: NDArray[np.floating[Any]],
    values: pd.Series[float],
    errors: pd.Series[float],
    colour: str,
    marker: str,
    label: str,
    face: str | None = None,
) -> None:
    """Draw values with their standard errors as bars; without bars where these are not known."""
    ax.errorbar(
        places,
        values,
        yerr=errors.fillna(0.0),
        fmt=marker,
        color=colour,
        markerfacecolor=face or colour,
        markersize=5.5,
        elinewidth=1.2,
        label=label,
    )


def legend_below(ax: Axes, columns: int, *, lines: int = 1) -> None:
    """Put the legend under the axes, where it hides no data; ``lines`` are those of the tick labels."""
    size = 8  # points; the room for tick labels and axis label is in units of it, whatever the height of the axes
    room = 1.2 + 1.6 * lines + (2.2 if ax.get_xlabel() else 0)
    ax.legend(
        fontsize=size, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=room, ncols=columns, frameon=False
    )


def histogram(
    ax: Axes,
    values: pd.Series[float],
    colour: str,
    label: str | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> None:
    """Draw a filled histogram of `BINS` bins, over the span of the values or the one given."""
    counts, edges = np.histogram(values, bins=BINS, range=span)
    ax.stairs(counts, edges, fill=True, alpha=0.45, color=colour, label=label)


def zero_line(ax: Axes) -> None:
    """Mark where err_rel, on the x axis, is zero."""
    ax.axvline(0, color=COLOURS["guide"], linewidth=0.8)


def tolerance_band(ax: Axes, tolerance: float, *, upright: bool = True) -> None:
    """Shade where err_rel keeps to the tolerance: an upright band where it is on the x axis, else a level one."""
    span = ax.axvspan if upright else ax.axhspan
    label = f"tolerance ±{tolerance:g}"
    span(-tolerance, tolerance, color=COLOURS["guide"], alpha=0.18, linewidth=0, zorder=0, label=label)


def finding(ax: Axes, text: str) -> None:
    """Put what the figure shows above it, computed from what it plots."""
    ax.set_title(text, fontsize=10)


def png(figure: Figure) -> bytes:
    """Return the figure as a picture and close it, so that no notebook shows it once more below the cell."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
