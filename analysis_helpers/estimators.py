"""Estimators of (true change, linear change), each a function of column sums over a set of sequences.

Sampling gives sums; an estimator maps sums to the two estimates; its standard error follows from influence values, by
leaving out one row at a time. So a new estimator is one function of sums and one entry in `ESTIMATORS`: subsets,
standard errors, prediction and planning need no further code. Results are full-batch numbers and arrays; tables are
made in `analysis_helpers.err_rel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._checks import FloatArray, RunError, checked_choice, frozen, same_eta, warn_about_runs
from .runs import FIELDS_BEHIND, Run, require_run

Array = NDArray[Any]  # float64, or complex128 while a gradient is taken
EstimatorName = Literal["partial_sum", "ratio", "matched", "adjusted"]

FOR_MATCHED = ("linear", "score", "baseline_entropy")
"""What "matched" and "adjusted" need a run to record."""

WEAK_REFERENCE = 3.0
"""A reference total within this many of its standard errors of zero causes a warning."""

_COMPLEX_STEP = 1e-20
_ROUNDED = 1e-5  # of the mean: values that vary no more are equal, in columns of six digits
_T = TypeVar("_T")


@dataclass(frozen=True)
class FullBatch:
    """Constants of the full batch that an estimator uses besides the sums over its subset.

    Attributes
    ----------
    eta
        Step size.
    tokens, weighted_tokens
        Sums over the full batch of T and w T.
    base_entropy
        Stored per-token entropy before the step (nats per token).
    score_entropy
        H_N of the denominator correction (nats per token); 0 where no correction is recorded.
    score_slope
        Regression of the influence values of ``linear - true`` by the ratio on the score, for "adjusted"; else 0.
    """

    eta: float
    tokens: float
    weighted_tokens: float
    base_entropy: float
    score_entropy: float
    score_slope: float = 0.0


@dataclass(frozen=True)
class Estimator:
    """A named estimator, a function of column sums.

    Attributes
    ----------
    columns
        Names of the columns summed, in the order in which ``evaluate`` unpacks them.
    degree
        Power with which the estimate scales when all sums are multiplied by a factor: 0 for a ratio of sums, 1 for a
        sum over the subset.
    evaluate
        ``(sums, full) -> (true, linear)`` with sums of shape ``(..., columns)``; must accept complex sums.
    """

    name: str
    columns: tuple[str, ...]
    degree: int
    evaluate: Callable[[Array, FullBatch], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate on the full batch, with its influence values; estimates on the same rows can be subtracted.

    Attributes
    ----------
    value
        The estimate.
    psi
        Influence values, shape ``(M,)``, one for each row of `Columns`: ``psi_i = (M - 1) (f(sums) - f(sums - x_i))``,
        whose standard error is the jackknife's (Efron, 1982, chapter 3).
    n
        Sequences of the batch.
    prompts
        Prompt of each row, shape ``(M,)``, ascending; None where a row is a sequence.
    """

    value: float
    psi: FloatArray
    n: int
    prompts: NDArray[Any] | None = None

    @cached_property
    def spread(self) -> float:
        """S, the SD of influence values per sequence: the standard error on a fresh batch of n is ``S / sqrt(n)``.

        Over M prompts of N sequences it is the cluster-robust ``std(psi) sqrt(N / M)``.
        """
        return standard_deviation(self.psi) * float(np.sqrt(self.n / len(self.psi)))

    @property
    def se(self) -> float:
        """Standard error; NaN for a single row."""
        return self.spread / float(np.sqrt(self.n))

    @property
    def z(self) -> float:
        """The value over its standard error: infinite where nothing varies, NaN where all is 0."""
        if self.se:
            return self.value / self.se
        return float(np.copysign(np.inf, self.value)) if self.value else float("nan")

    def __mul__(self, factor: float) -> Estimate:
        return replace(self, value=self.value * factor, psi=self.psi * factor)

    def __sub__(self, other: Estimate) -> Estimate:
        return replace(self, value=self.value - other.value, psi=self.psi - other.psi)

    def covariance(self, other: Estimate) -> float:
        """Return the covariance with an estimate on another batch, from the prompts that both have; 0 without any."""
        if self.prompts is None or other.prompts is None:
            return 0.0
        _, here, there = np.intersect1d(self.prompts, other.prompts, assume_unique=True, return_indices=True)
        one, two = self.psi - self.psi.mean(), other.psi - other.psi.mean()
        return float(one[here] @ two[there]) / (len(one) * len(two))

    def without(self, control: Estimate) -> Estimate:
        """Return the estimate adjusted by regression on a control variate, an estimate of 0 on the same rows."""
        return self - control * self.slope_on(control)

    def slope_on(self, control: Estimate) -> float:
        """Return the regression slope of the influence values on those of the control; 0 where these do not vary."""
        centred = control.psi - control.psi.mean()
        variance = float(centred @ centred)
        return float(centred @ self.psi) / variance if variance else 0.0


