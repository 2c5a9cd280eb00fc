"""The original's functions, with their published signatures and defaults.

They come from the notebook "Batch Size Comparison Diagnostics" of the research code that produced the runs. Their
estimate on a subset, "partial_sum", adds full-batch contributions without rescaling; it is not comparable with an
actual run (see `analysis_helpers.explain_partial_sum`). Everywhere else in this package the default is "ratio".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ._checks import FloatArray, checked_count
from .err_rel import Comparison, batches_of, err_rel_table
from .estimators import EstimatorName, columns, own_total, reference_for, reference_total
from .runs import Run, Runs
from .subsampling import Sampler, Seed, subset_sums


def reference_true_totals(runs: Mapping[str, Run]) -> dict[float, float]:
    """Return eta -> mean ``delta_h_true`` over the runs, in nats per token.

    A run without one of the etas is skipped in that mean, with a warning. A mean too close to zero to divide by causes
    a warning.

    Raises
    ------
    ValueError
        If there are no runs.

    Examples
    --------
    >>> def run(h_new):
    ...     measured = {"h_new": {1e-6: [h_new]}, "log_weights": {1e-6: [0.0]}}
    ...     return Run.from_arrays(token_counts=[1], h_base=[1.0], gdotv=[0.0], **measured)
    >>> totals = reference_true_totals({"run_01": run(0.9), "run_02": run(0.7)})
    >>> {eta: round(total, 12) for eta, total in totals.items()}
    {1e-06: -0.2}
    """
    collection = Runs.of(runs)
    return {eta: reference_total(at_eta, eta) for eta, at_eta in collection.at_each(collection.etas).items()}


def per_sequence_contributions(run: Run, eta: float) -> tuple[FloatArray, FloatArray]:
    """Return the contributions of each sequence to the true and the linear change, shape ``(N,)``, in nats per token.

    ``true_i = w_i h_new_i / sum(w T) - T_i / sum(T) * base_entropy`` and ``linear_i = eta * gdotv_i``; they sum to the
    totals. Summed over a subset they are "partial_sum", the published definition; use "ratio" to compare with actual
    runs.

    Parameters
    ----------
    run
        The run; must record per-sequence linear terms.
    eta
        Step size, looked up with a relative tolerance of 1e-6.

    Raises
    ------
    RunError
        If the run is totals-only.
    ValueError
        If the run has no such eta.

    Examples
    --------
    >>> run = Run.from_arrays(
    ...     token_counts=[2, 3],
    ...     h_base=[1.0, 2.0],
    ...     h_new={1e-6: [0.9, 1.8]},
    ...     log_weights={1e-6: [0.0, 0.0]},
    ...     gdotv=[-1.0, -2.0],
    ... )
    >>> true_seq, linear_seq = per_sequence_contributions(run, 1e-6)
    >>> [f"{x:.6g}" for x in true_seq], [f"{x:.6g}" for x in linear_seq]
    (['-0.06', '0'], ['-1e-06', '-2e-06'])
    """
    batch = columns(run, eta, "partial_sum")
    return batch.estimate(batch.values)


def aggregate_err_rel(true_subset: ArrayLike, linear_subset: ArrayLike, true_total_full: float) -> float:
    """Return ``(sum(linear) - sum(true)) / true_total_full`` over a subset's contributions; NaN if the total is 0.

    This partial sum is the published definition; to compare with actual runs, use the estimator "ratio" of
    `simulate_err_rel`.

    Raises
    ------
    ValueError
        If the two arrays differ in shape.

    Examples
    --------
    >>> aggregate_err_rel([-1.0, -1.0], [-1.5, -1.5], -4.0)
    0.25
    """
    if np.shape(true_subset) != np.shape(linear_subset):
        shapes = f"{np.shape(true_subset)} and {np.shape(linear_subset)}"
        raise ValueError(f"true_subset and linear_subset must have the same shape, got {shapes}")
    if true_total_full == 0:
        return float("nan")
    return float((np.sum(linear_subset) - np.sum(true_subset)) / true_total_full)


def simulate_err_rel(
    run: Run,
    eta: float,
    sample_size: int = 256,
    *,
    num_samples: int = 1000,
    seed: Seed = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    reference: float | None = None,
) -> FloatArray:
    """Return err_rel on random subsets of one run, shape ``(num_samples,)``.

    "partial_sum", the default, is the published definition; use "ratio" to compare with actual runs.

    Parameters
    ----------
    run
        The run whose sequences are drawn, without replacement.
    eta
        Step size.
    sample_size
        Sequences in a subset.
    num_samples
        Number of subsets.
    seed
        Seed of the random draws, or a generator.
    estimator
        "partial_sum" (full-batch contributions summed over the subset, as in the published figures), "ratio" (the
        subset taken as the whole batch) or "matched" (ratio, with the exact derivative as linear change).
    sampler
        "sequential": one ``Generator.choice(N, sample_size, replace=False)`` per subset. "disjoint": groups cut from
        random permutations, faster; see `analysis_helpers.subsampling.subset_sums` for the effect on Monte-Carlo
        errors.
    reference
        What to divide by (nats per token); None: the run's own full-batch true total.

    Raises
    ------
    RunError
        If the run does not record what the estimator needs.
    ValueError
        If an argument is out of range, or the run has no such eta.

    Examples
    --------
    >>> run = Run.from_arrays(
    ...     token_counts=[2, 2],
    ...     h_base=[1.0, 1.0],
    ...     h_new={1e-6: [0.9, 0.9]},
    ...     log_weights={1e-6: [0.0, 0.0]},
    ...     gdotv=[-3e4, -3e4],
    ... )
    >>> simulate_err_rel(run, 1e-6, 1, num_samples=2, estimator="ratio").round(6)  # (-0.06 + 0.05) / -0.05
    array([0.2, 0.2])
    """
    batch = columns(run, eta, estimator)
    checked_count(sample_size, "sample_size", most=run.n, what_most=", the number of sequences")
    scale = own_total(run, eta, run.source) if reference is None else reference
    size = batch.rows_for(sample_size)
    sums = subset_sums(batch.values, size, num_samples, np.random.default_rng(seed), sampler=sampler)
    return batch.err_rel(sums, scale)


def simulate_err_rel_across_runs(
    runs: Mapping[str, Run],
    etas: Sequence[float],
    sample_size: int = 256,
    *,
    num_samples: int = 1000,
    seed: Seed = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    references: Mapping[float, float] | None = None,
) -> pd.DataFrame:
    """Return a table of err_rel on random subsets of several runs: `simulate_err_rel` for each run and eta.

    "partial_sum", the default, is the published definition; use "ratio" to compare with actual runs.
    Runs of equal size share their subsets, which are drawn once.

    Parameters
    ----------
    runs
        Name -> run.
    etas
        Step sizes.
    sample_size, num_samples, seed, estimator, sampler
        As in `simulate_err_rel`; ``num_samples`` subsets per eta and run.
    references
        Eta -> what to divide by (nats per token); None: each run's own full-batch true total.

    Returns
    -------
    DataFrame
        Columns run, eta, err_rel; ``num_samples`` rows for each eta and run, in that order.

    Raises
    ------
    RunError
        If a run does not record what the estimator needs, or only some runs record the denominator correction.
    ValueError
        If an argument is out of range, no run has one of the etas, or every run is smaller than the subset.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = simulate_err_rel_across_runs(synthetic_runs(2, 512), [1.6e-6], 64, num_samples=100)
    >>> table.groupby("run").size().to_dict()
    {'run_01': 100, 'run_02': 100}
    """
    collection = Runs.of(runs)
    batches = batches_of(collection, etas, sample_size, "sample_size", estimator)
    shapes = {key: (len(batch.values), batch.rows_for(sample_size)) for key, batch in batches.items()}
    values: dict[tuple[str, float], FloatArray] = {}
    for shape in set(shapes.values()):
        alike = [key for key in batches if shapes[key] == shape]
        together = np.hstack([batches[key].values for key in alike])
        sums = subset_sums(together, shape[1], num_samples, np.random.default_rng(seed), sampler=sampler)
        for (name, eta), own_sums in zip(alike, np.split(sums, len(alike), axis=1), strict=True):
            scale = reference_for(references, collection[name], eta, name)
            values[name, eta] = batches[name, eta].err_rel(own_sums, scale)
    return err_rel_table({key: values[key] for key in batches})


def sample_err_rel_across_runs(
    runs: Mapping[str, Run],
    eta_values: Sequence[float],
    *,
    subset_size: int = 256,
    samples_per_eta: int = 200,
    seed: Seed = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    references: Mapping[float, float] | None = None,
) -> pd.DataFrame:
    """Return a table of err_rel on random subsets of several runs, drawn from one stream: eta, then run, then subset.

    "partial_sum", the default, is the published definition; use "ratio" to compare with actual runs.
    Unlike in `simulate_err_rel_across_runs`, no two runs or etas share their subsets.

    Parameters
    ----------
    runs
        Name -> run.
    eta_values
        Step sizes.
    subset_size
        Sequences in a subset.
    samples_per_eta
        Number of subsets per eta and run.
    seed, estimator, sampler
        As in `simulate_err_rel`.
    references
        Eta -> what to divide by (nats per token); None: each run's own full-batch true total.

    Returns
    -------
    DataFrame
        Columns run, eta, err_rel.

    Raises
    ------
    RunError, ValueError
        As `simulate_err_rel_across_runs`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = sample_err_rel_across_runs(synthetic_runs(2, 512), [1.6e-6, 3.2e-6], subset_size=64, samples_per_eta=50)
    >>> table.groupby("eta").size().to_dict()
    {1.6e-06: 100, 3.2e-06: 100}
    """
    checked_count(samples_per_eta, "samples_per_eta")
    rng = np.random.default_rng(seed)
    collection, values = Runs.of(runs), {}
    batches = batches_of(collection, eta_values, subset_size, "subset_size", estimator)
    for (name, eta), batch in batches.items():
        scale = reference_for(references, collection[name], eta, name)
        sums = subset_sums(batch.values, batch.rows_for(subset_size), samples_per_eta, rng, sampler=sampler)
        values[name, eta] = batch.err_rel(sums, scale)
    return err_rel_table(values)


def collect_err_rel_across_runs(
    runs: Mapping[str, Run], eta: float, true_total_ref: float, *, estimator: EstimatorName = "partial_sum"
) -> pd.DataFrame:
    """Return a table of the full-batch err_rel of each run at one eta, over a common reference total.

    "partial_sum" is the published definition; use "ratio" to compare with actual runs. On the full batch they are
    equal, if the stored totals agree with the sequences.

    Parameters
    ----------
    runs
        Name -> run.
    eta
        Step size.
    true_total_ref
        What to divide by (nats per token), as from `reference_true_totals`.
    estimator
        "partial_sum", "ratio" or "matched".

    Returns
    -------
    DataFrame
        Columns run, eta, err_rel; one row per run that has the eta.

    Raises
    ------
    RunError, ValueError
        As `simulate_err_rel_across_runs`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> from analysis_helpers import reference_true_totals
    >>> runs = synthetic_runs(2, 512)
    >>> list(collect_err_rel_across_runs(runs, 1.6e-6, reference_true_totals(runs)[1.6e-6])["run"])
    ['run_01', 'run_02']
    """
    batches = batches_of(Runs.of(runs), [eta], 1, "sample_size", estimator)
    return err_rel_table({key: batch.err_rel(batch.sums[None], true_total_ref) for key, batch in batches.items()})


def summarize_err_rel_distribution(df: pd.DataFrame) -> pd.DataFrame:
    """Return a table with one row per eta: mean, SD and variance (ddof=1), minimum, maximum and number of err_rel.

    Parameters
    ----------
    df
        Columns eta and err_rel, as from `sample_err_rel_across_runs`.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> table = summarize_err_rel_distribution(pd.DataFrame({"eta": [1e-6, 1e-6], "err_rel": [0.0, 1.0]}))
    >>> table.round(3).to_dict("records")[0]["std_err_rel"], int(table["num_samples"].iloc[0])
    (0.707, 2)
    """
    missing = [name for name in ("eta", "err_rel") if name not in df.columns]
    if missing:
        raise ValueError(f"df must have the columns 'eta' and 'err_rel', got {list(df.columns)}")
    groups = df.groupby("eta")["err_rel"]
    columns_of = {f"{how}_err_rel": groups.agg(how) for how in ("mean", "std", "var", "min", "max")}
    return pd.DataFrame({**columns_of, "num_samples": groups.count()}).reset_index()


def compare_err_rel_distributions(
    large_runs: Mapping[str, Run],
    small_runs: Mapping[str, Run],
    eta: float,
    *,
    sample_size: int = 256,
    num_samples: int = 2000,
    seed: Seed = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
) -> Comparison:
    """Return err_rel on random subsets of the large runs beside err_rel of actual small runs.

    "partial_sum", the default, is the published definition; use "ratio" to compare with actual runs (see
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
    large, small = Runs.of(large_runs, "large_runs"), Runs(small_runs, "small_runs")  # there may be no small runs
    [(measured, usable)] = large.usable([eta], sample_size, "sample_size").items()
    small.beside(usable, copies=True)
    total = reference_total(usable, measured)
    references = None if estimator == "partial_sum" else {measured: total}
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "estimator": estimator, "sampler": sampler}
    synthetic = simulate_err_rel_across_runs(usable, [measured], sample_size, references=references, **options)
    actual = synthetic.iloc[:0]  # where there are no small runs at this eta
    if any(run.has_eta(measured) for run in small.values()):
        actual = collect_err_rel_across_runs(small, measured, total, estimator=estimator)
    spread = {f"synthetic_{how}": synthetic["err_rel"].agg(how) for how in ("mean", "std", "min", "max")}
    named = {"estimator": estimator, "subset_size": sample_size, "eta": measured}
    summary = pd.DataFrame([{**named, **spread, "actual_values": actual["err_rel"].tolist()}])
    sizes = tuple(small[name].n for name in actual["run"])
    return Comparison(measured, sample_size, estimator, total, synthetic[["run", "err_rel"]], actual, summary, sizes)
