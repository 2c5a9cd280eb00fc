"""Runs made unhealthy in a known way, and how often checks of health see it: on these runs, and on healthy ones.

Each ailment is one that real runs may have, made as strong as its name says; a weaker one is seen less often.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .checks import FloatArray
from .estimators import scores
from .health import run_health
from .replicates import ETA, batch_of, world
from .runs import Run


def with_log_weights(run: Run, change: FloatArray) -> Run:
    """Return the run as it would be with ``change``, shape ``(N,)``, added to its log weights; totals follow.

    Raises
    ------
    ValueError
        If the run does not record the score, ``h_base`` and ``log_weights``.
    """
    if run.score is None or any(m.h_base is None or m.log_weights is None for m in run.measurements):
        raise ValueError("run must record the score, h_base and log_weights")
    made = Run.from_arrays(
        token_counts=run.token_counts,
        h_base=np.asarray(run.measurements[0].h_base),
        h_new={m.eta: m.h_new for m in run.measurements},
        log_weights={m.eta: np.asarray(m.log_weights) + change for m in run.measurements},
        score=scores(run),
        wjlogp_sum=run.score.wjlogp_sum,
        jH_sum=run.score.jH_sum,
    )
    return dataclasses.replace(made, shard_errors=run.shard_errors)


def _untouched(run: Run, rng: np.random.Generator) -> Run:
    return run


def _rounded(run: Run, rng: np.random.Generator) -> Run:
    log_weights = np.asarray(run.measurements[0].log_weights)
    return with_log_weights(run, np.round(64 * log_weights) / 64 - log_weights)


def _noisy(run: Run, rng: np.random.Generator) -> Run:
    return with_log_weights(run, rng.normal(0.0, 0.05, run.num_sequences))


def _heavy_tailed(run: Run, rng: np.random.Generator) -> Run:
    return with_log_weights(run, rng.exponential(size=run.num_sequences))


def _one_heavy(run: Run, rng: np.random.Generator) -> Run:
    change = np.zeros(run.num_sequences)
    change[0] = math.log(run.num_sequences)  # as much as all others together
    return with_log_weights(run, change)


def _altered_total(run: Run, rng: np.random.Generator) -> Run:
    return dataclasses.replace(run, delta_h_per_lr=1.01 * run.delta_h_per_lr)


def _error_of_the_total(run: Run, rng: np.random.Generator) -> Run:
    errors = (dataclasses.replace(each, value=each.value * each.num_shards) for each in run.shard_errors)
    return dataclasses.replace(run, shard_errors=tuple(errors))


@dataclass(frozen=True)
class Condition:
    """How runs are made: their sequences, how these are sampled, how far the step goes, what is done afterwards.

    Attributes
    ----------
    wanted
        Checks that should raise a flag.
    """

    n: int = 512
    wanted: tuple[str, ...] = ()
    temperature: float = 1.0
    eta: float = ETA
    alter: Callable[[Run, np.random.Generator], Run] = _untouched


HEALTHY = {f"healthy, {n} sequences": Condition(n) for n in (128, 512, 2048)}
UNHEALTHY = {
    "sampled at temperature 0.98, 2048 sequences": Condition(2048, ("score_z",), temperature=0.98),
    "sampled at temperature 0.95": Condition(wanted=("score_z",), temperature=0.95),
    "log weights rounded to 1/64 nat": Condition(wanted=("noise_share",), alter=_rounded),
    "log weights with noise of 0.05 nats": Condition(wanted=("noise_share", "step_error"), alter=_noisy),
    "a step 250 times as large": Condition(wanted=("ess_share",), eta=250 * ETA),
    "weights with a Pareto tail of shape 1": Condition(wanted=("pareto_k",), alter=_heavy_tailed),
    "one sequence with half the weight": Condition(
        wanted=("ess_share", "largest_weight_share", "pareto_k"), alter=_one_heavy
    ),
    "a total off by 1%": Condition(wanted=("integrity",), alter=_altered_total),
    "a stored error of the total": Condition(wanted=("stored_error",), alter=_error_of_the_total),
}


def flag_records(conditions: Mapping[str, Condition], *, count: int, seed: int) -> pd.DataFrame:
    """Return every flag on ``count`` batches of each condition: columns condition, check, wanted, flag."""
    tables = []
    for name, condition in conditions.items():
        n, rng = condition.n, np.random.default_rng([seed, 1])
        made = world(count * n, seed, eta=condition.eta, temperature=condition.temperature).run
        runs = {f"run_{k}": condition.alter(batch_of(made, k * n, n), rng) for k in range(count)}
        flags = run_health(runs)[["check", "flag"]]
        tables.append(flags.assign(condition=name, wanted=flags["check"].isin(condition.wanted)))
    return pd.concat(tables, ignore_index=True)[["condition", "check", "wanted", "flag"]]


def flag_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return how often each check raises a flag, from `flag_records`.

    Returns
    -------
    DataFrame
        Columns condition, check, wanted (whether the check should raise a flag), runs, flagged (share of runs).
    """
    found = records.groupby(["condition", "check", "wanted"], sort=False)["flag"]
    return found.agg(runs="size", flagged="mean").reset_index()


def flag_overview(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each check, how often it is raised on healthy runs and on those that it should see.

    Parameters
    ----------
    table
        From `flag_table`.

    Returns
    -------
    DataFrame
        Columns check, one for each condition in `HEALTHY` (share of runs flagged), unhealthy (a condition that the
        check should see), seen (share of runs flagged).
    """
    healthy = table[table["condition"].isin(HEALTHY)]
    alarms = healthy.pivot_table(index="check", columns="condition", values="flagged", sort=False).reset_index()
    seen = table[table["wanted"]].rename(columns={"condition": "unhealthy", "flagged": "seen"})
    return alarms.merge(seen[["check", "unhealthy", "seen"]], on="check", how="left").rename_axis(columns=None)
