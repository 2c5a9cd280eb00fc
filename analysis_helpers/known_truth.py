"""Does the suite tell the truth? Its estimates, intervals, plans and answers on runs whose answer is known.

Every table rests on batches drawn anew by `analysis_helpers.replicates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from .answers import NO, UNSURE, YES
from .checks import checked_count
from .estimators import columns, estimate, influence_values, standard_deviation
from .planning import Goal, plan_batch_size, smallest_for
from .prediction import pilot_of, predict
from .random_effects import Pool, normal_quantile
from .replicates import ETA, Replicate, batch_of, replicates, true_spread, world
from .runs import Run
from .verdict import verdict

LEVELS = (0.5, 0.8, 0.9, 0.95)


def estimate_calibration(sizes: Sequence[int], *, count: int = 200, seed: int = 0) -> pd.DataFrame:
    """Return whether the true change, the linear change and err_rel come out right on batches of each size.

    Returns
    -------
    DataFrame
        Columns n, quantity, exact, mean (over batches), bias_z (difference of the two over its Monte-Carlo error), sd
        (over batches), typical_se (root mean square of the closed form), covered (share of batches within 1.96 standard
        errors of the exact value).
    """
    rows = []
    for n in sizes:
        made = world(count * checked_count(n, "sizes"), seed)
        change, linear = made.exact_change(ETA), ETA * made.exact_derivative()
        exact = {"true": change, "linear": linear, "err_rel": (linear - change) / change}
        found = [_estimates(batch_of(made.run, k * n, n), change) for k in range(count)]
        for quantity, value in exact.items():
            values, errors = np.array([each[quantity] for each in found]).T
            sd = float(values.std(ddof=1))
            rows.append(
                {
                    "n": n,
                    "quantity": quantity,
                    "exact": value,
                    "mean": float(values.mean()),
                    "bias_z": (float(values.mean()) - value) / (sd / math.sqrt(count)),
                    "sd": sd,
                    "typical_se": float(np.sqrt(np.mean(errors**2))),
                    "covered": float(np.mean(np.abs(values - value) <= normal_quantile(0.95) * errors)),
                }
            )
    return pd.DataFrame(rows)


def interval_coverage(
    taus: Sequence[float],
    *,
    num_large: int = 4,
    large_size: int = 512,
    fresh_size: int = 64,
    count: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how often predictive intervals hold the fresh run, each replicate with large runs of its own.

    Returns
    -------
    DataFrame
        Columns tau, num_large, level, covered (share of replicates), error (binomial standard error).
    """
    rows = []
    sizes = {"num_large": num_large, "large_size": large_size, "fresh_size": fresh_size}
    for tau in taus:
        pits = np.array([_pit(each) for each in replicates(count, tau=tau, seed=seed, **sizes)])
        for level in LEVELS:
            covered = float(np.mean(np.abs(2 * pits - 1) <= level))
            rows.append((tau, num_large, level, covered, math.sqrt(level * (1 - level) / count)))
    return pd.DataFrame(rows, columns=["tau", "num_large", "level", "covered", "error"])


def plan_hits(goals: Sequence[Goal], *, tau: float = 0.0, count: int = 100, seed: int = 0) -> pd.DataFrame:
    """Return how plans from pilots turn out, each from four large runs of its own.

    Returns
    -------
    DataFrame
        Columns target_sd, tolerance, true_n (with mean and tau known), median_n (of the plans; larger for a tolerance,
        because a plan allows for a mean that is not known), unreachable (share of plans that say so), covered (share of
        the plans' intervals that hold true_n, for a tolerance median_n), reached (mean over plans of what a batch of
        the planned size truly has: its standard error, or its probability to be within tolerance).
    """
    spread, rows = true_spread(), []
    for goal in goals:
        plans, mean = [], 0.0
        for k, each in enumerate(replicates(count, tau=tau, seed=seed)):
            plans.append(plan_batch_size(each.large, ETA, goal, num_draws=100, seed=k))
            mean = each.mean
        true_n = _size(smallest_for(goal, Pool(mean, 0.0, tau, 0.0, 1), spread**2))
        sizes = np.array([_size(plan.n) for plan in plans])
        aim = true_n if goal.tolerance is None else float(np.median(sizes))
        held = [_size(plan.low) <= aim <= _size(plan.high) for plan in plans]
        reached = [_reached(goal, n, spread, mean, tau) for n in sizes[np.isfinite(sizes)]]
        rows.append(
            {
                "target_sd": math.nan if goal.target_sd is None else goal.target_sd,
                "tolerance": math.nan if goal.tolerance is None else goal.tolerance,
                "true_n": true_n,
                "median_n": float(np.median(sizes)),
                "unreachable": float(np.mean(np.isinf(sizes))),
                "covered": float(np.mean(held)),
                "reached": float(np.mean(reached)) if reached else math.nan,
            }
        )
    return pd.DataFrame(rows)


