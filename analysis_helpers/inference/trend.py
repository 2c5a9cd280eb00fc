"""Is the step linear? The true change against eta, fitted as a straight line and a curvature.

All etas of a run share sequences, so their errors are nearly perfectly correlated and cancel in the curvature: the best
use of the data for nonlinearity. It needs at least two etas a run and no linear terms. It does not show whether the
recorded linear change is right: see `analysis_helpers.inference.decomposition`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from .._checks import FloatArray, NotRecordedError, warn_skipped
from ..estimators import FOR_MATCHED, Estimate, true_total
from ..runs import FIELDS_BEHIND, Run, Runs
from .prediction import PooledEstimate, pooled_err_rel, predict
from .random_effects import Pool, pool

_RIDGE = 1e-6  # of the diagonal: the covariance is nearly singular on exact data
_EXACT = 1e-12  # of the changes: influence values that vary no more are rounding, as where all sequences are the same


@dataclass(frozen=True, eq=False)
class Trend:
    """One run's true changes, fitted by ``slope eta + curvature eta^2`` (nats per token per unit eta, and eta^2).

    Attributes
    ----------
    slope, curvature
        The coefficients; the curvature is half the second derivative.
    chi2, df
        Lack of fit, on so many degrees of freedom; NaN with two etas.
    offset_z
        Intercept of a fit that has one, over its standard error; NaN below three etas. A change that does not vanish at
        eta 0 is a fault of the data, not of the step.
    """

    slope: Estimate
    curvature: Estimate
    chi2: float
    df: int
    offset_z: float


def entropy_trend(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return slope and curvature of the true change over etas, a row for each run and a last row "pooled".

    ``true_k = a eta_k + b eta_k^2`` by generalised least squares, with weights ``(C + 1e-6 diag C)^-1`` and C the
    covariance of the influence values of the true changes over N; standard errors by the sandwich ``A C A'``. Runs are
    pooled by random effects.

    Parameters
    ----------
    runs
        Name -> run; each must record ``h_base`` and at least two etas. Others are skipped with a warning.

    Returns
    -------
    DataFrame
        Columns run, slope, slope_se (nats per token per unit eta), curvature, curvature_se (per unit eta^2), chi2, df
        (lack of fit; NaN and 0 with two etas), offset_z (NaN below three etas).

    Raises
    ------
    RunError
        If no run records ``h_base`` of two sequences at two etas.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> entropy_trend(synthetic_runs(2, 256, [1e-6, 2e-6, 4e-6]))[["run", "df"]].to_dict("list")
    {'run': ['run_01', 'run_02', 'pooled'], 'df': [1, 1, 2]}
    """
    fits = fit_trends(Runs.of(runs))
    trends = list(fits.values())
    rows: list[tuple[object, ...]] = [
        (run, fit.slope.value, fit.slope.se, fit.curvature.value, fit.curvature.se, fit.chi2, fit.df, fit.offset_z)
        for run, fit in fits.items()
    ]
    slope, curvature = pool_estimates(fit.slope for fit in trends), pool_estimates(fit.curvature for fit in trends)
    together = (sum(fit.chi2 for fit in trends), sum(fit.df for fit in trends))
    offset = sum(fit.offset_z for fit in trends) / math.sqrt(len(trends))
    rows.append(("pooled", slope.mean, slope.se, curvature.mean, curvature.se, *together, offset))
    names = ["run", "slope", "slope_se", "curvature", "curvature_se", "chi2", "df", "offset_z"]
    return pd.DataFrame(rows, columns=names)


def nonlinearity(runs: Mapping[str, Run], etas: Sequence[float] | None = None) -> pd.DataFrame:
    """Return how far a straight line misses the true change, by the trend over etas and by matched - true.

    By the trend it is ``-b eta / a``, with a and b pooled over runs.

    Parameters
    ----------
    runs
        Name -> run.
    etas
        Step sizes; None: all measured.

    Returns
    -------
    DataFrame
        Columns eta, method ("trend" | "matched"), nonlinearity, se (mean over updates, random effects), low, high (the
        next update, 90 %; missing with one run); in units of the true change, sign as err_rel (line - true). A method
        that the runs do not record is left out.

    Raises
    ------
    ValueError
        If no run has an eta.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> nonlinearity(synthetic_runs(2, 256), [1.6e-6])["method"].tolist()
    ['trend', 'matched']
    """
    collection, rows = Runs.of(runs), []
    for eta in collection.etas_of(etas):
        for method, estimate in nonlinearity_estimates(collection, eta).items():
            pooled = estimate.pooled
            rows.append((eta, method, pooled.mean, pooled.se, *predict(estimate, math.inf).interval()))
    return pd.DataFrame(rows, columns=["eta", "method", "nonlinearity", "se", "low", "high"])


