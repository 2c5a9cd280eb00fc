"""Where the next run should fall, according to the large runs; and whether actual runs fell there.

A prediction holds for a fresh run: its own batch of n sequences from the policy, its own update direction. Every run
has its own direction, so the spread between runs, tau, mixes differences between updates. Step sizes of one run share a
batch and are never pooled here.

Did actual runs fall where the large runs predict? Each by itself, and all together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from .._checks import FloatArray, checked_count, warn_about_runs
from ..err_rel import check_poolable, collect_err_rel_across_runs, mean_total_error, reference_total, usable_runs
from ..estimators import columns, error_influence_values, standard_deviation
from ..runs import Run
from .random_effects import Pool, pool, t_probability, t_quantile, tau_interval
from .standard_errors import err_rel_standard_error

_SIZES = 2.0 ** np.arange(0, 40, 0.25)  # sequences, to compare a prediction with those of smaller batches


@dataclass(frozen=True, eq=False)
class Pilot:
    """What a set of runs says about err_rel at one eta; arrays have one entry a run.

    Attributes
    ----------
    eta, reference
        Step size, and what err_rel is divided by (nats per token).
    sizes
        Sequences of each run.
    values
        Its err_rel.
    spreads
        S: the SD of the influence values of its err_rel, so that its standard error is ``S / sqrt(N)``.
    kurtoses
        Fourth over squared second moment of the influence values: how well S is known.
    reference_error
        Relative standard error of the reference, from sampling; 0 where it was given.
    """

    eta: float
    reference: float
    sizes: FloatArray
    values: FloatArray
    spreads: FloatArray
    kurtoses: FloatArray
    reference_error: float

    @property
    def variances(self) -> FloatArray:
        """Squared standard errors of the runs' err_rel."""
        return self.spreads**2 / self.sizes

    @cached_property
    def pooled(self) -> Pool:
        """The random-effects mean of err_rel over the runs, and tau between them."""
        return pool(self.values, self.variances)

    def tau_interval(self, level: float) -> tuple[float, float]:
        """Return an interval for tau; up to infinity for a single run."""
        return tau_interval(self.values, self.variances, level)

    @property
    def mean_square_spread(self) -> float:
        """S² averaged over the runs: the variance of err_rel on a fresh batch of n is this over n."""
        return float(np.mean(self.spreads**2))


@dataclass(frozen=True, eq=False)
class Prediction:
    """Where err_rel of a fresh run of ``n`` sequences should fall: a Student-t distribution.

    Degrees of freedom fall as n grows and the few runs decide more, so that a t interval may become wider. A larger
    batch is not worse than a smaller one: each interval is the narrowest among those of sizes up to n, four to each
    doubling (at most 0.5 % wider than the narrowest of all).

    Attributes
    ----------
    eta, n, reference
        Step size, sequences, and what err_rel is divided by (nats per token).
    mean, sd
        Centre, and predictive standard deviation: ``sd² = sampling_sd² + se_mean² + tau²``.
    tau
        SD between runs beyond the sampling of sequences.
    se_mean
        Standard error of the mean.
    sampling_sd
        What the sampling of n sequences alone gives.
    df
        Degrees of freedom, for the few runs behind tau and the mean.
    num_runs
        How many runs it rests on.
    scales, freedoms
        SDs and degrees of freedom at sizes up to n, the last at n itself.
    """

    eta: float
    n: float
    reference: float
    mean: float
    sd: float
    tau: float
    se_mean: float
    sampling_sd: float
    df: float
    num_runs: int
    scales: FloatArray = field(repr=False)
    freedoms: FloatArray = field(repr=False)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Return the central interval that the next run falls into with probability ``level``."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        half = float(np.min(self.scales * t_quantile((1 + level) / 2, self.freedoms)))
        return self.mean - half, self.mean + half

    def pit(self, value: float) -> float:
        """Return the probability of a run below ``value``: over actual runs uniform, where all is well."""
        return float(self._below(np.array([value]))[0])

    def probability_within(self, tolerance: float) -> float:
        """Return the probability that the absolute err_rel is at most ``tolerance``: the best of sizes up to n."""
        above, below = ((bound - self.mean) / self.scales for bound in (tolerance, -tolerance))
        return float(np.max(t_probability(above, self.freedoms) - t_probability(below, self.freedoms)))

    def density(self, values: FloatArray) -> FloatArray:
        """Return the predictive density at ``values``."""
        step = 1e-4 * self.sd
        return (self._below(values + step) - self._below(values - step)) / (2 * step)

    def _below(self, values: FloatArray) -> FloatArray:
        """Return the probability below each of the values."""
        distance = values[:, None] - self.mean
        central = np.max(2 * t_probability(np.abs(distance) / self.scales, self.freedoms) - 1, axis=1)
        below: FloatArray = 0.5 + 0.5 * np.sign(distance[:, 0]) * central
        return below


