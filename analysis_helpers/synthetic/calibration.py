"""The stored calibration of the suite: what it says, against known truth, over 10,000 batches.

``make calibration`` makes it anew from batches of a small policy (see ``tests/calibration``).
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

CALIBRATION_FILE = Path(__file__).parent.parent / "data" / "calibration.json"


def read_calibration() -> dict[str, pd.DataFrame]:
    """Return the tables of the calibration that is stored with the package, by name.

    Examples
    --------
    >>> sorted(read_calibration())[:3]
    ['contradictions', 'coverage', 'estimates']
    """
    tables = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))["tables"]
    return {name: pd.DataFrame(table["rows"], columns=table["columns"]) for name, table in tables.items()}


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
