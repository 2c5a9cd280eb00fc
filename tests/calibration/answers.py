"""Answers, intervals and health of runs drawn from `worlds`, one by one, and the tables that sum them up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pandas as pd

from analysis_helpers import entropy_trend
from analysis_helpers._checks import FloatArray
from analysis_helpers.estimators import columns, true_total
from analysis_helpers.inference import answers_alone, findings, pooled_err_rel, predict, unsound_flags
from analysis_helpers.inference.decision import Goal, chances, within
from analysis_helpers.inference.health import OFF_POLICY_CHECKS
from analysis_helpers.inference.prediction import PooledEstimate
from analysis_helpers.inference.random_effects import normal_quantile
from analysis_helpers.inference.trend import nonlinearity_estimates
from analysis_helpers.runs import Run, Runs
from tests.calibration.drawing import named, probability_within, shifted
from tests.calibration.worlds import ASKED, ETAS, WORLDS, chosen, population, updates

TOLERANCE, PROBABILITY = 0.1, 0.9
MEANS, TAUS = (0.0, 0.5, 0.9, 1.1, 1.2, 2.0), (0.0, 0.75, 2.0)
RUNS = (1, 2, 3, 4, 8)
BEYOND = 1.2  # tolerances
SETTINGS = "steps of a setting"
WORDS = {"yes": "yes", "no": "no", "cannot tell": "cannot_tell"}
SINGLE_SIZES = (64, 256)
SETTING = ("question", "world", "runs", "mean", "tau", "truth")
Rows = list[dict[str, object]]


def answer_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return both answers on ``count`` replicates of each setting: mean error and tau of the updates.

    Runs of `chosen` updates are asked with a tolerance of 0.1. To the recorded linear change of a run an error is
    added, so that mean and tau of err_rel, tau in units of its own larger SE, are those of the setting too.

    Returns
    -------
    DataFrame
        Columns question, world, runs, mean (in tolerances), tau (in SEs of a run), truth, answer. The truth is about
        the updates, of one run about its own update: a share of at least 0.9 of them within the tolerance is a "yes".
    """
    rng, rows = np.random.default_rng(seed), Rows()
    for mean, tau in product(MEANS, TAUS):
        asked = chosen(mean * TOLERANCE, tau)
        errors, present = asked.errors("trend"), asked.errors("ratio")
        wanted = tau * asked.sampling_sd("ratio")
        missing = math.sqrt(max(wanted**2 - float(present.var()), 0.0))
        share = {
            "linear": float(np.mean(np.abs(errors) <= TOLERANCE)),
            "recorded": probability_within(TOLERANCE, mean * TOLERANCE, wanted),
        }
        for _ in range(count):
            runs, which = asked.draw(max(RUNS), rng)
            added = rng.normal(mean * TOLERANCE - present.mean(), missing, len(runs))
            unit = asked.change / ASKED
            runs = [shifted(run, error * unit) for run, error in zip(runs, added, strict=True)]
            own = {"linear": errors[which], "recorded": present[which] + added}
            rows += _answers(runs, own, share, TOLERANCE, {"world": SETTINGS, "mean": mean, "tau": tau})
    return pd.DataFrame(rows)


