"""Random subsets that are drawn once and asked often: for every step size and every estimator.

Every estimator is a function of a few column sums, so the sums over a subset answer for all of them. Use it where the
same subsets are looked at in many ways, as under the controls of a notebook; for one table,
`simulate_err_rel_across_runs` says the same and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from .checks import FloatArray, RunError
from .err_rel import long_table, relative_error
from .estimators import ESTIMATORS, Columns, columns
from .pooling import reference_for, usable_runs
from .runs import Run
from .subsampling import subset_sums


class DrawnSubsets:
    """Sums over random subsets of runs, drawn here and kept.

    One seed means the same subsets for every run of equal N, and those of `simulate_err_rel_across_runs` with the
    sampler "sequential".

    Parameters
    ----------
    runs
        Name -> run; those with fewer than ``subset_size`` sequences are left out of answers, with a warning.
    subset_size
        Sequences in a subset.
    num_samples
        Number of subsets of each run.
    seed
        Seed of the one random stream.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> drawn = DrawnSubsets(synthetic_runs(2, 512), 64, 100)
    >>> len(drawn.err_rel(1.6e-6, estimator="ratio")), len(drawn.err_rel(3.2e-6, estimator="matched"))
    (200, 200)
    """

    def __init__(self, runs: Mapping[str, Run], subset_size: int, num_samples: int, *, seed: int = 0) -> None:
        self.runs, self.subset_size, self.num_samples = runs, subset_size, num_samples
        self._sums: dict[tuple[str, float, str], FloatArray] = {}
        for size in {run.num_sequences for run in runs.values() if run.num_sequences >= subset_size}:
            alike = {name: run for name, run in runs.items() if run.num_sequences == size}
            self._draw(alike, seed)

    def err_rel(
        self,
        eta: float,
        *,
        estimator: str = "ratio",
        references: Mapping[float, float] | None = None,
        first: int | None = None,
    ) -> pd.DataFrame:
        """Return err_rel on the subsets, without drawing anything.

        Parameters
        ----------
        eta
            Step size.
        estimator
            "partial_sum", "ratio" or "matched".
        references
            For each eta, what to divide by (nats per token); None: each run's own full-batch true total.
        first
            How many of each run's subsets, from the first on; None: all. The first of many are those that fewer draws
            would have given.

        Returns
        -------
        DataFrame
            Columns run, eta, err_rel.

        Raises
        ------
        RunError
            If a run does not record what the estimator needs.
        ValueError
            If no run has the eta, or the estimator is unknown.
        """
        [(found, names)] = usable_runs(self.runs, [eta], self.subset_size).items()
        parts = []
        for name in names:
            batch = columns(self.runs[name], found, estimator)
            sums = np.stack([self._sums[name, found, column] for column in batch.estimator.columns], axis=-1)
            scale = reference_for(references, self.runs[name], found, name)
            parts.append((name, found, relative_error(batch, sums[:first], scale)))
        return long_table(parts)

    def _draw(self, runs: Mapping[str, Run], seed: int) -> None:
        """Keep the sums of all columns of runs of equal N; a column that is the same at two etas is summed once."""
        distinct: list[FloatArray] = []
        places: dict[tuple[str, float, str], int] = {}
        for name, run in runs.items():
            first = len(distinct)
            for eta, column, values in _columns_of(run):
                same = (k for k in range(first, len(distinct)) if np.array_equal(distinct[k], values))
                places[name, eta, column] = next(same, len(distinct))
                if places[name, eta, column] == len(distinct):
                    distinct.append(values)
        rng = np.random.default_rng(seed)
        sums = subset_sums(np.column_stack(distinct), self.subset_size, self.num_samples, rng)
        self._sums |= {key: sums[:, place] for key, place in places.items()}


def supported_estimators(runs: Mapping[str, Run]) -> list[str]:
    """Return the estimators for which every run records what is needed."""
    return [name for name in ESTIMATORS if all(_columns_or_none(run, run.etas[0], name) for run in runs.values())]


def _columns_of(run: Run) -> Sequence[tuple[float, str, FloatArray]]:
    """Return (eta, name of the column, values) for everything that the run records."""
    batches = [(eta, _columns_or_none(run, eta, estimator)) for eta in run.etas for estimator in ESTIMATORS]
    return [
        (eta, column, batch.values[:, k])
        for eta, batch in batches
        if batch is not None
        for k, column in enumerate(batch.estimator.columns)
    ]


def _columns_or_none(run: Run, eta: float, estimator: str) -> Columns | None:
    try:
        return columns(run, eta, estimator)
    except RunError:
        return None
