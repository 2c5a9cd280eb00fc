"""Where the next run should fall, according to the large runs, and whether actual runs fell there.

A prediction holds for a fresh run: its own batch of n sequences from the policy, its own update direction. Each run has
its own direction, so tau mixes differences between updates. Step sizes within a run share sequences and are never
pooled here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from .._checks import FloatArray, checked_count
from ..estimators import Estimate, EstimatorName, columns, mean_total_error, reference_total, shared_variance
from ..runs import Run, Runs
from .random_effects import CONFIDENCE, ConfidenceDistribution, Pool, confidence_distribution, normal_quantile, pool
from .standard_errors import err_rel_standard_error

LEAST = 64  # sequences of a plan: below, the closed form is rough
MOST = 2**62  # sequences; a target that needs more counts as unreachable


@dataclass(frozen=True, eq=False)
class PooledEstimate:
    """The estimate of an error at one eta from a set of runs; arrays have one entry per run.

    Attributes
    ----------
    eta, reference
        Step size, and what the error is divided by (nats per token).
    sizes, rows
        Sequences of each run, and its independent units: prompts where these are recorded, else sequences.
    values
        Its error, in units of the reference.
    spreads
        S: the SD of the influence values per sequence, so that the standard error is ``S / sqrt(N)``.
    kurtoses
        Fourth over squared second moment of the influence values: how well S is known.
    reference_error
        Relative standard error of the reference, from sampling; 0 if the reference was given or its error is unknown.
    errors
        Name of the run -> its error, with influence values.
    common_error
        SE that all runs share and that more runs do not reduce: of a model, and of prompts that runs have in common.
    shared_variance
        The part of each run's squared SE that runs share through their prompts.
    """

    eta: float
    reference: float
    sizes: FloatArray
    values: FloatArray
    spreads: FloatArray
    kurtoses: FloatArray
    reference_error: float
    errors: Mapping[str, Estimate] = field(default_factory=dict)
    rows: FloatArray | None = None
    common_error: float = 0.0
    shared_variance: float = 0.0

    @classmethod
    def of(
        cls,
        eta: float,
        reference: float,
        errors: Mapping[str, Estimate],
        reference_error: float = 0.0,
        *,
        common_error: float = 0.0,
    ) -> PooledEstimate:
        """Return the estimate from the errors of runs; ``common_error`` is that of a model."""
        table = [(each.n, len(each.psi), each.value, each.spread, kurtosis(each.psi)) for each in errors.values()]
        sizes, rows, values, spreads, kurtoses = np.array(table, dtype=float).T
        shared = shared_variance(list(errors.values()))
        return cls(
            eta=eta,
            reference=reference,
            sizes=sizes,
            values=values,
            spreads=spreads,
            kurtoses=kurtoses,
            reference_error=reference_error,
            errors=errors,
            rows=rows,
            common_error=math.sqrt(common_error**2 + shared),
            shared_variance=shared,
        )

    @property
    def variances(self) -> FloatArray:
        """Squared standard errors of the runs' errors, from one variance per unit that all runs have in common.

        A run with a larger error also has a larger standard error of its own: weights by these would pull the mean to
        0. The error that runs share through their prompts is excluded.
        """
        rows = self.sizes if self.rows is None or any(e.prompts is None for e in self.errors.values()) else self.rows
        own = self.spreads**2 / self.sizes
        return np.maximum(float(np.mean(rows * own)) / rows - self.shared_variance, 0.0)

    @property
    def model_error(self) -> float:
        """The part of ``common_error`` that is that of a model."""
        return math.sqrt(max(self.common_error**2 - self.shared_variance, 0.0))

    @property
    def shared_share(self) -> float:
        """The share of a run's squared SE that runs have in common through their prompts."""
        return self.shared_variance / float(np.mean(self.spreads**2 / self.sizes)) if self.shared_variance else 0.0

    @property
    def fixed_effect_error(self) -> float:
        """Standard error of the inverse-variance weighted mean from sampling alone."""
        own = float(np.sum(1 / np.maximum(self.variances, 1e-300)) ** -1)
        return math.sqrt(own + self.shared_variance)

    @cached_property
    def pooled(self) -> Pool:
        """The random-effects mean over the runs, and tau between them.

        Where standard errors truly differ, Q with a common variance is not chi-square, and tau would seem to differ
        from 0: the lower end of its interval is the smaller of this one and that from the runs' own variances.
        """
        common = pool(self.values, self.variances, self.common_error)
        own = np.maximum(self.spreads**2 / self.sizes - self.shared_variance, 0.0)
        return replace(common, tau_low=min(common.tau_low, pool(self.values, own).tau_low))

    @cached_property
    def distribution(self) -> ConfidenceDistribution:
        """The confidence distribution of mean and tau."""
        return confidence_distribution(self.values, self.variances, self.common_error)

    @property
    def mean_square_spread(self) -> float:
        """S^2 averaged over the runs: the variance of the error on a fresh batch of n is this over n."""
        return float(np.mean(self.spreads**2))

    @property
    def log_variances(self) -> FloatArray:
        """Variances of the logarithms of S^2, ``(kurtosis - 1) / N``."""
        return np.maximum(self.kurtoses - 1, 1e-6) / self.sizes

    @cached_property
    def log_spreads(self) -> Pool:
        """The random-effects mean of the logarithms of S^2, of runs whose errors vary."""
        vary = self.spreads > 0 if self.spreads.any() else np.full(len(self.spreads), True)
        return pool(2 * np.log(np.maximum(self.spreads[vary], 1e-300)), self.log_variances[vary])

    @cached_property
    def spread_interval(self) -> tuple[float, float, float]:
        """S, the root of S^2 averaged over runs, and its 90 % interval: for few sequences or runs, and the reference.

        The logarithms of S^2 are pooled as err_rel is; the relative error of the reference, by which S is divided, adds
        to that of S.
        """
        sampling, reference = (self.log_spreads.interval[1] - self.log_spreads.mean) / 2, self.reference_error
        factor = math.exp(math.hypot(sampling, normal_quantile(CONFIDENCE) * reference))
        typical = math.sqrt(self.mean_square_spread)
        return typical, typical / factor, typical * factor


