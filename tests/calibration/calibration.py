"""Calibration over 10,000 batches whose answer is known: what the package states against what comes out.

`calibrate` takes half an hour of one core, so its summary is stored with the package: `read_calibration` reads it,
``make calibration`` writes it. Batches are drawn in chunks, each from a stream of its own, so that the numbers are the
same for any number of processes, and any one chunk can be drawn again on its own.

Flags of health are counted on healthy runs, and on runs with a fault injected to measure each check's detection rate.
Each fault is as strong as its name says; a weaker one is detected less often.
"""

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis_helpers._checks import FloatArray, RunWarning, checked_count
from analysis_helpers.inference import run_health
from analysis_helpers.inference.prediction import agreement_with_prediction, pooled_err_rel
from analysis_helpers.inference.verdicts import SURPRISING
from analysis_helpers.runs import Measurement, Run, Runs, write_in_one_step
from analysis_helpers.synthetic.runs import with_log_weights as add_to_log_weights
from tests.calibration.answers import (
    answer_records,
    answer_table,
    chance_records,
    chance_table,
    coverage_of_means_table,
    coverage_records,
    single_records,
    single_table,
    soundness_records,
    soundness_table,
    world_answer_records,
)
from tests.calibration.drawing import (
    ETA,
    batch_of,
    enough_records,
    named,
    replicates,
    true_spread,
    world,
)
from tests.calibration.records import (
    LARGE,
    Goal,
    coverage_table,
    estimate_records,
    estimate_table,
    pit_records,
    plan_records,
    plan_table,
)
from tests.calibration.samplers import sampler_records, sampler_table


def with_log_weights(run: Run, change: FloatArray) -> Run:
    """Return the run with ``change``, shape ``(N,)``, added to its log weights at every eta; totals follow."""
    return add_to_log_weights(run, dict.fromkeys(run.etas, change))


Tables = dict[str, pd.DataFrame]
Alteration = Callable[[Run, np.random.Generator], Run]


def _added(change: Callable[[FloatArray, np.random.Generator], FloatArray]) -> Alteration:
    """Return the alteration that adds ``change(log_weights, rng)`` to the log weights."""
    return lambda run, rng: with_log_weights(run, change(np.asarray(run.measurements[0].log_weights), rng))


def _each(change: Callable[[Run, Measurement], dict[str, Any]]) -> Alteration:
    """Return the alteration that replaces fields of each measurement."""
    return lambda run, _: dataclasses.replace(
        run, measurements=tuple(dataclasses.replace(m, **change(run, m)) for m in run.measurements)
    )


def _higher(share: float) -> Alteration:
    """Return the alteration that raises entropies after the step by a share."""

    def raised(run: Run, m: Measurement) -> dict[str, Any]:
        h_new = (1 + share) * m.h_new
        delta = float(m.weights @ h_new / (m.weights @ run.token_counts)) - m.base_entropy
        return {"h_new": h_new, "delta_h_true": delta}

    return _each(raised)


def _in_bits(run: Run, m: Measurement) -> dict[str, Any]:
    h_base, h_new = (np.asarray(sums) / math.log(2) for sums in (m.h_base, m.h_new))
    delta, entropy = m.delta_h_true / math.log(2), m.base_entropy / math.log(2)
    return {"h_base": h_base, "h_new": h_new, "delta_h_true": delta, "base_entropy": entropy}


def _skipped(run: Run, m: Measurement) -> dict[str, Any]:
    even = np.full(run.n, 1 / run.n)
    return {"h_new": np.asarray(m.h_base), "weights": even, "log_weights": 0 * even, "delta_h_true": 0.0}


def _in_another_order(run: Run, rng: np.random.Generator) -> Run:
    """Return the run with log-probabilities in another order, among sequences of the same length."""
    logp = np.asarray(run.logp).copy()
    for length in np.unique(run.token_counts):
        same = np.flatnonzero(run.token_counts == length)
        logp[same] = logp[rng.permutation(same)]
    return dataclasses.replace(run, logp=logp)


