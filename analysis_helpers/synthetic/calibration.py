"""The stored calibration: results of the package against known truth, over 10,000 batches.

``make calibration`` recomputes it from batches of a small policy (see ``tests/calibration``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

_FEWEST_CASES = 50
CALIBRATION_FILE = Path(__file__).parent.parent / "data" / "calibration.json"


def read_calibration() -> dict[str, pd.DataFrame]:
    """Return the tables of the calibration that is stored with the package, by name.

    Examples
    --------
    >>> sorted(read_calibration())[:3]
    ['answers', 'chances', 'contradictions']
    """
    tables = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))["tables"]
    return {name: pd.DataFrame(table["rows"], columns=table["columns"]) for name, table in tables.items()}


def answer_overview(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each question and number of runs, the worst rates of false answers and the rates of true ones.

    Parameters
    ----------
    table
        The table "answers" of `read_calibration`: a row for each setting, with the true answer.

    Settings with fewer than 50 cases, of updates that are rare, are left out.

    Returns
    -------
    DataFrame
        Columns question, runs, false_yes, false_no (shares, the largest over settings), true_yes, true_no (mean over
        settings).

    Examples
    --------
    >>> answer_overview(read_calibration()["answers"])["runs"].unique().tolist()
    [1, 2, 3, 4, 8]
    """
    table = table[table["cases"] >= _FEWEST_CASES]
    right, wrong = table["truth"] == "yes", table["truth"] == "no"
    rates = table[["question", "runs"]].assign(
        false_yes=table["yes"].where(wrong),
        false_no=table["no"].where(right),
        true_yes=table["yes"].where(right),
        true_no=table["no"].where(wrong),
    )
    over = {"false_yes": "max", "false_no": "max", "true_yes": "mean", "true_no": "mean"}
    return rates.groupby(["question", "runs"]).agg(over).reset_index()


def flag_overview(table: pd.DataFrame) -> pd.DataFrame:
    """Return how often each health check flags healthy runs, and runs with a fault that it should detect.

    Parameters
    ----------
    table
        The table "flags" of `read_calibration`.

    Returns
    -------
    DataFrame
        Columns check, one per condition of healthy runs (share flagged), unhealthy (the fault injected), seen (share
        flagged).
    """
    healthy = table[table["condition"].str.startswith("healthy")]
    alarms = healthy.pivot_table(index="check", columns="condition", values="flagged", sort=False).reset_index()
    seen = table[table["wanted"]].rename(columns={"condition": "unhealthy", "flagged": "seen"})
    return alarms.merge(seen[["check", "unhealthy", "seen"]], on="check", how="left").rename_axis(columns=None)
