"""Is the step linear, is the recorded change right, and is the batch large enough?

The public names; see the README for what they answer, and `notebooks/` for how they are used. Importing this package
imports NumPy, pandas and little else: plots, notebooks and their execution are imported where they are used.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ._checks import RunError
from .err_rel import (
    Comparison,
    aggregate_err_rel,
    collect_err_rel_across_runs,
    compare_err_rel_distributions,
    explain_partial_sum,
    reference_true_totals,
    sample_err_rel_across_runs,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    summarize_err_rel_distribution,
)
from .estimators import per_sequence_contributions
from .inference import (
    Answer,
    Prediction,
    Verdict,
    budget_table,
    check_prediction,
    contribution_table,
    contribution_tails,
    decompose_err_rel,
    decomposition_table,
    entropy_trend,
    err_rel_standard_error,
    error_by_size,
    estimator_table,
    health_of_batches,
    health_overview,
    nonlinearity,
    plan_batch_sizes,
    predict_err_rel,
    required_batch_size,
    run_health,
    run_totals,
    spread_by_size,
    subset_moments,
    trusted_eta,
    verdict,
    verdict_map,
    verdict_table,
)
from .runs import Run, inventory, load_runs, merge_runs, read_run, sound_batches, sound_runs, write_run
from .synthetic import synthetic_runs, write_sample_data

if TYPE_CHECKING:
    from .plots import plot_err_rel_comparison, plot_err_rel_histograms

try:
    __version__ = version("entropy-batch-diagnostics")
except PackageNotFoundError:  # the source folder is on the path, but not installed
    __version__ = "0+unknown"

__all__ = [
    "Answer",
    "Comparison",
    "Prediction",
    "Run",
    "RunError",
    "Verdict",
    "aggregate_err_rel",
    "budget_table",
    "check_prediction",
    "collect_err_rel_across_runs",
    "compare_err_rel_distributions",
    "contribution_table",
    "contribution_tails",
    "decompose_err_rel",
    "decomposition_table",
    "entropy_trend",
    "err_rel_standard_error",
    "error_by_size",
    "estimator_table",
    "explain_partial_sum",
    "health_of_batches",
    "health_overview",
    "inventory",
    "load_runs",
    "merge_runs",
    "nonlinearity",
    "per_sequence_contributions",
    "plan_batch_sizes",
    "plot_err_rel_comparison",
    "plot_err_rel_histograms",
    "predict_err_rel",
    "read_run",
    "reference_true_totals",
    "required_batch_size",
    "run_health",
    "run_totals",
    "sample_err_rel_across_runs",
    "simulate_err_rel",
    "simulate_err_rel_across_runs",
    "sound_batches",
    "sound_runs",
    "spread_by_size",
    "subset_moments",
    "summarize_err_rel_distribution",
    "synthetic_runs",
    "trusted_eta",
    "verdict",
    "verdict_map",
    "verdict_table",
    "write_run",
    "write_sample_data",
]


def __getattr__(name: str) -> Any:
    """Import matplotlib only when a plot is asked for."""
    if name in ("plot_err_rel_comparison", "plot_err_rel_histograms"):
        from . import plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
