"""The health of runs, as tables: checks with a value, a limit, a flag, and one sentence of what it means.

No flag does not mean that a batch is large enough: good weights say that importance sampling is sound, not that it is
precise. See `analysis_helpers.prediction` for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from .health_checks import CHECKS
from .pooling import all_etas, check_mapping
from .runs import Run


def run_health(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Check the health of runs, one by one.

    Checks: ``integrity`` (contributions sum to the stored totals; the value counts what does not), ``ess_share`` and
    ``largest_weight_share`` of the importance weights, ``pareto_k`` (shape of their tail by Pareto-smoothed importance
    sampling, Vehtari et al. 2024, by arviz-stats; limit ``min(1 - 1/log10(N), 0.7)``), ``noise_share`` (of the variance
    of log weights: the SD of ``log w - eta score`` squared, or without score that of ``log w(2 eta) - 2 log w(eta)``
    over root 3), ``step_error`` (SE of matched - true over the mean true change of
    the runs), ``score_z`` (mean score over its standard
    error), ``stored_error`` (stored standard errors times their number of shards over those computed here; the limit is
    4 SDs of what so many shards scatter).

    On healthy runs a flag is raised by chance for ``score_z`` in 0.3 %, for ``pareto_k`` in as many at 128 sequences
    and in fewer beyond, and for the others hardly ever. Where many sequences carry the same weight, as very short ones
    may, ``pareto_k`` is raised more often; `analysis_helpers.calibration` measures all of these rates.

    Parameters
    ----------
    runs
        Name -> run.

    Returns
    -------
    DataFrame
        Columns run, eta (missing where the check is about the run), check, value (missing where it cannot be had),
        limit, flag (bool), meaning (one sentence).

    Raises
    ------
    ValueError
        If there are no runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = run_health(synthetic_runs(2, 512))
    >>> int(table["flag"].sum()), sorted(table["check"].unique())[:3]
    (0, ['ess_share', 'integrity', 'largest_weight_share'])
    """
    check_mapping(runs)
    references = {eta: _mean_true(runs, eta) for eta in all_etas(runs)}
    rows = [
        {
            "run": name,
            "eta": found.eta,
            "check": check_name,
            "value": found.value,
            "limit": found.limit,
            "flag": found.flag,
            "meaning": f"{found.detail}{' ' if found.detail else ''}{check.meaning}",
        }
        for name, run in runs.items()
        for check_name, check in CHECKS.items()
        for found in check.find(run, references)
    ]
    return pd.DataFrame(rows)


def health_of_batches(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return `run_health` of the runs of several batch folders, each run named ``batch/run``."""
    tables = [run_health(runs) for runs in batches.values()]
    named = [table.assign(run=batch + "/" + table["run"]) for batch, table in zip(batches, tables, strict=True)]
    return pd.concat(named, ignore_index=True)


def health_overview(health: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each check: its worst value over runs and etas, its limit, the runs flagged, the meaning.

    Parameters
    ----------
    health
        From `run_health`.

    Returns
    -------
    DataFrame
        Columns check, worst, limit, flagged (names of runs, with etas where the check is about these), meaning.
    """
    rows = []
    for check, table in health.groupby("check", sort=False):
        severity = table["value"].map(CHECKS[str(check)].severity, na_action="ignore")
        worst = table.iloc[int(severity.fillna(-math.inf).argmax())]
        flagged = [
            str(run)
            if of_run["eta"].isna().any()
            else f"{run} ({', '.join(f'{eta:g}' for eta in of_run['eta'].tolist())})"
            for run, of_run in table[table["flag"]].groupby("run", sort=False)
        ]
        rows.append((check, worst["value"], worst["limit"], "; ".join(flagged), CHECKS[str(check)].meaning))
    return pd.DataFrame(rows, columns=["check", "worst", "limit", "flagged", "meaning"])


def _mean_true(runs: Mapping[str, Run], eta: float) -> float:
    return float(np.mean([run.measurement(eta).delta_h_true for run in runs.values() if run.has_eta(eta)]))