def world_answer_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return both answers on runs of every world, as `answer_records`; the updates are all those of the world.

    The tolerance is such that the mean error by the trend is just beyond it, 1.2 times as far.
    """
    rng, rows = np.random.default_rng(seed), Rows()
    for name, world in WORLDS.items():
        whole = population(world)
        errors = {"linear": whole.errors("trend"), "recorded": whole.errors("ratio")}
        tolerance = abs(float(errors["linear"].mean())) / BEYOND
        share = {question: float(np.mean(np.abs(values) <= tolerance)) for question, values in errors.items()}
        setting = {"world": name, "mean": BEYOND, "tau": round(whole.relative_tau("trend"), 2)}
        for _ in range(count):
            runs, which = whole.draw(max(RUNS), rng)
            own = {question: values[which] for question, values in errors.items()}
            rows += _answers(runs, own, share, tolerance, setting, (2, 4, 8))
    return pd.DataFrame(rows)


def _answers(
    runs: Sequence[Run],
    own: dict[str, FloatArray],
    share: dict[str, float],
    tolerance: float,
    setting: Mapping[str, object],
    counts: Sequence[int] = RUNS,
) -> Rows:
    rows = Rows()
    for count in counts:
        found = answers_alone(named(runs[:count]), ASKED, runs[0].n, tolerance=tolerance, probability=PROBABILITY)
        for question, answer in (("linear", found.linear.answer), ("recorded", found.recorded.answer)):
            within = abs(own[question][0]) <= tolerance if count == 1 else share[question] >= PROBABILITY
            truth = "yes" if within else "no"
            rows.append({"question": question, **setting, "runs": count, "truth": truth, "answer": answer})
    return rows


def answer_table(records: pd.DataFrame, keys: Sequence[str] = SETTING) -> pd.DataFrame:
    """Return the shares of answers: the keys, by default those of `answer_records`, cases, yes, no, cannot_tell."""
    shares = records.assign(**{name: records["answer"] == word for word, name in WORDS.items()})
    found = shares.groupby(list(keys), sort=False)
    return found.agg(cases=("answer", "size"), **{name: (name, "mean") for name in WORDS.values()}).reset_index()


def coverage_records(*, count: int, seed: int, counts: Sequence[int] = (2, 4, 8)) -> pd.DataFrame:
    """Return whether 90 % intervals hold the mean over updates, and which share of updates those of the next one hold.

    Returns
    -------
    DataFrame
        Columns world, estimator, runs, tau (in SEs of a run), mean (bool), next (share of all updates). One estimator
        may be left out where it does not answer.
    """
    rng, rows = np.random.default_rng(seed), Rows()
    settings = {name: population(world) for name, world in WORLDS.items()}
    settings |= {f"{SETTINGS}, tau {tau:g}": chosen(0.5 * TOLERANCE, tau) for tau in TAUS}
    for name, asked in settings.items():
        for _ in range(count):
            runs, _ = asked.draw(max(counts), rng)
            for number in counts:
                for estimator, intervals in _intervals(Runs(named(runs[:number]))).items():
                    errors = asked.errors(estimator)
                    (low, high), (least, most) = intervals
                    held = {"mean": low <= errors.mean() <= high, "next": np.mean((errors >= least) & (errors <= most))}
                    tau = round(asked.relative_tau(estimator), 2)
                    rows.append({"world": name, "estimator": estimator, "runs": number, "tau": tau, **held})
    return pd.DataFrame(rows)


def _intervals(runs: Runs) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Return by estimator the 90 % interval of the mean over updates, and that of the next update."""
    estimates = {**nonlinearity_estimates(runs, ASKED), "ratio": pooled_err_rel(runs, ASKED)}
    intervals = {}
    for name, each in estimates.items():
        intervals[name] = (each.distribution.mean_interval, predict(each, math.inf).interval(0.9))
    return intervals


def coverage_of_means_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return coverage from `coverage_records`: columns world, estimator, runs, tau, cases, mean, next."""
    held = records.groupby(["world", "estimator", "runs", "tau"], sort=False)
    return held.agg(cases=("mean", "size"), mean=("mean", "mean"), next=("next", "mean")).reset_index()


def single_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return whether 90 % intervals of single runs hold the exact value of their own update.

    Returns
    -------
    DataFrame
        Columns world, n, ess_share (effective sample size over N, at the smallest and the largest eta, median over
        updates), quantity ("curvature", of all etas, "true", "matched", "ratio"), held.
    """
    rng, rows, reach = np.random.default_rng(seed), Rows(), normal_quantile(0.9)
    for (name, world), n in product(WORLDS.items(), SINGLE_SIZES):
        if world.prompts or world.n > max(SINGLE_SIZES):
            continue
        whole, known = population(world), updates(world)
        ends = (0, len(ETAS) - 1)
        shares = [round(float(np.median(known.ess_shares[:, end])), 2) for end in ends]
        for _ in range(count):
            [run], [member] = whole.draw(1, rng, n=n)
            trend = entropy_trend({"run": run}).iloc[0]
            of_all = {"curvature": (trend["curvature"] - known.curvatures[member]) / trend["curvature_se"]}
            for end, share in zip(ends, shares, strict=True):
                change, straight = known.changes[member, end], whole.straight * ETAS[end] / ASKED
                true = true_total(run, ETAS[end])
                off = {"true": (true.value - change) / true.se}
                for estimator in ("matched", "ratio"):
                    error = columns(run, ETAS[end], estimator).error
                    off[estimator] = (error.value - straight + change) / error.se
                for quantity, z in {**(of_all if end else {}), **off}.items():
                    held = {"quantity": quantity, "held": abs(z) <= reach}
                    rows.append({"world": name, "n": n, "ess_share": share, **held})
    return pd.DataFrame(rows)