@dataclass(frozen=True, eq=False)
class Columns:
    """One run at one eta, as an estimator sees it.

    Attributes
    ----------
    values
        Shape ``(M, columns)``: a row for each independent unit, that is each prompt where prompts are recorded, else
        each sequence. The partial sum is always by sequence.
    sums
        Sums of the rows, shape ``(columns,)``.
    full
        The full batch.
    n
        Sequences of the batch, N. A subset of n sequences has ``n M / N`` rows.
    prompts
        Prompt of each row, ascending; None where a row is a sequence.
    """

    estimator: Estimator
    values: FloatArray
    sums: FloatArray
    full: FullBatch
    n: int
    prompts: NDArray[Any] | None = None

    def rows_for(self, n: int) -> int:
        """Return how many rows a subset of n sequences has: at least one, at most all."""
        return max(1, round(n * len(self.values) / self.n))

    def estimate(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (true, linear) for sums of shape ``(..., columns)``, in nats per token."""
        return self.estimator.evaluate(sums, self.full)

    @cached_property
    def estimates(self) -> tuple[Estimate, Estimate]:
        """(true, linear) of the full batch, in nats per token, with delete-one influence values."""
        rows, (true, linear) = len(self.values), self.linearised
        with np.errstate(divide="ignore", invalid="ignore"):
            left_out = self.estimate(self.sums - self.values)
        if self.estimator.degree or not np.isfinite(left_out).all():  # a sum, or no tokens without that row
            return true, linear
        return (
            replace(true, psi=(rows - 1) * (true.value - left_out[0])),
            replace(linear, psi=(rows - 1) * (linear.value - left_out[1])),
        )

    @cached_property
    def linearised(self) -> tuple[Estimate, Estimate]:
        """(true, linear) with ``psi_i = M * x_i . grad f(sums)``, for subsets of this batch.

        The gradient is by complex step, exact to rounding (infinitesimal jackknife: Efron, 1982, chapter 6).
        """
        values, gradients = self.estimate(self.sums), _gradients(self, self.sums)
        true, linear = (
            Estimate(float(value), self.values @ gradient, self.n, self.prompts)
            for value, gradient in zip(values, gradients, strict=True)
        )
        return true, linear

    @cached_property
    def error(self) -> Estimate:
        """Linear - true of the full batch, in nats per token."""
        true, linear = self.estimates
        return linear - true

    def err_rel(self, sums: FloatArray, reference: float) -> FloatArray:
        """Return ``(linear - true) / reference`` for sums of shape ``(..., columns)``.

        NaN if the reference is 0 or, with a warning, where a subset holds no tokens.
        """
        if reference == 0:
            return np.full(len(sums), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            true, linear = self.estimate(sums)
            values: FloatArray = (linear - true) / reference
        if not np.isfinite(values).all():
            empty = np.count_nonzero(~np.isfinite(values))
            warn_about_runs(f"{empty} of {len(values)} subsets hold no tokens or no weight: their err_rel is undefined")
        return values


def _partial_sum(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The definition of the published figures: full-batch contributions, summed over the subset, not rescaled.
    tokens, w_h_new, g = np.moveaxis(sums, -1, 0)
    true = w_h_new / full.weighted_tokens - tokens / full.tokens * full.base_entropy
    return true, full.eta * g / full.tokens


def _ratio(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The subset taken as the whole batch: R_S - H_S, and linear terms with the subset's own entropy in the correction.
    tokens, h_base, w_tokens, w_h_new, g, tokens_score = np.moveaxis(sums, -1, 0)
    entropy = h_base / tokens
    linear = full.eta / tokens * (g - (entropy - full.score_entropy) * tokens_score)
    return w_h_new / w_tokens - entropy, linear


def _matched(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The exact derivative of R_S - H_S on the same sequences, in place of the recorded linear terms.
    tokens, h_base, w_tokens, w_h_new, tokens_score, direct = np.moveaxis(sums, -1, 0)
    entropy = h_base / tokens
    return w_h_new / w_tokens - entropy, full.eta / tokens * (direct - entropy * tokens_score)


def _adjusted(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The ratio with the mean score, whose expectation is 0 on policy, as a control variate.
    true, linear = _ratio(sums[..., :6], full)
    _, _, _, _, _, _, score, sequences = np.moveaxis(sums, -1, 0)
    return true, linear - full.score_slope * score / sequences


def _mean_score(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    score, sequences = np.moveaxis(sums, -1, 0)
    return np.zeros_like(score), score / sequences


def _true_change(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    tokens, h_base, w_tokens, w_h_new = np.moveaxis(sums, -1, 0)
    true = w_h_new / w_tokens - h_base / tokens
    return true, np.zeros_like(true)


def _same_states(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The part of both changes on the states that the old policy visits: no weights, no score.
    tokens, h_base, h_new, *direct = np.moveaxis(sums, -1, 0)
    true = (h_new - h_base) / tokens
    return true, full.eta * direct[0] / tokens if direct else np.zeros_like(true)


_OF_RATIO = ("tokens", "h_base", "w_tokens", "w_h_new", "g", "tokens_score")
_TRUE = Estimator("true change", _OF_RATIO[:4], 0, _true_change)  # for runs without linear terms
_MEAN_SCORE = Estimator("mean score", ("score", "sequences"), 0, _mean_score)
_MEAN_EXCESS = Estimator("mean log-probability excess", ("excess", "sequences"), 0, _mean_score)
_SAME_STATES = Estimator("same states", ("tokens", "h_base", "h_new", "direct_sum"), 0, _same_states)
_SAME_STATES_TRUE = Estimator("same states, true", ("tokens", "h_base", "h_new"), 0, _same_states)

ESTIMATORS: dict[EstimatorName, Estimator] = {
    "partial_sum": Estimator("partial_sum", ("tokens", "w_h_new", "g"), 1, _partial_sum),
    "ratio": Estimator("ratio", _OF_RATIO, 0, _ratio),
    "matched": Estimator("matched", ("tokens", "h_base", "w_tokens", "w_h_new", "tokens_score", "direct"), 0, _matched),
    "adjusted": Estimator("adjusted", (*_OF_RATIO, "score", "sequences"), 0, _adjusted),
}


def columns(run: Run, eta: float, estimator: str = "ratio") -> Columns:
    """Return the columns that an estimator sums, of one run at one eta.

    Raises
    ------
    RunError
        If the run does not record what the estimator needs.
    ValueError
        If the run has no such eta, or the estimator is unknown.
    """
    return _columns(run, eta, ESTIMATORS[checked_choice(estimator, "estimator", ESTIMATORS)])


def mean_score(run: Run) -> Estimate:
    """Return the mean score; its z is standard normal for on-policy sequences, infinite where all scores are equal.

    Raises
    ------
    RunError
        If the run does not record the score.
    """
    mean = _columns(run, run.etas[0], _MEAN_SCORE).estimates[1]
    equal = equal_but_for_rounding(mean.psi + mean.value)
    return replace(mean, psi=np.zeros_like(mean.psi)) if equal else mean


def equal_but_for_rounding(values: FloatArray) -> bool:
    """Return whether values differ by no more than the rounding of six-digit columns."""
    return bool(np.ptp(values) <= _ROUNDED * abs(values.mean()))


def mean_log_probability_excess(run: Run) -> Estimate:
    """Return the mean of c_i, log-probability plus entropy sum of each sequence (nats).

    Its expectation is 0 when tokens come from the policy that was differentiated: ``log pi(a_t) + H_t`` is a martingale
    difference. On real off-policy runs it is more powerful than the score.

    Raises
    ------
    RunError
        If the run does not record ``sum_logp`` or ``h_base``.
    """
    return _columns(run, run.etas[0], _MEAN_EXCESS).estimates[1]


def support_bound(min_logp: FloatArray, token_counts: FloatArray) -> float:
    """Return a lower bound of the number of tokens that the sampler could draw at a position.

    For a token drawn from k tokens, ``E[1 / pi] = k / (probability of these)``; ``min_logp``, shape ``(N,)``, is the
    lowest log-probability of a token in each sequence (nats). A rough figure: the sum has a heavy tail.

    Examples
    --------
    Four tokens drawn evenly from four:

    >>> round(support_bound(np.log([0.25] * 4), np.ones(4)), 9)
    4.0
    """
    return float(np.exp(-min_logp).sum() / token_counts.sum())


def true_total(run: Run, eta: float) -> Estimate:
    """Return the stored true change at ``eta`` (nats per token); without ``h_base``, influence values are NaN."""
    measured = run.measurement(eta)
    key = (true_total, measured.eta)
    if key not in run.derived:
        known = measured.h_base is not None
        unknown = Estimate(0.0, np.full(run.n, np.nan), run.n)
        total = _columns(run, eta, _TRUE).estimates[0] if known else unknown
        run.derived[key] = replace(total, value=measured.delta_h_true)
    estimate: Estimate = run.derived[key]
    return estimate


def same_states(run: Run, eta: float) -> tuple[Estimate, Estimate]:
    """Return (true, linear) on the states that the old policy visits (nats per token); linear NaN without the score."""
    if run.score is not None:
        return _columns(run, eta, _SAME_STATES).estimates
    true, _ = _columns(run, eta, _SAME_STATES_TRUE).estimates
    return true, true * float("nan")


def reference_total(runs: Mapping[str, Run], eta: float, name: str = "the mean over the runs") -> float:
    """Return the mean ``delta_h_true`` of runs that all have ``eta``; warn if it is too close to zero to divide by."""
    total = float(np.mean([run.measurement(eta).delta_h_true for run in runs.values()]))
    se = mean_total_error(runs.values(), eta)
    if abs(total) < WEAK_REFERENCE * se:
        warn_about_runs(
            f"the true total of {name} at eta {eta!r}, {total:.3g}, is within {WEAK_REFERENCE:g} standard errors "
            f"({se:.3g}) of zero: err_rel divided by it is unreliable"
        )
    return total


def own_total(run: Run, eta: float, name: str) -> float:
    """Return the run's own ``delta_h_true``; warn if it is too close to zero to divide by."""
    return reference_total({name: run}, eta, name)


def shared_variance(estimates: Sequence[Estimate]) -> float:
    """Return the covariance of the errors of two runs through the prompts that they share, averaged over pairs.

    Not below 0, nor above the smallest squared standard error; 0 where no runs share prompts.
    """
    pairs = [one.covariance(other) for one, other in combinations(estimates, 2)]
    if not any(pairs):
        return 0.0
    return min(max(float(np.mean(pairs)), 0.0), min(each.se**2 for each in estimates))


def mean_total_error(runs: Iterable[Run], eta: float) -> float:
    """Return the sampling standard error of the mean true total over runs; NaN if no run records ``h_base``."""
    totals = [true_total(run, eta) for run in runs]
    recorded = [total for total in totals if not np.isnan(total.se)]  # a run without one counts as average
    if not recorded:
        return float("nan")
    shared = shared_variance(recorded)
    return float(np.sqrt((np.mean([total.se**2 for total in recorded]) - shared) / len(totals) + shared))


def reference_for(references: Mapping[float, float] | None, run: Run, eta: float, name: str) -> float:
    """Return the given reference at ``eta``; the run's own total if none are given."""
    if references is None:
        return own_total(run, eta, name)
    for known, total in references.items():
        if same_eta(known, eta):
            return total
    raise ValueError(f"references has no eta {eta!r}; there are {', '.join(map(repr, references))}")


def supported_estimators(runs: Mapping[str, Run]) -> list[EstimatorName]:
    """Return the names of the estimators for which every run records what is needed."""
    return [name for name in ESTIMATORS if all(_is_recorded(run, name) for run in runs.values())]


def if_recorded(compute: Callable[[], float]) -> float:
    """Return the number; NaN if a run lacks a field that it needs."""
    try:
        return compute()
    except RunError:
        return float("nan")


def standard_deviation(values: FloatArray) -> float:
    """Return the SD (ddof=1) of values, shape ``(N,)``; NaN of a single one."""
    centred = values - values.mean()
    return float(np.sqrt(centred @ centred / (len(values) - 1))) if len(values) > 1 else float("nan")


def second_order_spread(batch: Columns) -> float:
    """Return Q: the second-order term of ``linear - true`` on a fresh batch of n has the SD ``Q / n``.

    ``Q^2 = tr((K C)^2) / 2``, by the delta method for normal sums, with K the Hessian at the full sums over means of
    rows and C the covariance of rows. It matters only if influence values nearly vanish.
    """
    rows = len(batch.values)
    covariance = rows**2 * np.cov(batch.values, rowvar=False)
    steps = np.sqrt(np.diag(covariance) / rows)  # one standard error of each sum
    above, below = (
        linear - true for true, linear in (_gradients(batch, batch.sums + sign * np.diag(steps)) for sign in (1, -1))
    )
    hessian = np.divide(above - below, 2 * rows * steps[:, None], out=np.zeros_like(above), where=steps[:, None] > 0)
    product = hessian @ covariance
    return float(np.sqrt(np.sum(product * product.T) / 2)) * batch.n / rows


def _gradients(batch: Columns, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return M times the gradients of (true, linear) at sums, each of shape ``(..., columns)``."""
    moved = sums[..., None, :] + 1j * _COMPLEX_STEP * np.eye(sums.shape[-1])
    true, linear = batch.estimator.evaluate(moved, batch.full)
    scale = len(batch.values) / _COMPLEX_STEP
    return np.imag(true) * scale, np.imag(linear) * scale


def _is_recorded(run: Run, estimator: str) -> bool:
    try:
        columns(run, run.etas[0], estimator)
    except RunError:
        return False
    return True


def _columns(run: Run, eta: float, chosen: Estimator) -> Columns:
    """Return the columns, built once for each run, eta and estimator."""
    require_run(run)
    key = (chosen, run.measurement(eta).eta)
    if key not in run.derived:
        run.derived[key] = _built(run, eta, chosen)
    batch: Columns = run.derived[key]
    return batch


def _built(run: Run, eta: float, chosen: Estimator) -> Columns:
    measured, tokens, entropy = run.measurement(eta), run.token_counts, run.h_base_mean
    correction = run.denom_corr_unscaled
    assemble: dict[str, Callable[[], FloatArray]] = {
        "tokens": lambda: tokens,
        "h_base": lambda: _recorded(measured.h_base, run, "baseline_entropy"),
        "w_tokens": lambda: measured.weights * tokens,
        "w_h_new": lambda: measured.weights * measured.h_new,
        "h_new": lambda: measured.h_new,
        "direct_sum": lambda: _recorded(run.jH_sum, run, "score"),
        "g": lambda: _recorded(run.gdotv, run, "linear") * run.total_tokens,
        # Zeros where no correction is recorded: the linear change of "ratio" is then eta / T_S * sum g.
        "tokens_score": lambda: np.zeros(run.n) if correction is None or entropy is None else -correction / entropy,
        "direct": lambda: (
            _recorded(run.jH_sum, run, "score")
            + _recorded(measured.h_base, run, "baseline_entropy") * _recorded(run.score, run, "score")
        ),
        "score": lambda: _recorded(run.score, run, "score"),
        "excess": lambda: _recorded(run.logp, run, "logp") + _recorded(measured.h_base, run, "baseline_entropy"),
        "sequences": lambda: np.ones(run.n),
    }

    assembled = []
    for name in chosen.columns:
        assembled.append(assemble[name]())  # noqa: PERF401
    prompts = None
    if run.prompt_ids is not None and not chosen.degree:
        several, prompt = np.unique(run.prompt_ids, return_inverse=True)
        if len(several) > 1:  # given one prompt, its responses are independent
            prompts = several
            assembled = [np.bincount(prompt, column).astype(np.float64) for column in assembled]
    sums = np.array([column.sum() for column in assembled])  # far faster than over the rows of ``values``
    full = FullBatch(
        eta=measured.eta,
        tokens=run.total_tokens,
        weighted_tokens=float(measured.weights @ tokens),
        base_entropy=measured.base_entropy,
        score_entropy=entropy or 0.0,
        score_slope=columns(run, eta).error.slope_on(mean_score(run)) if chosen.name == "adjusted" else 0.0,
    )
    return Columns(chosen, frozen(np.stack(assembled, axis=1)), frozen(sums), full, run.n, prompts)


def _recorded(values: _T | None, run: Run, support: str) -> _T:
    if values is None:
        raise RunError(run.source, FIELDS_BEHIND[support], "is needed here but not recorded in this run")
    return values
