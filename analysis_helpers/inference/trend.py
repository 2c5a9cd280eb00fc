"""Is the step linear? The true change against eta, fitted as a straight line and a curvature.

All etas of a run share sequences, so their errors are nearly perfectly correlated and largely cancel in the curvature,
which makes it precise. It needs at least two etas a run and no linear terms. It does not show whether the recorded
linear change is right: see `analysis_helpers.inference.decomposition`.

A parabola describes the true change to about 1 %. This *model error* is part of the covariance of each
run; without it, nearly perfectly correlated errors give a fit weights that put the slope outside all data. It is common
to the runs and does not shrink with n: pooling takes the sampling part, and adds the model error once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .._checks import FloatArray, NotRecordedError, warn_skipped
from ..estimators import FOR_MATCHED, Estimate, true_total
from ..runs import FIELDS_BEHIND, Run, Runs
from .prediction import PooledEstimate, pooled_err_rel, predict
from .random_effects import chi_square_p

MODEL_ERROR = 0.01
"""SD of the true change about a parabola, as a share of the change along a straight line."""

MISFIT = 0.01
"""P-value of lack of fit below which a parabola does not describe the changes."""

_RIDGE = 1e-6  # of the diagonal: the covariance is nearly singular on exact data
_EXACT = 1e-12  # of the changes: influence values that vary no more are rounding, as where all sequences are the same
_LARGE_OFFSET, _CLEAR_OFFSET = 0.1, 4.0  # of the smallest change; standard errors


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A coefficient of a fit: its sampling part, and the SD that the model error adds."""

    estimate: Estimate
    model_sd: float

    @property
    def value(self) -> float:
        """The coefficient."""
        return self.estimate.value

    @property
    def se(self) -> float:
        """Standard error, of sampling and model."""
        return math.hypot(self.estimate.se, self.model_sd)


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
        Intercept of a fit that has one, over its standard error; NaN below three etas.
    is_offset
        Whether the intercept is a fault: with four etas or more, it removes the lack of fit, exceeds a tenth of the
        smallest change and 4 standard errors. A change that does not vanish at eta 0 does not come from the step.
    """

    slope: Coefficient
    curvature: Coefficient
    chi2: float
    df: int
    offset_z: float
    is_offset: bool


@dataclass(frozen=True)
class TrendFits:
    """The fits of several runs on the same step sizes.

    Attributes
    ----------
    fits
        Name -> fit.
    up_to
        Largest step size of the fits.
    left_out
        Larger step sizes, which a parabola does not describe together with the smaller ones.
    """

    fits: Mapping[str, Trend]
    up_to: float
    left_out: tuple[float, ...]

    @property
    def slope(self) -> PooledEstimate:
        """The slope (nats per token per unit eta)."""
        return self._pooled([fit.slope for fit in self.fits.values()])

    @property
    def curvature(self) -> PooledEstimate:
        """The curvature (nats per token per unit eta^2)."""
        return self._pooled([fit.curvature for fit in self.fits.values()])

    @property
    def lack_of_fit(self) -> tuple[float, int]:
        """Chi-square and degrees of freedom, summed over the runs; NaN and 0 with two etas."""
        tested = [fit for fit in self.fits.values() if fit.df]
        return sum(fit.chi2 for fit in tested) if tested else math.nan, sum(fit.df for fit in tested)

    def _pooled(self, coefficients: Sequence[Coefficient]) -> PooledEstimate:
        estimates = {name: each.estimate for name, each in zip(self.fits, coefficients, strict=True)}
        common = math.sqrt(np.mean([each.model_sd**2 for each in coefficients]))
        return PooledEstimate.of(math.nan, 1.0, estimates, common_error=common)


def entropy_trend(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return slope and curvature of the true change over etas, a row for each run and a last row "pooled".

    ``true_k = a eta_k + b eta_k^2`` by generalised least squares, with weights ``W = (C + 1e-6 diag C + D)^-1``: C is
    the covariance of the influence values of the true changes over N, ``D = diag((0.01 a0 eta_k)^2)`` the model error,
    with a0 the slope through 0 by ordinary least squares. Standard errors by the sandwich ``A (C + D) A'``. Where lack
    of fit over the runs has p < 0.01, the largest eta is left out for all and the fit made again, down to two. Runs are
    pooled by random effects.

    Parameters
    ----------
    runs
        Name -> run; each must record ``h_base`` and at least two etas. Others are skipped with a warning.

    Returns
    -------
    DataFrame
        Columns run, slope, slope_se (nats per token per unit eta), curvature, curvature_se (per unit eta^2), chi2, df
        (lack of fit; NaN and 0 with two etas), offset_z (NaN below three etas), up_to (largest eta of the fit).

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
    trends = fit_trends(Runs.of(runs))
    rows: list[tuple[object, ...]] = [
        (run, fit.slope.value, fit.slope.se, fit.curvature.value, fit.curvature.se, fit.chi2, fit.df, fit.offset_z)
        for run, fit in trends.fits.items()
    ]
    slope, curvature = trends.slope.pooled, trends.curvature.pooled
    offset = sum(fit.offset_z for fit in trends.fits.values()) / math.sqrt(len(trends.fits))
    rows.append(("pooled", slope.mean, slope.se, curvature.mean, curvature.se, *trends.lack_of_fit, offset))
    names = ["run", "slope", "slope_se", "curvature", "curvature_se", "chi2", "df", "offset_z"]
    return pd.DataFrame(rows, columns=names).assign(up_to=trends.up_to)


def trend_table(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return `entropy_trend`; empty, with a warning, where no run was measured at two etas.

    Examples
    --------
    >>> import warnings
    >>> from analysis_helpers import synthetic_runs
    >>> with warnings.catch_warnings(action="ignore"):
    ...     trend_table(synthetic_runs(1, 16, [1e-6])).empty
    True
    """
    try:
        return entropy_trend(runs)
    except NotRecordedError:
        return pd.DataFrame(columns=["run", "slope", "slope_se", "curvature", "curvature_se"])


