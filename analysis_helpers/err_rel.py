"""The relative error of the linear approximation, ``err_rel = (linear - true) / reference``, of subsets and runs.

Tables have one row per run, eta and subset. The reference is a fixed scale, never a subset's own true change: that can
cross zero, and the quotient then has no mean. Unusable runs are skipped with a warning that names the run and the
reason; if none is left, that is an error. For the standard error in closed form, without draws, use
`analysis_helpers.err_rel_standard_error`.

Only estimates computed from the subset alone ("ratio", "matched") are comparable with an actual run of the subset's
size. The partial sum of the published figures is not: it adds full-batch contributions without rescaling, so its mean
is n/N of the full value; and it contains ``T_i * base_entropy`` with the base entropy of the full batch, so most of its
spread comes from differences in base entropy between sequences, which an actual run subtracts. `explain_partial_sum`
gives both numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ._checks import FloatArray
from .estimators import Columns, columns, own_total
from .runs import Run, Runs


@dataclass(frozen=True, eq=False)
class Comparison:
    """Random subsets of large runs beside actual small runs, at one eta.

    Attributes
    ----------
    eta, sample_size, estimator
        Step size, subset size n, name of the estimator.
    reference_total
        Mean ``delta_h_true`` of the large runs at this eta (nats per token).
    synthetic
        One row per subset: run, err_rel.
    actual
        One row per small run: run, eta, err_rel.
    summary
        One row: estimator, subset_size, eta, synthetic_mean, synthetic_std (ddof=1), synthetic_min, synthetic_max,
        actual_values (a list).
    actual_sizes
        Sequences of the actual runs, in the order of ``actual``.
    """

    eta: float
    sample_size: int
    estimator: str
    reference_total: float
    synthetic: pd.DataFrame
    actual: pd.DataFrame
    summary: pd.DataFrame
    actual_sizes: tuple[int, ...] = ()

    @property
    def other_sizes(self) -> list[int]:
        """Sequences of actual runs that are not as large as the subsets."""
        return sorted({size for size in self.actual_sizes if size != self.sample_size})

    @property
    def num_near(self) -> int:
        """Number of actual runs within 2 SD of the mean over the subsets."""
        subsets = self.synthetic["err_rel"]
        return int(((self.actual["err_rel"] - subsets.mean()).abs() <= 2 * subsets.std()).sum())


def explain_partial_sum(runs: Mapping[str, Run], etas: Sequence[float], n: int) -> pd.DataFrame:
    """Return a table of how the partial sum distorts err_rel on subsets of n sequences, one row per eta and run.

    Over all subsets of n out of N, exactly: ``mean = n/N * sum(c) / total`` and ``var = n (1 - n/N) S_c^2 / total^2``
    with the contributions ``c = linear - true`` and their variance S_c^2 (ddof=1; simple random sampling without
    replacement: Cochran, 1977, theorems 2.1 and 2.2).

    Returns
    -------
    DataFrame
        Columns run, eta, full_err_rel (full batch over the run's own total), partial_sum_mean, partial_sum_sd,
        base_entropy_share (squared correlation of c with ``h_base_i - H T_i``, which does not depend on the step).

    Raises
    ------
    RunError, ValueError
        As `analysis_helpers.simulate_err_rel_across_runs`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = explain_partial_sum(synthetic_runs(1, 128), [1.6e-6], 32)
    >>> bool((table["partial_sum_mean"] / table["full_err_rel"]).round(9).iloc[0] == 32 / 128)
    True
    """
    rows = []
    for eta, usable in Runs.of(runs).usable(etas, n).items():
        for name, run in usable.items():
            total = own_total(run, eta, name) or np.nan
            error = columns(run, eta, "partial_sum").error
            full = error.value / total
            contribution_sd = error.spread / run.n / abs(total)
            share = n / run.n
            sd = np.sqrt(n * (1 - share)) * contribution_sd
            tokens, h_base = columns(replace(run, prompt_ids=None), eta).values[:, :2].T  # by sequence
            excess = h_base - h_base.sum() / tokens.sum() * tokens
            correlation = np.corrcoef(error.psi, excess)[0, 1]
            rows.append((name, eta, full, share * full, sd, correlation**2))
    names_of = ["run", "eta", "full_err_rel", "partial_sum_mean", "partial_sum_sd", "base_entropy_share"]
    return pd.DataFrame(rows, columns=names_of)


def batches_of(
    runs: Runs, etas: Sequence[float], n: int, argument: str, estimator: str
) -> dict[tuple[str, float], Columns]:
    """Return (name, eta) -> columns of the runs of at least ``n`` sequences, by eta, then run."""
    usable = runs.usable(etas, n, argument)
    return {(name, eta): columns(run, eta, estimator) for eta, at in usable.items() for name, run in at.items()}


def err_rel_table(values: Mapping[tuple[str, float], FloatArray]) -> pd.DataFrame:
    """Return columns run, eta, err_rel from (run, eta) -> err_rel."""
    frames = [pd.DataFrame({"run": name, "eta": eta, "err_rel": each}) for (name, eta), each in values.items()]
    return pd.concat(frames, ignore_index=True)
