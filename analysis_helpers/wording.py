"""Tables into plain sentences, so that a notebook's answer follows its numbers whatever its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .checks import same_eta
from .comparison import Comparison
from .err_rel import collect_err_rel_across_runs
from .health import health_overview
from .health_checks import CHECKS
from .inference import err_rel_standard_error, typical_standard_error
from .planning import Plan
from .pooling import reference_true_totals
from .runs import Run
from .verdict import Verdict

CLEAR_Z = 3.0  # a mean further from zero than this many standard errors is called clear
AS_FAST = (0.75, 1.25)  # a fall within these shares of the growth of eta is called as fast


def describe_inventory(table: pd.DataFrame) -> list[str]:
    """Return what an inventory shows: how many runs, and what is wrong with which.

    Parameters
    ----------
    table
        From `analysis_helpers.inventory`.
    """
    batches = ", ".join(f"{len(rows)} in {batch}" for batch, rows in table.groupby("batch"))
    sentences = [f"{_count(len(table), 'results file')}: {batches}."]
    bad = table[table["problem"] != ""]
    sentences += [f"Problem in {row.batch}/{row.run}: {row.problem}." for row in bad.itertuples()]
    same = table[table["same_as"] != ""]
    sentences += [f"{row.batch}/{row.run} has the same content as {row.same_as}." for row in same.itertuples()]
    if bad.empty and same.empty:
        sentences.append("All of them load, their contributions sum to the stored totals, and no two are the same.")
    return sentences


def describe_totals(totals: pd.DataFrame) -> list[str]:
    """Return, for each eta and batch, the mean true and linear change over its runs.

    Parameters
    ----------
    totals
        From `analysis_helpers.run_tables.run_totals`.
    """
    return [
        f"At eta {eta:g}, over {_count(len(rows), 'run')} of {batch}, entropy changes by {_milli(rows, 'true')} (true) "
        f"and {_milli(rows, 'linear')} (linear), in 10⁻³ nats per token (mean ± standard error from sampling)."
        for (eta, batch), rows in totals.groupby(["eta", "batch"])
    ]


def describe_comparison(
    partial_sum: Comparison, ratio: Comparison, large_runs: Mapping[str, Run], small_runs: Mapping[str, Run]
) -> list[str]:
    """Return what subsets and actual runs say about one batch of the subset's size."""
    large = {name: large_runs[name] for name in ratio.synthetic["run"].unique()}
    sizes = sorted({ratio.sample_size, *(run.num_sequences for run in large.values())})
    errors = {n: typical_standard_error(large, ratio.eta, n, reference=ratio.reference_total) for n in sizes}
    precision = " and ".join(f"±{error:.0%} of the true change with {n} sequences" for n, error in errors.items())
    subsets = ratio.synthetic["err_rel"]
    fresh = (
        f"At eta {ratio.eta:g}, one fresh batch tells the difference between the linear and the true change to "
        f"{precision} (standard error). A difference much smaller than that cannot be seen in one such batch."
    )
    spread = (
        f"Over subsets of {ratio.sample_size}, err_rel is {subsets.mean():+.2f} ± {subsets.std():.2f} (mean ± standard "
        "deviation)."
    )
    published = (
        f"The partial sum, the estimate of the published figures, has an SD of "
        f"{partial_sum.synthetic['err_rel'].std():.2f}; it is not comparable with actual runs."
    )
    return [fresh, f"{spread} {_agreement(ratio, small_runs)}", published]


def describe_decomposition(table: pd.DataFrame, batch: str = "") -> list[str]:
    """Return which part of err_rel the runs show, in words that the numbers bear out.

    "Biased" where the pooled recorded linear terms lie more than 3 standard errors off the exact derivative;
    "nonlinear" only where the other part is as clear and grows with eta.

    Parameters
    ----------
    table
        From `analysis_helpers.decomposition.decomposition_table`.
    batch
        Name of the batch folder whose runs these are, to be told.
    """
    of_batch = f" of {batch}" if batch else ""
    if table.empty:
        return ["No run records the score: the error of the linear approximation cannot be split into its parts."]
    pooled = table[table["run"] == "pooled"]
    raw, adjusted = (pooled[pooled["score_adjusted"] == flag].sort_values("eta") for flag in (False, True))
    columns = ["eta", "linear_minus_matched", "linear_minus_matched_se"]
    over = _count(table.loc[table["run"] != "pooled", "run"].nunique(), "run") + of_batch
    sentences = [
        f"At eta {eta:g}, pooled over {over}, the recorded linear terms are off the exact derivative by "
        f"{value:+.2f} ± {se:.2f} of the true change ({'biased' if _clear(value, se) else 'no clear bias'}); "
        f"score-adjusted, by {left:+.3f} ± {rest:.3f}."
        for (eta, value, se), (_, left, rest) in zip(
            raw[columns].to_numpy().tolist(), adjusted[columns].to_numpy().tolist(), strict=True
        )
    ]
    return [*sentences, _score_sentence(table, of_batch), _nonlinearity_sentence(raw)]


