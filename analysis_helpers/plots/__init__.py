"""Figures from tables. No function here reads a file, draws a random number or sets a global style."""

from .err_rel import (
    plot_err_rel_comparison,
    plot_err_rel_comparisons,
    plot_err_rel_histograms,
    plot_exploration,
    plot_prediction,
    plot_spread_by_size,
)
from .linearity import plot_nonlinearity, plot_trend
from .planning import plot_budget, plot_error_by_size, plot_required_sizes, plot_verdict_map
from .runs import plot_contribution_tails, plot_decomposition, plot_totals
from .style import ANSWER_COLOURS, ESTIMATOR_LABELS, png
from .validation import plot_calibration, plot_verdict_rates

__all__ = [
    "ANSWER_COLOURS",
    "ESTIMATOR_LABELS",
    "plot_budget",
    "plot_calibration",
    "plot_contribution_tails",
    "plot_decomposition",
    "plot_err_rel_comparison",
    "plot_err_rel_comparisons",
    "plot_err_rel_histograms",
    "plot_error_by_size",
    "plot_exploration",
    "plot_nonlinearity",
    "plot_prediction",
    "plot_required_sizes",
    "plot_spread_by_size",
    "plot_totals",
    "plot_trend",
    "plot_verdict_map",
    "plot_verdict_rates",
    "png",
]
