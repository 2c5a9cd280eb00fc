"""Which runs are pooled in a table, and what their errors are divided by.

Unusable runs are skipped with a warning that names the run and the reason; none left is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .._checks import RunError, checked_count, same_eta, warn_about_runs, warn_skipped
from ..estimators import true_total
from ..runs import Run, require_runs

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
    if checked_count(size, argument) > largest:
        raise ValueError(f"{argument} must be at most {largest}, the sequences of the largest run, got {size}")
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


def same_content(runs: Mapping[str, Run]) -> dict[str, str]:
    """Return name -> earlier name for runs whose content is that of an earlier run."""
    require_runs(runs)
    first = {name: next(known for known, other in runs.items() if other == run) for name, run in runs.items()}
    return {name: original for name, original in first.items() if original != name}


def recording(runs: Mapping[str, Run], *needs: str) -> dict[str, Run]:
    """Return the runs that record all of the needs, each a key of `FIELDS_BEHIND`."""
    return {name: run for name, run in runs.items() if set(needs) <= set(run.supports)}


def distinct_runs(runs: Mapping[str, Run]) -> dict[str, Run]:
    """Return the runs without those whose content is that of an earlier one, which are skipped with a warning."""
    copies = same_content(runs)
    warn_skipped({name: f"same content as {original}" for name, original in copies.items()})
    return {name: run for name, run in runs.items() if name not in copies}