def nonlinearity(runs: Mapping[str, Run], etas: Sequence[float] | None = None) -> pd.DataFrame:
    """Return how far a straight line is from the true change, by the trend over etas and by matched - true.

    By the trend it is ``-b eta / a``, with a and b pooled over runs; it is left out beyond the largest eta up to which
    a parabola describes the true change.

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
    """Return the nonlinearity at eta by each method that the runs record and that holds there: "trend", "matched"."""
    estimates: dict[str, PooledEstimate] = {}
    if (trends := trends_of(runs)) and eta <= trends.up_to * (1 + 1e-6):
        estimates["trend"] = trend_nonlinearity(trends, eta)
    if scored := runs.recording(*FOR_MATCHED).where(lambda run: run.has_eta(eta)):
        estimates["matched"] = pooled_err_rel(scored, eta, estimator="matched")
    return estimates


def trends_of(runs: Runs) -> TrendFits | None:
    """Return the fits of the runs that were measured at two etas; None where there are none."""
    able = runs.recording("baseline_entropy").where(lambda run: len(run.etas) > 1)
    return fit_trends(able) if able else None


def trend_nonlinearity(trends: TrendFits, eta: float) -> PooledEstimate:
    """Return the nonlinearity at eta by the trends of runs, in units of the pooled straight line ``a eta``."""
    slope = trends.slope.pooled
    factor = -eta / slope.mean
    errors = {name: fit.curvature.estimate * factor for name, fit in trends.fits.items()}
    common = trends.curvature.model_error * abs(factor)
    return PooledEstimate.of(eta, slope.mean * eta, errors, slope.se / abs(slope.mean), common_error=common)


def disagreement(one: PooledEstimate, other: PooledEstimate) -> tuple[float, float]:
    """Return the pooled difference of two estimates on the runs of both, in units of the second, and its z.

    NaN without such runs. The units of the two, the straight line and the true change, differ where the step is not
    linear.
    """
    scale = one.reference / other.reference
    errors = {name: each * scale - other.errors[name] for name, each in one.errors.items() if name in other.errors}
    if not errors:
        return math.nan, math.nan
    common = math.hypot(one.model_error * scale, other.model_error)
    pooled = PooledEstimate.of(other.eta, other.reference, errors, common_error=common).pooled
    return pooled.mean, pooled.mean / pooled.se if pooled.se else 0.0


def fit_trends(runs: Runs) -> TrendFits:
    """Return the fits of the runs that have two etas and record ``h_base``; others are skipped with a warning.

    Offsets come first: a run with one is excluded from the test of lack of fit, by which the largest etas are left out.
    """
    needs = {name: _needed(run) for name, run in runs.items()}
    warn_skipped({name: f"a trend needs {need}" if need else "" for name, need in needs.items()})
    if all(needs.values()):
        raise NotRecordedError(", ".join(runs), "trend", f"needs {', '.join(dict.fromkeys(needs.values()))}")
    able = runs.select([name for name, need in needs.items() if not need])
    measured = able.etas
    for count in range(len(measured), 1, -1):
        up_to = measured[count - 1]
        fits = {
            name: fit_trend(run, measured[:count]) for name, run in able.items() if not _needed(run, measured[:count])
        }
        if not fits:
            break
        trends = TrendFits(fits, up_to, measured[count:])
        tested = [fit for fit in fits.values() if fit.df and not fit.is_offset]
        chi2, df = sum(fit.chi2 for fit in tested), sum(fit.df for fit in tested)
        if df == 0 or chi_square_p(chi2, df) >= MISFIT:
            break
    return trends


def _needed(run: Run, etas: Sequence[float] | None = None) -> str:
    """Return what a run lacks for a trend over the etas; empty where it has one."""
    if "baseline_entropy" not in run.supports:
        return f"h_base ({FIELDS_BEHIND['baseline_entropy']})"
    if math.isnan(true_total(run, run.etas[0]).se):
        return "at least two sequences"
    return "" if len(_measured(run, etas)) > 1 else "at least two etas"


def _measured(run: Run, etas: Sequence[float] | None) -> tuple[float, ...]:
    """Return those of the etas that the run has, ascending; None: all."""
    return tuple(sorted(run.etas if etas is None else (run.measurement(eta).eta for eta in etas if run.has_eta(eta))))


def fit_trend(run: Run, etas: Sequence[float] | None = None) -> Trend:
    """Return the fit of a run that has two of the etas and records ``h_base``; made once for each run and etas."""
    chosen = _measured(run, etas)
    key = (Trend, chosen)
    if key not in run.derived:
        run.derived[key] = _fitted([true_total(run, eta) for eta in chosen], np.array(chosen))
    trend: Trend = run.derived[key]
    return trend


def _fitted(totals: Sequence[Estimate], x: FloatArray) -> Trend:
    unit = x[-1]  # numbers near 1 for the linear algebra
    scaled, df = x / unit, len(x) - 2
    parabola = np.column_stack([scaled, scaled**2])
    (slope, curvature), chi2 = _least_squares(parabola, totals, scaled)
    offset_z, is_offset = math.nan, False
    if df:
        (offset, *_), left = _least_squares(np.column_stack([np.ones(len(x)), parabola]), totals, scaled)
        offset_z = offset.value / offset.se if offset.se else math.nan
        smallest = min(abs(total.value) for total in totals)
        large = abs(offset.value) > _LARGE_OFFSET * smallest and abs(offset_z) > _CLEAR_OFFSET
        is_offset = df > 1 and large and chi_square_p(chi2, df) < MISFIT <= chi_square_p(left, df - 1)
    slope = Coefficient(slope.estimate * (1 / unit), slope.model_sd / unit)
    curvature = Coefficient(curvature.estimate * (1 / unit**2), curvature.model_sd / unit**2)
    return Trend(slope, curvature, chi2 if df else math.nan, df, offset_z, bool(is_offset))


def _least_squares(
    design: FloatArray, totals: Sequence[Estimate], scaled: FloatArray
) -> tuple[list[Coefficient], float]:
    """Return the coefficients by the matrix A, with its influence values (the sandwich), and the weighted residual."""
    values, psi = np.array([each.value for each in totals]), np.column_stack([each.psi for each in totals])
    if np.ptp(psi, axis=0).max() <= _EXACT * np.abs(values).max():
        psi = np.zeros_like(psi)
    covariance = np.cov(psi, rowvar=False) / len(psi)
    straight = float(scaled @ values) / float(scaled @ scaled) * scaled
    model = np.maximum(MODEL_ERROR * np.abs(straight), _EXACT * (np.abs(values).max() or 1.0)) ** 2
    weights = np.linalg.inv(covariance + _RIDGE * np.diag(np.diag(covariance)) + np.diag(model))
    gains = np.linalg.solve(design.T @ weights @ design, design.T @ weights)
    left = values - design @ gains @ values
    coefficients = [
        Coefficient(
            Estimate(float(gain @ values), psi @ gain, totals[0].n, totals[0].prompts), math.sqrt(gain**2 @ model)
        )
        for gain in gains
    ]
    return coefficients, float(left @ weights @ left)