@dataclass(frozen=True, eq=False)
class Prediction:
    """Where the error of a fresh run of ``n`` sequences should fall: a mixture of normal distributions.

    Attributes
    ----------
    eta, n, reference
        Step size, sequences (infinite: an update without sampling error), and the unit (nats per token).
    mean, sd
        Mean and SD of the mixture.
    tau, se_mean
        SD between runs beyond sampling, and standard error of the mean (random effects).
    sampling_sd
        SD from the sampling of n sequences alone, ``S / sqrt(n)``.
    num_runs
        Runs used. With one, tau is unknown and set to 0; there is no interval for the next update.
    """

    eta: float
    n: float
    reference: float
    mean: float
    sd: float
    tau: float
    se_mean: float
    sampling_sd: float
    num_runs: int
    _distribution: ConfidenceDistribution = field(repr=False)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Return the central interval that the next run falls into with probability ``level``.

        NaN for the next update (infinite n) where there is one run: it does not show how much updates differ.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level!r}")
        if self.num_runs == 1 and math.isinf(self.n):
            return math.nan, math.nan
        low, high = self._distribution.quantiles([(1 - level) / 2, (1 + level) / 2], self.sampling_sd**2)
        return low, high

    def pit(self, value: float) -> float:
        """Return the probability of a run below ``value``; over actual runs uniform if calibrated."""
        return float(self._distribution.below(value, self.sampling_sd**2))

    def probability_within(self, tolerance: float) -> float:
        """Return the probability of an absolute error of at most ``tolerance``."""
        below, above = self._distribution.below([-tolerance, tolerance], self.sampling_sd**2).tolist()
        return float(above - below)

    def density(self, values: FloatArray) -> FloatArray:
        """Return the predictive density at ``values``."""
        sds = self._distribution.sds(self.sampling_sd**2)
        z = (values[:, None] - self._distribution.means) / sds
        density: FloatArray = (np.exp(-0.5 * z**2) / (sds * math.sqrt(2 * math.pi))).mean(axis=1)
        return density


