"""Whether runs add up, and the runs of a folder that do: what is left out is left out with a warning and a reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .checks import RunError, warn_about_runs
from .run_files import load_runs, result_files
from .runs import FIELDS_BEHIND, Run

TOTAL_TOLERANCE = 1e-6
"""Largest relative difference between a stored total and the sum of its contributions."""


@np.errstate(over="ignore", invalid="ignore")  # sums of huge numbers are infinite: no warning, a problem
def integrity_problems(run: Run) -> list[str]:
    """Return what in a run does not add up, a sentence each: totals against the sums of their contributions.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> integrity_problems(synthetic_runs(1, 32)["run_01"])
    []
    """
    problems = []
    total = run.total_tokens
    if run.scale is not None and _differ(run.scale * total, 1.0):
        problems.append(f"per_sequence_meta.scale is {run.scale:.7g}, one over all tokens is {1 / total:.7g}")
    if run.gdotv is not None and _differ(float(run.gdotv.sum()), run.delta_h_per_lr):
        problems.append(f"delta_h_per_lr is {run.delta_h_per_lr:.7g}, its contributions sum to {run.gdotv.sum():.7g}")
    for m in run.measurements:
        after = float(m.weights @ m.h_new / (m.weights @ run.token_counts))
        if _differ(after - m.base_entropy, m.delta_h_true):
            problems.append(
                f"delta_h_true at eta {m.eta!r} is {m.delta_h_true:.7g}, "
                f"its contributions sum to {after - m.base_entropy:.7g}"
            )
        before = m.base_entropy if m.h_base is None else float(m.h_base.sum()) / total
        if _differ(before, m.base_entropy):
            problems.append(f"base_entropy at eta {m.eta!r} is {m.base_entropy:.7g}, h_base gives {before:.7g}")
        if run.score is not None and _differ(before, run.score.h_base_mean):
            problems.append(f"H_base_mean is {run.score.h_base_mean:.7g}, h_base gives {before:.7g}")
    return list(dict.fromkeys(problems))


def sound_runs(folder: str | os.PathLike[str], *, needs: Sequence[str] = ()) -> dict[str, Run]:
    """Load the runs of a batch folder that load, add up and record what is needed; warn about each that is left out.

    Parameters
    ----------
    folder
        A batch folder.
    needs
        What a run must support (see `Run.supports`).

    Raises
    ------
    RunError
        If no run is left.
    """
    runs = load_runs(folder, on_error="skip")
    reasons = {name: _reason_to_leave_out(run, needs) for name, run in runs.items()}
    for name, reason in reasons.items():
        if reason:
            warn_about_runs(f"skipped {name} of {Path(folder).name}: {reason}")
    kept = {name: run for name, run in runs.items() if not reasons[name]}
    if not kept:
        raise RunError(str(folder), "folder", "holds no run that can be used", "; ".join(reasons.values()))
    return kept


def sound_batches(data_root: str | os.PathLike[str]) -> dict[str, dict[str, Run]]:
    """Load every batch folder below a data root by `sound_runs`; warn about a batch that has no run left.

    Raises
    ------
    RunError
        If the folder is missing or holds no runs, or no batch has a run left.
    """
    batches: dict[str, dict[str, Run]] = {}
    for folder in sorted({path.parent.parent for path in result_files(data_root, depth=2)}):
        try:
            batches[folder.name] = sound_runs(folder)
        except RunError as error:
            warn_about_runs(f"skipped {folder.name}: {error}")
    if not batches:
        raise RunError(str(data_root), "folder", "holds no run that can be used")
    return batches


def _reason_to_leave_out(run: Run, needs: Sequence[str]) -> str:
    missing = [FIELDS_BEHIND[need] for need in needs if need not in run.supports]
    return "; ".join([*(f"{field} is not recorded" for field in missing), *integrity_problems(run)])


def _differ(one: float, other: float) -> bool:
    return not abs(one - other) <= TOTAL_TOLERANCE * max(abs(one), abs(other)) < np.inf
