"""The relative error of the linear approximation, as tables: reference totals, random subsets, actual runs."""

from .comparison import (
    Comparison as Comparison,
    compare_err_rel_distributions as compare_err_rel_distributions,
    explain_partial_sum as explain_partial_sum,
)
from .references import (
    FOR_MATCHED as FOR_MATCHED,
    distinct_runs as distinct_runs,
    known_eta as known_eta,
    known_etas as known_etas,
    mean_total_error as mean_total_error,
    own_total as own_total,
    recording as recording,
    reference_for as reference_for,
    reference_total as reference_total,
    reference_true_totals as reference_true_totals,
    require_poolable as require_poolable,
    runs_at as runs_at,
    same_content as same_content,
    usable_runs as usable_runs,
)
from .tables import (
    aggregate_err_rel as aggregate_err_rel,
    collect_err_rel_across_runs as collect_err_rel_across_runs,
    sample_err_rel_across_runs as sample_err_rel_across_runs,
    simulate_err_rel as simulate_err_rel,
    simulate_err_rel_across_runs as simulate_err_rel_across_runs,
    summarize_err_rel_distribution as summarize_err_rel_distribution,
    supported_estimators as supported_estimators,
)
