"""Standard errors in closed form, from the recorded sequences.

Standard errors come from influence values, so every estimator has one: by leaving out one row at a time, or for
subsets from the gradient at the full sums. They describe sampling of sequences, with the update direction and the
reference held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from .._checks import checked_choice, checked_count
from ..estimators import EstimatorName, columns, own_total, reference_for, reference_total, second_order_spread
from ..runs import Run, Runs
from ..subsampling import Seed, subset_sums

POPULATIONS = ("policy", "run")


def err_rel_standard_error(
    run: Run,
    eta: float,
    n: int | None = None,
    *,
    reference: float | None = None,
    estimator: EstimatorName = "ratio",
    population: Literal["policy", "run"] = "policy",
) -> float:
    """Return the standard error of err_rel on n sequences, in closed form.

    ``SE^2 = S_psi^2 / n`` for a fresh batch from the policy, ``S_psi^2 (1/n - 1/N)`` for a subset of this run, with
    S_psi^2 the variance (ddof=1) of the influence values of ``linear - true`` over the reference. For the partial sum,
    which is not rescaled, the second is times ``(n/N)^2``. Where prompts are recorded, S is cluster-robust over
    prompts.

    Where no denominator correction is recorded, linear terms are taken as fixed numbers, and the SD of the second-order
    term is added in quadrature: the first order can vanish there. If the terms hold a correction by the entropy of
    their own batch, fresh batches vary less: record the score.

    Parameters
    ----------
    run
        The run.
    eta
        Step size.
    n
        Sequences; None: as many as the run has.
    reference
        What err_rel is divided by (nats per token); None: the run's own full-batch true total.
    estimator
        "ratio", "matched", "adjusted" or "partial_sum".
    population
        "policy": a fresh batch of n sequences. "run": a subset of n sequences of this run, drawn without replacement.

    Raises
    ------
    RunError
        If the run does not record what the estimator needs.
    ValueError
        If an argument is out of range, or a fresh batch is requested for "partial_sum", which is undefined there.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> run = synthetic_runs(1, 512)["run_01"]
    >>> fresh = err_rel_standard_error(run, 1.6e-6, 128)
    >>> subset = err_rel_standard_error(run, 1.6e-6, 128, population="run")
    >>> abs(subset / fresh - (1 - 128 / 512) ** 0.5) < 0.01  # the one by the gradient, the other by leaving out a row
    True
    """
    checked_choice(population, "population", POPULATIONS)
    batch = columns(run, eta, estimator)
    degree, total = batch.estimator.degree, run.n
    if population == "policy" and degree:
        raise ValueError(
            f"population must be 'run' for estimator {estimator!r}, whose sums mean nothing on a fresh batch"
        )
    most = total if population == "run" else None
    size = total if n is None else checked_count(n, "n", most=most, what_most=", the number of sequences")
    scale = own_total(run, eta, run.source) if reference is None else reference
    if scale == 0:
        return float("nan")
    error = batch.error
    if population == "run":  # a subset's spread is that of its gradient
        true, linear = batch.linearised
        error = linear - true
    spread = error.spread / abs(scale)
    left = 1 / size - 1 / total if population == "run" else 1 / size
    first = spread * float(np.sqrt(left)) * (size / total) ** degree
    if degree or run.score is not None:
        return first
    return math.hypot(first, second_order_spread(batch) / abs(scale) * left)


def subset_moments(
    runs: Mapping[str, Run],
    etas: Sequence[float],
    n: int,
    *,
    estimator: EstimatorName = "ratio",
    references: Mapping[float, float] | None = None,
) -> pd.DataFrame:
    """Return mean and SD of err_rel over the subsets of n sequences of each run, in closed form.

    The mean is the full-batch value (for "partial_sum" times n/N), the SD `err_rel_standard_error` with population
    "run".

    Returns
    -------
    DataFrame
        Columns run, eta, mean, sd.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> subset_moments(synthetic_runs(2, 128), [1.6e-6], 32)["run"].tolist()
    ['run_01', 'run_02']
    """
    rows = []
    for eta, usable in Runs.of(runs).usable(etas, n).items():
        for name, run in usable.items():
            batch, scale = columns(run, eta, estimator), reference_for(references, run, eta, name) or math.nan
            share = (n / run.n) ** batch.estimator.degree
            sd = err_rel_standard_error(run, eta, n, reference=scale, estimator=estimator, population="run")
            rows.append((name, eta, batch.error.value / scale * share, sd))
    return pd.DataFrame(rows, columns=["run", "eta", "mean", "sd"])


def moments_over_runs(moments: pd.DataFrame) -> tuple[float, float]:
    """Return mean and SD of err_rel over the subsets of all runs, from `subset_moments` at one eta.

    Examples
    --------
    >>> moments_over_runs(pd.DataFrame({"mean": [1.0, 1.0], "sd": [2.0, 2.0]}))
    (1.0, 2.0)
    """
    within, between = (moments["sd"] ** 2).mean(), moments["mean"].var(ddof=0)
    return float(moments["mean"].mean()), math.sqrt(within + between)


def sizes_around(n: int, largest: int) -> list[int]:
    """Return sizes to plot a spread against: powers of two from 16 to twice ``largest``, and n.

    Examples
    --------
    >>> sizes_around(100, 128)
    [16, 32, 64, 100, 128, 256]
    """
    powers = [2**k for k in range(4, (2 * largest).bit_length())]
    return sorted({*powers, n})


def spread_by_size(
    runs: Mapping[str, Run],
    eta: float,
    sizes: Sequence[int] | None = None,
    *,
    n: int = 256,
    num_samples: int = 1000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Return the SD of err_rel against the number of sequences, by the ratio: in closed form and over draws.

    Every SD is the root mean square over runs; err_rel is over the mean true total of the runs. Sizes not below that of
    a run have no subsets and no draws. Without ``sizes``, powers of two around ``n`` and the runs are taken. Runs
    without the eta are skipped with a warning, and so are subsets without tokens in the SD over draws.

    Returns
    -------
    DataFrame
        Columns n, fresh (a fresh batch of n), subset (of a run, with the finite population correction), drawn (over
        disjoint random subsets).

    Raises
    ------
    RunError
        If a run does not record what the ratio needs, or only some runs record the denominator correction.
    ValueError
        If no run has the eta, or an argument is out of range.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> spread_by_size(synthetic_runs(2, 128), 1.6e-6, [32, 128])["drawn"].isna().tolist()
    [False, True]
    """
    [(measured, usable)] = Runs.of(runs).usable([eta], 1, "sequences of a run").items()
    reference, smallest = reference_total(usable, measured), min(run.n for run in usable.values())
    rows = []
    for size in sizes_around(n, smallest) if sizes is None else sizes:
        fresh = _root_mean_square(
            err_rel_standard_error(run, measured, size, reference=reference) for run in usable.values()
        )
        subset = drawn = math.nan
        if size < smallest:
            moments = subset_moments(usable, [measured], size, references={measured: reference})
            subset = _root_mean_square(moments["sd"])
            drawn = _root_mean_square(
                _drawn_spread(run, measured, size, reference, num_samples, seed) for run in usable.values()
            )
        rows.append((size, fresh, subset, drawn))
    return pd.DataFrame(rows, columns=["n", "fresh", "subset", "drawn"])


def _drawn_spread(run: Run, eta: float, n: int, reference: float, num_samples: int, seed: Seed) -> float:
    """Return the SD of err_rel over disjoint random subsets, without those that have no tokens."""
    batch, rng = columns(run, eta), np.random.default_rng(seed)
    sums = subset_sums(batch.values, batch.rows_for(n), num_samples, rng, sampler="disjoint")
    return float(np.nanstd(batch.err_rel(sums, reference), ddof=1))


def _root_mean_square(values: Iterable[float]) -> float:
    return math.sqrt(np.mean([value**2 for value in values]))
