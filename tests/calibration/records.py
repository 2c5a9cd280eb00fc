"""Every estimate, prediction and plan on batches drawn anew, one by one, and the tables that sum them up."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis_helpers import err_rel_standard_error, simulate_err_rel
from analysis_helpers._checks import checked_count
from analysis_helpers.estimators import EstimatorName, columns
from analysis_helpers.inference import plan_batch_sizes
from analysis_helpers.inference.planning import smallest_within
from analysis_helpers.inference.prediction import pooled_err_rel, predict, size_for
from analysis_helpers.inference.random_effects import ConfidenceDistribution, normal_quantile
from analysis_helpers.runs import Run
from tests.calibration.drawing import (
    ETA,
    batch_of,
    exact_change,
    exact_derivative,
    expected_error,
    named,
    probability_within,
    replicates,
    true_spread,
    world,
)

LARGE = 512  # sequences of a large run
LEVELS = (0.5, 0.8, 0.9, 0.95)


def estimate_records(sizes: Sequence[int], *, count: int, seed: int) -> pd.DataFrame:
    """Return every estimate on ``count`` batches of each size beside the exact value: n, quantity, exact, value, se.

    Quantities are the "true", "linear" and "matched" change, "err_rel" by the ratio, and "partial_sum": err_rel of a
    random quarter of the batch less a quarter of that of the batch.
    """
    tables = []
    for n in sizes:
        made = world(count * checked_count(n, "sizes"), seed)
        change, linear = exact_change(), ETA * exact_derivative()
        found = [_estimates(batch_of(made, k * n, n), change, k) for k in range(count)]
        exact = {"true": change, "linear": linear, "matched": linear}
        exact |= {"err_rel": (linear - change) / change, "partial_sum": 0.0}
        for quantity, value in exact.items():
            values, errors = np.array([each[quantity] for each in found]).T
            columns_of = {"n": n, "quantity": quantity, "exact": value, "value": values, "se": errors}
            tables.append(pd.DataFrame(columns_of))
    return pd.concat(tables, ignore_index=True)


def estimate_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return means, spreads and standard errors of `estimate_records`.

    ``bias_z`` is mean - exact over its Monte-Carlo error, ``typical_se`` the root mean square of the closed form,
    ``covered`` the share of batches within 1.96 standard errors of the exact value.
    """
    rows = []
    for (n, quantity), found in records.groupby(["n", "quantity"], sort=False):
        values, errors, exact = found["value"].to_numpy(), found["se"].to_numpy(), float(found["exact"].iloc[0])
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        bias_z, typical_se = (mean - exact) / (sd / math.sqrt(len(values))), float(np.sqrt(np.mean(errors**2)))
        covered = float(np.mean(np.abs(values - exact) <= normal_quantile(0.95) * errors))
        rows.append((n, quantity, exact, mean, bias_z, sd, typical_se, covered))
    return pd.DataFrame(rows, columns=["n", "quantity", "exact", "mean", "bias_z", "sd", "typical_se", "covered"])


def pit_records(taus: Sequence[float], *, fresh_size: int = 64, count: int, seed: int = 0) -> pd.DataFrame:
    """Return the percentile of its prediction at which each fresh run falls: columns tau, num_large, n, pit."""
    rows = [
        (tau, 4, fresh_size, _pit(named(large), fresh))
        for tau in taus
        for *large, fresh in replicates(count, [LARGE] * 4 + [fresh_size], tau=tau, seed=seed)
    ]
    return pd.DataFrame(rows, columns=["tau", "num_large", "n", "pit"])


