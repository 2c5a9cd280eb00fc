"""Estimators of (true change, linear change), each a function of column sums over a set of sequences.

Sampling makes sums; an estimator turns sums into the two estimates; its standard error follows from the gradient at the
full sums. So a new estimator is one function of sums and one entry in `ESTIMATORS`: subsets, standard errors,
prediction and planning need no further code. Results are full-batch numbers and arrays; tables are made in
`analysis_helpers.err_rel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._checks import FloatArray, RunError, checked_choice, frozen
from .runs import FIELDS_BEHIND, Run, require_run

Array = NDArray[Any]  # float64, or complex128 while a gradient is taken
EstimatorName = Literal["partial_sum", "ratio", "matched", "adjusted"]

_COMPLEX_STEP = 1e-20
_ROUNDED = 1e-5  # of the mean: values that vary no more are equal, in columns of six digits
_T = TypeVar("_T")


@dataclass(frozen=True)
class FullBatch:
    """Constants of the full batch that an estimator uses beside the sums over its subset.

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
        Influence values, shape ``(M,)``, one for each row of `Columns`: ``psi_i = M * x_i . grad f(sums)``, with the
        gradient by complex step, exact to rounding (infinitesimal jackknife: Efron, 1982, chapter 6).
    num_sequences
        N.
    """

    value: float
    psi: FloatArray
    num_sequences: int

    @property
    def spread(self) -> float:
        """S, the SD of influence values per sequence: the standard error on a fresh batch of n is ``S / sqrt(n)``.

        Over M prompts of N sequences it is the cluster-robust ``std(psi) sqrt(N / M)``.
        """
        return standard_deviation(self.psi) * float(np.sqrt(self.num_sequences / len(self.psi)))

    @property
    def se(self) -> float:
        """Standard error; NaN for a single row."""
        return self.spread / float(np.sqrt(self.num_sequences))

    @property
    def z(self) -> float:
        """The value over its standard error: infinite where nothing varies, NaN where all is 0."""
        if self.se:
            return self.value / self.se
        return float(np.copysign(np.inf, self.value)) if self.value else float("nan")

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.psi * factor, self.num_sequences)

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.psi - other.psi, self.num_sequences)

    def without(self, control: Estimate) -> Estimate:
        """Return what regression on a control variate, an estimate of 0 on the same rows, leaves of the estimate."""
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
    num_sequences
        N. A subset of n sequences has ``n M / N`` rows.
    """

    estimator: Estimator
    values: FloatArray
    sums: FloatArray
    full: FullBatch
    num_sequences: int

    def rows_for(self, num_sequences: int) -> int:
        """Return how many rows a subset of so many sequences has: at least one, at most all."""
        return max(1, round(num_sequences * len(self.values) / self.num_sequences))

    def estimate(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (true, linear) for sums of shape ``(..., columns)``, in nats per token."""
        return self.estimator.evaluate(sums, self.full)

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Return (true, linear) of the full batch, in nats per token."""
        values, gradients = self.estimate(self.sums), _gradients(self, self.sums)
        true, linear = (
            Estimate(float(value), self.values @ gradient, self.num_sequences)
            for value, gradient in zip(values, gradients, strict=True)
        )
        return true, linear

    def error(self) -> Estimate:
        """Return linear - true of the full batch, in nats per token."""
        true, linear = self.estimates()
        return linear - true


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


_OF_RATIO = ("tokens", "h_base", "w_tokens", "w_h_new", "g", "tokens_score")
_TRUE = Estimator("true change", _OF_RATIO[:4], 0, _true_change)  # for runs without linear terms
_MEAN_SCORE = Estimator("mean score", ("score", "sequences"), 0, _mean_score)
_MEAN_EXCESS = Estimator("mean log-probability excess", ("excess", "sequences"), 0, _mean_score)

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


def scores(run: Run) -> FloatArray:
    """Return the score j_i of each sequence, shape ``(N,)``: the derivative of its log-probability along the update.

    Its expectation is 0 for sequences sampled from the policy that was differentiated (on-policy).

    Raises
    ------
    RunError
        If the run does not record the score.
    """
    return _recorded(run.scores, run, "score")


def mean_score(run: Run) -> Estimate:
    """Return the mean score; its z is standard normal for on-policy sequences, infinite where all scores are equal.

    Raises
    ------
    RunError
        If the run does not record the score.
    """
    found = _columns(run, run.etas[0], _MEAN_SCORE).estimates()[1]
    equal = equal_but_for_rounding(found.psi + found.value)
    return replace(found, psi=np.zeros_like(found.psi)) if equal else found


def equal_but_for_rounding(values: FloatArray) -> bool:
    """Return whether values differ by no more than columns of six digits are rounded."""
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
    return _columns(run, run.etas[0], _MEAN_EXCESS).estimates()[1]


def true_total(run: Run, eta: float) -> Estimate:
    """Return the stored true change at ``eta`` (nats per token); without ``h_base``, influence values are NaN."""
    measured = run.measurement(eta)
    if measured.h_base is None:
        return Estimate(measured.delta_h_true, np.full(run.num_sequences, np.nan), run.num_sequences)
    return replace(_columns(run, eta, _TRUE).estimates()[0], value=measured.delta_h_true)


def if_recorded(compute: Callable[[], float]) -> float:
    """Return the number; NaN where a run does not record what it takes."""
    try:
        return compute()
    except RunError:
        return float("nan")


def per_sequence_contributions(run: Run, eta: float) -> tuple[FloatArray, FloatArray]:
    """Return the contributions of each sequence to the true and the linear change, shape ``(N,)``, in nats per token.

    ``true_i = w_i h_new_i / sum(w T) - T_i / sum(T) * base_entropy`` and ``linear_i = eta * gdotv_i``; they sum to the
    totals. Summed over a subset they are "partial_sum", the published definition; "ratio" is the one to set beside
    actual runs.

    Parameters
    ----------
    run
        The run; must record per-sequence linear terms.
    eta
        Step size, looked up with a relative tolerance of 1e-6.

    Raises
    ------
    RunError
        If the run is totals-only.
    ValueError
        If the run has no such eta.

    Examples
    --------
    >>> run = Run.from_arrays(
    ...     token_counts=[2, 3],
    ...     h_base=[1.0, 2.0],
    ...     h_new={1e-6: [0.9, 1.8]},
    ...     log_weights={1e-6: [0.0, 0.0]},
    ...     gdotv=[-1.0, -2.0],
    ... )
    >>> true_seq, linear_seq = per_sequence_contributions(run, 1e-6)
    >>> [f"{x:.6g}" for x in true_seq], [f"{x:.6g}" for x in linear_seq]
    (['-0.06', '0'], ['-1e-06', '-2e-06'])
    """
    batch = columns(run, eta, "partial_sum")
    return batch.estimate(batch.values)


def standard_deviation(values: FloatArray) -> float:
    """Return the SD (ddof=1) of values, shape ``(N,)``; NaN of a single one."""
    centred = values - values.mean()
    return float(np.sqrt(centred @ centred / (len(values) - 1))) if len(values) > 1 else float("nan")


def second_order_spread(batch: Columns) -> float:
    """Return Q: the second-order term of ``linear - true`` on a fresh batch of n has the SD ``Q / n``.

    ``Q^2 = tr((K C)^2) / 2``, by the delta method for normal sums, with K the Hessian at the full sums over means of
    rows and C the covariance of rows. It matters only where influence values nearly vanish.
    """
    rows = len(batch.values)
    covariance = rows**2 * np.cov(batch.values, rowvar=False)
    steps = np.sqrt(np.diag(covariance) / rows)  # one standard error of each sum
    above, below = (
        linear - true for true, linear in (_gradients(batch, batch.sums + sign * np.diag(steps)) for sign in (1, -1))
    )
    hessian = np.divide(above - below, 2 * rows * steps[:, None], out=np.zeros_like(above), where=steps[:, None] > 0)
    product = hessian @ covariance
    return float(np.sqrt(np.sum(product * product.T) / 2)) * batch.num_sequences / rows


def _gradients(batch: Columns, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return M times the gradients of (true, linear) at sums, each of shape ``(..., columns)``."""
    moved = sums[..., None, :] + 1j * _COMPLEX_STEP * np.eye(sums.shape[-1])
    true, linear = batch.estimator.evaluate(moved, batch.full)
    scale = len(batch.values) / _COMPLEX_STEP
    return np.imag(true) * scale, np.imag(linear) * scale


def _columns(run: Run, eta: float, chosen: Estimator) -> Columns:
    require_run(run)
    measured, tokens, terms = run.measurement(eta), run.token_counts, run.score
    assemble: dict[str, Callable[[], FloatArray]] = {
        "tokens": lambda: tokens,
        "h_base": lambda: _recorded(measured.h_base, run, "baseline_entropy"),
        "w_tokens": lambda: measured.weights * tokens,
        "w_h_new": lambda: measured.weights * measured.h_new,
        "g": lambda: _recorded(run.gdotv, run, "linear") * run.total_tokens,
        # Zeros where no correction is recorded: the linear change of "ratio" is then eta / T_S * sum g.
        "tokens_score": lambda: -terms.denom_corr_unscaled / terms.h_base_mean if terms else np.zeros(len(tokens)),
        "direct": lambda: (
            _recorded(terms, run, "score").jH_sum + _recorded(measured.h_base, run, "baseline_entropy") * scores(run)
        ),
        "score": lambda: scores(run),
        "excess": lambda: _recorded(run.logp, run, "logp") + _recorded(measured.h_base, run, "baseline_entropy"),
        "sequences": lambda: np.ones(len(tokens)),
    }
    found = [assemble[name]() for name in chosen.columns]
    if run.prompt_ids is not None and not chosen.degree:
        _, prompt = np.unique(run.prompt_ids, return_inverse=True)
        found = [np.bincount(prompt, column).astype(np.float64) for column in found]
    sums = np.array([column.sum() for column in found])  # far quicker than over the rows of ``values``
    full = FullBatch(
        eta=measured.eta,
        tokens=run.total_tokens,
        weighted_tokens=float(measured.weights @ tokens),
        base_entropy=measured.base_entropy,
        score_entropy=terms.h_base_mean if terms else 0.0,
        score_slope=columns(run, eta).error().slope_on(mean_score(run)) if chosen.name == "adjusted" else 0.0,
    )
    return Columns(chosen, frozen(np.stack(found, axis=1)), frozen(sums), full, len(tokens))


def _recorded(values: _T | None, run: Run, support: str) -> _T:
    if values is None:
        raise RunError(run.source, FIELDS_BEHIND[support], "is needed here and not recorded in this run")
    return values
