"""Tables about runs: stored totals, health at a glance, and how much each change depends on few sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from .._checks import same_eta, warn_about_runs
from ..estimators import columns, if_recorded, standard_deviation, true_total
from ..runs import FIELDS_BEHIND, Run, Runs
from .health import CHECKS, effective_share, run_health


def health_of_batches(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return `run_health` of the runs of several batch folders, each run named ``batch/run``.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> health_of_batches({"E_128": synthetic_runs(1, 128)})["run"].unique().tolist()
    ['E_128/run_01']
    """
    tables = {batch: run_health(runs) for batch, runs in _of_batches(batches).items()}
    named = [table.assign(run=batch + "/" + table["run"]) for batch, table in tables.items()]
    return pd.concat(named, ignore_index=True)


def over_batches(
    batches: Mapping[str, Mapping[str, Run]], table: Callable[[Runs, list[float]], pd.DataFrame]
) -> pd.DataFrame:
    """Return ``table(runs, etas)`` of the first batch at all its step sizes, and of others at larger ones.

    Parameters
    ----------
    batches
        Name -> runs; those without a run are left out.
    table
        Such as `nonlinearity` or `verdict_map`.

    Returns
    -------
    DataFrame
        The columns of the table, and batch before them.

    Examples
    --------
    >>> from analysis_helpers import nonlinearity, synthetic_runs
    >>> batches = {"large": synthetic_runs(2, 64, [1e-6, 2e-6]), "small": synthetic_runs(2, 32, [2e-6, 4e-6])}
    >>> over_batches(batches, nonlinearity)[["batch", "eta"]].drop_duplicates()["eta"].tolist()
    [1e-06, 2e-06, 4e-06]
    """
    tables, largest = [], 0.0
    for batch, runs in _of_batches({name: runs for name, runs in batches.items() if runs}).items():
        if etas := [eta for eta in runs.etas if eta > largest and not same_eta(eta, largest)]:
            tables.append(table(runs, etas).assign(batch=batch))
            largest = etas[-1]
    joined = pd.concat(tables, ignore_index=True)
    return joined[["batch", *(name for name in joined.columns if name != "batch")]]


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

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> bool((health_overview(run_health(synthetic_runs(2, 512)))["flagged"] == "").all())
    True
    """
    rows = []
    for check, table in health.groupby("check", sort=False):
        severity = table["value"].map(CHECKS[str(check)].severity, na_action="ignore")
        worst = table.iloc[int(severity.fillna(-math.inf).argmax())]
        etas = {run: one["eta"].dropna() for run, one in table[table["flag"]].groupby("run", sort=False)}
        flagged = [
            f"{run!s} ({', '.join(map('{:g}'.format, at))})" if len(at) else str(run) for run, at in etas.items()
        ]
        rows.append((check, worst["value"], worst["limit"], "; ".join(flagged), CHECKS[str(check)].meaning))
    return pd.DataFrame(rows, columns=["check", "worst", "limit", "flagged", "meaning"])


def run_totals(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return the stored totals of each run at each eta.

    Parameters
    ----------
    batches
        Name of the batch folder -> name of the run -> run.

    Returns
    -------
    DataFrame
        Columns batch, run, eta, sequences, group (the batch, and where its runs differ in it, whether linear terms have
        the denominator correction: totals with and without are not averaged), true, linear, true_se, linear_se (nats
        per token; missing where not recorded), ess_share (effective sample size over N).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> run_totals({"E_32": synthetic_runs(1, 32)})[["batch", "run", "eta", "sequences"]].to_dict("records")[0]
    {'batch': 'E_32', 'run': 'run_01', 'eta': 1.6e-06, 'sequences': 32}
    """
    rows = []
    for batch, runs in _of_batches(batches).items():
        alike = len({*map(_correction, runs.values())}) == 1
        for name, run in runs.items():
            group = batch if alike else f"{batch}, {_correction(run)}"
            for m in run.measurements:
                changes = (m.delta_h_true, m.eta * run.delta_h_per_lr)
                errors = (true_total(run, m.eta).se, _linear_error(run, m.eta))
                rows.append((batch, name, m.eta, run.n, group, *changes, *errors, effective_share(m)))
    names = ["batch", "run", "eta", "sequences", "group", "true", "linear", "true_se", "linear_se", "ess_share"]
    return pd.DataFrame(rows, columns=names).sort_values(["eta", "batch", "run"], ignore_index=True)


