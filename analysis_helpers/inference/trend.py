"""Is the step linear? The true change against eta, fitted as a straight line and a curvature.

All etas of a run share sequences, so their errors are nearly perfectly correlated and cancel in the curvature: the best
use of the data for nonlinearity. It needs at least two etas a run and no linear terms. It does not show whether the
recorded linear change is right: see `analysis_helpers.inference.decomposition`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .._checks import FloatArray, NotRecordedError, RunError, warn_about_runs
from ..err_rel import all_etas, known_etas, same_content
from ..estimators import true_influence_values
from ..runs import Run
from .prediction import Pilot, kurtosis, pilot_of, predict
from .random_effects import Pool, pool

_RIDGE = 1e-6  # of the diagonal: the covariance is nearly singular on exact data
_LEVEL = 0.9


@dataclass(frozen=True, eq=False)
class Trend:
    """One run's true changes, fitted by ``slope eta + curvature eta^2`` (nats per token per unit eta, and eta^2).

    Attributes
    ----------
    slope, slope_se, curvature, curvature_se
        Coefficients and their standard errors; the curvature is half the second derivative.
    chi2, df
        Lack of fit, on so many degrees of freedom; NaN with two etas.
    offset_z
        Intercept of a fit that has one, over its standard error; NaN below three etas. A change that does not vanish at
        eta 0 is a fault of the data, not of the step.
    curvature_psi
        Influence values of the curvature, shape ``(M,)``.
    num_sequences
        N.
    """

    slope: float
    slope_se: float
    curvature: float
    curvature_se: float
    chi2: float
    df: int
    offset_z: float
    curvature_psi: FloatArray
    num_sequences: int


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
    ValueError
        If no run has two etas.
    RunError
        If no run records ``h_base``.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> entropy_trend(synthetic_runs(2, 256, [1e-6, 2e-6, 4e-6]))[["run", "df"]].to_dict("list")
    {'run': ['run_01', 'run_02', 'pooled'], 'df': [1, 1, 2]}
    """
    fits = fit_trends(runs)
    names = ("slope", "slope_se", "curvature", "curvature_se", "chi2", "df", "offset_z")
    rows = [(run, *(getattr(fit, name) for name in names)) for run, fit in fits.items()]
    slope, curvature = _pooled(fits, "slope"), _pooled(fits, "curvature")
    found = list(fits.values())
    together = (sum(fit.chi2 for fit in found), sum(fit.df for fit in found))
    offset = sum(fit.offset_z for fit in found) / math.sqrt(len(found))
    rows.append(("pooled", slope.mean, slope.se, curvature.mean, curvature.se, *together, offset))
    return pd.DataFrame(rows, columns=["run", *names])


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
    rows = []
    for eta in known_etas(runs, etas):
        for method, pilot in straightness_pilots(runs, eta).items():
            rows.append((eta, method, pilot.pooled.mean, pilot.pooled.se, *predict(pilot, math.inf).interval(_LEVEL)))
    return pd.DataFrame(rows, columns=["eta", "method", "nonlinearity", "se", "low", "high"])


def straightness_pilots(runs: Mapping[str, Run], eta: float) -> dict[str, Pilot]:
    """Return what the runs say about nonlinearity at eta, by each method that they record: "trend", "matched"."""
    found: dict[str, Pilot] = {}
    able = {name: run for name, run in runs.items() if len(run.etas) > 1 and "baseline_entropy" in run.supports}
    if able:
        found["trend"] = trend_pilot(able, eta)
    scored = {
        name: run
        for name, run in runs.items()
        if {"linear", "score", "baseline_entropy"} <= set(run.supports) and run.has_eta(eta)
    }
    if scored:
        found["matched"] = pilot_of(scored, eta, estimator="matched")
    return found


def trend_pilot(runs: Mapping[str, Run], eta: float) -> Pilot:
    """Return what the trends of runs say about nonlinearity at eta, in units of the pooled straight line ``a eta``."""
    fits = fit_trends(runs)
    slope = _pooled(fits, "slope")
    scale = -eta / slope.mean
    psis = tuple(scale * fit.curvature_psi for fit in fits.values())
    rows = [(fit.num_sequences, fit.curvature, fit.curvature_se) for fit in fits.values()]
    sizes, curvatures, errors = np.array(rows, dtype=float).T
    spreads, kurtoses = abs(scale) * errors * np.sqrt(sizes), np.array([kurtosis(psi) for psi in psis])
    known = slope.se / abs(slope.mean)
    return Pilot(eta, slope.mean * eta, sizes, scale * curvatures, spreads, kurtoses, known, tuple(fits), psis)


