"""What a handful of runs says: mean and tau, the next run, the batch it takes, the verdict. By bisection and scans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import stdtr, stdtrit
from scipy.stats import chi2, norm

from tests.plain.errors import error_influence, influence, spread
from tests.plain.estimates import full_error
from tests.plain.reading import Batch, mean_true_total

CONFIDENCE = 0.9
KNOWN = 1e6  # degrees of freedom of what is known exactly
SIZES = np.concatenate([np.arange(1.0, 4097.0), np.round(4096 * 1.05 ** np.arange(1, 400)), [math.inf]])


@dataclass(frozen=True)
class Mean:
    """A random-effects mean over runs."""

    value: float
    se: float
    tau: float
    scatter: float
    """Variance (ddof=1) of the values themselves."""
    count: int

    def freedoms(self, variances: np.ndarray, share: float) -> np.ndarray:
        """Return Satterthwaite's degrees of freedom: of a variance, ``share`` of the scatter rests on the few runs."""
        uncertain = share * self.scatter
        if uncertain == 0:
            return np.full(len(variances), KNOWN)
        return np.clip((self.count - 1) * (variances / uncertain) ** 2, max(self.count - 2, 1), KNOWN)

    def interval(self) -> tuple[float, float]:
        """Return the 90 % interval of the mean."""
        [freedom] = self.freedoms(np.array([self.se**2]), 1 / self.count)
        half = self.se * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
        return self.value - half, self.value + half


def weighted_square(values: Sequence[float], variances: Sequence[float], tau2: float) -> float:
    """Return Q(tau²), the sum of squares about the weighted mean; it falls as tau² grows."""
    weights = [1 / (v + tau2) for v in variances]
    centre = sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)
    return sum(w * (x - centre) ** 2 for w, x in zip(weights, values, strict=True))


def tau_at(values: Sequence[float], variances: Sequence[float], target: float) -> float:
    """Return the tau at which Q equals the target, by bisection; 0 where Q is smaller from the start."""
    if len(values) < 2 or weighted_square(values, variances, 0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while weighted_square(values, variances, high) > target:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if weighted_square(values, variances, middle) > target else (low, middle)
    return math.sqrt((low + high) / 2)


def mean_over_runs(values: Sequence[float], variances: Sequence[float]) -> Mean:
    """Return the mean with weights 1 / (v + tau²), tau by Paule and Mandel: Q equal to its expectation, R - 1."""
    tau = tau_at(values, variances, len(values) - 1)
    weights = [1 / (v + tau**2) for v in variances]
    value = sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)
    return Mean(value, 1 / math.sqrt(sum(weights)), tau, spread(values) ** 2 if len(values) > 1 else 0.0, len(values))


@dataclass(frozen=True)
class Pilot:
    """err_rel of the runs, S and kurtosis of its influence values, and how well the reference is known."""

    sizes: list[int]
    values: list[float]
    spreads: list[float]
    kurtoses: list[float]
    reference_error: float

    @cached_property
    def variances(self) -> list[float]:
        """Squared standard errors of the runs."""
        return [s**2 / n for s, n in zip(self.spreads, self.sizes, strict=True)]

    @cached_property
    def mean(self) -> Mean:
        """The mean over runs."""
        return mean_over_runs(self.values, self.variances)

    @cached_property
    def square_spread(self) -> float:
        """S² averaged over runs."""
        return sum(s**2 for s in self.spreads) / len(self.spreads)

    def tau_interval(self) -> tuple[float, float]:
        """Return the Q-profile interval of tau."""
        if len(self.values) < 2:
            return 0.0, math.inf
        targets = [float(chi2.ppf(p, len(self.values) - 1)) for p in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2)]
        low, high = (tau_at(self.values, self.variances, target) for target in targets)
        return low, high

    @cached_property
    def log_variances(self) -> list[float]:
        """Variances of log S²: (kurtosis - 1) / N."""
        return [max(k - 1, 1e-6) / n for k, n in zip(self.kurtoses, self.sizes, strict=True)]

    @cached_property
    def logs(self) -> Mean:
        """The mean of log S² over runs."""
        return mean_over_runs([2 * math.log(s) for s in self.spreads], self.log_variances)

    def spread_factor(self) -> float:
        """Return the factor by which S may be larger or smaller than it seems."""
        of_logs = (self.logs.interval()[1] - self.logs.value) / 2
        return math.exp(math.hypot(of_logs, two_sided(CONFIDENCE) * self.reference_error))