def _of_batches(batches: Mapping[str, Mapping[str, Run]]) -> dict[str, Runs]:
    return {batch: Runs.of(runs, f"batches[{batch!r}]") for batch, runs in batches.items()}


def _correction(run: Run) -> str:
    if "linear" not in run.supports:
        return "totals only"
    return "corrected" if "score" in run.supports else "uncorrected"


def influence_table(runs: Mapping[str, Run], eta: float) -> pd.DataFrame:
    """Return the influence of each sequence (or prompt, where recorded) on both changes of its run at one eta.

    The influence is its contribution to the change, to first order, times the number of rows; its SD over the root of
    that number is the standard error of the change. What a run does not record is missing, with a warning.

    Parameters
    ----------
    runs
        Name -> run; those without eta are skipped with a warning.
    eta
        Step size.

    Raises
    ------
    ValueError
        If no run has the eta.

    Returns
    -------
    DataFrame
        Columns run, true, linear (nats per token).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> len(influence_table(synthetic_runs(2, 32), 1.6e-6))
    64
    """
    collection = Runs.of(runs)
    measured, parts = collection.at(collection.eta(eta)), []
    for change, needs in (("true", ("baseline_entropy",)), ("linear", ("linear", "baseline_entropy"))):
        if without := ", ".join(measured.lacking(*needs)):
            fields = " and ".join(FIELDS_BEHIND[need] for need in needs)
            warn_about_runs(f"the influence on the {change} change is not known of {without}: it takes {fields}")
    for name, run in measured.items():
        true = true_total(run, eta).psi
        linear = columns(run, eta).estimates[1].psi if set(needs) <= set(run.supports) else np.full(len(true), np.nan)
        parts.append(pd.DataFrame({"run": name, "true": true, "linear": linear}))
    return pd.concat(parts, ignore_index=True)


def influence_tails(influence: pd.DataFrame) -> pd.DataFrame:
    """Return, for each run and change, how heavy-tailed the influence of its sequences is.

    Parameters
    ----------
    influence
        From `influence_table`.

    Returns
    -------
    DataFrame
        Columns run, change ("true", "linear"), sd (nats per token), largest (in SDs from the mean), top_1pct_share (of
        the sum of squares about the mean, in the 1 % of sequences furthest out; 0.06 for a normal distribution).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> influence_tails(influence_table(synthetic_runs(1, 64), 1.6e-6))["change"].tolist()
    ['true', 'linear']
    """
    rows = []
    for run, table in influence.groupby("run"):
        for change in ("true", "linear"):
            values = table[change].dropna().to_numpy()
            if not len(values):
                continue  # not recorded
            squares = np.sort((values - values.mean()) ** 2)[::-1]
            sd, total = standard_deviation(values), float(squares.sum())
            largest, top = float(np.sqrt(squares[0])), float(squares[: max(1, len(squares) // 100)].sum())
            shares = (largest / sd, top / total) if total else (math.nan, math.nan)  # nothing varies
            rows.append((run, change, sd, *shares))
    return pd.DataFrame(rows, columns=["run", "change", "sd", "largest", "top_1pct_share"])


def _linear_error(run: Run, eta: float) -> float:
    """Return the standard error of the linear total at ``eta``; NaN if it cannot be computed."""
    return if_recorded(lambda: columns(run, eta).estimates[1].se)
