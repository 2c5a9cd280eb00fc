"""The answer in brief of each notebook: at most three sentences, numbers first, for any parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._checks import same_eta
from ..err_rel import Comparison
from ..inference import QUESTIONS, Verdict, counted, low_to_high, plus_minus, typical_standard_error
from ..runs import Run

_AS_ETA = 0.25  # an SD whose fall differs from the growth of eta by less than this share falls in proportion to it


def describe_runs(files: pd.DataFrame, totals: pd.DataFrame, health: pd.DataFrame, eta: float) -> list[str]:
    """Return the number of runs and their problems, their mean changes at eta, and the health checks flagged.

    Parameters
    ----------
    files, totals, health
        From `inventory`, `run_totals` and `health_of_batches`.
    eta
        Step size.
    """
    counts = files["batch"].replace("", "no batch folder").value_counts(sort=False)
    batches = ", ".join(f"{count} in {batch}" for batch, count in counts.items())
    problems = [f"{row.batch}/{row.run}: {row.problem}" for row in files[files["problem"] != ""].itertuples()]
    copies = files[files["same_as"] != ""].itertuples()
    problems += [f"{row.batch}/{row.run} has the same content as {row.same_as}" for row in copies]
    more = f"; and {len(problems) - 3} more, listed below" if len(problems) > 3 else ""
    state = f"problems: {'; '.join(problems[:3])}{more}" if problems else "all load, add up and differ from each other"
    groups = totals[totals["eta"].map(partial(same_eta, eta))].groupby("group")
    changes = [f"{name}: true {_milli(rows, 'true')}, linear {_milli(rows, 'linear')}" for name, rows in groups]
    runs = health[health["flag"]].groupby("check", sort=False)["run"].nunique()
    flagged = [f"{check} in {count} of {health['run'].nunique()} runs" for check, count in runs.items()]
    return [
        f"{counted(len(files), 'run')} ({batches}); {state}.",
        f"At eta {eta:g} the mean change of entropy, in 10⁻³ nats per token ± sampling SE, is {'; '.join(changes)}.",
        f"Health checks flagged: {'; '.join(flagged) or 'none'}.",
    ]


def describe_verdict(found: Verdict) -> list[str]:
    """Return why each answer is what it is, and what would help."""
    steps = [f"Next: {'; '.join(found.next_steps)}."] if found.next_steps else []
    return [*(_answered(question, found) for question in found.answers), *steps]


def describe_linearity(
    off: pd.DataFrame, parts: pd.DataFrame, largest: float | None, *, tolerance: float, probability: float
) -> list[str]:
    """Return up to which eta the step is linear, the nonlinearity there, and the error of the recorded linear terms.

    Parameters
    ----------
    off, parts, largest
        From `nonlinearity`, `decomposition_table` and `trusted_eta`.
    tolerance, probability
        Of the answer.
    """
    within = f"within ±{tolerance:g} for {probability:.0%} of updates"
    sentences = [f"At no eta measured is the answer a yes (linear {within})."]
    if largest is not None:
        sentences = [f"The step is linear {within} up to eta {largest:g}, the largest with a yes."]
    if len(off):
        at = off[off["eta"] == off["eta"].max()].to_dict("records")
        values = ", ".join(f"{plus_minus(row['nonlinearity'], row['se'])} by {row['method']}" for row in at)
        sentences.append(f"Nonlinearity at eta {at[0]['eta']:g}: {values} (mean over updates ± SE).")
    pooled = parts[parts["run"] == "pooled"].to_dict("records")
    if pooled:
        raw, adjusted = pooled[:2]
        name = "linear_minus_matched"
        value, left = (plus_minus(row[name], row[f"{name}_se"]) for row in (raw, adjusted))
        p = "" if np.isnan(raw[f"{name}_p"]) else f", p = {raw[f'{name}_p']:.2g}"
        sentences.append(
            f"Recorded linear terms at eta {raw['eta']:g}: linear − matched is {value}{p}; score-adjusted {left}."
        )
    return sentences


def describe_comparison(partial_sum: Comparison, ratio: Comparison, large_runs: Mapping[str, Run]) -> list[str]:
    """Return the standard error on one batch of the subset's size, the spread over subsets, and the actual runs."""
    large = {name: large_runs[name] for name in ratio.synthetic["run"].unique()}
    error = typical_standard_error(large, ratio.eta, ratio.sample_size, reference=ratio.reference_total)
    subsets, values = ratio.synthetic["err_rel"], ratio.actual["err_rel"]
    by_ratio = f"{plus_minus(subsets.mean(), subsets.std())} (mean ± SD) by the ratio"
    by_sum = f"the partial sum (± {partial_sum.synthetic['err_rel'].std():.3g}) is not comparable with actual runs"
    found = "No actual runs to compare with"
    if len(values):
        near = f"{ratio.num_near} of {counted(len(values), 'actual run')} within 2 SD of the mean over subsets"
        if others := ratio.other_sizes:
            near = f"Actual runs have {', '.join(map(str, others))} sequences, not {ratio.sample_size}"
        found = f"{near}: {', '.join(f'{value:+.2g}' for value in values)}"
    return [
        f"At eta {ratio.eta:g}, the SE of err_rel on one fresh batch of {ratio.sample_size} is {error:.2g}.",
        f"Over subsets, err_rel is {by_ratio}; {by_sum}.",
        f"{found}.",
    ]