def difference_z(one: Pilot, other: Pilot) -> float:
    """Return the pooled difference of two estimates on the same runs over its standard error; NaN on other runs.

    In nats per token: their references, the straight line and the true change, differ where the step is not linear.
    """
    if one.names != other.names:
        return math.nan
    psis = [a * one.reference - b * other.reference for a, b in zip(one.psis, other.psis, strict=True)]
    errors = np.array([np.std(psi, ddof=1) / math.sqrt(len(psi)) for psi in psis])
    found = pool(one.values * one.reference - other.values * other.reference, errors**2)
    return found.mean / found.se if found.se else 0.0


def fit_trends(runs: Mapping[str, Run]) -> dict[str, Trend]:
    """Return the fit of each run that has two etas and records ``h_base``; a run of the same content counts once."""
    copies = same_content(runs)
    found = {}
    for name, run in runs.items():
        if name in copies:
            warn_about_runs(f"skipped {name}: same content as {copies[name]}")
        elif "baseline_entropy" not in run.supports or run.num_sequences < 2:
            warn_about_runs(f"skipped {name}: a trend needs h_base of at least two sequences")
        elif len(run.etas) < 2:
            warn_about_runs(f"skipped {name}: a trend needs at least two etas")
        else:
            found[name] = fit_trend(run)
    if not found and all("baseline_entropy" not in run.supports for run in runs.values()):
        raise RunError(", ".join(runs), "true.entries[].diagnostics.h_base", "is needed for a trend and not recorded")
    if not found:
        raise NotRecordedError(", ".join(runs), "etas", "must be at least two etas a run, for a trend", all_etas(runs))
    return found


def fit_trend(run: Run) -> Trend:
    """Return the fit of a run that has two etas and records ``h_base``."""
    measured = sorted(run.measurements, key=lambda m: m.eta)
    x = np.array([m.eta for m in measured])
    true = np.array([m.delta_h_true for m in measured])
    psi = np.column_stack([true_influence_values(run, m.eta)[0] for m in measured])
    covariance = np.cov(psi, rowvar=False) / len(psi)
    unit = x[-1]  # numbers near 1 for the linear algebra
    scaled = x / unit
    gains, (slope, curvature), errors, residual = _least_squares(np.column_stack([scaled, scaled**2]), true, covariance)
    df = len(x) - 2
    offset_z = math.nan
    if df > 0:
        with_offset = np.column_stack([np.ones(len(x)), scaled, scaled**2])
        _, coefficients, offset_errors, _ = _least_squares(with_offset, true, covariance)
        offset_z = coefficients[0] / offset_errors[0] if offset_errors[0] else math.nan
    slopes = (slope / unit, errors[0] / unit)
    curvatures = (curvature / unit**2, errors[1] / unit**2)
    chi2 = residual if df else math.nan
    return Trend(*slopes, *curvatures, chi2, df, offset_z, psi @ gains[1] / unit**2, run.num_sequences)


def _least_squares(
    design: FloatArray, values: FloatArray, covariance: FloatArray
) -> tuple[FloatArray, list[float], list[float], float]:
    """Return the matrix A, the coefficients ``A values``, their sandwich standard errors, and the weighted residual."""
    scale = float(np.mean(np.diag(covariance))) or 1.0
    ridge = covariance + _RIDGE * np.diag(np.maximum(np.diag(covariance), 1e-12 * scale))
    weighted = np.linalg.solve(ridge, design)
    gains = np.linalg.solve(design.T @ weighted, weighted.T)
    coefficients = gains @ values
    left = values - design @ coefficients
    errors = np.sqrt(np.maximum(np.diag(gains @ covariance @ gains.T), 0.0))
    return gains, coefficients.tolist(), errors.tolist(), float(left @ np.linalg.solve(ridge, left))


def _pooled(fits: Mapping[str, Trend], name: str) -> Pool:
    values = np.array([getattr(fit, name) for fit in fits.values()])
    errors = np.array([getattr(fit, f"{name}_se") for fit in fits.values()])
    return pool(values, errors**2)
