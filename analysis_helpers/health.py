"""The health of runs: checks with a value, a limit, a flag, and one sentence of what it means.

No flag does not mean that a batch is large enough: good weights say that importance sampling is sound, not that it is
precise. See `analysis_helpers.prediction` for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .checks import FloatArray, same_eta
from .estimators import columns, error_influence_values, influence_values, score_z, scores, standard_deviation
from .integrity import integrity_problems
from .pooling import all_etas, check_mapping, reference_for
from .runs import Measurement, Run

LEAST_ESS_SHARE = 0.5
MOST_WEIGHT_SHARE = 0.05
MOST_NOISE_SHARE = 0.2
MOST_STEP_ERROR = 0.1
MOST_SCORE_Z = 3.0
_STORED_ERROR_SDS = 4.0
_FEWEST_FOR_TAIL = 100  # sequences; below, healthy weights would often be flagged (7 % at 64, 30 % at 32)

MEANINGS = {
    "integrity": "Contributions must sum to the stored totals; a run that does not add up is left out of everything.",
    "ess_share": "Effective sample size of the importance weights over the sequences; near 1, weights are even.",
    "largest_weight_share": "Share of the largest weight; large, one sequence decides the true change.",
    "pareto_k": "Tail of the importance weights; above the limit, the true change and its SE are unreliable.",
    "noise_share": "Share of numerical noise in log weights; large, the step is below the precision floor.",
    "step_error": "SE of matched - true over the mean true change; large, this batch cannot tell curvature from noise.",
    "score_z": "Mean score over its SE; far from 0, sequences did not come exactly from the differentiated policy.",
    "stored_error": "Stored SE times its number of shards over the SE computed here; far from 1, one of them is wrong.",
}


@dataclass(frozen=True)
class _Finding:
    check: str
    eta: float
    value: float
    limit: float
    flag: bool
    detail: str = ""


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
            "check": found.check,
            "value": found.value,
            "limit": found.limit,
            "flag": found.flag,
            "meaning": f"{found.detail}{' ' if found.detail else ''}{MEANINGS[found.check]}",
        }
        for name, run in runs.items()
        for found in _findings(run, references)
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
        severity = _severity(str(check), table["value"])
        worst = table.iloc[int(severity.fillna(-math.inf).argmax())]
        flagged = [
            str(run)
            if of_run["eta"].isna().any()
            else f"{run} ({', '.join(f'{eta:g}' for eta in of_run['eta'].tolist())})"
            for run, of_run in table[table["flag"]].groupby("run", sort=False)
        ]
        rows.append((check, worst["value"], worst["limit"], "; ".join(flagged), MEANINGS[str(check)]))
    return pd.DataFrame(rows, columns=["check", "worst", "limit", "flagged", "meaning"])


def _with_etas(run: str, etas: list[float]) -> str:
    return f"{run} ({', '.join(f'{eta:g}' for eta in etas)})" if etas else run


def _severity(check: str, values: pd.Series[float]) -> pd.Series[float]:
    if check == "ess_share":
        return -values
    if check == "stored_error":
        return values.map(lambda value: abs(math.log(value)))
    return values.abs()


def _mean_true(runs: Mapping[str, Run], eta: float) -> float:
    return float(np.mean([run.measurement(eta).delta_h_true for run in runs.values() if run.has_eta(eta)]))


def _findings(run: Run, references: Mapping[float, float]) -> Iterator[_Finding]:
    problems = integrity_problems(run)
    yield _Finding(
        "integrity",
        math.nan,
        float(len(problems)),
        0.0,
        bool(problems),
        ". ".join(problems) + ("." if problems else ""),
    )
    yield _score(run)
    for measured in run.measurements:
        yield from _weights(run, measured)
        yield _noise(run, measured)
        yield _step_error(run, measured, reference_for(references, run, measured.eta, run.source))
    yield from _stored_errors(run)


def _weights(run: Run, measured: Measurement) -> Iterator[_Finding]:
    weights, size, eta = measured.weights, run.num_sequences, measured.eta
    ess = float(weights.sum() ** 2 / (weights @ weights)) / size
    yield _Finding("ess_share", eta, ess, LEAST_ESS_SHARE, ess < LEAST_ESS_SHARE)
    largest, most = float(weights.max() / weights.sum()), max(MOST_WEIGHT_SHARE, 10 / size)
    yield _Finding("largest_weight_share", eta, largest, most, largest > most)
    limit = min(1 - 1 / math.log10(size), 0.7) if size > 10 else 0.0
    shape, detail = _pareto_shape(weights)
    yield _Finding("pareto_k", eta, shape, limit, shape > limit, detail)


def _pareto_shape(weights: FloatArray) -> tuple[float, str]:
    """Return the Pareto shape of the largest weights, or NaN and why it cannot be had."""
    from arviz_stats.base import array_stats

    if len(weights) < _FEWEST_FOR_TAIL:
        return math.nan, f"Fewer than {_FEWEST_FOR_TAIL} sequences: the tail cannot be fitted."
    try:
        # psislw takes log likelihoods, the negative of log weights; it divides by zero where many weights are the same.
        with np.errstate(divide="ignore", invalid="ignore"):
            _, shape = array_stats.psislw(-np.log(np.maximum(weights, np.finfo(float).tiny)))
    except ValueError:  # the largest weights are all the same: there is no tail
        return math.nan, "The largest weights are all the same: there is no tail to fit."
    return float(shape), ""


def _noise(run: Run, measured: Measurement) -> _Finding:
    found = _log_weight_noise(run, measured)
    variance = 0.0 if measured.log_weights is None else float(np.var(measured.log_weights))
    if found is None or variance == 0:
        detail = "Not recorded: it takes log_weights, and the score or a run at twice the eta."
        return _Finding("noise_share", measured.eta, math.nan, MOST_NOISE_SHARE, False, detail)
    share = found / variance
    return _Finding("noise_share", measured.eta, share, MOST_NOISE_SHARE, share > MOST_NOISE_SHARE)


def _log_weight_noise(run: Run, measured: Measurement) -> float | None:
    """Return the variance of the noise of log weights, or None where it cannot be had."""
    if measured.log_weights is None:
        return None
    if run.score is not None:
        return float(np.var(measured.log_weights - measured.eta * scores(run)))
    twice = next((m for m in run.measurements if same_eta(m.eta, 2 * measured.eta)), None)
    if twice is None or twice.log_weights is None:
        return None
    return float(np.var(twice.log_weights - 2 * measured.log_weights)) / 3


def _step_error(run: Run, measured: Measurement, true: float) -> _Finding:
    if run.score is None or measured.h_base is None or run.num_sequences < 2:
        detail = "Not recorded: it takes the score and h_base."
        return _Finding("step_error", measured.eta, math.nan, MOST_STEP_ERROR, False, detail)
    psi = error_influence_values(columns(run, measured.eta, "matched"))
    share = standard_deviation(psi) / math.sqrt(len(psi)) / abs(true) if true else math.inf
    return _Finding("step_error", measured.eta, share, MOST_STEP_ERROR, share > MOST_STEP_ERROR)


def _score(run: Run) -> _Finding:
    if run.score is None or run.num_sequences < 2:
        return _Finding("score_z", math.nan, math.nan, MOST_SCORE_Z, False, "Not recorded: it takes the score.")
    z = score_z(run)
    return _Finding("score_z", math.nan, z, MOST_SCORE_Z, abs(z) > MOST_SCORE_Z)


def _stored_errors(run: Run) -> Iterator[_Finding]:
    for stored in run.shard_errors:
        computed = (_curvature_error if stored.field.endswith("vHvv") else _linear_error)(run)
        limit = _STORED_ERROR_SDS / math.sqrt(2 * max(stored.num_shards - 1, 1))
        detail = f"{stored.field}:"
        if computed is None or computed == 0 or stored.value <= 0:
            yield _Finding("stored_error", math.nan, math.nan, math.exp(limit), False, f"{detail} nothing to compare.")
            continue
        ratio = stored.value * stored.num_shards / computed
        yield _Finding("stored_error", math.nan, ratio, math.exp(limit), abs(math.log(ratio)) > limit, detail)


def _linear_error(run: Run) -> float | None:
    """Return the standard error of the linear total per unit eta."""
    if not {"linear", "baseline_entropy"} <= set(run.supports) or run.num_sequences < 2:
        return None
    eta = run.etas[0]
    _, psi = influence_values(columns(run, eta, "ratio"))
    return standard_deviation(psi) / math.sqrt(len(psi)) / eta


def _curvature_error(run: Run) -> float | None:
    if run.vhvv is None or run.num_sequences < 2:
        return None
    return standard_deviation(run.vhvv) * math.sqrt(run.num_sequences)  # of a sum