def nonlinearity_estimates(runs: Runs, eta: float) -> dict[str, PooledEstimate]:
    """Return the nonlinearity at eta by each method that the runs record: "trend", "matched"."""
    estimates: dict[str, PooledEstimate] = {}
    if able := runs.recording("baseline_entropy").where(lambda run: len(run.etas) > 1):
        estimates["trend"] = trend_nonlinearity(able, eta)
    if scored := runs.recording(*FOR_MATCHED).where(lambda run: run.has_eta(eta)):
        estimates["matched"] = pooled_err_rel(scored, eta, estimator="matched")
    return estimates


def trend_nonlinearity(runs: Runs, eta: float) -> PooledEstimate:
    """Return the nonlinearity at eta by the trends of runs, in units of the pooled straight line ``a eta``."""
    fits = fit_trends(runs)
    slope = pool_estimates(fit.slope for fit in fits.values())
    errors = {name: fit.curvature * (-eta / slope.mean) for name, fit in fits.items()}
    return PooledEstimate.of(eta, slope.mean * eta, errors, slope.se / abs(slope.mean))


def difference_z(one: PooledEstimate, other: PooledEstimate) -> float:
    """Return the pooled difference of two estimates on the same runs over its standard error; NaN on other runs.

    In nats per token: their references, the straight line and the true change, differ where the step is not linear.
    """
    if one.errors.keys() != other.errors.keys():
        return math.nan
    difference = pool_estimates(
        error * one.reference - other.errors[name] * other.reference for name, error in one.errors.items()
    )
    return difference.mean / difference.se if difference.se else 0.0


def pool_estimates(estimates: Iterable[Estimate]) -> Pool:
    """Return the random-effects mean of an estimate on each of several runs."""
    values, errors = np.array([(each.value, each.se) for each in estimates]).T
    return pool(values, errors**2)


def fit_trends(runs: Runs) -> dict[str, Trend]:
    """Return the fit of each run that has two etas and records ``h_base``; others are skipped with a warning."""
    needs = {name: _needed(run) for name, run in runs.items()}
    warn_skipped({name: f"a trend needs {need}" if need else "" for name, need in needs.items()})
    if all(needs.values()):
        raise NotRecordedError(", ".join(runs), "trend", f"needs {', '.join(dict.fromkeys(needs.values()))}")
    able = runs.select([name for name in runs if not needs[name]])
    return dict(zip(able, map(fit_trend, able.values()), strict=True))


def _needed(run: Run) -> str:
    """Return what a run lacks for a trend; empty where it has one."""
    if "baseline_entropy" not in run.supports:
        return f"h_base ({FIELDS_BEHIND['baseline_entropy']})"
    if math.isnan(true_total(run, run.etas[0]).se):
        return "at least two sequences, of at least two prompts where these are recorded"
    return "" if len(run.etas) > 1 else "at least two etas"


def fit_trend(run: Run) -> Trend:
    """Return the fit of a run that has two etas and records ``h_base``; made once for each run."""
    if Trend not in run.derived:
        etas = sorted(run.etas)
        run.derived[Trend] = _fitted(np.array(etas), list(map(partial(true_total, run), etas)))
    trend: Trend = run.derived[Trend]
    return trend


def _fitted(x: FloatArray, totals: Sequence[Estimate]) -> Trend:
    unit = x[-1]  # numbers near 1 for the linear algebra
    scaled = x / unit
    (slope, curvature), residual = _least_squares(np.column_stack([scaled, scaled**2]), totals)
    df, offset_z = len(x) - 2, math.nan
    if df:
        (offset, *_), _ = _least_squares(np.column_stack([np.ones(len(x)), scaled, scaled**2]), totals)
        offset_z = offset.value / offset.se if offset.se else math.nan
    return Trend(slope * (1 / unit), curvature * (1 / unit**2), residual if df else math.nan, df, offset_z)


def _least_squares(design: FloatArray, totals: Sequence[Estimate]) -> tuple[list[Estimate], float]:
    """Return the coefficients by the matrix A, with its influence values (the sandwich), and the weighted residual."""
    values, psi = np.array([each.value for each in totals]), np.column_stack([each.psi for each in totals])
    if np.ptp(psi, axis=0).max() <= _EXACT * np.abs(values).max():
        psi = np.zeros_like(psi)
    covariance = np.cov(psi, rowvar=False) / len(psi)
    scale = float(np.mean(np.diag(covariance))) or 1.0
    ridge = covariance + _RIDGE * np.diag(np.maximum(np.diag(covariance), 1e-12 * scale))
    weighted = np.linalg.solve(ridge, design)
    gains = np.linalg.solve(design.T @ weighted, weighted.T)
    left = values - design @ gains @ values
    coefficients = [Estimate(float(gain @ values), psi @ gain, totals[0].n) for gain in gains]
    return coefficients, float(left @ np.linalg.solve(ridge, left))
