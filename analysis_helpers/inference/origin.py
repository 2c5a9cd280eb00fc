"""Where the change of entropy comes from: the same states, or other states that the new policy visits.

On the *same states* as under the old policy, distributions become sharper or flatter; the rest of the change comes from
*visiting other states*. Both changes, true and linear, split exactly, and each part is a function of column sums. The
part on the same states carries no importance weights in its mean and no score: it is many times more precise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from .._checks import FloatArray, warn_skipped
from ..estimators import WEAK_REFERENCE, Estimate, columns, same_states, shared_variance, true_total
from ..runs import Run, Runs
from .prediction import PooledEstimate
from .random_effects import Pool
from .trend import MODEL_ERROR

Source = Literal["derivative", "curvature", "either"]
_NAMES = ("true", "linear", "error")


def change_by_origin(runs: Mapping[str, Run], etas: Sequence[float] | None = None) -> pd.DataFrame:
    """Return the true and the linear change, split by origin, for each run and pooled.

    On the same states ``true = sum(h_new - h_base) / sum T`` and ``linear = eta sum jH / sum T``; the rest of each
    total comes from visiting other states. Pooled rows have the weights of the true total and its tau, so that parts
    add up in every row; their standard errors include differences between updates.

    Parameters
    ----------
    runs
        Name -> run; each must record ``h_base``. Others are skipped with a warning.
    etas
        Step sizes; None: all measured.

    Returns
    -------
    DataFrame
        Columns run, eta, part ("same states" | "other states" | "total"), true, true_se, linear, linear_se, error,
        error_se (error = linear - true; nats per token; missing without the score, in pooled rows without that of any
        run); last rows of each eta "pooled".

    Raises
    ------
    ValueError
        If no run has an eta.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = change_by_origin(synthetic_runs(2, 128), [1.6e-6])
    >>> table["part"].tolist()[:3], table["run"].unique().tolist()
    (['same states', 'other states', 'total'], ['run_01', 'run_02', 'pooled'])
    """
    collection = Runs.of(runs)
    able = collection.recording("baseline_entropy")
    warn_skipped(dict.fromkeys(collection.lacking("baseline_entropy"), "h_base is not recorded"))
    rows: list[tuple[object, ...]] = []
    for eta in collection.etas_of(etas):
        parts = {name: _parts(run, eta) for name, run in able.items() if run.has_eta(eta)}
        if not parts:
            continue
        weights = _weights(eta, {name: split["total"][0] for name, split in parts.items()})
        for name, split in parts.items():
            rows += [(name, eta, part, *_numbers(estimates)) for part, estimates in split.items()]
        for part in ("same states", "other states", "total"):
            pooled = (_pooled([split[part][k] for split in parts.values()], weights) for k in range(len(_NAMES)))
            rows.append(("pooled", eta, part, *(number for pair in pooled for number in pair)))
    names = [f"{name}{end}" for name in _NAMES for end in ("", "_se")]
    return pd.DataFrame(rows, columns=["run", "eta", "part", *names])


def _parts(run: Run, eta: float) -> dict[str, tuple[Estimate, ...]]:
    """Return part -> (true, linear, error) of a run."""
    true, same_true, same_linear = true_total(run, eta), *same_states(run, eta)
    linear = columns(run, eta).estimates[1] if run.score is not None else true * math.nan
    same, total = (same_true, same_linear), (true, linear)
    other = tuple(whole - part for whole, part in zip(total, same, strict=True))
    named = {"same states": same, "other states": other, "total": total}
    return {part: (one, two, two - one) for part, (one, two) in named.items()}


def _numbers(estimates: Sequence[Estimate]) -> list[float]:
    return [number for each in estimates for number in (each.value, each.se)]


def _weights(eta: float, totals: Mapping[str, Estimate]) -> FloatArray:
    """Return the random-effects weights of the true totals, which sum to 1."""
    estimate = PooledEstimate.of(eta, 1.0, totals)
    weights = 1 / np.maximum(estimate.variances + estimate.pooled.tau**2, 1e-300)
    normalised: FloatArray = weights / weights.sum()
    return normalised


def _pooled(estimates: Sequence[Estimate], weights: FloatArray) -> tuple[float, float]:
    """Return the weighted mean, and its standard error by Hartung and Knapp, never below that of sampling alone.

    The error that runs share through their prompts is added once.
    """
    values, errors = np.array([(each.value, each.se) for each in estimates]).T
    mean = float(weights @ values)
    if not math.isfinite(mean):
        return mean, math.nan
    shared = shared_variance(estimates)
    between = float(weights @ (values - mean) ** 2) / max(len(values) - 1, 1)
    return mean, math.sqrt(max(between, float(weights**2 @ (errors**2 - shared))) + shared)


@dataclass(frozen=True)
class SameStatesError:
    """Error of the linear change on the same states, relative to the true change there, pooled over runs.

    Attributes
    ----------
    errors
        Eta -> the error there: that of the derivative, and curvature, which is in proportion to eta.
    derivative
        The error extrapolated to eta 0, where there is no curvature; None with one eta.
    """

    errors: Mapping[float, Pool]
    derivative: Pool | None

    @property
    def source(self) -> Source:
        """What the error is, as far as a straight line through two etas can tell: it is right to a percent."""
        if self.derivative is None:
            return "either"
        low, high = self.derivative.interval
        if low > MODEL_ERROR or high < -MODEL_ERROR:
            return "derivative"
        return "curvature" if -MODEL_ERROR < low <= high < MODEL_ERROR else "either"


def same_states_error(runs: Runs, eta: float) -> SameStatesError | None:
    """Return the error on the same states at ``eta`` and at one more step size; None where it is not recorded.

    All runs must have the eta. The other one is the smallest that all have, as an extrapolation from there is shortest.
    """
    others = [each for each in runs.etas if each != eta and all(run.has_eta(each) for run in runs.values())]
    etas = [eta, *others[:1]]
    if runs.lacking("score", "baseline_entropy"):
        return None
    found = {each: {name: _relative_error(run, each) for name, run in runs.items()} for each in etas}
    if any(math.isnan(error.value) for errors in found.values() for error in errors.values()):
        return None
    pooled = {each: PooledEstimate.of(each, 1.0, errors).pooled for each, errors in found.items()}
    if len(etas) == 1:
        return SameStatesError(pooled, None)
    one, two = etas
    extrapolated = {
        name: at_one * (two / (two - one)) - found[two][name] * (one / (two - one))
        for name, at_one in found[one].items()
    }
    return SameStatesError(pooled, PooledEstimate.of(eta, 1.0, extrapolated).pooled)


def _relative_error(run: Run, eta: float) -> Estimate:
    """Return ``linear / true - 1`` on the same states; NaN where the true change there is not clear of 0."""
    true, linear = same_states(run, eta)
    ratio = linear.value / true.value if abs(true.z) > WEAK_REFERENCE else math.nan
    return (
        replace((linear - true * ratio) * (1 / true.value), value=ratio - 1)
        if math.isfinite(ratio)
        else true * math.nan
    )
