"""What all figures share: one colour and one label per quantity, panels, points, bands, legends, histograms.

Nothing is set globally; a user's settings (`matplotlib.rcParams`) apply where a figure sets none itself. Texts are not
written for LaTeX, where a "%" begins a comment: leave ``text.usetex`` off.
"""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter

# From the palette of Okabe and Ito (2008), which colour-blind readers can distinguish.
COLOURS = {
    "partial_sum": "#0072B2",
    "ratio": "#009E73",
    "matched": "#E69F00",
    "adjusted": "#56B4E9",
    "trend": "#AA4499",
    "actual": "#D55E00",
    "true": "#000000",
    "linear": "#CC79A7",
    "guide": "#808080",
}
PARTS = {
    "linear_minus_matched": ("linear − matched", COLOURS["linear"]),
    "matched_minus_true": ("nonlinearity (matched − true)", COLOURS["matched"]),
}
ANSWER_COLOURS = {"yes": "#9CD2F2", "cannot tell": "#F4F4F4", "no": "#E0864A"}
"""Light, as text is drawn on them, and apart in greyscale: "no" is darkest."""
SERIES = (("#332288", "o"), ("#882255", "s"), ("#999933", "D"))
"""Colour and marker of settings side by side, none of which is an estimator; from the muted palette of Tol (2021)."""
TRUE_CHANGES = "(units of the true change)"
ERR_REL_LABEL = f"relative error err_rel {TRUE_CHANGES}"
CHANGE_LABEL = "change of entropy\n(10⁻³ nats per token)"

BACKGROUND = "white"
BINS = 60  # as in the published figures
_WIDTH = 5.2  # inches; text stays legible at the width of a phone
_TITLE_WIDTH = 58  # characters
_DPI = 110


class StatedFigure(Figure):
    """A figure that states its finding, which becomes its alternative text in notebooks and pages."""

    @property
    def finding(self) -> str:
        """The title of each panel, which states its numbers, and its axes."""
        panels = ((ax.get_title(), ax.get_ylabel(), ax.get_xlabel()) for ax in self.axes)
        statements = (f"{title}. Axes: {' against '.join(filter(None, labels))}." for title, *labels in panels)
        return " ".join(" ".join(statements).split())

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        return {"text/plain": self.finding}, {"image/png": {"alt": self.finding}}


def panels(
    count: int, *, share_x: bool = False, share_y: bool = False, height: float = 3.6
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, one below the other, each of a height in inches and with its own tick labels.

    Without panels, return a figure that notebooks do not show.
    """
    if not count:
        return StatedFigure(), []
    look: Any = {"figsize": (_WIDTH, height * count), "dpi": _DPI, "FigureClass": StatedFigure}
    look["layout"] = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure, axes = plt.subplots(count, sharex=share_x, sharey=share_y, squeeze=False, **look)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=True)
    return figure, list(axes.flat)


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many of ``count`` places, evenly, with the first and the last."""
    places: list[int] = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
    return places


def describe(ax: Axes, title: str, x: str = "", y: str = "", *, columns: int = 0, lines: int = 1) -> None:
    """Set the title, which states what the figure shows with its numbers, the axis labels with units, and the legend.

    With ``columns``, the legend is placed below the axes, where it hides no data, and below tick labels of ``lines``.
    """
    unbroken = title.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    ax.set_title(textwrap.fill(unbroken, _TITLE_WIDTH, break_on_hyphens=False), fontsize=10)
    ax.set(xlabel=x, ylabel=y)
    if columns:
        # The room for tick labels and axis label is in units of the font size, whatever the height of the axes.
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": columns}
        ax.legend(fontsize=8, frameon=False, borderaxespad=1.2 + 1.6 * lines + 2.2 * bool(x), **place)


def err_rel_label(estimator: str) -> str:
    """Return the axis label of err_rel with its unit; the partial sum is over each run's own true change."""
    return ERR_REL_LABEL.replace("the true", "each run's own true") if estimator == "partial_sum" else ERR_REL_LABEL


def log_size_axis(ax: Axes) -> None:
    """Make the x axis logarithmic in sequences, with ticks at powers of two."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.tick_params(axis="x", labelsize=8)


def log_error_axis(ax: Axes) -> None:
    """Make the y axis logarithmic, with labels that do not overlap."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def band(ax: Axes, x: Any, low: Any, high: Any, label: str | None = None) -> None:
    """Shade between two curves of the ratio."""
    ax.fill_between(x, low, high, color=COLOURS["ratio"], alpha=0.25, linewidth=0, label=label)


def histogram(
    ax: Axes, values: pd.Series[float], estimator: str, label: str = "", span: tuple[float, float] | None = None
) -> None:
    """Draw a filled histogram of `BINS` bins, over the range of the values or over ``span``."""
    counts, edges = np.histogram(values, bins=BINS, range=span)
    ax.stairs(counts, edges, fill=True, alpha=0.45, color=COLOURS[estimator], label=label)


def zero_line(ax: Axes, *, upright: bool = True) -> None:
    """Mark zero on the x axis (``upright``) or on the y axis."""
    (ax.axvline if upright else ax.axhline)(0, color=COLOURS["guide"], linewidth=0.8)


def tolerance_band(ax: Axes, tolerance: float, *, upright: bool = True) -> None:
    """Shade where abs(err_rel) is within the tolerance; err_rel is on the x axis (``upright``) or on the y axis."""
    span = ax.axvspan if upright else ax.axhspan
    label = f"tolerance ±{tolerance:g}"
    # A dashed edge: in greyscale a shade alone looks like an interval.
    look: Any = {"facecolor": to_rgba(COLOURS["guide"], 0.12), "edgecolor": COLOURS["guide"], "linestyle": "--"}
    span(-tolerance, tolerance, linewidth=1.0, zorder=0, label=label, **look)


def png(figure: Figure) -> bytes:
    """Return a figure of one panel as PNG and close it, so that notebooks do not show it twice.

    Margins follow from the lines of title and legend: the search for a layout takes as long as drawing.
    """
    [ax], (width, height), legend = figure.axes, figure.get_size_inches(), figure.axes[0].get_legend()
    below = 0.75 + (0.17 * -(-len(legend.get_texts()) // 2) if legend else 0.0)
    above = 0.2 + 0.18 * (ax.get_title().count("\n") + 1)
    figure.set_layout_engine("none")
    ax.set_position((0.75 / width, below / height, 1 - 0.9 / width, 1 - (below + above) / height))
    if legend:  # in the middle of the figure, where it has most room
        legend.set_bbox_to_anchor(((width / 2 - 0.75) / (width - 0.9), 0), transform=ax.transAxes)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
