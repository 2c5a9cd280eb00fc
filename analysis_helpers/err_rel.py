"""The relative error of the linear approximation, ``err_rel = (linear - true) / reference``, of subsets and runs.

Tables have one row per run, eta and subset. The reference is a fixed scale, never a subset's own true change: that can
cross zero, and the quotient then has no mean. Unusable runs are skipped with a warning that names the run and the
reason; none left is an error. For the standard error in closed form, without draws, use
`analysis_helpers.err_rel_standard_error`.

Only estimates made anew on the subset ("ratio", "matched") are comparable with an actual run of the subset's size. The
partial sum of the published figures is not: it adds full-batch contributions without rescaling, so its mean is n/N of
the full value; and it contains ``T_i * base_entropy`` with the base entropy of the full batch, so most of its spread is
difference in base entropy between sequences, which an actual run subtracts. `explain_partial_sum` gives both numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ._checks import FloatArray, RunError, checked_count, same_eta, warn_about_runs, warn_skipped
from .estimators import ESTIMATORS, Columns, EstimatorName, columns, true_total
from .runs import Run, require_runs
from .subsampling import Sampler, subset_sums

FOR_MATCHED = ("linear", "score", "baseline_entropy")
"""What "matched" and "adjusted" need a run to record."""

WEAK_REFERENCE = 3.0
"""A reference total within this many of its standard errors of zero is warned about."""


def usable_runs(
    runs: Mapping[str, Run], etas: Sequence[float], size: int, argument: str = "sample_size"
) -> dict[float, dict[str, Run]]:
    """Return eta -> the runs that have it and at least ``size`` sequences; others are skipped with a warning.

    Raises
    ------
    ValueError
        If there are no runs or etas, an eta is in no run, or every run is smaller than ``size``.
    RunError
        If only some of the runs record the denominator correction.
    """
    found = known_etas(runs, etas)
    runs = distinct_runs(runs)
    largest = max(run.num_sequences for run in runs.values())
    checked_count(size, argument, most=largest, what_most=", the sequences of the largest run")
    large_enough = {name: run for name, run in runs.items() if run.num_sequences >= size}
    small = {name: run for name, run in runs.items() if name not in large_enough}
    warn_skipped({name: f"{run.num_sequences} sequences, fewer than {argument} {size}" for name, run in small.items()})
    usable = runs_at_each(large_enough, found)
    for eta, kept in usable.items():
        if not kept:
            raise ValueError(f"no run with at least {size} sequences has eta {eta!r}")
    require_poolable({name: run for kept in usable.values() for name, run in kept.items()})
    return usable


def runs_at(runs: Mapping[str, Run], eta: float) -> dict[str, Run]:
    """Return the runs that have ``eta``; others are skipped with a warning."""
    return runs_at_each(runs, [eta])[eta]


def runs_at_each(runs: Mapping[str, Run], etas: Sequence[float]) -> dict[float, dict[str, Run]]:
    """Return eta -> the runs that have it; a run that lacks some is skipped there, with one warning."""
    lacking = {name: [repr(eta) for eta in etas if not run.has_eta(eta)] for name, run in runs.items()}
    warn_skipped({name: f"no eta {', '.join(missing)}" for name, missing in lacking.items() if missing})
    return {eta: {name: run for name, run in runs.items() if run.has_eta(eta)} for eta in etas}


def require_poolable(runs: Mapping[str, Run]) -> None:
    """Raise a `RunError` if some runs record the denominator correction and others do not: a different linear term."""
    corrected = {name: "score" in run.supports for name, run in runs.items() if "linear" in run.supports}
    if len(set(corrected.values())) > 1:
        without = ", ".join(name for name, has in corrected.items() if not has)
        rule = "is recorded in some runs and not in these; their linear terms differ and must not be pooled"
        raise RunError(without, "approx.per_sequence[].extras.denom_corr_unscaled", rule)


def both_sides(large_runs: Mapping[str, Run], small_runs: Mapping[str, Run]) -> dict[str, Run]:
    """Return runs by names that tell large from actual ones, or raise a `RunError` if they must not be pooled."""
    sides = {f"large {name}": run for name, run in large_runs.items()}
    sides |= {f"actual run {name}": run for name, run in small_runs.items()}
    require_poolable(sides)
    return sides


def known_eta(runs: Mapping[str, Run], eta: float) -> float:
    """Return the step size of the runs that equals ``eta`` within tolerance, or raise a `ValueError` listing them."""
    there = known_etas(runs)
    for known in there:
        if same_eta(eta, known):
            return known
    raise ValueError(f"none of {', '.join(runs)} has eta {float(eta)!r}; they have {', '.join(map(repr, there))}")


def known_etas(runs: Mapping[str, Run], etas: Sequence[float] | None = None) -> list[float]:
    """Return the step sizes of the runs that equal ``etas`` within tolerance, or raise a `ValueError`.

    None: all that are measured in any of the runs, ascending.
    """
    require_runs(runs)
    found: list[float] = []
    if etas is None:
        for run in runs.values():
            found += [eta for eta in run.etas if not any(same_eta(eta, known) for known in found)]
        return sorted(found)
    if isinstance(etas, (str, float, int)) or len(etas) == 0:
        raise ValueError(f"etas must be a list of at least one step size, such as [1.6e-06], got {etas!r}")
    found = [known_eta(runs, eta) for eta in etas]
    if len(set(found)) < len(found):
        raise ValueError(f"etas must hold each step size once, got {list(etas)}")
    return found


def reference_true_totals(runs: Mapping[str, Run]) -> dict[float, float]:
    """Return eta -> mean ``delta_h_true`` over the runs, in nats per token.

    A run without one of the etas is skipped in that mean, with a warning. A mean too close to zero to divide by is
    warned about.

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
    distinct = distinct_runs(runs)
    usable = runs_at_each(distinct, known_etas(distinct))
    return {eta: reference_total(kept, eta) for eta, kept in usable.items()}


