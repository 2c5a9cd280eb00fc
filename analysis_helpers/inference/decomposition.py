"""The error of the linear approximation, split: the recorded linear terms' own error, and that of going straight.

The mean score, zero in expectation when the sequences come from the policy that was differentiated, shows a bias of the
first part and serves to take it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .._checks import FloatArray, warn_about_runs
from ..err_rel import reference_total, usable_runs
from ..estimators import Columns, columns, error_influence_values, score_z, scores, standard_deviation
from ..runs import Run

PARTS = ("linear_minus_matched", "matched_minus_true")


@dataclass(frozen=True, eq=False)
class _Part:
    """A difference of estimates on one run, in units of the reference: its value and its influence values."""

    value: float
    psi: FloatArray

    @property
    def se(self) -> float:
        return standard_deviation(self.psi) / float(np.sqrt(len(self.psi)))

    def adjusted(self, j: FloatArray) -> _Part:
        """Take out what the mean score explains: value - b mean(j), with b the regression of psi on the score."""
        centred = j - j.mean()
        slope = float(centred @ self.psi / (centred @ centred))
        return _Part(self.value - slope * float(j.mean()), self.psi - slope * centred)


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


def decomposition_table(runs: Mapping[str, Run], etas: Sequence[float]) -> pd.DataFrame:
    """Return `decompose_err_rel` for each eta, raw and score-adjusted, each followed by its pooled row.

    Runs that do not record the score are left out with a warning; with none left the table is empty.

    Returns
    -------
    DataFrame
        The columns of `decompose_err_rel`, and score_adjusted.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> decomposition_table(synthetic_runs(2, 128), [1.6e-6])["run"].tolist()
    ['run_01', 'run_02', 'pooled', 'run_01', 'run_02', 'pooled']
    """
    for name, run in runs.items():
        if not _can_be_split(run):
            warn_about_runs(f"skipped {name}: its error cannot be split, because it does not record the score")
    able = {name: run for name, run in runs.items() if _can_be_split(run)}
    parts = [pd.DataFrame(columns=["run", "eta", "score_adjusted", "score_z"])]
    for eta in etas if able else []:
        for adjusted in (False, True):
            table = decompose_err_rel(able, eta, score_adjusted=adjusted)
            parts += [part.assign(score_adjusted=adjusted) for part in (table, pool_decomposition(table))]
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _can_be_split(run: Run) -> bool:
    return {"linear", "score", "baseline_entropy"} <= set(run.supports)


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
        "score_z": score_z(run),
    }


def _error_of(batch: Columns, scale: float) -> _Part:
    true, linear = batch.estimate(batch.sums)
    return _Part(float(linear - true) / scale, error_influence_values(batch) / scale)
