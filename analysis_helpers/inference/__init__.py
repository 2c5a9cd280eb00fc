"""What runs tell: standard errors, decomposition, prediction, planning, health, verdict."""

from .decomposition import decompose_err_rel, decomposition_table
from .health import (
    CHECKS,
    contribution_table,
    contribution_tails,
    health_of_batches,
    health_overview,
    run_health,
    run_totals,
)
from .planning import (
    Goal,
    budget_table,
    error_by_size,
    plan_batch_size,
    plan_batch_sizes,
    required_batch_size,
    smallest_for,
)
from .prediction import Prediction, check_prediction, pilot_of, predict, predict_err_rel
from .random_effects import Pool, normal_quantile
from .standard_errors import (
    err_rel_standard_error,
    spread_by_size,
    subset_moments,
    typical_standard_error,
)
from .verdicts import NO, QUESTIONS, SURPRISING, UNSURE, YES, Verdict, trusted_eta, verdict, verdict_map, verdict_table

__all__ = [
    "CHECKS",
    "NO",
    "QUESTIONS",
    "SURPRISING",
    "UNSURE",
    "YES",
    "Goal",
    "Pool",
    "Prediction",
    "Verdict",
    "budget_table",
    "check_prediction",
    "contribution_table",
    "contribution_tails",
    "decompose_err_rel",
    "decomposition_table",
    "err_rel_standard_error",
    "error_by_size",
    "health_of_batches",
    "health_overview",
    "normal_quantile",
    "pilot_of",
    "plan_batch_size",
    "plan_batch_sizes",
    "predict",
    "predict_err_rel",
    "required_batch_size",
    "run_health",
    "run_totals",
    "smallest_for",
    "spread_by_size",
    "subset_moments",
    "trusted_eta",
    "typical_standard_error",
    "verdict",
    "verdict_map",
    "verdict_table",
]