def describe_verdict(found: Verdict) -> list[str]:
    """Return a verdict as an answer in brief: each question with its answer and why, then what was not seen."""
    questions = {
        "enough": f"Is a batch of {found.n} enough at eta {found.eta:g}?",
        "linear_trusted": "May the linear approximation be trusted there?",
    }
    answers = {"enough": found.enough, "linear_trusted": found.linear_trusted}
    return [
        *(f"**{text} {answers[key].capitalize()}.** {' '.join(found.because[key])}" for key, text in questions.items()),
        f"**Not seen:** {' '.join(found.not_seen)}",
    ]


def describe_health(health: pd.DataFrame) -> list[str]:
    """Return which checks of `analysis_helpers.run_health` raise a flag, and in which runs."""
    flagged = [(row["check"], row["flagged"]) for row in health_overview(health).to_dict("records") if row["flagged"]]
    if not flagged:
        return [
            "No check of health raises a flag. That says that the numbers are sound, not that a batch is large enough."
        ]
    return [f"Health: {check} is flagged in {where}. {CHECKS[check].meaning}" for check, where in flagged]


def describe_verdict_map(table: pd.DataFrame, tolerance: float) -> list[str]:
    """Return, for each eta, how large a batch is precise enough, and whether the linear change may be trusted."""
    return [
        f"At eta {row['eta']:g}, one batch tells err_rel, whatever that is, to within ±{tolerance:g} from about "
        f"{row['required_n']:,.0f} sequences on ({row['required_low']:,.0f} to {row['required_high']:,.0f}). May the "
        f"linear approximation be trusted there, to within ±{tolerance:g}? {str(row['linear_trusted']).capitalize()}."
        for row in table.drop_duplicates("eta").to_dict("records")
    ]


def describe_budget(table: pd.DataFrame, sequences: int, eta: float) -> list[str]:
    """Return what splitting a budget of sequences gains, from `analysis_helpers.planning.budget_table`."""
    one, most = (
        f"±{row['se']:.2f} ({row['se_low']:.2f} to {row['se_high']:.2f}, as tau may be) as "
        f"{_count(int(row['runs']), 'run')} of {row['sequences_each']:,.0f}"
        for row in (table.iloc[0], table.iloc[-1])
    )
    return [f"At eta {eta:g}, {sequences:,} sequences tell the mean error over updates to {one}, and to {most}."]


def describe_plans(plans: Mapping[float, Plan], tolerance: float, probability: float) -> list[str]:
    """Return how large a batch each eta takes for err_rel to be within ``tolerance`` with the probability."""
    sentences = []
    what = (
        f"With probability {probability:.0%} a fresh run's err_rel lies within ±{tolerance:g} of zero, the error of "
        "the approximation included"
    )
    for eta, plan in plans.items():
        size = "at no batch size" if plan.n is None else f"from {plan.n:,} sequences on"
        high = "no size at all" if plan.high is None else f"{plan.high:,}"
        span = "that no size is enough, too" if plan.low is None else f"{plan.low:,} to {high}"
        sentences.append(f"{what}, at eta {eta:g} {size} (other runs like these might have said: {span}).")
    return sentences


def describe_distribution(
    partial_sum: pd.DataFrame, ratio: pd.DataFrame, runs: Mapping[str, Run], subset_size: int
) -> list[str]:
    """Return how the spread of err_rel depends on eta.

    Parameters
    ----------
    partial_sum, ratio
        From `analysis_helpers.summarize_err_rel_distribution`, one for each estimator.
    runs
        The runs that subsets were drawn from.
    subset_size
        Sequences in a subset.
    """
    sentences = [
        f"On the full runs at eta {eta:g}, err_rel is {_full_batch_mean(runs, eta, reference)}."
        for eta, reference in reference_true_totals(runs).items()
        if any(same_eta(eta, shown) for shown in ratio["eta"])
    ]
    sentences += [
        f"{name}, subsets of {subset_size}: err_rel is {_per_eta(table)} (mean ± standard deviation)."
        for name, table in (("Ratio", ratio), ("Partial sum", partial_sum))
    ]
    one = ["Whether the spread depends on the step size, one eta cannot tell."]
    return sentences + (_fall(partial_sum, ratio) if len(ratio) > 1 else one)


def _clear(value: float, se: float) -> bool:
    return abs(value) > CLEAR_Z * se