def predict_err_rel(large_runs: Mapping[str, Run], eta: float, n: int, *, reference: float | None = None) -> Prediction:
    """Predict err_rel of a fresh run of n sequences from the large runs.

    Weights ``1 / (v_r + tau²)``, with v_r the squared standard error of a run, give the mean and its standard error;
    the predictive variance is ``S²/n + SE(mean)² + tau²``, with S² averaged over the runs and tau between runs by Paule
    and Mandel (1982). Student's t allows for the few runs behind tau (Satterthwaite). Intervals cover a little more
    than they say where tau is 0 and n as large as the large runs.

    Parameters
    ----------
    large_runs
        Name -> run; each must record per-sequence linear terms and ``h_base``.
    eta
        Step size.
    n
        Sequences of the fresh run.
    reference
        What err_rel is divided by (nats per token); None: the mean true total over the runs.

    Raises
    ------
    RunError
        If a run does not record what is needed.
    ValueError
        If no run has the eta, or an argument is out of range.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> small, large = predict_err_rel(runs, 1.6e-6, 128), predict_err_rel(runs, 1.6e-6, 512)
    >>> small.mean == large.mean, small.sd > large.sd
    (True, True)
    >>> round(small.pit(small.interval(0.9)[1]), 12)
    0.95
    """
    return predict(pilot_of(large_runs, eta, reference=reference), checked_count(n, "n"))


def pilot_of(runs: Mapping[str, Run], eta: float, *, reference: float | None = None, estimator: str = "ratio") -> Pilot:
    """Return what the runs that have ``eta`` say about err_rel there; by default over their mean true total.

    Raises
    ------
    ValueError
        If no run has the eta, the reference is 0, or the estimator is a sum that means nothing on a fresh batch.
    RunError
        If a run does not record what is needed.
    """
    [(found, names)] = usable_runs(runs, [eta], 2, "sequences of a run").items()
    kept = {name: runs[name] for name in names}
    scale = reference_total(kept, found) if reference is None else float(reference)
    if scale == 0 or not np.isfinite(scale):
        raise ValueError(f"reference must be a finite number other than 0, got {scale!r}")
    values, spreads, kurtoses = [], [], []
    for run in kept.values():
        batch = columns(run, found, estimator)
        if batch.estimator.degree:
            raise ValueError(f"estimator {estimator!r} means nothing on a fresh batch; take 'ratio' or 'matched'")
        true, linear = batch.estimate(batch.sums)
        psi = error_influence_values(batch) / scale
        values.append(float(linear - true) / scale)
        spreads.append(standard_deviation(psi))
        kurtoses.append(_kurtosis(psi))
    sizes = np.array([run.num_sequences for run in kept.values()], dtype=float)
    error = mean_total_error(list(kept.values()), found) if reference is None else 0.0
    relative = (error or 0.0) / abs(scale)
    return Pilot(found, scale, sizes, np.array(values), np.array(spreads), np.array(kurtoses), relative)


def predict(pilot: Pilot, n: float) -> Prediction:
    """Return the prediction for a fresh run of n sequences; an infinite n gives that of its error without sampling."""
    pooled = pilot.pooled
    sizes = np.append(_SIZES[n > _SIZES], n)
    variances = pilot.mean_square_spread / sizes + pooled.se**2 + pooled.tau**2
    scales, freedoms = np.sqrt(variances), np.asarray(pooled.predictive_freedom(variances))
    return Prediction(
        eta=pilot.eta,
        n=n,
        reference=pilot.reference,
        mean=pooled.mean,
        sd=float(scales[-1]),
        tau=pooled.tau,
        se_mean=pooled.se,
        sampling_sd=float(np.sqrt(pilot.mean_square_spread / n)),
        df=float(freedoms[-1]),
        num_runs=pooled.count,
        scales=scales,
        freedoms=freedoms,
    )


