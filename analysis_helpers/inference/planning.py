"""How large a batch reaches a goal, how precise that plan is, and one large run compared with several small ones.

Use it with a handful of runs of at least a few hundred sequences. The closed form behind it is first order; no plan is
smaller than 64 sequences.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from .._checks import check_goal, checked_count
from ..estimators import ESTIMATORS, EstimatorName, same_states, supported_estimators
from ..runs import Run, Runs
from ..subsampling import Seed
from .prediction import LEAST, MOST, PooledEstimate, pooled_err_rel, predict, size_for
from .random_effects import ENDS, ConfidenceDistribution, normal_quantile
from .standard_errors import sizes_around
from .trend import nonlinearity_estimates

_NEEDS = {
    "trend": "two or more etas",
    "matched": "the score",
    "adjusted": "the score; on-policy sequences",
    "ratio": "linear terms by sequence",
    "same states": "the score",
}
_DRAWS = 100  # replicates behind the interval of a plan


def required_batch_size(
    runs: Mapping[str, Run],
    eta: float,
    *,
    target_sd: float | None = None,
    tolerance: float | None = None,
    probability: float = 0.9,
    estimator: EstimatorName = "ratio",
    reference: float | None = None,
) -> int | None:
    """Return the smallest batch that reaches a target, or None if no batch does.

    With ``target_sd``, the standard error of err_rel on one fresh batch: ``S² / n <= target_sd²``, with S² averaged
    over the runs. With ``tolerance``, the prediction for a fresh run: ``P(|err_rel| <= tolerance) >= probability``;
    this includes the mean error and the spread between runs, which no batch size reduces.

    Parameters
    ----------
    runs
        Name -> run.
    eta
        Step size.
    target_sd, tolerance
        The target, one of the two, in units of the reference.
    probability
        Goes with ``tolerance``.
    estimator
        "ratio", "matched" or "adjusted".
    reference
        What err_rel is divided by (nats per token); None: the mean true total over the runs.

    Raises
    ------
    RunError
        If a run does not record what the estimator needs.
    ValueError
        If none or both targets are given, an argument is out of range, no run has the eta, or the estimator is
        "partial_sum", which is undefined on a fresh batch.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> n = required_batch_size(runs, 1.6e-6, target_sd=0.5)
    >>> round(required_batch_size(runs, 1.6e-6, target_sd=0.25) / n, 1)
    4.0
    >>> required_batch_size(runs, 1.6e-6, tolerance=1e-6) is None
    True
    """
    check_goal(tolerance, probability, target_sd)
    estimate = pooled_err_rel(runs, eta, reference=reference, estimator=estimator)
    if target_sd is not None:
        return _reachable_size(math.sqrt(estimate.mean_square_spread), target_sd)
    return smallest_within(estimate.distribution, estimate.mean_square_spread, float(tolerance or 0), probability)


def plan_batch_sizes(
    runs: Mapping[str, Run], etas: Sequence[float], *, tolerance: float, probability: float = 0.9, seed: Seed = 0
) -> pd.DataFrame:
    """Return the batch required at each eta for err_rel of a fresh run within ``tolerance``, as `required_batch_size`.

    The interval is a parametric bootstrap over runs of the same number and sizes. Each of 100 draws replaces err_rel
    and S of every run by values from their estimated distributions and plans again; the interval holds the middle 90 %
    of these plans.

    Returns
    -------
    DataFrame
        Columns eta, n, low, high (sequences; missing where no batch is large enough, low and high with one run) and,
        where every run records its prompts, prompts (for n sequences).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> plan_batch_sizes(synthetic_runs(3, 512), [1.6e-6], tolerance=2.0).columns.tolist()
    ['eta', 'n', 'low', 'high']
    """
    check_goal(tolerance, probability)
    rows = []
    for eta in etas:
        estimate, rng = pooled_err_rel(runs, eta), np.random.default_rng(seed)
        n, *drawn = (
            smallest_within(each.distribution, each.mean_square_spread, tolerance, probability)
            for each in (estimate, *(_replicate(estimate, rng) for _ in range(_DRAWS)))
        )
        ends = np.quantile([np.inf if size is None else size for size in drawn], ENDS, method="nearest")
        if len(estimate.values) == 1:  # which does not show how runs differ
            ends = np.full(2, np.inf)
        rows.append((eta, n, *(int(end) if math.isfinite(end) else None for end in ends)))
    table = pd.DataFrame(rows, columns=["eta", "n", "low", "high"])
    table = table.astype(dict.fromkeys(("n", "low", "high"), "Int64"))
    prompts = [run.prompt_ids for run in runs.values()]
    shares = [len(np.unique(ids)) / len(ids) for ids in prompts if ids is not None]
    if len(shares) < len(prompts) or any(len(np.unique(ids)) < 2 for ids in prompts if ids is not None):
        return table
    return table.assign(prompts=np.ceil(table["n"].astype(float) * np.mean(shares)).astype("Int64"))


def error_by_size(
    runs: Mapping[str, Run],
    eta: float,
    sizes: Sequence[int] | None = None,
    *,
    tolerance: float,
    probability: float = 0.9,
) -> pd.DataFrame:
    """Return how large an error of one fresh batch to expect at each size.

    Returns
    -------
    DataFrame
        Columns n, se, se_low, se_high (standard error of err_rel from sampling, with its interval), low, high (the
        predictive interval at level ``probability``), within (probability of an absolute err_rel of at most
        ``tolerance``).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = error_by_size(synthetic_runs(3, 512), 1.6e-6, [64, 256], tolerance=0.5)
    >>> bool(round(table["se"].iloc[0] / table["se"].iloc[1], 9) == 2)  # four times the batch halves the error
    True
    """
    estimate, rows = pooled_err_rel(runs, eta), []
    spreads = estimate.spread_interval
    for n in sizes_around(256, 4 * int(estimate.sizes.max())) if sizes is None else sizes:
        predicted = predict(estimate, checked_count(n, "sizes"))
        errors = (spread / math.sqrt(n) for spread in spreads)
        rows.append((n, *errors, *predicted.interval(probability), predicted.probability_within(tolerance)))
    return pd.DataFrame(rows, columns=["n", "se", "se_low", "se_high", "low", "high", "within"])


def budget_table(
    runs: Mapping[str, Run], eta: float, *, sequences: int = 2048, counts: Sequence[int] = (1, 2, 4, 8)
) -> pd.DataFrame:
    """Return what a budget of sequences buys as one large run or as several small ones, each with its own update.

    The mean err_rel over k runs of n sequences has the variance ``(S²/n + tau²) / k``: if runs differ beyond sampling
    noise, more runs give a more precise mean over updates; if not, splitting makes no difference.

    Returns
    -------
    DataFrame
        Columns runs, sequences_each, se (of the mean over runs, about updates in general), se_low and se_high (for tau
        at the ends of its interval).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> budget_table(synthetic_runs(3, 512), 1.6e-6, sequences=512)["sequences_each"].tolist()
    [512, 256, 128, 64]
    """
    estimate, rows = pooled_err_rel(runs, eta), []
    taus = (estimate.pooled.tau, estimate.pooled.tau_low, estimate.pooled.tau_high)
    for count in counts:
        each = checked_count(sequences, "sequences") // checked_count(count, "counts", most=sequences)
        sampling = estimate.mean_square_spread / each
        rows.append((count, each, *(math.sqrt((sampling + tau**2) / count) for tau in taus)))
    return pd.DataFrame(rows, columns=["runs", "sequences_each", "se", "se_low", "se_high"])


def estimator_table(
    runs: Mapping[str, Run], eta: float, n: int = 256, *, tolerance: float = 0.25, probability: float = 0.9
) -> pd.DataFrame:
    """Return for each estimator of the error the fields that it needs, its precision, and the sequences required.

    Returns
    -------
    DataFrame
        Columns estimator ("trend" and "matched" estimate nonlinearity, "adjusted" and "ratio" the error of the recorded
        linear change, "same states" its part there: see `change_by_origin`), needs (what a run must record), se (of one
        batch of n, in units of the true change), sequences, low, high (for the tolerance with the probability, and its
        90 % interval; missing where no batch is large enough, the interval also with one run). Estimators whose fields
        the runs do not record are left out.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> estimator_table(synthetic_runs(3, 512), 1.6e-6)["estimator"].tolist()
    ['trend', 'matched', 'adjusted', 'ratio', 'same states']
    """
    collection = Runs.of(runs)
    step = collection.eta(eta)
    estimates = nonlinearity_estimates(collection, step)
    for estimator in reversed(supported_estimators(collection)):  # the most precise first
        if estimator not in estimates and not ESTIMATORS[estimator].degree:
            estimates[estimator] = pooled_err_rel(collection, step, estimator=estimator)
    if able := collection.at(step).recording("score", "baseline_entropy"):
        reference = abs(collection.mean_true_change(step))
        errors = {name: same_states(run, step) for name, run in able.items()}
        relative = {name: (linear - true) * (1 / reference) for name, (true, linear) in errors.items()}
        estimates["same states"] = PooledEstimate.of(step, reference, relative)
    target, size = tolerance / normal_quantile(probability), checked_count(n, "n")
    rows = []
    for name, estimate in estimates.items():
        spreads = estimate.spread_interval
        sizes: list[int | None] = [_reachable_size(spread, target) for spread in spreads]
        if len(collection) == 1:  # which does not show how runs differ
            sizes[1:] = None, None
        needs = _NEEDS.get(name) or ", ".join(ESTIMATORS[name].columns)  # type: ignore[index]
        rows.append((name, needs, spreads[0] / math.sqrt(size), *sizes))
    table = pd.DataFrame(rows, columns=["estimator", "needs", "se", "sequences", "low", "high"])
    return table.astype(dict.fromkeys(("sequences", "low", "high"), "Int64"))


def smallest_within(
    distribution: ConfidenceDistribution, square_spread: float, tolerance: float, probability: float
) -> int | None:
    """Return the smallest n, at least 64, at which a fresh run's absolute error is at most ``tolerance``; None if none.

    ``P(|error| <= tolerance) >= probability`` under the predictive distribution.
    """

    def reached(size: float) -> bool:
        below, above = distribution.below([-tolerance, tolerance], square_spread / size)
        return bool(above - below >= probability)

    low = high = LEAST
    while not reached(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    return low + bisect_left(range(low, high), True, key=reached)


def _reachable_size(spread: float, target_sd: float) -> int | None:
    return size_for(spread, target_sd) if spread / target_sd <= math.sqrt(MOST) else None


def _replicate(estimate: PooledEstimate, rng: np.random.Generator) -> PooledEstimate:
    """Return a parametric-bootstrap replicate: runs of the same sizes, drawn from the estimated distributions."""
    pooled, logs = estimate.pooled, estimate.log_spreads
    count = len(estimate.values)
    values = rng.normal(pooled.mean, np.sqrt(estimate.variances + pooled.tau**2), count)
    scatter = np.sqrt(estimate.log_variances + logs.tau**2)
    factors = np.exp(rng.normal(0.0, scatter, count) / 2)
    typical = math.sqrt(estimate.mean_square_spread / np.mean(np.exp(scatter**2 / 2)))
    scale = math.exp(rng.normal(0.0, estimate.reference_error))  # the error of the reference is common to all
    return replace(estimate, values=values * scale, spreads=typical * factors * scale)
