"""Tables about runs: what is there, and whether each run agrees with itself."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pandas as pd

from .checks import RunError
from .estimators import per_sequence_contributions
from .results_json import parse_run
from .run_files import read_bytes, result_files
from .runs import Run

TOTAL_TOLERANCE = 1e-6
"""Largest relative difference between a stored total and the sum of its contributions."""


def inventory(data_root: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a row for each ``batch/run/results.json`` below ``data_root``; a bad file is listed, not raised.

    Returns
    -------
    DataFrame
        Columns batch, run, sequences (missing where the file cannot be used), etas, supports (see `Run.supports`),
        same_as (an earlier row with the same content, or empty) and problem (empty where there is none).

    Raises
    ------
    RunError
        If the folder is missing or holds no runs; the message says what was looked for and what is there.

    Examples
    --------
    >>> import tempfile
    >>> from analysis_helpers import synthetic_runs, write_run
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_run(f"{root}/E_32/run_01/results.json", synthetic_runs(1, 32)["run_01"])
    ...     inventory(root)[["batch", "run", "sequences", "problem"]].to_dict("records")
    [{'batch': 'E_32', 'run': 'run_01', 'sequences': 32, 'problem': ''}]
    """
    seen: dict[bytes, str] = {}
    rows = [_inventory_row(path, seen) for path in result_files(data_root, depth=2)]
    return pd.DataFrame(rows).astype({"sequences": "Int64"})


def integrity_problems(run: Run) -> list[str]:
    """Return what in a run does not add up, a sentence each: totals against the sums of their contributions.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> integrity_problems(synthetic_runs(1, 32)["run_01"])
    []
    """
    problems = []
    if run.scale is not None and _differ(run.scale * run.total_tokens, 1.0):
        problems.append(
            f"approx.per_sequence_meta.scale is {run.scale:.7g}, one over all tokens is {1 / run.total_tokens:.7g}"
        )
    if run.gdotv is None:
        return problems
    if _differ(float(run.gdotv.sum()), run.delta_h_per_lr):
        problems.append(
            f"approx.delta_h_per_lr is {run.delta_h_per_lr:.7g}, its contributions sum to {run.gdotv.sum():.7g}"
        )
    for m in run.measurements:
        true_sum = float(per_sequence_contributions(run, m.eta)[0].sum())
        if _differ(true_sum, m.delta_h_true):
            problems.append(
                f"delta_h_true at eta {m.eta!r} is {m.delta_h_true:.7g}, its contributions sum to {true_sum:.7g}"
            )
    return problems


def _inventory_row(path: Path, seen: dict[bytes, str]) -> dict[str, object]:
    batch, name = path.parent.parent.name, path.parent.name
    row: dict[str, object] = {"batch": batch, "run": name, "sequences": None, "etas": (), "supports": "", "same_as": ""}
    try:
        data = read_bytes(path)
        row["same_as"] = seen.setdefault(hashlib.sha256(data).digest(), f"{batch}/{name}")
        if row["same_as"] == f"{batch}/{name}":
            row["same_as"] = ""
        run = parse_run(data, str(path))
    except RunError as error:
        return {
            **row,
            "problem": f"{error.field} {error.rule}" + ("" if error.value is None else f", got {error.value}"),
        }
    row |= {"sequences": run.num_sequences, "etas": run.etas, "supports": ", ".join(run.supports)}
    return {**row, "problem": "; ".join(integrity_problems(run))}


def _differ(one: float, other: float) -> bool:
    return not abs(one - other) <= TOTAL_TOLERANCE * max(abs(one), abs(other))
