"""Random subsets of large runs beside actual small runs: does a small batch behave like a piece of a large one?

Only estimates made anew on the subset ("ratio", "matched") are comparable with an actual run of the subset's size. The
partial sum of the published figures is not: it adds full-batch contributions without rescaling, so its mean is n/N of
the full value; and it contains ``T_i * base_entropy`` with the base entropy of the full batch, so most of its spread is
difference in base entropy between sequences, which an actual run subtracts. `explain_partial_sum` gives both numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..estimators import EstimatorName, columns, per_sequence_contributions, standard_deviation
from ..runs import Run, require_runs
from ..subsampling import Sampler
from .references import own_total, reference_total, require_poolable, usable_runs
from .tables import collect_err_rel_across_runs, simulate_err_rel_across_runs


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


def compare_err_rel_distributions(
    large_runs: Mapping[str, Run],
    small_runs: Mapping[str, Run],
    eta: float,
    *,
    sample_size: int = 256,
    num_samples: int = 2000,
    seed: int = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
) -> Comparison:
    """Return err_rel on random subsets of the large runs beside err_rel of actual small runs.

    "partial_sum", the default, is the published definition; "ratio" is the one to set beside actual runs (see
    `explain_partial_sum`). Subsets of "partial_sum" are divided by their own run's true total and the actual runs by
    the reference total of the large runs, as published; other estimators divide both by the reference total.

    Parameters
    ----------
    large_runs, small_runs
        Name -> run; there may be no small runs.
    eta
        Step size.
    sample_size, num_samples, seed, estimator, sampler
        As in `simulate_err_rel`; ``num_samples`` subsets per large run.

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
    require_runs(small_runs or large_runs, "small_runs")  # there may be none
    [(found, kept)] = usable_runs(large_runs, [eta], sample_size).items()
    require_poolable(
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
    actual = synthetic.iloc[:0]  # where there are no small runs at this eta
    if any(run.has_eta(found) for run in small_runs.values()):
        actual = collect_err_rel_across_runs(small_runs, found, total, estimator=estimator)
    spread = {f"synthetic_{how}": synthetic["err_rel"].agg(how) for how in ("mean", "std", "min", "max")}
    named = {"estimator": estimator, "subset_size": sample_size, "eta": found}
    summary = pd.DataFrame([{**named, **spread, "actual_values": actual["err_rel"].tolist()}])
    sizes = tuple(small_runs[name].num_sequences for name in actual["run"])
    return Comparison(found, sample_size, estimator, total, synthetic[["run", "err_rel"]], actual, summary, sizes)


def explain_partial_sum(runs: Mapping[str, Run], etas: list[float], subset_size: int) -> pd.DataFrame:
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
    for eta, kept in usable_runs(runs, etas, subset_size, "subset_size").items():
        for name, run in kept.items():
            share, total = subset_size / run.num_sequences, own_total(run, eta, name) or np.nan
            true_seq, linear_seq = per_sequence_contributions(run, eta)
            errors = linear_seq - true_seq
            full, sd = float(errors.sum()) / total, standard_deviation(errors) / abs(total)
            tokens, h_base = columns(replace(run, prompt_ids=None), eta).values[:, :2].T  # by sequence, as errors
            excess = h_base - h_base.sum() / tokens.sum() * tokens
            correlation = np.corrcoef(errors, excess)[0, 1]
            rows.append((name, eta, full, share * full, np.sqrt(subset_size * (1 - share)) * sd, correlation**2))
    names_of = ["run", "eta", "full_err_rel", "partial_sum_mean", "partial_sum_sd", "base_entropy_share"]
    return pd.DataFrame(rows, columns=names_of)
