"""Samplers that truncate, or sample at another temperature: what flags and causes the package states, and the truth."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pandas as pd

from analysis_helpers.estimators import columns, mean_log_probability_excess, true_total
from analysis_helpers.inference.health import OFF_POLICY_CHECKS, cause_of_off_policy, findings, support_of
from analysis_helpers.runs import Runs
from analysis_helpers.synthetic import synthetic_runs
from analysis_helpers.synthetic.policy import entropy_change
from analysis_helpers.synthetic.runs import update_directions, wide_policy
from tests.calibration.drawing import ETA

SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "all tokens": {},
    "top_k 50": {"sampling_top_k": 50},
    "top_k 20": {"sampling_top_k": 20},
    "top_p 0.995": {"sampling_top_p": 0.995},
    "temperature 0.97": {"sampling_temperature": 0.97},
}
SIZES = (256, 2048)

_policy = cache(wide_policy)


def sampler_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return what single runs of each sampler and size say of it; updates are the same for all samplers.

    Returns
    -------
    DataFrame
        Columns sampler, n, excess (of log-probability, nats per token), support, flagged, cause, and over the exact
        change: true, matched, linear.
    """
    rows = []
    changes = {
        name: entropy_change(_policy(), direction, ETA)
        for name, direction in update_directions(_policy(), count, seed=seed).items()
    }
    for sampler, options in SAMPLERS.items():
        for n in SIZES:
            made = synthetic_runs(count, n, [ETA], seed=seed, policy=_policy(), record_logp=True, **options)
            for name, run in made.items():
                alone, change = Runs({name: run}), changes[name]
                support = support_of(alone)
                excess = mean_log_probability_excess(run).value * n / run.total_tokens
                flagged = any(each.flag for each in findings(alone) if each.check in OFF_POLICY_CHECKS)
                estimates = (
                    true_total(run, ETA).value,
                    columns(run, ETA, "matched").estimates[1].value,
                    ETA * run.delta_h_per_lr,
                )
                shares = [value / change for value in estimates]
                rows.append(
                    (sampler, n, excess, support, flagged, cause_of_off_policy(support, run.vocabulary), *shares)
                )
    names = ["sampler", "n", "excess", "support", "flagged", "cause", "true", "matched", "linear"]
    return pd.DataFrame(rows, columns=names)


def sampler_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each sampler and size, from `sampler_records`.

    Returns
    -------
    DataFrame
        Columns sampler, n, runs, excess (mean), support_low, support, support_high (5, 50 and 95 %), flagged,
        truncated, not_truncated (shares of runs: flagged, and flagged with that cause), true, matched, linear (means,
        over the exact change), linear_error (Monte-Carlo error).
    """
    groups = records.groupby(["sampler", "n"], sort=False)
    table = groups[["excess", "flagged", "true", "matched", "linear"]].mean()
    table.insert(0, "runs", groups.size())
    for name, quantile in (("support_low", 0.05), ("support", 0.5), ("support_high", 0.95)):
        table[name] = groups["support"].quantile(quantile)
    for cause in ("truncated", "not truncated"):
        stated = (records["cause"] == cause) & records["flagged"]
        table[cause.replace(" ", "_")] = stated.groupby([records["sampler"], records["n"]], sort=False).mean()
    table["linear_error"] = groups["linear"].std() / table["runs"] ** 0.5
    return table.reset_index()