def reference_total(runs: Mapping[str, Run], eta: float, name: str = "the mean over the runs") -> float:
    """Return the mean ``delta_h_true`` of runs that all have ``eta``; warn if it is too close to zero to divide by."""
    require_runs(runs)
    total = float(np.mean([run.measurement(eta).delta_h_true for run in runs.values()]))
    se = mean_total_error(runs.values(), eta)
    if abs(total) < WEAK_REFERENCE * se:
        warn_about_runs(
            f"the true total of {name} at eta {eta!r}, {total:.3g}, is within {WEAK_REFERENCE:g} standard errors "
            f"({se:.3g}) of zero: err_rel divided by it is unreliable"
        )
    return total


def own_total(run: Run, eta: float, name: str) -> float:
    """Return the run's own ``delta_h_true``; warn if it is too close to zero to divide by."""
    return reference_total({name: run}, eta, name)


def mean_total_error(runs: Iterable[Run], eta: float) -> float:
    """Return the sampling standard error of the mean true total over runs; NaN if no run records ``h_base``."""
    errors = np.array([true_total(run, eta).se for run in runs])
    known = errors[~np.isnan(errors)]  # a run without one counts as average
    return float(np.sqrt(np.mean(known**2) / len(errors))) if len(known) else float("nan")


def reference_for(references: Mapping[float, float] | None, run: Run, eta: float, name: str) -> float:
    """Return the given reference at ``eta``; the run's own total if none are given."""
    if references is None:
        return own_total(run, eta, name)
    for known, total in references.items():
        if same_eta(known, eta):
            return total
    raise ValueError(f"references has no eta {eta!r}; there are {', '.join(map(repr, references))}")


def recording(runs: Mapping[str, Run], *needs: str) -> dict[str, Run]:
    """Return the runs that record all of the needs, each a key of `FIELDS_BEHIND`."""
    return {name: run for name, run in runs.items() if set(needs) <= set(run.supports)}


def distinct_runs(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Return the runs without those whose content is that of an earlier one, which are skipped with a warning."""
    require_runs(runs)
    first = {name: next(known for known, other in runs.items() if other == run) for name, run in runs.items()}
    warn_skipped({name: f"same content as {original}" for name, original in first.items() if original != name})
    return {name: run for name, run in runs.items() if first[name] == name}


def aggregate_err_rel(true_subset: ArrayLike, linear_subset: ArrayLike, true_total_full: float) -> float:
    """Return ``(sum(linear) - sum(true)) / true_total_full`` over a subset's contributions; NaN if the total is 0.

    This partial sum is the published definition; the estimator "ratio" of `simulate_err_rel` is the one to set beside
    actual runs.

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
    seed: int = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    reference: float | None = None,
) -> FloatArray:
    """Return err_rel on random subsets of one run, shape ``(num_samples,)``.

    "partial_sum", the default, is the published definition; "ratio" is the one to set beside actual runs.

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
        Seed of the random draws.
    estimator
        "partial_sum" (full-batch contributions summed over the subset, as in the published figures), "ratio" (the
        subset taken as the whole batch) or "matched" (ratio, with the exact derivative as linear change).
    sampler
        "sequential": one ``Generator.choice(N, sample_size, replace=False)`` per subset. "disjoint": groups cut from
        random permutations, faster; `analysis_helpers.subsampling.subset_sums` says what that does to Monte-Carlo
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
    checked_count(sample_size, "sample_size", most=run.num_sequences, what_most=", the number of sequences")
    scale = own_total(run, eta, run.source) if reference is None else reference
    size = batch.rows_for(sample_size)
    sums = subset_sums(batch.values, size, num_samples, np.random.default_rng(seed), sampler=sampler)
    return _relative_error(batch, sums, scale)


def simulate_err_rel_across_runs(
    runs: Mapping[str, Run],
    etas: Sequence[float],
    sample_size: int = 256,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    references: Mapping[float, float] | None = None,
) -> pd.DataFrame:
    """Return a table of err_rel on random subsets of several runs: `simulate_err_rel` for each run and eta.

    "partial_sum", the default, is the published definition; "ratio" is the one to set beside actual runs.
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
    batches = _batches(runs, etas, sample_size, "sample_size", estimator)
    shapes = {key: (len(batch.values), batch.rows_for(sample_size)) for key, batch in batches.items()}
    values: dict[tuple[str, float], FloatArray] = {}
    for shape in set(shapes.values()):
        alike = [key for key in batches if shapes[key] == shape]
        together = np.hstack([batches[key].values for key in alike])
        sums = subset_sums(together, shape[1], num_samples, np.random.default_rng(seed), sampler=sampler)
        for (name, eta), own_sums in zip(alike, np.split(sums, len(alike), axis=1), strict=True):
            scale = reference_for(references, runs[name], eta, name)
            values[name, eta] = _relative_error(batches[name, eta], own_sums, scale)
    return _table({key: values[key] for key in batches})