def _sampled_otherwise(run: Run, rng: np.random.Generator) -> Run:
    """Return the run with a sampler whose log-probability of a token is another, by 0.15 nats at random."""
    other = np.asarray(run.logp) + 0.15 * np.sqrt(run.token_counts) * rng.normal(size=run.n)
    return dataclasses.replace(run, sampler_logp=np.minimum(other, 0.0))


def _with_other_weights(run: Run, rng: np.random.Generator) -> Run:
    # Weights of twice the step beside log weights of the step.
    logs = np.asarray(run.measurements[0].log_weights)
    return _each(lambda _, m: {"log_weights": logs})(with_log_weights(run, logs), rng)


@dataclass(frozen=True)
class Condition:
    """How runs are made and altered, and the checks that should raise a flag (``wanted``)."""

    n: int = 512
    wanted: tuple[str, ...] = ()
    temperature: float = 1.0
    etas: tuple[float, ...] = (ETA,)
    alter: Alteration = lambda run, rng: run


FIVE = tuple(factor * ETA for factor in (0.5, 1.0, 2.0, 4.0, 8.0))
HEALTHY = {f"healthy, {n} sequences": Condition(n) for n in (128, 512, 2048)}
FAULTY = (
    {
        "sampled at temperature 0.98, 256 sequences": Condition(256, ("log_probability_excess_z",), temperature=0.98),
        "sampled at temperature 0.98, 2048 sequences": Condition(2048, ("score_z",), temperature=0.98),
        "sampled at temperature 0.95": Condition(512, ("score_z", "log_probability_excess_z"), temperature=0.95),
        "log weights rounded to 1/64 nat": Condition(
            512, ("noise_share",), alter=_added(lambda logs, _: np.round(64 * logs) / 64 - logs)
        ),
        "log weights with noise of 0.05 nats": Condition(
            512, ("noise_share", "step_error"), alter=_added(lambda logs, rng: rng.normal(0, 0.05, len(logs)))
        ),
        "ratios reversed": Condition(512, ("log_weight_slope",), alter=_added(lambda logs, _: -2 * logs)),
        "weights of another step": Condition(512, ("weights_agree",), alter=_with_other_weights),
        "log-probabilities in another order": Condition(512, ("entropy_slope",), alter=_in_another_order),
        "a sampler that differs by 0.15 nats a token": Condition(512, ("sampler_mismatch",), alter=_sampled_otherwise),
        "entropies in bits": Condition(512, ("entropy_mismatch",), alter=_each(_in_bits)),
    }
    | {
        f"entropies {share:.1%} higher after the step, {n} sequences": Condition(
            n, ("offset_z",), etas=FIVE, alter=_higher(share)
        )
        for share, n in ((0.02, 512), (0.005, 256), (0.002, 256))
    }
    | {
        f"entropies 2.0% higher after the step, {count} etas": Condition(
            512, ("offset_z",), etas=FIVE[:count], alter=_higher(0.02)
        )
        for count in (2, 3)
    }
    | {
        "a step that was skipped": Condition(512, ("unchanged",), alter=_each(_skipped)),
        "a step 400 times as large": Condition(512, ("ess_share",), etas=(400 * ETA,)),
        "weights with a Pareto tail of shape 1.5": Condition(
            512, ("pareto_k",), alter=_added(lambda logs, rng: rng.exponential(1.5, len(logs)))
        ),
        "one sequence with half the weight": Condition(  # as much as all others together
            512,
            ("ess_share", "largest_weight_share"),
            alter=_added(lambda logs, _: np.eye(len(logs))[0] * math.log(len(logs))),
        ),
        "a total off by 1%": Condition(
            512, ("integrity",), alter=lambda run, _: dataclasses.replace(run, delta_h_per_lr=1.01 * run.delta_h_per_lr)
        ),
    }
)


def flag_records(conditions: Mapping[str, Condition], *, count: int, seed: int) -> pd.DataFrame:
    """Return every flag on ``count`` batches of each condition: columns condition, check, wanted, flag."""
    tables = []
    for name, condition in conditions.items():
        n, rng = condition.n, np.random.default_rng([seed, 1])
        made = world(count * n, seed, etas=condition.etas, temperature=condition.temperature)
        runs = {f"run_{k}": condition.alter(batch_of(made, k * n, n), rng) for k in range(count)}
        flags = run_health(runs)[["check", "flag"]]
        tables.append(flags.assign(condition=name, wanted=flags["check"].isin(condition.wanted)))
    return pd.concat(tables, ignore_index=True)[["condition", "check", "wanted", "flag"]]