@dataclass(frozen=True)
class Agreement:
    """Whether actual runs, together, agree with their prediction.

    Attributes
    ----------
    num_runs
        How many actual runs.
    p_spread, p_mean
        P-values, averaged over the confidence distribution: of chi-square, small where runs scatter more than
        predicted; of the mean z (two-sided), small if runs lie to one side.
    smallest_p
        The smallest p-value that a sign test of so few runs could reach, ``2^(1 - runs)``.
    """

    num_runs: int
    p_spread: float
    p_mean: float
    smallest_p: float


def predict_err_rel(
    large_runs: Mapping[str, Run],
    eta: float,
    n: int,
    *,
    reference: float | None = None,
    estimator: EstimatorName = "ratio",
) -> Prediction:
    """Predict err_rel of a fresh run of n sequences from the large runs.

    The mixture over the confidence distribution of tau^2 (Nagashima, Noma and Furukawa, 2019) of normal distributions
    ``N(m_b, SE_b^2 + tau_b^2 + S^2/n)``, with S^2 averaged over the runs. If updates do not differ (tau = 0), its
    intervals are conservative.

    Parameters
    ----------
    large_runs
        Name -> run; each must record what the estimator needs.
    eta
        Step size.
    n
        Sequences of the fresh run.
    reference
        What err_rel is divided by (nats per token); None: the mean true total over the runs.
    estimator
        "ratio", "matched" or "adjusted".

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
    >>> round(small.pit(small.interval(0.9)[1]), 9)
    0.95
    """
    return predict(pooled_err_rel(large_runs, eta, reference=reference, estimator=estimator), checked_count(n, "n"))


def pooled_err_rel(
    runs: Mapping[str, Run], eta: float, *, reference: float | None = None, estimator: EstimatorName = "ratio"
) -> PooledEstimate:
    """Return the estimate of err_rel at ``eta`` from the runs that have it; by default over their mean true total.

    Raises
    ------
    ValueError
        If no run has the eta and two sequences, the reference is 0, NaN or infinite, or the estimator is a sum, which
        has no meaning on a fresh batch.
    RunError
        If a run does not record what is needed, or all its sequences are of one prompt.
    """
    [(measured, usable)] = Runs.of(runs).usable([eta], 2, "sequences of a run").items()
    scale = reference_total(usable, measured) if reference is None else float(reference)
    if scale == 0 or not np.isfinite(scale):
        raise ValueError(f"reference must be a finite number other than 0, got {scale!r}")
    errors = {}
    for name, run in usable.items():
        batch = columns(run, measured, estimator)
        if batch.estimator.degree:
            raise ValueError(f"estimator must be a mean, as 'ratio' is, on a fresh batch; got {estimator!r}")
        errors[name] = batch.error * (1 / scale)
    relative = np.nan_to_num(mean_total_error(usable.values(), measured)) / abs(scale) if reference is None else 0.0
    return PooledEstimate.of(measured, scale, errors, float(relative))


def predict(estimate: PooledEstimate, n: float) -> Prediction:
    """Return the prediction for a fresh run of n sequences; an infinite n gives that of an update without sampling."""
    distribution, sampling = estimate.distribution, estimate.mean_square_spread / n
    variance = float(np.mean(distribution.sds(sampling) ** 2) + np.var(distribution.means))
    return Prediction(
        eta=estimate.eta,
        n=n,
        reference=estimate.reference,
        mean=float(distribution.means.mean()),
        sd=math.sqrt(variance),
        tau=estimate.pooled.tau,
        se_mean=estimate.pooled.se,
        sampling_sd=math.sqrt(sampling),
        num_runs=len(estimate.values),
        _distribution=distribution,
    )