def describe_distribution(partial_sum: pd.DataFrame, ratio: pd.DataFrame, subset_size: int) -> list[str]:
    """Return how the spread of err_rel depends on eta, from `summarize_err_rel_distribution` by each estimator."""
    sentences = []
    for name, table in (("Ratio", ratio), ("Partial sum", partial_sum)):
        spreads = table[["mean_err_rel", "std_err_rel", "eta"]].itertuples(index=False)
        values = ", ".join(f"{plus_minus(mean, sd)} at eta {eta:g}" for mean, sd, eta in spreads)
        sentences.append(f"{name}, subsets of {subset_size}: err_rel is {values} (mean ± SD).")
    if len(ratio) < 2:
        return [*sentences, "One eta does not show whether the spread depends on the step size."]
    first, last = ratio["eta"].iloc[[0, -1]]
    of_sum, of_ratio = (t["std_err_rel"].iloc[0] / t["std_err_rel"].iloc[-1] for t in (partial_sum, ratio))
    as_eta = abs(of_sum * first / last - 1) < _AS_ETA
    cause = ", about in inverse proportion to eta: its spread is base entropy, not the step" if as_eta else ""
    changes = f"by the ratio {_times(of_ratio)}, by the partial sum {_times(of_sum)}{cause}"
    return [*sentences, f"From eta {first:g} to {last:g} the SD {changes}."]


def describe_plans(
    plans: pd.DataFrame, estimators: pd.DataFrame, budget: pd.DataFrame, tolerance: float, probability: float
) -> list[str]:
    """Return the sequences required by each estimator and at each eta, and what splitting a budget gains.

    Parameters
    ----------
    plans, estimators, budget
        From `plan_batch_sizes`, `estimator_table` and `budget_table`.
    tolerance, probability
        The goal.
    """
    goal = f"±{tolerance:g} with probability {probability:.0%}"
    by = ", ".join(f"{_size(row.sequences)} by {row.estimator}" for row in estimators.itertuples())
    sizes = []
    for eta, n, low, high in plans[["eta", "n", "low", "high"]].itertuples(index=False):
        interval = "" if pd.isna(low) else f" ({_size(low)} to {_size(high)})"
        sizes.append(f"{_size(n)} at eta {eta:g}{interval}")
    splits = [
        f"{se:.2g} in {counted(int(runs), 'run')} ({low:.2g} to {high:.2g})"
        for runs, _, se, low, high in budget.iloc[[0, -1]].to_numpy()
    ]
    return [
        f"Sequences to estimate the error to {goal}: {by}.",
        f"Sequences for err_rel of a fresh run within ±{tolerance:g} of 0: {', '.join(sizes)}.",
        (
            f"SE of the mean err_rel from {budget['sequences_each'].iloc[0]:,} sequences (over the 90% interval of "
            f"tau): {', '.join(splits)}."
        ),
    ]


def describe_validation(rates: pd.DataFrame, updates: pd.DataFrame, estimates: pd.DataFrame) -> list[str]:
    """Return the coverage of intervals and the rates of false and true answers where the true answer is known.

    Parameters
    ----------
    rates
        From `answer_overview`.
    updates, estimates
        Tables of `read_calibration`.
    """
    covered, held = estimates["covered"], updates.loc[updates["tau"] >= 1, "next"]
    several = rates[rates["runs"] > 1]
    power = ", ".join(f"{yes:.0%} with {runs} runs" for runs, yes in several.groupby("runs")["true_yes"].mean().items())
    return [
        f"95% intervals of single estimates cover {covered.min():.1%} to {covered.max():.1%}.",
        f"90% intervals of the next update cover {held.min():.1%} to {held.max():.1%} where updates differ by an SE.",
        (
            f'False "yes": at most {rates["false_yes"].max():.0%} in any setting; false "no": at most '
            f'{rates["false_no"].max():.1%}; a true "yes" is found in {power} (mean over settings).'
        ),
    ]


def describe_exploration(mean: float, sd: float, found: Verdict) -> list[str]:
    """Return the spread over subsets, for one choice of parameters."""
    return [
        f"At eta {found.eta:g}, err_rel over subsets of {found.n} is {plus_minus(mean, sd)} (mean ± SD, closed form)."
    ]


def _answered(question: str, found: Verdict) -> str:
    answer = found.answers[question]
    why = [reason for reason in answer.reasons if reason.startswith("no answer")]
    if not why and np.isnan(answer.low):  # nothing recorded, or one run
        why = [answer.reasons[0]]
    update = f"the next update errs by {low_to_high(answer.low, answer.high)}, tolerance ±{found.tolerance:g}"
    told = f"**{QUESTIONS[question]} {answer.answer.capitalize()}** (eta {found.eta:g})"
    return f"{told}: {'; '.join(why or [update])}."


def _times(fall: float) -> str:
    return f"falls by a factor of {fall:.2f}" if fall >= 1 else f"rises by a factor of {1 / fall:.2f}"


def _milli(rows: pd.DataFrame, name: str) -> str:
    mean, error = 1e3 * rows[name].mean(), 1e3 * np.linalg.norm(rows[f"{name}_se"]) / len(rows)
    return f"{mean:+.3g}" if np.isnan(error) else plus_minus(mean, float(error))


def _size(n: Any) -> str:
    return "unbounded" if pd.isna(n) else f"{n:,}"
