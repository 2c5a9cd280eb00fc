"""The page of a sweep: a map of verdicts, the key figure of every rerun, and a table that links to all of them.

It needs no server and no scripts, and loads nothing from a network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .answers import QUESTIONS
from .files import write_in_one_step
from .sweep import FIGURES, INDEX, PAGES, Outcome
from .sweep_tables import PARAMETER


def write_sweep_page(outcomes: Sequence[Outcome], skipped: Mapping[str, str], results: pd.DataFrame, out: Path) -> Path:
    """Write ``out/index.html`` and return its path.

    Parameters
    ----------
    outcomes
        How the reruns ended.
    skipped
        Notebooks left out, with the reason.
    results
        From `sweep_tables.results_table`.
    out
        Folder of the sweep.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("analysis_helpers"), autoescape=True)
    rows = [_row(outcome, out) for outcome in sorted(outcomes, key=lambda outcome: outcome.rerun.place)]
    page = environment.get_template("sweep.html").render(
        counts=Counter(outcome.status for outcome in outcomes),
        skipped=skipped,
        maps=[found for column, title in QUESTIONS.items() if (found := _verdict_map(results, column, title))],
        names=[
            name for name in dict.fromkeys(name for row in rows for name in row["parameters"]) if name != "data_root"
        ],
        data_roots=sorted({row["parameters"]["data_root"] for row in rows if "data_root" in row["parameters"]}),
        rows=rows,
    )
    write_in_one_step(out / INDEX, page)
    return out / INDEX


def _row(outcome: Outcome, out: Path) -> dict[str, Any]:
    name = outcome.rerun.name
    figure = f"{FIGURES}/{name}.png"
    return {
        "notebook": outcome.rerun.source.stem,
        "parameters": {key: _shown(value) for key, value in outcome.rerun.parameters.items()},
        "status": outcome.status,
        "error": outcome.error,
        "seconds": f"{outcome.seconds:.1f}",
        "page": f"{PAGES}/{name}.html",
        "figure": figure if (out / figure).is_file() and not outcome.error else "",
    }


def _verdict_map(results: pd.DataFrame, column: str, title: str) -> dict[str, Any] | None:
    """Return the answers by eta (rows) and batch size (columns); None where no notebook of the sweep gives them."""
    eta, size = f"{PARAMETER}eta", f"{PARAMETER}subset_size"
    if not {eta, size, column} <= set(results.columns):
        return None
    given = results.dropna(subset=[eta, size, column])
    if given.empty:
        return None
    etas, sizes = sorted(given[eta].unique()), sorted(given[size].unique())
    cells = [
        [_answer(given.loc[(given[eta] == one) & (given[size] == other), column].tolist()) for other in sizes]
        for one in etas
    ]
    return {
        "title": title,
        "sizes": [f"{n:,.0f}" for n in sizes],
        "rows": [{"eta": f"{one:g}", "cells": row} for one, row in zip(etas, cells, strict=True)],
    }


def _answer(answers: Sequence[str]) -> dict[str, str]:
    """Return what a cell says, and its class: that of the answer where all reruns agree."""
    if not answers:
        return {"text": "", "kind": ""}
    counts = Counter(answers)
    if len(counts) == 1:
        return {"text": answers[0], "kind": answers[0].replace(" ", "-")}
    return {"text": ", ".join(f"{count} x {answer}" for answer, count in sorted(counts.items())), "kind": "cannot-tell"}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