def single_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return coverage from `single_records`: columns world, n, ess_share, quantity, cases, covered."""
    held = records.groupby(["world", "n", "ess_share", "quantity"], sort=False)["held"]
    return held.agg(cases="size", covered="mean").reset_index()


def soundness_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return which healthy on-policy runs of every world are called unsound, or off-policy.

    Returns
    -------
    DataFrame
        Columns world, n, unsound, off_policy (bool), one row a run.
    """
    rng, tables = np.random.default_rng(seed), []
    few = {
        "4 shared prompts, correlation 0.5": population(
            replace(WORLDS["16 shared prompts, correlation 0.5"], prompts=4)
        )
    }
    for name, whole in {**{name: population(world) for name, world in WORLDS.items()}, **few}.items():
        runs, _ = whole.draw(count, rng)
        flags = [each for each in findings(Runs(named(runs))) if each.flag]
        off_policy = {each.run for each in flags if each.check in OFF_POLICY_CHECKS}
        found = {"unsound": {each.run for each in unsound_flags(flags)}, "off_policy": off_policy}
        flagged = {kind: [run in names for run in named(runs)] for kind, names in found.items()}
        tables.append(pd.DataFrame({"world": name, "n": whole.world.n, **flagged}))
    return pd.concat(tables, ignore_index=True)


def soundness_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return false alarms from `soundness_records`: columns world, n, runs, unsound, off_policy (shares)."""
    alarms = records.groupby(["world", "n"], sort=False)
    shares = alarms.agg(runs=("unsound", "size"), unsound=("unsound", "mean"), off_policy=("off_policy", "mean"))
    return shares.reset_index()


CHANCE_RUNS, CHANCE_TAUS, CHANCE_MEANS = (2, 3, 4, 8), (0.0, 0.75, 2.0), (0.0, 0.5, 0.9, 1.2)
CHANCE_TOLERANCE = 3.0  # in SEs of a run
CHANCE_BINS = (0.0, 0.3, 0.6, 1.0)


def chance_records(*, count: int, seed: int) -> pd.DataFrame:
    """Return the stated chance of an answer after more runs, beside whether those runs gave one.

    Errors of runs are drawn from the random-effects model with a standard error of 1 each. Replicates with an answer
    from the start, or for which no number of runs makes one likely, are left out. Columns runs, tau (in SEs of a run),
    mean (in tolerances), chance, answered.
    """
    rng, rows, goal = np.random.default_rng(seed), Rows(), Goal(64, CHANCE_TOLERANCE, 0.9)
    for runs, tau, mean in product(CHANCE_RUNS, CHANCE_TAUS, CHANCE_MEANS):
        for _ in range(count):
            errors = rng.normal(mean * CHANCE_TOLERANCE, math.hypot(1.0, tau), runs + 96)
            outlook = chances(_estimate(errors[:runs]), goal)
            if outlook is not None and within(_estimate(errors[:runs]), goal) == "cannot tell":
                answered = within(_estimate(errors[: runs + outlook.more]), goal) != "cannot tell"
                rows.append({"runs": runs, "tau": tau, "mean": mean, "chance": outlook.answer, "answered": answered})
    return pd.DataFrame(rows)


def _estimate(errors: FloatArray) -> PooledEstimate:
    ones = np.ones(len(errors))
    return PooledEstimate(1.0, 1.0, ones, errors, ones, 3 * ones, 0.0)


def chance_table(records: pd.DataFrame) -> pd.DataFrame:
    """Return what came true of the stated chances.

    Columns runs, tau, mean (the setting), low, high (of the chance), cases, stated, answered.
    """
    low = pd.cut(records["chance"], list(CHANCE_BINS), labels=list(CHANCE_BINS[:-1]), include_lowest=True)
    came = records.groupby(["runs", "tau", "mean", low.astype(float).rename("low")])
    table = came.agg(cases=("chance", "size"), stated=("chance", "mean"), answered=("answered", "mean")).reset_index()
    table.insert(4, "high", table["low"].map(dict(pairwise(CHANCE_BINS))))
    return table
