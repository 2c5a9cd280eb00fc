"""What a sweep found, as two tables: every estimate, and how every rerun went."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .files import write_in_one_step
from .pages import collected_result
from .sweep import Outcome

PARAMETER = "param."  # before the name of a parameter, so that it is not taken for an estimate


def results_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row for each notebook, set of parameters and estimate, from the results that notebooks collect.

    Returns
    -------
    DataFrame
        Columns notebook, ``param.`` and the name of each parameter of the notebook, then its estimates. The same
        whatever the number of workers, the order in which notebooks finished, and the working folder: a data root is
        given as seen from the folder of the notebook.
    """
    rows: list[dict[str, Any]] = []
    for outcome in _sorted(outcomes):
        result = _result(outcome)
        given = _wherever_it_lies(result.get("parameters", {}), outcome.rerun.source.parent)
        parameters = {f"{PARAMETER}{name}": _cell(value) for name, value in sorted(given.items())}
        for row in result.get("rows", []):
            estimates = {name: _cell(value) for name, value in row.items()}
            rows.append({"notebook": outcome.rerun.source.stem, **parameters, **estimates})
    names = list(dict.fromkeys(name for row in rows for name in row))
    first = ["notebook", *sorted(name for name in names if name.startswith(PARAMETER))]
    return pd.DataFrame(rows, columns=first + [name for name in names if name not in first])


def runlog_table(outcomes: Sequence[Outcome], version: str) -> pd.DataFrame:
    """Return a row for each rerun: file, notebook, parameters, status, seconds, error, package version, git commit."""
    commit = _commit()
    rows = [
        {
            "file": f"{outcome.rerun.name}.ipynb",
            "notebook": outcome.rerun.source.stem,
            "parameters": json.dumps(outcome.rerun.parameters, sort_keys=True),
            "status": outcome.status,
            "seconds": round(outcome.seconds, 3),
            "error": outcome.error,
            "version": version,
            "commit": commit,
        }
        for outcome in _sorted(outcomes)
    ]
    return pd.DataFrame(rows)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, numbers with 10 significant digits, in one step."""
    write_in_one_step(path, table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def _sorted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.rerun.place)


def _result(outcome: Outcome) -> dict[str, Any]:
    import nbformat

    return collected_result(nbformat.read(outcome.path, as_version=4))


def _wherever_it_lies(parameters: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return parameters with the data root as a path from the notebook's folder, the same in every checkout."""
    found = dict(parameters)
    if "data_root" in found:
        found["data_root"] = Path(os.path.relpath(folder / found["data_root"], folder)).as_posix()
    return found


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _commit() -> str:
    """Return the commit that the package is at; empty where it is not in a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
