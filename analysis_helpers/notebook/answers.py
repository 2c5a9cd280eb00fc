"""The answer in brief of each notebook: at most three sentences, numbers first, for any parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._checks import same_eta
from ..err_rel import Comparison
from ..inference import QUESTIONS, Verdict, counted, low_to_high, plus_minus, typical_standard_error, words
from ..runs import Run

_AS_ETA = 0.25  # an SD counts as inversely proportional to eta if its fall differs from that by less than this share


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


def describe_verdict(verdict: Verdict) -> list[str]:
    """Return the reasons for each answer, and what would help."""
    sentences = []
    for question, answer in verdict.answers.items():
        one_run = [note for note in answer.notes if note.code in ("nonlinearity", "err_rel")][:1]
        why = answer.doubts or (one_run if np.isnan(answer.low) else ())
        update = f"the next update errs by {low_to_high(answer.low, answer.high)}, tolerance ±{verdict.tolerance:g}"
        start = f"**{QUESTIONS[question]} {answer.answer.capitalize()}** (eta {verdict.eta:g})"
        sentences.append(f"{start}: {'; '.join(map(words, why)) or update}.")
    return [*sentences, f"Next: {'; '.join(verdict.next_steps)}."] if verdict.next_steps else sentences


def describe_linearity(
    off: pd.DataFrame, parts: pd.DataFrame, answers: pd.DataFrame, *, tolerance: float, probability: float
) -> list[str]:
    """Return up to which eta the step is linear, the nonlinearity there, and the error of the recorded linear terms.

    Parameters
    ----------
    off, parts, answers
        From `nonlinearity`, `decomposition_table` and `verdict_map`.
    tolerance, probability
        Of the answer.
    """
    within = f"within ±{tolerance:g} for {probability:.0%} of updates"
    largest = answers.loc[answers["linear"] == "yes", "eta"].max()
    up_to = "" if np.isnan(largest) else f"The step is linear {within} up to eta {largest:g}, the largest with a yes."
    sentences = [up_to or f"At no eta measured is the answer a yes (linear {within})."]
    if len(off):
        at = off[off["eta"] == off["eta"].max()].to_dict("records")
        values = ", ".join(f"{plus_minus(row['nonlinearity'], row['se'])} by {row['method']}" for row in at)
        sentences.append(f"Nonlinearity at eta {at[0]['eta']:g}: {values} (mean over updates ± SE).")
    pooled = parts[(parts["run"] == "pooled") & (parts["eta"] == parts["eta"].min())]
    if len(pooled):
        name, rows = "linear_minus_matched", pooled.set_index("score_adjusted")
        raw, adjusted = (plus_minus(rows[name][side], rows[f"{name}_se"][side]) for side in (False, True))
        p = "" if np.isnan(rows[f"{name}_p"][False]) else f", p = {rows[f'{name}_p'][False]:.2g}"
        at = f"at eta {rows['eta'][False]:g}"
        sentences.append(f"Recorded linear terms {at}: linear − matched is {raw}{p}; score-adjusted {adjusted}.")
    return sentences


def describe_comparison(partial_sum: Comparison, ratio: Comparison, large_runs: Mapping[str, Run]) -> list[str]:
    """Return the standard error on one batch of the subset's size, the spread over subsets, and the actual runs."""
    large = {name: large_runs[name] for name in ratio.synthetic["run"].unique()}
    error = typical_standard_error(large, ratio.eta, ratio.sample_size, reference=ratio.reference_total)
    subsets, values = ratio.synthetic["err_rel"], ratio.actual["err_rel"]
    by_ratio = f"{plus_minus(subsets.mean(), subsets.std())} (mean ± SD) by the ratio"
    by_sum = f"the partial sum (± {partial_sum.synthetic['err_rel'].std():.3g}) is not comparable with actual runs"
    near = f"{ratio.num_near} of {counted(len(values), 'actual run')} within 2 SD of the mean over subsets"
    if others := ratio.other_sizes:
        near = f"Actual runs have {', '.join(map(str, others))} sequences, not {ratio.sample_size}"
    actual = f"{near}: {', '.join(f'{value:+.2g}' for value in values)}"
    return [
        f"At eta {ratio.eta:g}, the SE of err_rel on one fresh batch of {ratio.sample_size} is {error:.2g}.",
        f"Over subsets, err_rel is {by_ratio}; {by_sum}.",
        f"{actual if len(values) else 'No actual runs to compare with'}.",
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
    sds = pd.DataFrame({"sum": partial_sum["std_err_rel"], "ratio": ratio["std_err_rel"]}).set_index(ratio["eta"])
    first, last = sds.index.min(), sds.index.max()
    falls = sds.loc[first] / sds.loc[last]
    as_eta = abs(falls["sum"] * first / last - 1) < _AS_ETA
    cause = ", about in inverse proportion to eta: its spread is base entropy, not the step" if as_eta else ""
    changes = f"by the ratio {_times(falls['ratio'])}, by the partial sum {_times(falls['sum'])}{cause}"
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
    ends = budget[budget["runs"].isin([budget["runs"].min(), budget["runs"].max()])].to_dict("records")
    splits = [
        f"{end['se']:.2g} in {counted(end['runs'], 'run')} ({end['se_low']:.2g} to {end['se_high']:.2g})"
        for end in ends
    ]
    of_mean = f"{budget['sequences_each'].max():,} sequences (over the 90% interval of tau)"
    return [
        f"Sequences to estimate the error to {goal}: {by}.",
        f"Sequences for err_rel of a fresh run within ±{tolerance:g} of 0: {', '.join(sizes)}.",
        f"SE of the mean err_rel from {of_mean}: {', '.join(splits)}.",
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


def describe_exploration(mean: float, sd: float, answers: Verdict) -> list[str]:
    """Return the spread over subsets, for one choice of parameters."""
    at = f"At eta {answers.eta:g}, err_rel over subsets of {answers.n}"
    return [f"{at} is {plus_minus(mean, sd)} (mean ± SD, closed form)."]


def _times(fall: float) -> str:
    return f"falls by a factor of {fall:.2f}" if fall >= 1 else f"rises by a factor of {1 / fall:.2f}"


def _milli(rows: pd.DataFrame, name: str) -> str:
    mean, error = 1e3 * rows[name].mean(), 1e3 * np.linalg.norm(rows[f"{name}_se"]) / len(rows)
    return f"{mean:+.3g}" if np.isnan(error) else plus_minus(mean, float(error))


def _size(n: Any) -> str:
    return "unbounded" if pd.isna(n) else f"{n:,}"
