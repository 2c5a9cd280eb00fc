"""Estimators of (true change, linear change), each a function of column sums over a set of sequences.

Sampling makes sums; an estimator turns sums into the two estimates; its standard error follows from the gradient at the
full sums. So a new estimator is one function of sums and one entry in `ESTIMATORS`: subsets, standard errors,
prediction and planning need no further code. Results are full-batch numbers and arrays; tables are made in
`analysis_helpers.err_rel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._checks import FloatArray, RunError, checked_choice, frozen
from .runs import FIELDS_BEHIND, Run

Array = NDArray[Any]  # float64, or complex128 while a gradient is taken
EstimatorName = Literal["partial_sum", "ratio", "matched"]

_COMPLEX_STEP = 1e-20
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
    """

    eta: float
    tokens: float
    weighted_tokens: float
    base_entropy: float
    score_entropy: float


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
class Columns:
    """The columns of a run at one eta for an estimator: values of shape ``(N, columns)``, their sums, the constants."""

    estimator: Estimator
    values: FloatArray
    sums: FloatArray
    full: FullBatch

    def estimate(self, sums: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return (true, linear) for sums of shape ``(..., columns)``, in nats per token."""
        return self.estimator.evaluate(sums, self.full)


def _partial_sum(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The definition of the published figures: full-batch contributions, summed over the subset, not rescaled.
    tokens, w_h_new, g = _unstack(sums)
    true = w_h_new / full.weighted_tokens - tokens / full.tokens * full.base_entropy
    return true, full.eta * g / full.tokens


def _ratio(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The subset taken as the whole batch: R_S - H_S, and linear terms with the subset's own entropy in the correction.
    tokens, h_base, w_tokens, w_h_new, g, tokens_score = _unstack(sums)
    entropy = h_base / tokens
    linear = full.eta / tokens * (g - (entropy - full.score_entropy) * tokens_score)
    return w_h_new / w_tokens - entropy, linear


def _matched(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    # The exact derivative of R_S - H_S on the same sequences, in place of the recorded linear terms.
    tokens, h_base, w_tokens, w_h_new, tokens_score, direct = _unstack(sums)
    entropy = h_base / tokens
    return w_h_new / w_tokens - entropy, full.eta / tokens * (direct - entropy * tokens_score)


def _true_change(sums: Array, full: FullBatch) -> tuple[Array, Array]:
    tokens, h_base, w_tokens, w_h_new = _unstack(sums)
    true = w_h_new / w_tokens - h_base / tokens
    return true, np.zeros_like(true)


_TRUE = Estimator(
    "true change", ("tokens", "h_base", "w_tokens", "w_h_new"), 0, _true_change
)  # for runs without linear terms

ESTIMATORS: dict[EstimatorName, Estimator] = {
    "partial_sum": Estimator("partial_sum", ("tokens", "w_h_new", "g"), 1, _partial_sum),
    "ratio": Estimator("ratio", ("tokens", "h_base", "w_tokens", "w_h_new", "g", "tokens_score"), 0, _ratio),
    "matched": Estimator("matched", ("tokens", "h_base", "w_tokens", "w_h_new", "tokens_score", "direct"), 0, _matched),
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


def tokens_times_score(run: Run) -> FloatArray:
    """Return T_i j_i, shape ``(N,)``; zeros if no denominator correction is recorded.

    With zeros the linear change of "ratio" is ``eta / T_S * sum g``: there is no correction to recompute on the subset.
    """
    if run.score is None:
        return np.zeros(run.num_sequences)
    return -run.score.denom_corr_unscaled / run.score.h_base_mean


def scores(run: Run) -> FloatArray:
    """Return the score j_i of each sequence, shape ``(N,)``: the derivative of its log-probability along the update.

    Its expectation is 0 for sequences sampled from the policy that was differentiated (on-policy).

    Raises
    ------
    RunError
        If the run does not record the score.
    """
    _recorded(run.score, run, "score")
    tokens = run.token_counts
    return np.divide(tokens_times_score(run), tokens, out=np.zeros(len(tokens)), where=tokens > 0)


def score_z(run: Run) -> float:
    """Return the mean score over its standard error; standard normal for on-policy sequences."""
    j = scores(run)
    return float(j.mean() / (standard_deviation(j) / np.sqrt(len(j))))


def estimate(run: Run, eta: float, estimator: str = "ratio") -> tuple[float, float]:
    """Return the full-batch estimates (true, linear) in nats per token.

    Examples
    --------
    >>> run = Run.from_arrays(
    ...     token_counts=[2, 3],
    ...     h_base=[1.0, 2.0],
    ...     h_new={1e-6: [0.9, 1.8]},
    ...     log_weights={1e-6: [0.0, 0.0]},
    ...     gdotv=[-1.0, -2.0],
    ... )
    >>> [f"{x:.6g}" for x in estimate(run, 1e-6)]
    ['-0.06', '-3e-06']
    """
    batch = columns(run, eta, estimator)
    true, linear = batch.estimate(batch.sums)
    return float(true), float(linear)


def per_sequence_contributions(run: Run, eta: float) -> tuple[FloatArray, FloatArray]:
    """Return the contributions of each sequence to the true and the linear change, shape ``(N,)``, in nats per token.

    ``true_i = w_i h_new_i / sum(w T) - T_i / sum(T) * base_entropy`` and ``linear_i = eta * gdotv_i``; they sum to the
    totals.

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


def influence_values(batch: Columns) -> tuple[FloatArray, FloatArray]:
    """Return the influence values psi of the true and of the linear estimate, shape ``(N,)``, in nats per token.

    ``psi_i = N * x_i . grad f(sums)``, with the gradient by complex step, exact to rounding. The standard error of an
    estimate on a fresh batch of n sequences is ``std(psi, ddof=1) / sqrt(n)`` (infinitesimal jackknife: Efron, 1982,
    chapter 6).
    """
    true, linear = _gradients(batch)
    return batch.values @ true, batch.values @ linear


def error_influence_values(batch: Columns) -> FloatArray:
    """Return the influence values of ``linear - true``, shape ``(N,)``, in nats per token."""
    true, linear = _gradients(batch)
    psi: FloatArray = batch.values @ (linear - true)
    return psi


def standard_deviation(psi: FloatArray) -> float:
    """Return the SD (ddof=1) of values, shape ``(N,)``."""
    centred = psi - psi.mean()
    return float(np.sqrt(centred @ centred / (len(psi) - 1)))


def true_total_standard_error(run: Run, eta: float) -> float | None:
    """Return the standard error of the run's true change at ``eta`` (nats per token); None without ``h_base``."""
    if "baseline_entropy" not in run.supports or run.num_sequences < 2:
        return None
    psi, _ = influence_values(_columns(run, eta, _TRUE))
    return standard_deviation(psi) / float(np.sqrt(len(psi)))


def _gradients(batch: Columns) -> tuple[FloatArray, FloatArray]:
    """Return N times the gradients of (true, linear) at the full sums, each of shape ``(columns,)``."""
    moved = batch.sums + 1j * _COMPLEX_STEP * np.eye(len(batch.sums))
    true, linear = batch.estimator.evaluate(moved, batch.full)
    scale = len(batch.values) / _COMPLEX_STEP
    return np.imag(true) * scale, np.imag(linear) * scale


def _unstack(sums: Array) -> Array:
    """Return sums of shape ``(..., columns)`` as columns of shape ``(...)``."""
    return sums.transpose(-1, *range(sums.ndim - 1))


def _columns(run: Run, eta: float, chosen: Estimator) -> Columns:
    measured, tokens = run.measurement(eta), run.token_counts
    assemble: dict[str, Callable[[], FloatArray]] = {
        "tokens": lambda: tokens,
        "h_base": lambda: _recorded(measured.h_base, run, "baseline_entropy"),
        "w_tokens": lambda: measured.weights * tokens,
        "w_h_new": lambda: measured.weights * measured.h_new,
        "g": lambda: _recorded(run.gdotv, run, "linear") * run.total_tokens,
        "tokens_score": lambda: tokens_times_score(run),
        "direct": lambda: (
            _recorded(run.score, run, "score").jH_sum
            + _recorded(measured.h_base, run, "baseline_entropy") * scores(run)
        ),
    }
    found = [assemble[name]() for name in chosen.columns]
    sums = np.array([column.sum() for column in found])  # far quicker than over the rows of ``values``
    full = FullBatch(
        eta=measured.eta,
        tokens=run.total_tokens,
        weighted_tokens=float(measured.weights @ tokens),
        base_entropy=measured.base_entropy,
        score_entropy=run.score.h_base_mean if run.score else 0.0,
    )
    return Columns(chosen, frozen(np.stack(found, axis=1)), frozen(sums), full)


def _recorded(values: _T | None, run: Run, support: str) -> _T:
    if values is None:
        raise RunError(run.source, FIELDS_BEHIND[support], "is needed here and not recorded in this run")
    return values
