"""The answer in brief of each notebook: at most three sentences, numbers first, for any parameters."""

from __future__ import annotations

from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from .._checks import same_eta
from ..err_rel import Comparison
from ..inference import (
    OFF_POLICY_CHECKS,
    QUESTIONS,
    Answer,
    Prediction,
    Verdict,
    allowed,
    counted,
    percent,
    percent_range,
    plus_minus,
    sizes,
    words,
)

_SUBJECTS = {"linear": "a straight line", "recorded": "the recorded linear change"}
_NO_SIZE = "no size is enough"
_OF_SAMPLER = ("off_policy",)  # codes of notes
_NINETY = NormalDist().inv_cdf(0.95)  # standard errors on either side of a 90 % interval
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
    """Return each answer with the reason and the batch that it takes, and the next step."""
    answers: list[str] = []
    for question, answer in verdict.answers.items():
        at = "" if answers else f" (step size {verdict.eta:g})"
        heading = f"**{QUESTIONS[question]} {answer.answer.capitalize()}{at}.**"
        why, batch = _reason(question, answer, verdict), _batch(answer, verdict)
        why = "for the same reason" if answers and answer.doubts == verdict.linear.doubts != () else why
        answers.append(f"{heading} {_sentences(why, batch)}")
    settled = all(answer.answer != "cannot tell" for answer in verdict.answers.values())
    nothing = "nothing more is needed at this step size" if settled else "see the reasons below"
    return [*answers, f"**Do next:** {next(iter(verdict.next_steps), nothing)}."]


def describe_sampler(verdict: Verdict) -> list[str]:
    """Return what checks say about the distribution that sequences were sampled from."""
    if notes := [note for note in verdict.recorded.notes if note.code in _OF_SAMPLER]:
        return [words(note) for note in notes]
    unknown = any(note.code == "entropies" for note in verdict.unknown)
    return ["not checked: log-probabilities are not recorded" if unknown else "no check finds off-policy sequences"]


def describe_health(verdict: Verdict) -> list[str]:
    """Return the flagged checks that concern an answer; those of the sampler are in `describe_sampler`."""
    if any(doubt.code == "unsound" for doubt in verdict.linear.doubts):
        return ["no: see the answer above"]
    notes = [note for note in verdict.notes if note.code == "health" and note.values["check"] not in OFF_POLICY_CHECKS]
    return [*map(words, notes)] or ["no check that concerns an answer is flagged"]


def describe_origin(table: pd.DataFrame, verdict: Verdict) -> list[str]:
    """Return the mean true change, and where it comes from by `change_by_origin`."""
    known = [words(note) for note in verdict.notes if note.code == "true_change"]
    pooled = table[(table["run"] == "pooled") & table["true"].notna()].set_index("part")
    if pooled.empty or not known:  # h_base is not recorded, or a run is unsound
        return [*known, "where it comes from is not known"]
    same, other = (
        plus_minus(*(1e3 * pooled.loc[part, ["true", "true_se"]])) for part in ("same states", "other states")
    )
    return [*known, f"of this, {same} comes from the same states, {other} from visiting other states"]


def _reason(question: str, answer: Answer, verdict: Verdict) -> str:
    """Return one sentence: what is known of the error, or why there is no answer."""
    limit = f"the allowed {allowed(verdict.tolerance)}"
    misses = f"{_SUBJECTS[question]} misses the true change by"
    mean = f"{misses} {percent(answer.mean, answer.se)}"
    if answer.doubts:
        return "; ".join(map(words, answer.doubts))
    if np.isnan(answer.low):
        alone = "; one run does not answer for other updates" if question == "linear" else ""
        ends = percent_range(*(answer.mean + sign * _NINETY * answer.se for sign in (-1, 1)))
        return f"in this update {misses} {ends} (90% interval), against {limit}{alone}"
    if answer.answer == "no":
        differ = [words(note) for note in answer.notes if note.code == "updates_differ"]
        return "; ".join([f"on average {mean}, against {limit}", *differ])
    reach = f"{percent_range(answer.low, answer.high)} ({verdict.probability:.0%} interval)"
    settled = "," if answer.answer == "yes" else ": these runs do not settle whether it stays"
    return f"at the next update {misses} {reach}{settled} within {limit}"


def _batch(answer: Answer, verdict: Verdict) -> str:
    """Return one sentence: the batch that measures the error to within the tolerance; empty if none is known."""
    if answer.required_n is None:
        return ""
    size = sizes(answer.required_n, answer.required_low, answer.required_high)
    enough = {"yes": "are enough", "no": "are not enough", "cannot tell": "may be enough"}[answer.enough]
    points = f"{100 * verdict.tolerance:.3g} points"
    return f"knowing this error to within {points} takes one batch of {size} sequences: {verdict.n:,} {enough}"


def _sentences(*parts: str) -> str:
    """Return parts as sentences, without empty ones."""
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


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


def describe_comparison(partial_sum: Comparison, ratio: Comparison, predicted: Prediction) -> list[str]:
    """Return the standard error on one batch of the subset's size, the spread over subsets, and the actual runs."""
    subsets, values = ratio.synthetic["err_rel"], ratio.actual["err_rel"]
    by_ratio = f"{plus_minus(subsets.mean(), subsets.std())} (mean ± SD) by the ratio"
    by_sum = f"the partial sum (± {partial_sum.synthetic['err_rel'].std():.3g}) is not comparable with actual runs"
    near = f"{ratio.num_near} of {counted(len(values), 'actual run')} within 2 SD of the mean over subsets"
    if others := ratio.other_sizes:
        near = f"Actual runs have {', '.join(map(str, others))} sequences, not {ratio.sample_size}"
    actual = f"{near}: {', '.join(f'{value:+.2g}' for value in values)}"
    return [
        f"At eta {ratio.eta:g}, the SE of err_rel on a fresh batch of {predicted.n:g} is {predicted.sampling_sd:.2g}.",
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
    needed = zip(estimators["sequences"].tolist(), estimators["estimator"], strict=True)
    by = ", ".join(f"{_NO_SIZE if pd.isna(n) else sizes(n, None, None)} by {estimator}" for n, estimator in needed)
    small = []
    for eta, n, low, high in plans[["eta", "n", "low", "high"]].itertuples(index=False):
        interval = "" if pd.isna(low) else f" ({_size(low)} to {_size(high)})"
        small.append(f"{_NO_SIZE if pd.isna(n) else _size(n)} at eta {eta:g}{interval}")
    ends = budget[budget["runs"].isin([budget["runs"].min(), budget["runs"].max()])].to_dict("records")
    splits = [
        f"{end['se']:.2g} in {counted(end['runs'], 'run')} ({end['se_low']:.2g} to {end['se_high']:.2g})"
        for end in ends
    ]
    of_mean = f"{budget['sequences_each'].max():,} sequences (over the 90% interval of tau)"
    return [
        f"Sequences to know the error to {goal}: {by}.",
        f"For err_rel of a fresh run to lie within ±{tolerance:g} of zero: {', '.join(small)}.",
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
            f'False "yes": at most {rates["false_yes"].max():.1%} in any setting; false "no": at most '
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