def flag_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how often each check raises a flag (``flagged``, a share of runs), from `flag_records`."""
    found = records.groupby(["condition", "check", "wanted"], sort=False)["flag"]
    return found.agg(runs="size", flagged="mean").reset_index()


SEED = 0
CHUNKS = 40
PER_CHUNK = 250  # batches behind bias and coverage; so many that one draw of sequences serves them all
BINS = 20  # of the PIT
DIGITS = 4  # significant, as stored

FRESH = 64  # sequences
GOALS = (Goal(target_sd=0.25), Goal(tolerance=0.8))
SIZES = (64, 128, 165, 512)


EIGHTH = PER_CHUNK // 8
# Table -> what draws its records, each with a seed of its own. What is slow, or beside the main figures, comes from
# fewer batches.
_DRAWS: dict[str, tuple[Callable[[int], pd.DataFrame], ...]] = {
    "pits": (
        lambda seed: pit_records([0.0, _sampling_sd()], fresh_size=FRESH, count=PER_CHUNK, seed=seed),
        lambda seed: pit_records([0.0], fresh_size=LARGE, count=EIGHTH, seed=seed),
    ),
    "flags": (
        lambda seed: flag_records(HEALTHY, count=PER_CHUNK // 2, seed=seed),
        lambda seed: flag_records(FAULTY, count=EIGHTH, seed=seed),
    ),
    "estimates": (lambda seed: estimate_records([64, 256], count=PER_CHUNK, seed=seed),),
    "plans": (lambda seed: plan_records(GOALS, count=PER_CHUNK // 16, seed=seed),),
    "enough": (lambda seed: enough_records(SIZES, tau=0.2, count=EIGHTH, seed=seed),),
    "contradictions": (lambda seed: contradiction_records([0.0, _sampling_sd()], count=EIGHTH, seed=seed),),
    "answers": (
        lambda seed: answer_records(count=5, seed=seed),
        lambda seed: world_answer_records(count=5, seed=seed),
    ),
    "updates": (lambda seed: coverage_records(count=5, seed=seed),),
    "singles": (lambda seed: single_records(count=PER_CHUNK // 10, seed=seed),),
    "chances": (lambda seed: chance_records(count=13, seed=seed),),
    "soundness": (lambda seed: soundness_records(count=PER_CHUNK // 16, seed=seed),),
    "samplers": (lambda seed: sampler_records(count=2, seed=seed),),
}
RECORDS = tuple(_DRAWS)


def _sampling_sd() -> float:
    return true_spread() / math.sqrt(FRESH)


def calibrate(chunks: int = CHUNKS, *, seed: int = SEED, workers: int = 1, records: Sequence[str] = RECORDS) -> Tables:
    """Return what comes out where the answer is known, from ``chunks`` times 250 batches, on so many processes.

    Each chunk has a stream of its own: the first ones are the same however many there are, and whatever ``records`` are
    drawn. Each table says how many cases are behind a row.
    """
    streams = np.random.SeedSequence(seed).spawn(checked_count(chunks, "chunks"))
    draw = partial(chunk_records, records=records)
    if checked_count(workers, "workers") == 1:
        found = [draw(stream) for stream in streams]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(draw, streams))
    return summary({name: pd.concat([each[name] for each in found], ignore_index=True) for name in records})


def chunk_records(stream: np.random.SeedSequence, records: Sequence[str] = RECORDS) -> Tables:
    """Return what the batches of one chunk say, one by one."""
    seeds = iter(map(int, stream.generate_state(sum(map(len, _DRAWS.values())))))
    seeds_of = {name: [next(seeds) for _ in draws] for name, draws in _DRAWS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)  # a weak reference is one of the things to be measured
        return {
            name: pd.concat(
                [draw(seed) for draw, seed in zip(_DRAWS[name], seeds_of[name], strict=True)], ignore_index=True
            )
            for name in records
        }


# Table -> the records that it is made from, and how.
_SUMMARIES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "estimates": ("estimates", lambda records: bias_table(records)),
    "coverage": ("pits", lambda records: _counted(coverage_table(records), records, ["tau", "n"])),
    "pit": ("pits", lambda records: pit_table(records[records["n"] == FRESH])),
    "plans": ("plans", lambda records: _counted(plan_table(records), records, ["target_sd", "tolerance"])),
    "enough": ("enough", lambda records: answer_table(records, ["n", "within", "truth"])),
    "flags": ("flags", lambda records: flag_table(records)),
    "chances": ("chances", chance_table),
    "contradictions": ("contradictions", lambda records: contradiction_table(records)),
    "answers": ("answers", answer_table),
    "updates": ("updates", coverage_of_means_table),
    "singles": ("singles", single_table),
    "soundness": ("soundness", soundness_table),
    "samplers": ("samplers", sampler_table),
}


def summary(records: Tables) -> Tables:
    """Return the tables of `calibrate` that these records of all chunks give."""
    return {name: made(records[source]) for name, (source, made) in _SUMMARIES.items() if source in records}


def bias_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return the bias of each estimator and its Monte-Carlo error, in units of the true change.

    ``sd_over_se`` is the spread over batches over the closed form, ``covered`` the share of 95 % intervals of single
    batches that hold the exact value.
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


def contradiction_records(taus: list[float], *, count: int, seed: int) -> pd.DataFrame:
    """Return whether four actual runs contradict the four large ones that predict them: columns tau, contradicted."""
    rows = []
    for tau in taus:
        for *runs, _ in replicates(count, [LARGE] * 8 + [2], tau=tau, seed=seed):
            large, small = Runs(named(runs[:4])), Runs(named([batch_of(run, 0, FRESH) for run in runs[4:]]))
            found = agreement_with_prediction(pooled_err_rel(large, ETA), large, small)
            rows.append((tau, found is not None and min(found.p_spread, found.p_mean) < SURPRISING))
    return pd.DataFrame(rows, columns=["tau", "contradicted"])


def contradiction_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how often actual runs contradict a prediction that is right: columns tau, cases, contradicted (share)."""
    found = records.groupby("tau", sort=False)["contradicted"]
    return found.agg(cases="size", contradicted="mean").reset_index()


