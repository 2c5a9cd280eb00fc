"""Tables about runs: what is there, what each says in total, and how its contributions are spread."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from .checks import RunError, warn_about_runs
from .estimators import (
    columns,
    influence_values,
    per_sequence_contributions,
    standard_deviation,
    true_total_standard_error,
)
from .integrity import integrity_problems
from .pooling import known_eta, usable_runs
from .results_json import parse_run
from .run_files import read_content, result_files
from .runs import Run


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


def run_totals(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return the stored totals of each run at each eta.

    Parameters
    ----------
    batches
        Name of the batch folder -> name of the run -> run.

    Returns
    -------
    DataFrame
        Columns batch, run, eta, sequences, true, linear, true_se, linear_se (nats per token; missing where not
        recorded), ess_share (effective sample size over N).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> run_totals({"E_32": synthetic_runs(1, 32)})[["batch", "run", "eta", "sequences"]].to_dict("records")[0]
    {'batch': 'E_32', 'run': 'run_01', 'eta': 1.6e-06, 'sequences': 32}
    """
    rows = [
        {
            "batch": batch,
            "run": name,
            "eta": m.eta,
            "sequences": run.num_sequences,
            "true": m.delta_h_true,
            "linear": m.eta * run.delta_h_per_lr,
            **_standard_errors(run, m.eta),
            "ess_share": float(m.weights.sum() ** 2 / (m.weights @ m.weights)) / run.num_sequences,
        }
        for batch, runs in batches.items()
        for name, run in runs.items()
        for m in run.measurements
    ]
    return pd.DataFrame(rows).sort_values(["eta", "batch", "run"], ignore_index=True)


def contribution_table(runs: Mapping[str, Run], eta: float) -> pd.DataFrame:
    """Return contributions at one eta: columns run, true, linear (nats per token), a row for each sequence.

    Totals-only runs have none; they are left out with a warning.
    """
    parts = [pd.DataFrame({"run": [], "true": [], "linear": []}).astype({"run": str, "true": float, "linear": float})]
    for name in usable_runs(runs, [eta], 1)[known_eta(runs, eta)]:
        if "linear" not in runs[name].supports:
            warn_about_runs(f"skipped {name}: it has no per-sequence terms, only totals")
            continue
        true_seq, linear_seq = per_sequence_contributions(runs[name], eta)
        parts.append(pd.DataFrame({"run": name, "true": true_seq, "linear": linear_seq}))
    return pd.concat(parts, ignore_index=True)


def contribution_tails(contributions: pd.DataFrame) -> pd.DataFrame:
    """Return, for each run and kind, how spread out and how heavy-tailed its contributions are.

    Parameters
    ----------
    contributions
        From `contribution_table`.

    Returns
    -------
    DataFrame
        Columns run, kind ("true", "linear"), total and sd (nats per token), largest (in SDs from the mean),
        top_1pct_share (of the sum of squares about the mean, in the 1 % of sequences furthest out; 0.06 for a normal
        distribution).
    """
    rows = []
    for run, table in contributions.groupby("run"):
        for kind in ("true", "linear"):
            values = table[kind].to_numpy()
            squares = np.sort((values - values.mean()) ** 2)[::-1]
            top = squares[: max(1, len(squares) // 100)].sum() / squares.sum()
            sd = float(values.std(ddof=1))
            rows.append((run, kind, float(values.sum()), sd, float(np.sqrt(squares[0])) / sd, float(top)))
    return pd.DataFrame(rows, columns=["run", "kind", "total", "sd", "largest", "top_1pct_share"])


def _standard_errors(run: Run, eta: float) -> dict[str, float]:
    """Return the standard errors of the totals on a fresh batch of the run's size, NaN where they cannot be had."""
    true_se = true_total_standard_error(run, eta)
    linear_se = float("nan")
    if {"linear", "baseline_entropy"} <= set(run.supports) and run.num_sequences > 1:
        _, psi = influence_values(columns(run, eta, "ratio"))
        linear_se = standard_deviation(psi) / float(np.sqrt(len(psi)))
    return {"true_se": float("nan") if true_se is None else true_se, "linear_se": linear_se}


def _inventory_row(path: Path, seen: dict[bytes, str]) -> dict[str, object]:
    batch, name = path.parent.parent.name, path.parent.name
    row: dict[str, object] = {"batch": batch, "run": name, "sequences": None, "etas": (), "supports": "", "same_as": ""}
    try:
        content = read_content(path)
        row["same_as"] = seen.setdefault(hashlib.sha256(content).digest(), f"{batch}/{name}")
        if row["same_as"] == f"{batch}/{name}":
            row["same_as"] = ""
        run = parse_run(content, str(path))
    except RunError as error:
        return {
            **row,
            "problem": f"{error.field} {error.rule}" + ("" if error.value is None else f", got {error.value}"),
        }
    row |= {"sequences": run.num_sequences, "etas": run.etas, "supports": ", ".join(run.supports)}
    return {**row, "problem": "; ".join(integrity_problems(run))}