def two_sided(probability: float) -> float:
    """Return how many SDs about the mean hold a normal variable with a probability."""
    return float(norm.ppf((1 + probability) / 2))


def pilot(batches: dict[str, Batch], eta: float, *, estimator: str = "ratio") -> Pilot:
    """Return what runs say about err_rel over their mean true change."""
    reference = mean_true_total(batches, eta)
    values, spreads, kurtoses, errors = [], [], [], []
    for batch in batches.values():
        psi = error_influence(batch, eta, reference, estimator)
        centre = sum(psi) / len(psi)
        second, fourth = (sum((p - centre) ** k for p in psi) / len(psi) for k in (2, 4))
        values.append(full_error(batch, eta, reference, estimator))
        spreads.append(spread(psi))
        kurtoses.append(fourth / second**2)
        errors.append(spread(influence(batch, eta)[0]) / math.sqrt(batch.size))
    total_error = math.sqrt(sum(e**2 for e in errors)) / len(errors)
    return Pilot([b.size for b in batches.values()], values, spreads, kurtoses, total_error / abs(reference))


@dataclass(frozen=True)
class Next:
    """Where err_rel of a fresh run should fall: the best of the predictions for all sizes up to its own."""

    mean: float
    sds: np.ndarray
    freedoms: np.ndarray

    def half(self, probability: float) -> float:
        """Return half the width of the interval with a probability."""
        return float(np.min(self.sds * stdtrit(self.freedoms, (1 + probability) / 2)))

    def within(self, tolerance: float) -> float:
        """Return the probability that a run keeps to the tolerance."""
        above, below = (stdtr(self.freedoms, (bound - self.mean) / self.sds) for bound in (tolerance, -tolerance))
        return float(np.max(above - below))

    def percentile(self, value: float) -> float:
        """Return the predicted probability of a run below a value."""
        within = float(np.max(2 * stdtr(self.freedoms, abs(value - self.mean) / self.sds) - 1))
        return 0.5 + math.copysign(within / 2, value - self.mean)


def next_run(known: Pilot, n: float) -> Next:
    """Return the prediction for a fresh run of n sequences; with n infinite, for its error without sampling."""
    sizes = np.append(SIZES[n > SIZES], n)
    mean = known.mean
    variances = known.square_spread / sizes + mean.se**2 + mean.tau**2
    return Next(mean.value, np.sqrt(variances), mean.freedoms(variances, 1 + 1 / mean.count))


def smallest_size(mean: Mean, square_spread: float, tolerance: float, probability: float) -> int | None:
    """Return the first n at which a fresh run keeps to the tolerance with the probability, by trying every n."""
    found = _first(SIZES, mean, square_spread, tolerance, probability)
    if found is None or not math.isfinite(found[1]):
        return None
    between = np.arange(found[0] + 1, found[1] + 1)  # far out, not every n was tried
    refined = _first(between, mean, square_spread, tolerance, probability)
    return int(refined[1]) if refined else None


def _first(
    sizes: np.ndarray, mean: Mean, square_spread: float, tolerance: float, probability: float
) -> tuple[float, float] | None:
    """Return the first of the sizes that is large enough, after the one before it."""
    variances = square_spread / sizes + mean.se**2 + mean.tau**2
    sds, freedoms = np.sqrt(variances), mean.freedoms(variances, 1 + 1 / mean.count)
    within = stdtr(freedoms, (tolerance - mean.value) / sds) - stdtr(freedoms, (-tolerance - mean.value) / sds)
    reached = np.flatnonzero(within >= probability)
    if not len(reached):
        return None
    return float(sizes[reached[0] - 1]) if reached[0] else sizes[0] - 1.0, float(sizes[reached[0]])


def size_for_error(square_spread: float, target: float) -> int:
    """Return the first n with a standard error of at most the target, by counting up."""
    n = max(1, int(square_spread / target**2) - 2)
    while math.sqrt(square_spread / n) > target * (1 + 1e-12):
        n += 1
    return n


