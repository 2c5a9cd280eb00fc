"""The error of the linear approximation in two parts: that of the recorded linear terms, and nonlinearity of the step.

The mean score is 0 in expectation on policy. It shows off-policy bias of the first part, and serves to remove it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .._checks import warn_skipped
from ..estimators import FOR_MATCHED, columns, mean_score
from ..runs import Run, Runs
from .prediction import pooled_err_rel
from .random_effects import pool

PARTS = ("linear_minus_matched", "matched_minus_true")
_COLUMNS = ("run", "eta", "err_rel", "se", *(part + end for part in PARTS for end in ("", "_se")), "score_z")


def decompose_err_rel(
    runs: Mapping[str, Run], eta: float, *, reference: float | None = None, score_adjusted: bool = False
) -> pd.DataFrame:
    """Return err_rel of each run split into the error of the recorded linear terms and nonlinearity.

    ``linear - true = (linear - matched) + (matched - true)``, where matched is the exact derivative of the
    importance-sampling estimate on the same sequences. The first part is noise and bias of the recorded linear terms;
    the second is nonlinearity of the step, and numerics.

    With ``score_adjusted``, what the mean score explains is removed from every value by regression on the same run: a
    control variate with known mean 0 (Owen, 2013, section 8.9). It removes off-policy bias to first order. Show it
    beside the unadjusted values, never instead.

    Parameters
    ----------
    runs
        Name -> run; each must record the score.
    eta
        Step size.
    reference
        What to divide by (nats per token); None: the mean true total over the runs.
    score_adjusted
        Whether to remove what the mean score explains.

    Returns
    -------
    DataFrame
        Columns run, eta, err_rel, se, linear_minus_matched, linear_minus_matched_se, matched_minus_true,
        matched_minus_true_se, score_z (the mean score over its standard error).

    Raises
    ------
    RunError
        If a run does not record the score or ``h_base``, or all its sequences are of one prompt.
    ValueError
        If no run has the eta and two sequences, or the reference is 0, NaN or infinite.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = decompose_err_rel(synthetic_runs(2, 512), 1.6e-6)
    >>> parts = table["linear_minus_matched"] + table["matched_minus_true"]
    >>> bool((abs(parts - table["err_rel"]) < 1e-9).all())
    True
    """
    estimate, rows = pooled_err_rel(runs, eta, reference=reference), []
    for name, error in estimate.errors.items():
        second = columns(runs[name], eta, "matched").error * (1 / estimate.reference)
        score, parts = mean_score(runs[name]), [error, error - second, second]
        if score_adjusted:
            parts = [part.without(score) for part in parts]
        rows.append((name, estimate.eta, *(number for part in parts for number in (part.value, part.se)), score.z))
    return pd.DataFrame(rows, columns=_COLUMNS)


def pool_decomposition(table: pd.DataFrame) -> pd.DataFrame:
    """Return the random-effects mean over updates of each part, a row for each eta, from `decompose_err_rel`.

    Returns
    -------
    DataFrame
        The columns of `decompose_err_rel`, with run "pooled", and for each part its p-value of a mean of 0 (columns p,
        linear_minus_matched_p, matched_minus_true_p; NaN with one run); score_z is the sum over runs divided by the
        root of their number.
    """
    rows = []
    for eta, of_eta in table.groupby("eta"):
        row: dict[str, object] = {"run": "pooled", "eta": eta}
        for value, se, p in (("err_rel", "se", "p"), *((part, f"{part}_se", f"{part}_p") for part in PARTS)):
            pooled = pool(of_eta[value].to_numpy(), of_eta[se].to_numpy() ** 2)
            row |= {value: pooled.mean, se: pooled.se, p: pooled.p_value}
        row["score_z"] = float(of_eta["score_z"].sum() / np.sqrt(len(of_eta)))
        rows.append(row)
    return pd.DataFrame(rows)


def decomposition_table(runs: Mapping[str, Run], etas: Sequence[float] | None = None) -> pd.DataFrame:
    """Return `decompose_err_rel` for each eta (None: all measured), raw and score-adjusted, each with its pooled row.

    Runs that do not record the score are skipped with a warning; with none left the table is empty.

    Returns
    -------
    DataFrame
        The columns of `decompose_err_rel` and `pool_decomposition`, and score_adjusted.

    Raises
    ------
    RunError
        If all sequences of a run are of one prompt.
    ValueError
        If no run that records the score has an eta and two sequences.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> decomposition_table(synthetic_runs(2, 128), [1.6e-6])["run"].tolist()
    ['run_01', 'run_02', 'pooled', 'run_01', 'run_02', 'pooled']
    """
    collection = Runs.of(runs)
    able = collection.recording(*FOR_MATCHED)
    lacking = collection.lacking(*FOR_MATCHED)
    warn_skipped(dict.fromkeys(lacking, "without the score the error cannot be split"))
    parts = []
    for eta in able.etas_of(etas) if able else []:
        for adjusted in (False, True):
            table = decompose_err_rel(able, eta, score_adjusted=adjusted)
            parts += [part.assign(score_adjusted=adjusted) for part in (table, pool_decomposition(table))]
    empty = pd.DataFrame(columns=["run", "eta", "score_adjusted", "score_z"])
    return pd.concat(parts, ignore_index=True) if parts else empty