def verdict_rates(
    biases: Sequence[float],
    sizes: Sequence[int],
    *,
    tau: float = 0.0,
    num_large: int = 4,
    large_size: int = 512,
    tolerance: float = 0.5,
    probability: float = 0.9,
    count: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how often verdicts say "yes", "no" and "cannot tell", beside the true answer.

    Whether the linear change may be trusted is asked of runs with each bias; whether a batch is enough, for each size,
    of runs with the first.

    Returns
    -------
    DataFrame
        Columns question ("linear_trusted", "enough"), setting (the bias, or the size), within (how often an update, or
        a batch, truly keeps to the tolerance), truth, yes, no, cannot_tell (shares of replicates).
    """
    large = {"num_large": num_large, "large_size": large_size, "fresh_size": 2}
    answers: dict[tuple[str, float], list[str]] = {}
    means: dict[float, float] = {}
    for bias in biases:
        for each in replicates(count, tau=tau, bias=bias, seed=seed, **large):
            means[bias] = each.mean
            for n in sizes if bias == biases[0] else sizes[:1]:
                found = verdict(each.large, ETA, n, tolerance=tolerance, probability=probability)
                if bias == biases[0]:
                    answers.setdefault(("enough", n), []).append(found.enough)
            answers.setdefault(("linear_trusted", bias), []).append(found.linear_trusted)
    within = {("linear_trusted", bias): _probability_within(tolerance, means[bias], tau) for bias in biases}
    within |= {("enough", n): _probability_within(tolerance, 0.0, true_spread() / math.sqrt(n)) for n in sizes}
    rows = [
        (*key, true, YES if true >= probability else NO, *(answers[key].count(a) / count for a in (YES, NO, UNSURE)))
        for key, true in within.items()
    ]
    return pd.DataFrame(rows, columns=["question", "setting", "within", "truth", "yes", "no", "cannot_tell"])


def _estimates(run: Run, scale: float) -> dict[str, tuple[float, float]]:
    """Return each quantity's estimate and standard error; err_rel over ``scale``."""
    batch = columns(run, ETA, "ratio")
    (true, linear), psi = batch.estimate(batch.sums), influence_values(batch)
    of_true, of_linear = (standard_deviation(each) / math.sqrt(len(each)) for each in psi)
    of_error = standard_deviation(psi[1] - psi[0]) / math.sqrt(len(psi[0]))
    return {
        "true": (float(true), of_true),
        "linear": (float(linear), of_linear),
        "err_rel": (float(linear - true) / scale, of_error / abs(scale)),
    }


def _pit(each: Replicate) -> float:
    pilot = pilot_of(each.large, ETA)
    true, linear = estimate(each.fresh, ETA)
    return predict(pilot, each.fresh.num_sequences).pit((linear - true) / pilot.reference)


def _probability_within(tolerance: float, mean: float, sd: float) -> float:
    """Return P(|x| <= tolerance) for a normal x."""
    if sd == 0:
        return float(abs(mean) <= tolerance)
    normal = NormalDist(mean, sd)
    return normal.cdf(tolerance) - normal.cdf(-tolerance)


def _reached(goal: Goal, n: float, spread: float, mean: float, tau: float) -> float:
    if goal.tolerance is None:
        return spread / math.sqrt(n)
    return _probability_within(goal.tolerance, mean, math.hypot(spread / math.sqrt(n), tau))


def _size(n: int | None) -> float:
    return math.inf if n is None else float(n)