def size_for(spread: float, target_sd: float) -> int:
    """Return the smallest n, from 64 to 2^62, with ``spread / sqrt(n) <= target_sd``; the largest if there is none."""
    # Rounding must not add a sequence if the target is met exactly.
    return max(LEAST, math.ceil(min(spread / target_sd, math.sqrt(MOST)) ** 2 * (1 - 1e-12)))


def check_prediction(
    large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float, *, reference: float | None = None
) -> pd.DataFrame:
    """Return each actual run beside its prediction from the large runs, by the ratio.

    Returns
    -------
    DataFrame
        Columns run, n, err_rel, se (of its own), predicted_mean, predicted_sd, z, pit.

    Raises
    ------
    RunError
        If a large run does not record what is needed or is of one prompt, or the runs must not be pooled.
    ValueError
        If no run has the eta, or the reference is 0, NaN or infinite.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = check_prediction(synthetic_runs(3, 512), synthetic_runs(2, 64, seed=1), 1.6e-6)
    >>> table["run"].tolist(), bool(table["pit"].between(0, 1).all())
    (['run_01', 'run_02'], True)
    """
    large = Runs.of(large_runs, "large_runs")
    return _checked(pooled_err_rel(large, eta, reference=reference), large, Runs(small_runs, "small_runs"))


def agreement_with_prediction(estimate: PooledEstimate, large: Runs, small: Runs) -> Agreement | None:
    """Return whether actual runs, together, agree with the prediction from the large runs; None if none is left."""
    table = _checked(estimate, large, small)
    return None if table.empty else agreement_of(estimate, table["err_rel"].to_numpy(), table["n"].to_numpy())


def agreement_of(estimate: PooledEstimate, values: FloatArray, sizes: FloatArray) -> Agreement:
    """Return whether errors of actual runs, shape ``(k,)``, of so many sequences each agree with a pooled estimate.

    For each tau of the confidence distribution, the actual runs are normal with variances ``S^2/n + tau^2`` and share
    the error of the predicted mean.
    """
    from scipy.special import gammaincc, ndtr

    distribution = estimate.distribution
    variances = estimate.mean_square_spread / sizes + distribution.taus[:, None] ** 2
    off = values - distribution.means[:, None]
    weights, shared = 1 / variances, distribution.errors**2
    # Sherman and Morrison: the inverse of diag(variances) + shared.
    pulled = (weights * off).sum(axis=1)
    chi2 = (weights * off**2).sum(axis=1) - shared * pulled**2 / (1 + shared * weights.sum(axis=1))
    sds = np.sqrt(variances + shared[:, None])
    share = distribution.errors[:, None] / sds
    variance_of_sum = (1 - share**2).sum(axis=1) + share.sum(axis=1) ** 2
    z = (off / sds).sum(axis=1) / np.sqrt(variance_of_sum)
    p_spread = float(gammaincc(len(values) / 2, np.maximum(chi2, 0) / 2).mean())
    return Agreement(len(values), p_spread, float((2 * ndtr(-np.abs(z))).mean()), 2.0 ** (1 - len(values)))


def kurtosis(psi: FloatArray) -> float:
    """Return the fourth over the squared second moment about the mean; 1 where nothing varies."""
    squares = (psi - psi.mean()) ** 2
    variance = float(squares.mean())
    return float(np.mean(squares**2)) / variance**2 if variance else 1.0


def _checked(estimate: PooledEstimate, large: Runs, small: Runs) -> pd.DataFrame:
    actual = small.beside(large.select(list(estimate.errors))).at(estimate.eta)
    rows = []
    for name, run in actual.items():
        value = columns(run, estimate.eta).error.value / estimate.reference
        se = err_rel_standard_error(run, estimate.eta, reference=estimate.reference)
        predicted = predict(estimate, run.n)
        z = (value - predicted.mean) / predicted.sd
        rows.append((name, run.n, value, se, predicted.mean, predicted.sd, z, predicted.pit(value)))
    return pd.DataFrame(rows, columns=["run", "n", "err_rel", "se", "predicted_mean", "predicted_sd", "z", "pit"])
