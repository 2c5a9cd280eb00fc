"""The error of the linear approximation in two parts: that of the recorded linear terms, and nonlinearity of the step.

The mean score is 0 in expectation on policy. It reveals off-policy bias of the first part, and helps to remove it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from .._checks import warn_skipped
from ..estimators import FOR_MATCHED, Estimate, columns, mean_score
from ..runs import Run, Runs
from .prediction import PooledEstimate, pooled_err_rel

PARTS = ("linear_minus_matched", "matched_minus_true")
_COLUMNS = ("run", "eta", "err_rel", "se", *(part + end for part in PARTS for end in ("", "_se")), "score_z")


def decompose_err_rel(
    runs: Mapping[str, Run], eta: float, *, reference: float | None = None, score_adjusted: bool = False
) -> pd.DataFrame:
    """Return err_rel of each run split into the error of the recorded linear terms and nonlinearity.

    ``linear - true = (linear - matched) + (matched - true)``, where matched is the exact derivative of the
    importance-sampling estimate on the same sequences. The first part is noise and bias of the recorded linear terms;
    the second is nonlinearity of the step and numerical error.

    With ``score_adjusted``, the part that the mean score explains is removed from every value by regression on the same
    run: a control variate with known mean 0 (Owen, 2013, section 8.9). It removes off-policy bias to first order. Show
    it beside the unadjusted values, not in their place.

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
    estimate, parts = _parts(runs, eta, reference, score_adjusted)
    rows = []
    for name in estimate.errors:
        numbers = (number for part in parts.values() for number in (part[name].value, part[name].se))
        rows.append((name, estimate.eta, *numbers, mean_score(runs[name]).z))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _parts(
    runs: Mapping[str, Run], eta: float, reference: float | None, score_adjusted: bool
) -> tuple[PooledEstimate, dict[str, dict[str, Estimate]]]:
    """Return err_rel, and err_rel and its two parts of each run: part -> name -> estimate."""
    whole = pooled_err_rel(runs, eta, reference=reference)
    parts: dict[str, dict[str, Estimate]] = {part: {} for part in ("err_rel", *PARTS)}
    for name, error in whole.errors.items():
        second = columns(runs[name], eta, "matched").error * (1 / whole.reference)
        for part, each in zip(parts.values(), (error, error - second, second), strict=True):
            part[name] = each.without(mean_score(runs[name])) if score_adjusted else each
    return whole, parts


def pool_decomposition(
    runs: Mapping[str, Run], eta: float, *, reference: float | None = None, score_adjusted: bool = False
) -> pd.DataFrame:
    """Return the random-effects mean over updates of each part, one row, as `decompose_err_rel` has them.

    Returns
    -------
    DataFrame
        The columns of `decompose_err_rel`, with run "pooled", and for each part its p-value of a mean of 0 (columns p,
        linear_minus_matched_p, matched_minus_true_p; NaN with one run); score_z is the sum over runs divided by the
        root of their number.
    """
    whole, parts = _parts(runs, eta, reference, score_adjusted)
    row: dict[str, object] = {"run": "pooled", "eta": whole.eta}
    for part, errors in parts.items():
        pooled = PooledEstimate.of(whole.eta, whole.reference, errors).pooled
        se, p = ("se", "p") if part == "err_rel" else (f"{part}_se", f"{part}_p")
        row |= {part: pooled.mean, se: pooled.se, p: pooled.p_value}
    row["score_z"] = sum(mean_score(runs[name]).z for name in whole.errors) / math.sqrt(len(whole.errors))
    return pd.DataFrame([row])


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
            tables = [make(able, eta, score_adjusted=adjusted) for make in (decompose_err_rel, pool_decomposition)]
            parts += [table.assign(score_adjusted=adjusted) for table in tables]
    empty = pd.DataFrame(columns=["run", "eta", "score_adjusted", "score_z"])
    return pd.concat(parts, ignore_index=True) if parts else empty
