"""Synthetic subsets of large runs beside actual small runs: does a small batch behave like a piece of a large one?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .err_rel import collect_err_rel_across_runs, simulate_err_rel_across_runs
from .pooling import check_poolable, reference_total, usable_runs
from .runs import Run


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
        One row: eta, synthetic_mean, synthetic_std (ddof=1), synthetic_min, synthetic_max, actual_values (a list).
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
    summary = _comparison_summary(found, synthetic["err_rel"], actual["err_rel"])
    sizes = tuple(small_runs[name].num_sequences for name in actual["run"])
    return Comparison(found, sample_size, estimator, total, synthetic[["run", "err_rel"]], actual, summary, sizes)


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return the summaries of comparisons under each other, with the columns estimator and subset_size in front."""
    rows = [c.summary.assign(estimator=c.estimator, subset_size=c.sample_size) for c in comparisons]
    table = pd.concat(rows, ignore_index=True)
    return table[["estimator", "subset_size", *comparisons[0].summary.columns]]


def actual_among_subsets(comparison: Comparison) -> pd.DataFrame:
    """Return where each actual run falls among the synthetic subsets.

    Returns
    -------
    DataFrame
        Columns run, err_rel, share_below (of the subsets; near 0 or 1 where no subset is like the run), sds_from_mean.
    """
    synthetic = np.sort(comparison.synthetic["err_rel"].to_numpy())
    values = comparison.actual["err_rel"].to_numpy()
    return pd.DataFrame(
        {
            "run": comparison.actual["run"],
            "err_rel": values,
            "share_below": np.searchsorted(synthetic, values) / len(synthetic),
            "sds_from_mean": (values - synthetic.mean()) / synthetic.std(ddof=1),
        }
    )


def _comparison_summary(eta: float, synthetic: pd.Series[float], actual: pd.Series[float]) -> pd.DataFrame:
    row = {f"synthetic_{how}": synthetic.agg(how) for how in ("mean", "std", "min", "max")}
    return pd.DataFrame([{"eta": eta, **row, "actual_values": actual.tolist()}])