def _kurtosis(psi: FloatArray) -> float:
    squares = (psi - psi.mean()) ** 2
    variance = float(squares.mean())
    return float(np.mean(squares**2)) / variance**2 if variance else 1.0


@dataclass(frozen=True)
class PooledCheck:
    """Whether actual runs, together, fell where they were predicted.

    Attributes
    ----------
    num_runs
        How many actual runs.
    sum_z2, p_sum_z2
        Sum of squared z, and its p-value (chi-square): small where runs scatter more than predicted.
    mean_z, p_mean_z
        Mean z, and its two-sided p-value: small where runs lie to one side.
    smallest_p
        The smallest p-value that so few runs could show without leaning on the shape of the tails: all of them on one
        side of the predicted median, ``2^(1 - runs)``.
    """

    num_runs: int
    sum_z2: float
    p_sum_z2: float
    mean_z: float
    p_mean_z: float
    smallest_p: float


def check_prediction(
    large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float, *, reference: float | None = None
) -> pd.DataFrame:
    """Set each actual run beside its prediction from the large runs.

    Returns
    -------
    DataFrame
        Columns run, n, err_rel, se (of its own, missing where the run does not record enough), predicted_mean,
        predicted_sd, z, pit.

    Raises
    ------
    RunError
        If a large run does not record what is needed, or the runs must not be pooled.
    ValueError
        If no run has the eta.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = check_prediction(synthetic_runs(3, 512), synthetic_runs(2, 64, seed=1), 1.6e-6)
    >>> table["run"].tolist(), bool(table["pit"].between(0, 1).all())
    (['run_01', 'run_02'], True)
    """
    return _check(pilot_of(large_runs, eta, reference=reference), large_runs, small_runs)


def pooled_check(
    large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float, *, reference: float | None = None
) -> PooledCheck:
    """Return whether the actual runs, together, fell where the large runs predict.

    The z here are normal scores of the PIT; all share the error of the predicted mean, which is allowed for.
    """
    from scipy.stats import chi2, norm

    pilot = pilot_of(large_runs, eta, reference=reference)
    table = _check(pilot, large_runs, small_runs)
    # Kept off 0 and 1, where a score would be infinite.
    z = norm.ppf(np.clip(table["pit"].to_numpy(), 1e-300, 1 - 1e-16))
    shared = pilot.pooled.se / table["predicted_sd"].to_numpy()
    correlation = np.outer(shared, shared)
    np.fill_diagonal(correlation, 1.0)
    sum_z2 = float(z @ np.linalg.solve(correlation, z))
    mean_z, se = float(z.mean()), float(np.sqrt(correlation.sum())) / len(z)
    return PooledCheck(
        num_runs=len(z),
        sum_z2=sum_z2,
        p_sum_z2=float(chi2.sf(sum_z2, len(z))),
        mean_z=mean_z,
        p_mean_z=float(2 * norm.sf(abs(mean_z) / se)),
        smallest_p=2.0 ** (1 - len(z)),
    )


def _check(pilot: Pilot, large_runs: Mapping[str, Run], small_runs: Mapping[str, Run]) -> pd.DataFrame:
    sides = (("large", large_runs), ("small", small_runs))
    check_poolable({f"{side} {name}": run for side, runs in sides for name, run in runs.items()})
    actual = collect_err_rel_across_runs(small_runs, pilot.eta, pilot.reference, estimator="ratio")
    rows = []
    for name, value in zip(actual["run"], actual["err_rel"].tolist(), strict=True):
        run = small_runs[name]
        same = next((known for known, large in large_runs.items() if large == run), None)
        if same is not None:
            warn_about_runs(f"{name} is the same run as {same}, from which it is predicted")
        predicted = predict(pilot, run.num_sequences)
        z = (value - predicted.mean) / predicted.sd
        rows.append(
            (
                name,
                run.num_sequences,
                value,
                _own_standard_error(run, pilot),
                predicted.mean,
                predicted.sd,
                z,
                predicted.pit(value),
            )
        )
    names = ["run", "n", "err_rel", "se", "predicted_mean", "predicted_sd", "z", "pit"]
    return pd.DataFrame(rows, columns=names)


def _own_standard_error(run: Run, pilot: Pilot) -> float:
    if not {"linear", "baseline_entropy"} <= set(run.supports) or run.num_sequences < 2:
        return float("nan")
    return err_rel_standard_error(run, pilot.eta, reference=pilot.reference)
