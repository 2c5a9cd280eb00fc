"""What the recorded sequences say about their own errors: standard errors, and the error split into its parts.

Standard errors come from the estimator's gradient at the full sums, so every estimator has one. They describe sampling
of sequences, with the update direction and the reference held fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .checks import FloatArray, checked_choice, checked_count
from .estimators import Columns, columns, influence_values, scores
from .pooling import own_total, reference_total, usable_runs
from .runs import Run

POPULATIONS = ("policy", "run")


@dataclass(frozen=True, eq=False)
class _Part:
    """A difference of estimates on one run, in units of the reference: its value and its influence values."""

    value: float
    psi: FloatArray

    @property
    def se(self) -> float:
        return float(self.psi.std(ddof=1) / np.sqrt(len(self.psi)))

    def adjusted(self, j: FloatArray) -> _Part:
        """Take out what the mean score explains: value - b mean(j), with b the regression of psi on the score."""
        centred = j - j.mean()
        slope = float(centred @ self.psi / (centred @ centred))
        return _Part(self.value - slope * float(j.mean()), self.psi - slope * centred)


def err_rel_standard_error(
    run: Run,
    eta: float,
    n: int | None = None,
    *,
    reference: float | None = None,
    estimator: str = "ratio",
    population: str = "policy",
) -> float:
    """Return the standard error of err_rel on n sequences, in closed form.

    ``SE^2 = S_psi^2 / n`` for a fresh batch from the policy, ``S_psi^2 (1/n - 1/N)`` for a subset of this run, with
    S_psi^2 the variance (ddof=1) of the influence values of ``linear - true`` over the reference. For the partial sum,
    which is not rescaled, the second is times ``(n/N)^2``.

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
        "ratio", "matched" or "partial_sum".
    population
        "policy": a fresh batch of n sequences. "run": a subset of n sequences of this run, drawn without replacement.

    Raises
    ------
    RunError
        If the run does not record what the estimator needs.
    ValueError
        If an argument is out of range, or a fresh batch is asked of "partial_sum", which has no meaning there.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> run = synthetic_runs(1, 512)["run_01"]
    >>> fresh = err_rel_standard_error(run, 1.6e-6, 128)
    >>> subset = err_rel_standard_error(run, 1.6e-6, 128, population="run")
    >>> round(subset / fresh, 6) == round((1 - 128 / 512) ** 0.5, 6)
    True
    """
    checked_choice(population, "population", POPULATIONS)
    batch = columns(run, eta, estimator)
    degree, total = batch.estimator.degree, run.num_sequences
    if population == "policy" and degree:
        raise ValueError(
            f"population must be 'run' for estimator {estimator!r}, whose sums mean nothing on a fresh batch"
        )
    most = total if population == "run" else None
    size = total if n is None else checked_count(n, "n", most=most, what_most=", the number of sequences")
    scale = own_total(run, eta, run.source) if reference is None else reference
    psi_true, psi_linear = influence_values(batch)
    spread = float((psi_linear - psi_true).std(ddof=1)) / abs(scale)
    left = 1 / size - 1 / total if population == "run" else 1 / size
    return spread * float(np.sqrt(max(left, 0.0))) * (size / total) ** degree


def typical_standard_error(runs: Mapping[str, Run], eta: float, n: int, *, reference: float) -> float:
    """Return the root mean square over runs of the standard error of err_rel on a fresh batch of n sequences."""
    errors = [err_rel_standard_error(run, eta, n, reference=reference) for run in runs.values()]
    return float(np.sqrt(np.mean(np.square(errors))))


def decompose_err_rel(
    runs: Mapping[str, Run], eta: float, *, reference: float | None = None, score_adjusted: bool = False
) -> pd.DataFrame:
    """Split err_rel of each run into the error of the recorded linear terms and that of going straight.

    ``linear - true = (linear - matched) + (matched - true)``, where matched is the exact derivative of the
    importance-sampling estimate on the same sequences. The first part is noise and bias of the recorded linear
    estimator; the second is nonlinearity of the step, and numerics. Each is divided by the reference, each has its
    standard error.

    With ``score_adjusted``, what the mean score explains is taken out of every value by regression on the same run: a
    control variate with known mean 0 (Owen, 2013, section 8.9). It removes the bias of sequences that do not come
    exactly from the policy that was differentiated. Show it beside the unadjusted values, never instead.

    Parameters
    ----------
    runs
        Name -> run; each must record the score.
    eta
        Step size.
    reference
        What to divide by (nats per token); None: the mean true total over the runs.
    score_adjusted
        Whether to take out what the mean score explains.

    Returns
    -------
    DataFrame
        Columns run, eta, err_rel, se, linear_minus_matched, linear_minus_matched_se, matched_minus_true,
        matched_minus_true_se, score_z (the mean score over its standard error).

    Raises
    ------
    RunError
        If a run does not record the score or ``h_base``.
    ValueError
        If no run has the eta.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = decompose_err_rel(synthetic_runs(2, 512), 1.6e-6)
    >>> parts = table["linear_minus_matched"] + table["matched_minus_true"]
    >>> bool((abs(parts - table["err_rel"]) < 1e-9).all())
    True
    """
    [(found, names)] = usable_runs(runs, [eta], 2).items()
    kept = {name: runs[name] for name in names}
    scale = reference_total(kept, found) if reference is None else reference
    return pd.DataFrame([_decomposed(name, run, found, scale, score_adjusted) for name, run in kept.items()])


def pool_decomposition(table: pd.DataFrame) -> pd.DataFrame:
    """Pool the rows of `decompose_err_rel` for each eta: means weighted by inverse variance, and their standard errors.

    Returns
    -------
    DataFrame
        The columns of `decompose_err_rel`, with run "pooled"; score_z is the sum over runs divided by the root of their
        number.
    """
    rows = []
    for eta, of_eta in table.groupby("eta"):
        row: dict[str, object] = {"run": "pooled", "eta": eta}
        for value, se in (("err_rel", "se"), *((part, f"{part}_se") for part in PARTS)):
            weights = 1 / of_eta[se].to_numpy() ** 2
            row[value] = float(weights @ of_eta[value].to_numpy() / weights.sum())
            row[se] = float(1 / np.sqrt(weights.sum()))
        row["score_z"] = float(of_eta["score_z"].sum() / np.sqrt(len(of_eta)))
        rows.append(row)
    return pd.DataFrame(rows)


PARTS = ("linear_minus_matched", "matched_minus_true")


def _decomposed(name: str, run: Run, eta: float, scale: float, score_adjusted: bool) -> dict[str, object]:
    error, second = (_error_of(columns(run, eta, estimator), scale) for estimator in ("ratio", "matched"))
    first = _Part(error.value - second.value, error.psi - second.psi)
    j = scores(run)
    if score_adjusted:
        error, first, second = (part.adjusted(j) for part in (error, first, second))
    return {
        "run": name,
        "eta": eta,
        "err_rel": error.value,
        "se": error.se,
        "linear_minus_matched": first.value,
        "linear_minus_matched_se": first.se,
        "matched_minus_true": second.value,
        "matched_minus_true_se": second.se,
        "score_z": float(j.mean() / (j.std(ddof=1) / np.sqrt(len(j)))),
    }


def _error_of(batch: Columns, scale: float) -> _Part:
    true, linear = batch.estimate(batch.values.sum(axis=0))
    psi_true, psi_linear = influence_values(batch)
    return _Part(float(linear - true) / scale, (psi_linear - psi_true) / scale)
