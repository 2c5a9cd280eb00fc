"""Calibration over 10,000 batches whose answer is known: what the suite states, held against what comes out.

`calibrate` takes minutes, so its summary is stored with the package: `read_calibration` reads it, ``make calibration``
makes it anew. Batches are drawn in chunks, each from a stream of its own, so that the numbers are the same whatever the
number of processes, and any one chunk can be had again on its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .checks import checked_count
from .files import write_in_one_step
from .known_truth import (
    coverage_table,
    estimate_records,
    estimate_table,
    pit_records,
    plan_records,
    plan_table,
    verdict_records,
    verdict_table,
)
from .planning import Goal
from .prediction_check import pooled_check
from .replicates import ETA, batch_of, replicates, true_spread
from .unhealthy import HEALTHY, UNHEALTHY, flag_records, flag_table
from .verdict import SURPRISING

SEED = 0
CHUNKS = 125
PER_CHUNK = 80  # batches behind bias and coverage; so many that one draw of sequences serves them all
BINS = 20  # of the PIT
DIGITS = 4  # significant, as stored

FRESH, LARGE = 64, 512  # sequences
GOALS = (Goal(target_sd=0.25), Goal(tolerance=0.8))
ASKED, TAU_OF_VERDICTS = Goal(tolerance=0.5, probability=0.9), 0.2
BIASES, SIZES = (0.0, 0.3, 0.5, 0.75, 1.5), (64, 128, 165, 512)

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Calibration:
    """A stored calibration.

    Attributes
    ----------
    version, seed, batches
        Version of the package that made it, its seed, and the number of batches behind bias and coverage.
    tables
        Name -> table, as `calibrate` returns them.
    first_chunk
        The same tables from the first chunk alone.
    """

    version: str
    seed: int
    batches: int
    tables: Tables
    first_chunk: Tables


def calibrate(chunks: int = CHUNKS, *, seed: int = SEED, workers: int = 1) -> Tables:
    """Return what comes out where the answer is known, from ``chunks`` times 80 batches.

    Parameters
    ----------
    chunks
        Chunks to draw; the first ones are the same however many there are.
    seed
        Seed; each chunk has a stream of its own.
    workers
        Processes.

    Returns
    -------
    dict
        "estimates" (`bias_table`), "coverage" (`known_truth.coverage_table`), "pit" (`pit_table`), "uniformity"
        (`uniformity_table`), "plans" (`known_truth.plan_table`), "verdicts" (`known_truth.verdict_table`),
        "contradictions" (`contradiction_table`), "flags" (`unhealthy.flag_table`); each says how many cases are behind
        a row.
    """
    streams = np.random.SeedSequence(seed).spawn(checked_count(chunks, "chunks"))
    if checked_count(workers, "workers") == 1:
        found = [chunk_records(stream) for stream in streams]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(chunk_records, streams))
    return summary({name: pd.concat([each[name] for each in found], ignore_index=True) for name in found[0]})


def chunk_records(stream: np.random.SeedSequence) -> Tables:
    """Return what the batches of one chunk say, one by one.

    What is slow, or beside the main figures, comes from fewer: flags on healthy runs from half as many of each size;
    plans, verdicts and contradictions, with four large runs each, and flags on unhealthy runs from an eighth.
    """
    seeds = iter(int(state) for state in stream.generate_state(8))
    sampling_sd = true_spread() / math.sqrt(FRESH)
    eighth = PER_CHUNK // 8
    pits = [
        pit_records([0.0, sampling_sd], fresh_size=FRESH, large_size=LARGE, count=PER_CHUNK, seed=next(seeds)),
        pit_records([0.0], fresh_size=LARGE, large_size=LARGE, count=eighth, seed=next(seeds)),
    ]
    flags = [
        flag_records(HEALTHY, count=PER_CHUNK // 2, seed=next(seeds)),
        flag_records(UNHEALTHY, count=eighth, seed=next(seeds)),
    ]
    return {
        "estimates": estimate_records([64, 256], count=PER_CHUNK, seed=next(seeds)),
        "pits": pd.concat(pits, ignore_index=True),
        "plans": plan_records(GOALS, count=eighth, seed=next(seeds)),
        "verdicts": verdict_records(BIASES, SIZES, ASKED, tau=TAU_OF_VERDICTS, count=eighth, seed=next(seeds)),
        "contradictions": contradiction_records([0.0, sampling_sd], count=eighth, seed=next(seeds)),
        "flags": pd.concat(flags, ignore_index=True),
    }


def summary(records: Tables) -> Tables:
    """Return the tables of `calibrate`, from the records of all chunks."""
    pits = records["pits"]
    predicted = pits[pits["n"] == FRESH]
    return {
        "estimates": bias_table(records["estimates"]),
        "coverage": _counted(coverage_table(pits), pits, ["tau", "n"]),
        "pit": pit_table(predicted),
        "uniformity": uniformity_table(predicted),
        "plans": _counted(plan_table(records["plans"]), records["plans"], ["target_sd", "tolerance"]),
        "verdicts": _counted(verdict_table(records["verdicts"]), records["verdicts"], ["question", "setting"]),
        "contradictions": contradiction_table(records["contradictions"]),
        "flags": flag_table(records["flags"]),
    }


def bias_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return the bias of each estimator, from `known_truth.estimate_records`.

    Returns
    -------
    DataFrame
        Columns n, quantity, batches, bias and bias_error (its Monte-Carlo error, both in units of the true change),
        bias_z (the one over the other), sd_over_se (spread over batches over the closed form), covered (share of 95 %
        intervals of single batches that hold the exact value).
    """
    table = _counted(estimate_table(records), records, ["n", "quantity"]).rename(columns={"cases": "batches"})
    change = abs(float(table.loc[table["quantity"] == "true", "exact"].iloc[0]))
    unit = np.where(table["quantity"].isin(["err_rel", "partial_sum"]), 1.0, change)
    table["bias"] = (table["mean"] - table["exact"]) / unit
    table["bias_error"] = table["sd"] / np.sqrt(table["batches"]) / unit
    table["sd_over_se"] = table["sd"] / table["typical_se"]
    return table[["n", "quantity", "batches", "bias", "bias_error", "bias_z", "sd_over_se", "covered"]]


