"""Figures from tables. No function here reads a file, draws a random number or sets a global style."""

from .err_rel import (
    plot_err_rel_comparison as plot_err_rel_comparison,
    plot_err_rel_histograms as plot_err_rel_histograms,
    plot_prediction as plot_prediction,
    plot_spread_by_size as plot_spread_by_size,
)
from .linearity import (
    plot_change_by_origin as plot_change_by_origin,
    plot_nonlinearity as plot_nonlinearity,
    plot_trend as plot_trend,
)
from .planning import (
    plot_budget as plot_budget,
    plot_error_by_size as plot_error_by_size,
    plot_forest as plot_forest,
    plot_required_sizes as plot_required_sizes,
    plot_verdict_map as plot_verdict_map,
)
from .runs import (
    plot_decomposition as plot_decomposition,
    plot_influence_tails as plot_influence_tails,
    plot_totals as plot_totals,
)
from .style import ANSWER_COLOURS as ANSWER_COLOURS, png as png
from .validation import (
    plot_calibration as plot_calibration,
    plot_samplers as plot_samplers,
    plot_verdict_rates as plot_verdict_rates,
)

__all__ = [name for name in globals() if name.startswith("plot_")]


def __dir__() -> list[str]:
    return __all__
