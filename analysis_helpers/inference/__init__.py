"""Inference from runs: standard errors, trend, decomposition, prediction, planning, health, verdict."""

from .decomposition import decompose_err_rel as decompose_err_rel, decomposition_table as decomposition_table
from .health import (
    OFF_POLICY_CHECKS as OFF_POLICY_CHECKS,
    effective_share as effective_share,
    findings as findings,
    run_health as run_health,
    sampler_mismatch as sampler_mismatch,
    unsound_flags as unsound_flags,
)
from .origin import change_by_origin as change_by_origin
from .planning import (
    budget_table as budget_table,
    error_by_size as error_by_size,
    estimator_table as estimator_table,
    plan_batch_sizes as plan_batch_sizes,
    required_batch_size as required_batch_size,
)
from .prediction import (
    Prediction as Prediction,
    check_prediction as check_prediction,
    pooled_err_rel as pooled_err_rel,
    predict as predict,
    predict_err_rel as predict_err_rel,
)
from .standard_errors import (
    err_rel_standard_error as err_rel_standard_error,
    moments_over_runs as moments_over_runs,
    spread_by_size as spread_by_size,
    subset_moments as subset_moments,
)
from .tables import (
    health_of_batches as health_of_batches,
    health_overview as health_overview,
    influence_table as influence_table,
    influence_tails as influence_tails,
    over_batches as over_batches,
    run_totals as run_totals,
)
from .trend import entropy_trend as entropy_trend, nonlinearity as nonlinearity, trend_table as trend_table
from .verdicts import (
    Answer as Answer,
    Verdict as Verdict,
    answers_alone as answers_alone,
    errors_by_run as errors_by_run,
    trusted_eta as trusted_eta,
    verdict as verdict,
    verdict_map as verdict_map,
    verdict_table as verdict_table,
)
from .wording import (
    QUESTIONS as QUESTIONS,
    Doubt as Doubt,
    Note as Note,
    allowed as allowed,
    counted as counted,
    explained as explained,
    low_to_high as low_to_high,
    percent as percent,
    percent_range as percent_range,
    plus_minus as plus_minus,
    sizes as sizes,
    words as words,
)