def _score_sentence(table: pd.DataFrame, of_batch: str) -> str:
    rows = table[(table["run"] != "pooled") & ~table["score_adjusted"].astype(bool)].drop_duplicates("run")
    off = [
        f"{run} ({z:+.1f})" for run, z in zip(rows["run"], rows["score_z"].tolist(), strict=True) if abs(z) > CLEAR_Z
    ]
    if not off:
        return f"In no run{of_batch} is the mean score more than {CLEAR_Z:g} standard errors from zero."
    return (
        f"The mean score is more than {CLEAR_Z:g} standard errors from zero in {', '.join(off)}: this points to "
        "sequences that did not come exactly from the policy that was differentiated."
    )


def _nonlinearity_sentence(raw: pd.DataFrame) -> str:
    values, errors = raw["matched_minus_true"].to_numpy(), raw["matched_minus_true_se"].to_numpy()
    listed = ", ".join(
        f"{value:+.2g} ± {se:.1g} at eta {eta:g}" for value, se, eta in zip(values, errors, raw["eta"], strict=True)
    )
    grows = len(values) > 1 and abs(values[-1]) > abs(values[0])
    if grows and _clear(values[-1], errors[-1]):
        verdict = "it grows with eta and is clear: the step is nonlinear there"
    elif len(values) > 1 and not grows:
        verdict = "it does not grow with eta, so it is no sign of a nonlinear step"
    else:
        verdict = "that is no clear sign of a nonlinear step"
    return f"Going straight (matched - true) is off by {listed}: {verdict}."


def _full_batch_mean(runs: Mapping[str, Run], eta: float, reference: float) -> str:
    """Return the mean err_rel over runs with its standard error, and whether chance explains it."""
    having = {name: run for name, run in runs.items() if run.has_eta(eta)}
    mean = float(collect_err_rel_across_runs(having, eta, reference, estimator="ratio")["err_rel"].mean())
    errors = [err_rel_standard_error(run, eta, reference=reference) for run in having.values()]
    se = float(np.sqrt(np.sum(np.square(errors)))) / len(errors)
    z = abs(mean) / se if se else 0.0
    how = "may explain" if z < 2 else "seldom explains" if z < CLEAR_Z else "hardly explains"
    over = _count(len(having), "run")
    return f"{mean:+.2f} ± {se:.2f} (plain mean over {over} ± standard error from sampling): chance {how} it"


def _agreement(ratio: Comparison, small_runs: Mapping[str, Run]) -> str:
    values = ratio.actual["err_rel"]
    listed = f"{_count(len(values), 'actual small run')} ({', '.join(f'{value:+.2f}' for value in values)})"
    sizes = sorted({small_runs[name].num_sequences for name in ratio.actual["run"]})
    if sizes != [ratio.sample_size]:
        return (
            f"The {listed} have {', '.join(map(str, sizes))} sequences, not {ratio.sample_size}: expect another spread."
        )
    subsets = ratio.synthetic["err_rel"]
    near = int((abs(values - subsets.mean()) <= 2 * subsets.std()).sum())
    return f"Of {listed}, {near} lie within 2 SD of that mean."


def _fall(partial_sum: pd.DataFrame, ratio: pd.DataFrame) -> list[str]:
    eta = ratio["eta"]
    growth = eta.iloc[-1] / eta.iloc[0]
    of_sum, of_ratio = (table["std_err_rel"].iloc[0] / table["std_err_rel"].iloc[-1] for table in (partial_sum, ratio))
    fall = (
        f"From eta {eta.iloc[0]:g} to {eta.iloc[-1]:g}, {growth:.3g} times as large, the SD of the partial sum falls "
        f"{of_sum:.2f} times, that of the ratio {of_ratio:.2f} times."
    )
    if not AS_FAST[0] * growth < of_sum < AS_FAST[1] * growth:
        return [fall]
    cause = (
        "A spread that falls about as fast as eta grows does not come from the step: it is difference in base entropy."
    )
    return [f"{fall} {cause}"]


def _milli(rows: pd.DataFrame, name: str) -> str:
    error = float(np.sqrt((rows[f"{name}_se"] ** 2).sum(skipna=False))) / len(rows)
    known = "" if np.isnan(error) else f" ± {error * 1e3:.3f}"
    return f"{rows[name].mean() * 1e3:+.3f}{known}"


def _per_eta(summary: pd.DataFrame) -> str:
    rows = [
        f"{mean:+.2f} ± {sd:.2f} at eta {eta:g}"
        for eta, mean, sd in zip(summary["eta"], summary["mean_err_rel"], summary["std_err_rel"], strict=True)
    ]
    return ", ".join(rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