def planned_interval(
    known: Pilot, tolerance: float, probability: float, *, draws: int, seed: int
) -> tuple[float, float]:
    """Return what the middle 90 % of pilots like this one would have planned: err_rel, S and reference drawn anew."""
    rng, mean, count = np.random.default_rng(seed), known.mean, len(known.values)
    scatter = [math.sqrt(v + known.logs.tau**2) for v in known.log_variances]
    inflation = sum(math.exp(s**2 / 2) for s in scatter) / count
    planned = []
    for _ in range(draws):
        values = [rng.normal(mean.value, math.sqrt(v + mean.tau**2)) for v in known.variances]
        factors = [math.exp(rng.normal(0.0, s) / 2) for s in scatter]
        scale = math.exp(rng.normal(0.0, known.reference_error))
        spreads = [math.sqrt(known.square_spread / inflation) * factor * scale for factor in factors]
        variances = [s**2 / n for s, n in zip(spreads, known.sizes, strict=True)]
        drawn = mean_over_runs([value * scale for value in values], variances)
        found = smallest_size(drawn, sum(s**2 for s in spreads) / count, tolerance, probability)
        planned.append(math.inf if found is None else float(found))
    planned.sort()
    low, high = (planned[round((1 + sign * CONFIDENCE) / 2 * (draws - 1))] for sign in (-1, 1))
    return low, high


@dataclass(frozen=True)
class Answers:
    """A verdict: whether a batch is enough, whether the linear change may be trusted, and the numbers behind."""

    enough: str
    linear_trusted: str
    numbers: dict[str, float]


def answers(known: Pilot, n: int, tolerance: float, probability: float) -> Answers:
    """Return the verdict of sound runs."""
    quantile, factor = two_sided(probability), known.spread_factor()
    margin = quantile * math.sqrt(known.square_spread / n)
    enough = _answer(margin * factor <= tolerance, margin / factor > tolerance)
    mean = known.mean
    (low, high), (tau_low, tau_high) = mean.interval(), known.tau_interval()
    half = next_run(known, math.inf).half(probability)
    within = abs(mean.value) + half <= tolerance and mean.count > 1
    beyond = low > tolerance or high < -tolerance or quantile * tau_low > tolerance
    target = tolerance / quantile
    numbers = {
        "margin": margin,
        "margin_low": margin / factor,
        "margin_high": margin * factor,
        "required_n": float(size_for_error(known.square_spread, target)),
        "required_low": float(math.ceil(known.square_spread / factor**2 / target**2)),
        "required_high": float(math.ceil(known.square_spread * factor**2 / target**2)),
        "mean": mean.value,
        "se_mean": mean.se,
        "mean_low": low,
        "mean_high": high,
        "tau": mean.tau,
        "tau_low": tau_low,
        "tau_high": tau_high,
        "next_low": mean.value - half,
        "next_high": mean.value + half,
        "reference_error": known.reference_error,
    }
    return Answers(enough, _answer(within and not beyond, beyond), numbers)


def agreement(known: Pilot, small: dict[str, Batch], eta: float, reference: float) -> tuple[float, float]:
    """Return the p-values of the actual small runs: of their sum of z², and of their mean z.

    z are normal scores of the percentiles; all share the error of the predicted mean.
    """
    percentiles, shared = [], []
    for batch in small.values():
        predicted = next_run(known, batch.size)
        percentiles.append(predicted.percentile(full_error(batch, eta, reference)))
        shared.append(known.mean.se / float(predicted.sds[-1]))
    z = norm.ppf(percentiles)
    count = len(z)
    together = np.array([[1.0 if i == k else shared[i] * shared[k] for k in range(count)] for i in range(count)])
    square = float(z @ np.linalg.inv(together) @ z)
    mean_z = float(np.sum(z)) / math.sqrt(float(np.sum(together)))
    return float(chi2.sf(square, count)), float(2 * norm.sf(abs(mean_z)))


def _answer(yes: bool, no: bool) -> str:
    return "yes" if yes else "no" if no else "cannot tell"