def coverage_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how often intervals hold the fresh run (``covered``, with its binomial ``error``), from `pit_records`."""
    rows = []
    for (tau, num_large, n), found in records.groupby(["tau", "num_large", "n"], sort=False):
        central = np.abs(2 * found["pit"].to_numpy() - 1)
        for level in LEVELS:
            error = math.sqrt(level * (1 - level) / len(central))
            rows.append((tau, num_large, n, level, float(np.mean(central <= level)), error))
    return pd.DataFrame(rows, columns=["tau", "num_large", "n", "level", "covered", "error"])


class Goal(NamedTuple):
    """What a batch is to reach: a standard error of err_rel, or err_rel within a tolerance with probability 0.9."""

    target_sd: float | None = None
    tolerance: float | None = None


def plan_records(goals: Sequence[Goal], *, tau: float = 0.0, count: int, seed: int) -> pd.DataFrame:
    """Return the plans of ``count`` pilots for each goal, infinite where no size is enough.

    ``true_n`` is the size with mean and tau known, ``reached`` what a batch of n truly has: its standard error, or its
    probability to be within tolerance.
    """
    spread, mean, rows = true_spread(), expected_error(), []
    for goal in goals:
        true_n = _size(_true_size(goal, spread, mean, tau))
        for k, (*large, _) in enumerate(replicates(count, [LARGE] * 4 + [64], tau=tau, seed=seed)):
            n, low, high = _plan(named(large), goal, seed=k)
            reached = math.nan if math.isinf(n) else _reached(goal, n, spread, mean, tau)
            aims = (math.nan if aim is None else aim for aim in goal)
            rows.append((*aims, true_n, n, low, high, reached))
    return pd.DataFrame(rows, columns=["target_sd", "tolerance", "true_n", "n", "low", "high", "reached"])


def plan_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how plans turn out, from `plan_records`.

    ``covered`` is the share of the plans' intervals that hold true_n; for a tolerance median_n, which is larger because
    a plan allows for a mean that is not known. ``unreachable`` is the share of plans that say so.
    """
    rows = []
    for _, found in records.groupby(["target_sd", "tolerance"], sort=False, dropna=False):
        target_sd, tolerance, true_n = (float(found[name].iloc[0]) for name in ("target_sd", "tolerance", "true_n"))
        median, unreachable = float(found["n"].median()), float(np.isinf(found["n"]).mean())
        aim = true_n if math.isnan(tolerance) else median
        covered = float(((found["low"] <= aim) & (aim <= found["high"])).mean())
        rows.append((target_sd, tolerance, true_n, median, unreachable, covered, float(found["reached"].mean())))
    names = ["target_sd", "tolerance", "true_n", "median_n", "unreachable", "covered", "reached"]
    return pd.DataFrame(rows, columns=names)


def _estimates(run: Run, scale: float, seed: int) -> dict[str, tuple[float, float]]:
    """Return each quantity's estimate and standard error; err_rel over ``scale``."""
    found: dict[str, tuple[float, float]] = {}
    for name in ("matched", "ratio"):
        true, linear = columns(run, ETA, name).estimates
        found |= {"true": (true.value, true.se), "linear" if name == "ratio" else name: (linear.value, linear.se)}
    error = linear - true
    found["err_rel"] = (error.value / scale, error.se / abs(scale))
    return found | {"partial_sum": _partial_sum(run, scale, seed)}


def _partial_sum(run: Run, scale: float, seed: int) -> tuple[float, float]:
    """Return err_rel of a random quarter of the run less its expectation, and the standard error; over ``scale``."""
    name: EstimatorName = "partial_sum"
    quarter = run.n // 4
    [drawn] = simulate_err_rel(run, ETA, quarter, num_samples=1, seed=seed, estimator=name, reference=scale)
    full = columns(run, ETA, name).error.value / scale
    error = err_rel_standard_error(run, ETA, quarter, population="run", estimator=name, reference=scale)
    return float(drawn) - quarter / run.n * full, error


def _pit(large: dict[str, Run], fresh: Run) -> float:
    pilot = pooled_err_rel(large, ETA)
    error = columns(fresh, ETA).error.value / pilot.reference
    return predict(pilot, fresh.n).pit(error)


def _plan(large: dict[str, Run], goal: Goal, seed: int) -> tuple[float, float, float]:
    if goal.tolerance is None:
        n, low, high = (
            size_for(each, float(goal.target_sd or 0)) for each in pooled_err_rel(large, ETA).spread_interval
        )
        return n, low, high
    [plan] = plan_batch_sizes(large, [ETA], tolerance=goal.tolerance, seed=seed).itertuples()
    return _size(plan.n), _size(plan.low), _size(plan.high)


def _reached(goal: Goal, n: float, spread: float, mean: float, tau: float) -> float:
    if goal.tolerance is None:
        return spread / math.sqrt(n)
    return probability_within(goal.tolerance, mean, math.hypot(spread / math.sqrt(n), tau))


def _size(n: Any) -> float:
    return math.inf if n is None or n is pd.NA else float(n)


def _true_size(goal: Goal, spread: float, mean: float, tau: float) -> int | None:
    """Return the batch that the goal takes where mean and tau are known."""
    if goal.target_sd is not None:
        return size_for(spread, goal.target_sd)
    known = ConfidenceDistribution(np.array([tau]), np.array([mean]), np.array([0.0]))
    return smallest_within(known, spread**2, float(goal.tolerance or 0), 0.9)