def write_calibration(
    path: Path, *, chunks: int = CHUNKS, seed: int = SEED, workers: int = 1, records: Sequence[str] = RECORDS
) -> None:
    """Make a calibration and write its summary to ``path``; tables of other ``records`` are kept as they are there."""
    from analysis_helpers import __version__

    kept: dict[str, Any] = {"first_chunk": {}, "tables": {}}
    if set(records) < set(RECORDS):
        kept = json.loads(path.read_text(encoding="utf-8"))
    made = {
        "first_chunk": stored(calibrate(1, seed=seed, records=records)),
        "tables": stored(calibrate(chunks, seed=seed, workers=workers, records=records)),
    }
    content = {
        "version": __version__,
        "seed": seed,
        "batches": chunks * PER_CHUNK,
        **{
            part: {name: tables.get(name, kept[part].get(name)) for name in _SUMMARIES} for part, tables in made.items()
        },
    }
    text = json.dumps({**content, "digest": digest(content)}, separators=(",", ":"), allow_nan=False)
    write_in_one_step(path, text.replace("],[", "],\n[") + "\n")  # a row a line, so that a change can be read


def digest(content: Mapping[str, Any]) -> str:
    """Return a digest of the content that does not depend on line breaks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stored(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return tables as they are stored: numbers to `DIGITS` significant digits, what is missing as None."""

    def rounded(value: object) -> object:
        if not isinstance(value, float):
            return value
        return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else None

    found = {}
    for name, table in tables.items():
        rows = [[rounded(value) for value in row] for row in table.astype(object).to_numpy().tolist()]
        found[name] = {"columns": table.columns.tolist(), "rows": rows}
    return found


def _counted(table: pd.DataFrame, records: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the table with the number of records behind each row."""
    cases = records.groupby(keys, sort=False, dropna=False).size().rename("cases").reset_index()
    return table.merge(cases, on=keys, how="left", validate="many_to_one")