def pit_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return a histogram of the PIT: columns tau, low, high (of a bin), count."""
    edges = np.arange(BINS + 1) / BINS
    tables = [
        pd.DataFrame({"tau": tau, "low": edges[:-1], "high": edges[1:], "count": np.histogram(pits, edges)[0]})
        for tau, pits in records.groupby("tau", sort=False)["pit"]
    ]
    return pd.concat(tables, ignore_index=True)


def uniformity_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how far the PIT is from uniform.

    Returns
    -------
    DataFrame
        Columns tau, cases, distance (largest, between the shares found and stated to lie below any percentile), p_ks
        (Kolmogorov and Smirnov's of that distance), p_bins (of chi-square over the bins).
    """
    from scipy.stats import chisquare, kstest

    rows = []
    for tau, pits in records.groupby("tau", sort=False)["pit"]:
        found = kstest(pits.to_numpy(), "uniform")
        bins = chisquare(np.histogram(pits, BINS, (0.0, 1.0))[0])
        rows.append((tau, len(pits), float(found.statistic), float(found.pvalue), float(bins.pvalue)))
    return pd.DataFrame(rows, columns=["tau", "cases", "distance", "p_ks", "p_bins"])


def contradiction_records(taus: list[float], *, count: int, seed: int) -> pd.DataFrame:
    """Return whether four actual runs contradict the four large ones that predict them: columns tau, contradicted."""
    rows = []
    for tau in taus:
        for each in replicates(count, num_large=8, large_size=LARGE, fresh_size=2, tau=tau, seed=seed):
            names = list(each.large)
            large = {name: each.large[name] for name in names[:4]}
            small = {name: batch_of(each.large[name], 0, FRESH) for name in names[4:]}
            check = pooled_check(large, small, ETA)
            rows.append((tau, min(check.p_sum_z2, check.p_mean_z) < SURPRISING))
    return pd.DataFrame(rows, columns=["tau", "contradicted"])


def contradiction_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how often actual runs contradict a prediction that is right: columns tau, cases, contradicted (share)."""
    found = records.groupby("tau", sort=False)["contradicted"]
    return found.agg(cases="size", contradicted="mean").reset_index()


def write_calibration(path: Path, *, chunks: int = CHUNKS, seed: int = SEED, workers: int = 1) -> None:
    """Make a calibration and write its summary to ``path``."""
    from analysis_helpers import __version__

    content = {
        "version": __version__,
        "seed": seed,
        "batches": chunks * PER_CHUNK,
        "first_chunk": stored(calibrate(1, seed=seed)),
        "tables": stored(calibrate(chunks, seed=seed, workers=workers)),
    }
    text = json.dumps({**content, "digest": digest(content)}, separators=(",", ":"), allow_nan=False)
    write_in_one_step(path, text.replace("],[", "],\n[") + "\n")  # a row a line, so that a change can be read


def calibration_file() -> Path:
    """Return where the stored calibration is."""
    return Path(str(files("analysis_helpers"))) / "data" / "calibration.json"


def read_calibration(path: Path | None = None) -> Calibration:
    """Return the calibration that is stored with the package, or the one in ``path``.

    Raises
    ------
    ValueError
        If the file was changed after it was made.

    Examples
    --------
    >>> found = read_calibration()
    >>> found.batches, sorted(found.tables)[:3]
    (10000, ['contradictions', 'coverage', 'estimates'])
    """
    source = calibration_file() if path is None else path
    content = json.loads(source.read_text(encoding="utf-8"))
    if content.pop("digest", None) != digest(content):
        raise ValueError(f"{source}: digest must be that of the content; the file was changed after it was made")
    frames = {
        part: {name: pd.DataFrame(table["rows"], columns=table["columns"]) for name, table in content[part].items()}
        for part in ("tables", "first_chunk")
    }
    return Calibration(content["version"], content["seed"], content["batches"], **frames)


def stored(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return tables as they are stored: numbers to `DIGITS` significant digits, what is missing as None."""
    rounded = partial(_rounded, digits=DIGITS)
    return {
        name: {
            "columns": table.columns.tolist(),
            "rows": [[rounded(value) for value in row] for row in table.astype(object).to_numpy().tolist()],
        }
        for name, table in tables.items()
    }


def digest(content: Mapping[str, Any]) -> str:
    """Return a digest of the content, whatever its line breaks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _counted(table: pd.DataFrame, records: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the table with the number of records behind each row."""
    cases = records.groupby(keys, sort=False, dropna=False).size().rename("cases").reset_index()
    return table.merge(cases, on=keys, how="left", validate="many_to_one")


def _rounded(value: object, digits: int) -> object:
    if isinstance(value, float):
        return float(f"{value:.{digits - 1}e}") if math.isfinite(value) else None
    return value
