"""The relative error of the linear approximation, as tables: reference totals, random subsets, actual runs."""

from .comparison import Comparison, compare_err_rel_distributions, explain_partial_sum
from .references import (
    all_etas,
    known_eta,
    known_etas,
    mean_total_error,
    own_total,
    reference_for,
    reference_total,
    reference_true_totals,
    require_poolable,
    same_content,
    usable_runs,
)
from .tables import (
    aggregate_err_rel,
    collect_err_rel_across_runs,
    sample_err_rel_across_runs,
    simulate_err_rel,
    simulate_err_rel_across_runs,
    summarize_err_rel_distribution,
    supported_estimators,
)

__all__ = [
    "Comparison",
    "aggregate_err_rel",
    "all_etas",
    "collect_err_rel_across_runs",
    "compare_err_rel_distributions",
    "explain_partial_sum",
    "known_eta",
    "known_etas",
    "mean_total_error",
    "own_total",
    "reference_for",
    "reference_total",
    "reference_true_totals",
    "require_poolable",
    "same_content",
    "sample_err_rel_across_runs",
    "simulate_err_rel",
    "simulate_err_rel_across_runs",
    "summarize_err_rel_distribution",
    "supported_estimators",
    "usable_runs",
]
