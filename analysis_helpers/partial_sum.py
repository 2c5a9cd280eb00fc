"""Why the partial sum, the original's estimate on a subset, is not comparable with an actual run of the subset's size.

It adds full-batch contributions over the subset without rescaling, so its mean is n/N of the full value; and it holds
``T_i * base_entropy`` where the subset's own base entropy belongs, so most of its spread is plain difference in base
entropy between sequences, which an actual run subtracts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .checks import FloatArray, checked_count
from .estimators import columns, per_sequence_contributions
from .pooling import own_total, usable_runs
from .runs import Run


def partial_sum_moments(
    run: Run, eta: float, subset_size: int, *, reference: float | None = None
) -> tuple[float, float]:
    """Return the exact mean and SD of the partial-sum err_rel over all subsets of a size.

    ``mean = n/N * sum(c) / reference`` and ``var = n (1 - n/N) S_c^2 / reference^2`` with ``c = linear - true``
    contributions and S_c^2 their variance (ddof=1): simple random sampling without replacement (Cochran, 1977, theorems
    2.1 and 2.2).

    Parameters
    ----------
    run
        The run that the subsets are drawn from.
    eta
        Step size.
    subset_size
        Sequences in a subset, n.
    reference
        What to divide by (nats per token); None: the run's own full-batch true total.

    Raises
    ------
    RunError
        If the run is totals-only.
    ValueError
        If the run has no such eta or fewer than ``subset_size`` sequences.

    Examples
    --------
    Subsets of all sequences have one value, the full one:

    >>> from analysis_helpers import synthetic_runs
    >>> mean, sd = partial_sum_moments(synthetic_runs(1, 32)["run_01"], 1.6e-6, 32, reference=-1e-3)
    >>> sd
    0.0
    """
    size = run.num_sequences
    n = checked_count(subset_size, "subset_size", most=size, what_most=", the number of sequences")
    scale = own_total(run, eta, run.source) if reference is None else reference
    c = _error_contributions(run, eta)
    variance = n * (1 - n / size) * float(c.var(ddof=1)) if size > 1 else 0.0
    if scale == 0:
        return float("nan"), float("nan")
    return n / size * float(c.sum()) / scale, float(np.sqrt(variance)) / abs(scale)


def base_entropy_share(run: Run, eta: float) -> float:
    """Return the share of the spread of ``linear - true`` contributions that is plain difference in base entropy.

    The squared correlation of the contributions with ``h_base_i - H T_i``, which has nothing to do with the step.

    Raises
    ------
    RunError
        If the run does not record ``h_base`` or linear terms.
    """
    batch = columns(run, eta, "ratio")
    tokens, h_base = batch.values[:, :2].T
    difference = h_base - h_base.sum() / tokens.sum() * tokens
    return float(np.corrcoef(_error_contributions(run, eta), difference)[0, 1] ** 2)


def explain_partial_sum(runs: Mapping[str, Run], etas: list[float], subset_size: int) -> pd.DataFrame:
    """Return, for each eta and run, what the partial sum does to err_rel on subsets of a size.

    Returns
    -------
    DataFrame
        Columns run, eta, full_err_rel (full batch over the run's own total), partial_sum_mean and partial_sum_sd
        (exact, over all subsets), base_entropy_share.

    Raises
    ------
    RunError, ValueError
        As `analysis_helpers.simulate_err_rel_across_runs`.
    """
    rows = []
    for eta, names in usable_runs(runs, etas, subset_size, "subset_size").items():
        for name in names:
            run = runs[name]
            full, _ = partial_sum_moments(run, eta, run.num_sequences)
            mean, sd = partial_sum_moments(run, eta, subset_size)
            rows.append((name, eta, full, mean, sd, base_entropy_share(run, eta)))
    names_of = ["run", "eta", "full_err_rel", "partial_sum_mean", "partial_sum_sd", "base_entropy_share"]
    return pd.DataFrame(rows, columns=names_of)


def _error_contributions(run: Run, eta: float) -> FloatArray:
    true_seq, linear_seq = per_sequence_contributions(run, eta)
    return linear_seq - true_seq
