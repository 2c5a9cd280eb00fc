"""Synthetic subsets of large runs beside actual small runs: does a small batch behave like a piece of a large one?

Why the partial sum, the original's estimate on a subset, is not comparable with an actual run of the subset's size.

It adds full-batch contributions over the subset without rescaling, so its mean is n/N of the full value; and it holds
``T_i * base_entropy`` where the subset's own base entropy belongs, so most of its spread is plain difference in base
entropy between sequences, which an actual run subtracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .._checks import FloatArray, checked_count
from ..estimators import columns, per_sequence_contributions
from ..runs import Run
from .references import check_poolable, own_total, reference_total, usable_runs
from .tables import collect_err_rel_across_runs, simulate_err_rel_across_runs


@dataclass(frozen=True, eq=False)
class Comparison:
    """Synthetic subsets of large runs beside actual small runs, at one eta.

    Attributes
    ----------
    eta, sample_size, estimator
        Step size, subset size n, name of the estimator.
    reference_total
        Mean ``delta_h_true`` of the large runs at this eta (nats per token).
    synthetic
        A row for each subset: run, err_rel.
    actual
        A row for each small run: run, eta, err_rel.
    summary
        One row: estimator, subset_size, eta, synthetic_mean, synthetic_std (ddof=1), synthetic_min, synthetic_max,
        actual_values (a list).
    actual_sizes
        Sequences of each actual run, in the order of ``actual``.
    """

    eta: float
    sample_size: int
    estimator: str
    reference_total: float
    synthetic: pd.DataFrame
    actual: pd.DataFrame
    summary: pd.DataFrame
    actual_sizes: tuple[int, ...] = ()


def compare_err_rel_distributions(
    large_runs: Mapping[str, Run],
    small_runs: Mapping[str, Run],
    eta: float,
    *,
    sample_size: int = 256,
    num_samples: int = 2000,
    seed: int = 0,
    estimator: str = "partial_sum",
    sampler: str = "sequential",
) -> Comparison:
    """Compare err_rel on synthetic subsets of the large runs with err_rel of actual small runs.

    Only with "ratio" are the two comparable: `analysis_helpers.partial_sum` says why. "partial_sum" is the default
    because published figures use it. For "partial_sum" the synthetic values are divided as in the original, each by its
    own run's true total, and the actual ones by the reference total of the large runs; for the other estimators both
    sides are divided by the reference total.

    Parameters
    ----------
    large_runs, small_runs
        Name -> run.
    eta
        Step size.
    sample_size, num_samples, seed, estimator, sampler
        As in `simulate_err_rel`; ``num_samples`` subsets for each large run.

    Raises
    ------
    RunError, ValueError
        As `simulate_err_rel_across_runs`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> large, small = synthetic_runs(2, 512), synthetic_runs(3, 64, seed=1)
    >>> comparison = compare_err_rel_distributions(large, small, 1.6e-6, sample_size=64, estimator="ratio")
    >>> len(comparison.synthetic), len(comparison.actual)
    (4000, 3)
    """
    [(found, names)] = usable_runs(large_runs, [eta], sample_size).items()
    kept = {name: large_runs[name] for name in names}
    check_poolable(
        {f"{side} {k}": r for side, runs in (("large", kept), ("small", small_runs)) for k, r in runs.items()}
    )
    total = reference_total(kept, found)
    synthetic = simulate_err_rel_across_runs(
        kept,
        [found],
        sample_size,
        num_samples=num_samples,
        seed=seed,
        estimator=estimator,
        sampler=sampler,
        references=None if estimator == "partial_sum" else {found: total},
    )
    actual = collect_err_rel_across_runs(small_runs, found, total, estimator=estimator)
    summary = _comparison_summary(found, estimator, sample_size, synthetic["err_rel"], actual["err_rel"])
    sizes = tuple(small_runs[name].num_sequences for name in actual["run"])
    return Comparison(found, sample_size, estimator, total, synthetic[["run", "err_rel"]], actual, summary, sizes)


def _comparison_summary(
    eta: float, estimator: str, subset_size: int, synthetic: pd.Series[float], actual: pd.Series[float]
) -> pd.DataFrame:
    spread = {f"synthetic_{how}": synthetic.agg(how) for how in ("mean", "std", "min", "max")}
    named = {"estimator": estimator, "subset_size": subset_size, "eta": eta}
    return pd.DataFrame([{**named, **spread, "actual_values": actual.tolist()}])


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

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = explain_partial_sum(synthetic_runs(1, 128), [1.6e-6], 32)
    >>> bool((table["partial_sum_mean"] / table["full_err_rel"]).round(9).iloc[0] == 32 / 128)
    True
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