def sample_err_rel_across_runs(
    runs: Mapping[str, Run],
    eta_values: Sequence[float],
    *,
    subset_size: int = 256,
    samples_per_eta: int = 200,
    seed: int = 0,
    estimator: EstimatorName = "partial_sum",
    sampler: Sampler = "sequential",
    references: Mapping[float, float] | None = None,
) -> pd.DataFrame:
    """Return a table of err_rel on random subsets of several runs, drawn from one stream: eta, then run, then subset.

    "partial_sum", the default, is the published definition; "ratio" is the one to set beside actual runs.
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
    values = {}
    for (name, eta), batch in _batches(runs, eta_values, subset_size, "subset_size", estimator).items():
        scale = reference_for(references, runs[name], eta, name)
        sums = subset_sums(batch.values, batch.rows_for(subset_size), samples_per_eta, rng, sampler=sampler)
        values[name, eta] = _relative_error(batch, sums, scale)
    return _table(values)


def collect_err_rel_across_runs(
    runs: Mapping[str, Run], eta: float, true_total_ref: float, *, estimator: EstimatorName = "partial_sum"
) -> pd.DataFrame:
    """Return a table of the full-batch err_rel of each run at one eta, over a common reference total.

    "partial_sum" is the published definition; "ratio" is the one to set beside actual runs. On the full batch they are
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
    batches = _batches(runs, [eta], 1, "sample_size", estimator)
    return _table({key: _relative_error(each, each.sums[None], true_total_ref) for key, each in batches.items()})


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


def supported_estimators(runs: Mapping[str, Run]) -> list[EstimatorName]:
    """Return the names of the estimators for which every run records what is needed."""
    return [name for name in ESTIMATORS if all(_supports(run, name) for run in runs.values())]


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
    both_sides(kept, small_runs)
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
            total = own_total(run, eta, name) or np.nan
            error = columns(run, eta, "partial_sum").error()
            full = error.value / total
            contribution_sd = error.spread / run.num_sequences / abs(total)
            share = subset_size / run.num_sequences
            sd = np.sqrt(subset_size * (1 - share)) * contribution_sd
            tokens, h_base = columns(replace(run, prompt_ids=None), eta).values[:, :2].T  # by sequence
            excess = h_base - h_base.sum() / tokens.sum() * tokens
            correlation = np.corrcoef(error.psi, excess)[0, 1]
            rows.append((name, eta, full, share * full, sd, correlation**2))
    names_of = ["run", "eta", "full_err_rel", "partial_sum_mean", "partial_sum_sd", "base_entropy_share"]
    return pd.DataFrame(rows, columns=names_of)


def _supports(run: Run, estimator: str) -> bool:
    try:
        columns(run, run.etas[0], estimator)
    except RunError:
        return False
    return True


def _batches(
    runs: Mapping[str, Run], etas: Sequence[float], size: int, argument: str, estimator: str
) -> dict[tuple[str, float], Columns]:
    """Return (name, eta) -> columns of the usable runs, by eta, then run."""
    usable = usable_runs(runs, etas, size, argument)
    return {(name, eta): columns(run, eta, estimator) for eta, kept in usable.items() for name, run in kept.items()}


def _relative_error(batch: Columns, sums: FloatArray, reference: float) -> FloatArray:
    """Return err_rel for sums of shape ``(..., columns)``; NaN if the reference is 0 or a subset holds no tokens."""
    if reference == 0:
        return np.full(len(sums), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        true, linear = batch.estimate(sums)
        values = (linear - true) / reference
    if not np.isfinite(values).all():
        empty = np.count_nonzero(~np.isfinite(values))
        warn_about_runs(f"{empty} of {len(values)} subsets hold no tokens or no weight: their err_rel is undefined")
    return values


def _table(values: Mapping[tuple[str, float], FloatArray]) -> pd.DataFrame:
    frames = [pd.DataFrame({"run": name, "eta": eta, "err_rel": found}) for (name, eta), found in values.items()]
    return pd.concat(frames, ignore_index=True)
