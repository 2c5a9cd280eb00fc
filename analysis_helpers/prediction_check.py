"""Did actual runs fall where the large runs predict? Each by itself, and all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .checks import warn_about_runs
from .err_rel import collect_err_rel_across_runs
from .inference import err_rel_standard_error
from .pooling import check_poolable
from .prediction import Pilot, pilot_of, predict
from .runs import Run


@dataclass(frozen=True)
class PooledCheck:
    """Whether actual runs, together, fell where they were predicted.

    Attributes
    ----------
    num_runs
        How many actual runs.
    sum_z2, p_sum_z2
        Sum of squared z, and its p-value (chi-square): small where runs scatter more than predicted.
    mean_z, p_mean_z
        Mean z, and its two-sided p-value: small where runs lie to one side.
    smallest_p
        The smallest p-value that so few runs could show without leaning on the shape of the tails: all of them on one
        side of the predicted median, ``2^(1 - runs)``.
    """

    num_runs: int
    sum_z2: float
    p_sum_z2: float
    mean_z: float
    p_mean_z: float
    smallest_p: float


def check_prediction(
    large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float, *, reference: float | None = None
) -> pd.DataFrame:
    """Set each actual run beside its prediction from the large runs.

    Returns
    -------
    DataFrame
        Columns run, n, err_rel, se (of its own, missing where the run does not record enough), predicted_mean,
        predicted_sd, z, pit.

    Raises
    ------
    RunError
        If a large run does not record what is needed, or the runs must not be pooled.
    ValueError
        If no run has the eta.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = check_prediction(synthetic_runs(3, 512), synthetic_runs(2, 64, seed=1), 1.6e-6)
    >>> table["run"].tolist(), bool(table["pit"].between(0, 1).all())
    (['run_01', 'run_02'], True)
    """
    return _check(pilot_of(large_runs, eta, reference=reference), large_runs, small_runs)


def pooled_check(
    large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float, *, reference: float | None = None
) -> PooledCheck:
    """Return whether the actual runs, together, fell where the large runs predict.

    The z here are normal scores of the PIT; all share the error of the predicted mean, which is allowed for.
    """
    from scipy.stats import chi2, norm

    pilot = pilot_of(large_runs, eta, reference=reference)
    table = _check(pilot, large_runs, small_runs)
    # Kept off 0 and 1, where a score would be infinite.
    z = norm.ppf(np.clip(table["pit"].to_numpy(), 1e-300, 1 - 1e-16))
    shared = pilot.pooled.se / table["predicted_sd"].to_numpy()
    correlation = np.outer(shared, shared)
    np.fill_diagonal(correlation, 1.0)
    sum_z2 = float(z @ np.linalg.solve(correlation, z))
    mean_z, se = float(z.mean()), float(np.sqrt(correlation.sum())) / len(z)
    return PooledCheck(
        num_runs=len(z),
        sum_z2=sum_z2,
        p_sum_z2=float(chi2.sf(sum_z2, len(z))),
        mean_z=mean_z,
        p_mean_z=float(2 * norm.sf(abs(mean_z) / se)),
        smallest_p=2.0 ** (1 - len(z)),
    )


def _check(pilot: Pilot, large_runs: Mapping[str, Run], small_runs: Mapping[str, Run]) -> pd.DataFrame:
    sides = (("large", large_runs), ("small", small_runs))
    check_poolable({f"{side} {name}": run for side, runs in sides for name, run in runs.items()})
    actual = collect_err_rel_across_runs(small_runs, pilot.eta, pilot.reference, estimator="ratio")
    rows = []
    for name, value in zip(actual["run"], actual["err_rel"].tolist(), strict=True):
        run = small_runs[name]
        same = next((known for known, large in large_runs.items() if large == run), None)
        if same is not None:
            warn_about_runs(f"{name} is the same run as {same}, from which it is predicted")
        predicted = predict(pilot, run.num_sequences)
        z = (value - predicted.mean) / predicted.sd
        rows.append(
            (
                name,
                run.num_sequences,
                value,
                _own_standard_error(run, pilot),
                predicted.mean,
                predicted.sd,
                z,
                predicted.pit(value),
            )
        )
    names = ["run", "n", "err_rel", "se", "predicted_mean", "predicted_sd", "z", "pit"]
    return pd.DataFrame(rows, columns=names)


def _own_standard_error(run: Run, pilot: Pilot) -> float:
    if not {"linear", "baseline_entropy"} <= set(run.supports) or run.num_sequences < 2:
        return float("nan")
    return err_rel_standard_error(run, pilot.eta, reference=pilot.reference)
