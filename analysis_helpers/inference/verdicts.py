"""Two questions about runs, each with its own answer and its own batch size.

*Is the step linear?* Does the true change stay proportional to eta? *Is the recorded linear change right?* Does the
number from derivatives agree with the true change? Answers are "yes", "no" and "cannot tell". Do not read a "yes" as
more than it says: what these runs do not establish is listed with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd

from .._checks import checked_count, same_eta
from ..err_rel import all_etas, known_eta, known_etas, same_content
from ..estimators import true_total_standard_error
from ..runs import Run, integrity_problems, require_runs
from .health import CLEAR_Z, OFF_POLICY_CHECKS, run_health
from .planning import CONFIDENCE, LEAST, Goal, prompts_per_sequence, size_for, spread_interval
from .prediction import Agreement, Pilot, agreement_with_prediction, pilot_of, predict
from .random_effects import Pool, normal_quantile, pool
from .trend import difference_z, straightness_pilots

AnswerWord = Literal["yes", "no", "cannot tell"]
YES: AnswerWord = "yes"
NO: AnswerWord = "no"
UNSURE: AnswerWord = "cannot tell"
QUESTIONS = {"linear": "Is the step linear?", "recorded": "Is the recorded linear change right?"}
_WHETHER = {"linear": "whether the step is linear", "recorded": "whether the recorded linear change is right"}

SURPRISING = 0.01  # actual runs with a p-value below contradict their prediction
_FEW_RUNS = 10
_MOST_SHARED = 0.5  # of the prompts: beyond, runs are not independent of each other
_MORE_RUNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_UNSOUND = ("integrity", "ess_share", "largest_weight_share", "pareto_k", "weights_agree", "offset_z", "unchanged")


@dataclass(frozen=True)
class Answer:
    """The answer to one question; errors are in units of the true change.

    Attributes
    ----------
    answer
        "yes" | "no" | "cannot tell": does the error of the next update lie within the tolerance, with the probability?
    estimator
        What it rests on: "trend", "matched" or "ratio"; empty where nothing is recorded that could answer.
    mean, se
        Mean error over updates and its standard error (random effects).
    low, high
        Where the error of the next update falls with the probability; NaN with one run.
    margin
        How far the error on one batch of n is from its expectation at most, with the probability.
    enough
        Is that margin within the tolerance?
    required_n, required_low, required_high
        Sequences at which the margin is the tolerance, with a 90 % interval; None where nothing is known.
    reasons
        Why, a sentence each.
    """

    answer: AnswerWord
    estimator: str = ""
    mean: float = math.nan
    se: float = math.nan
    low: float = math.nan
    high: float = math.nan
    margin: float = math.nan
    enough: AnswerWord = UNSURE
    required_n: int | None = None
    required_low: int | None = None
    required_high: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the runs say at one eta.

    Attributes
    ----------
    eta, n, tolerance, probability
        The question: tolerance on the absolute error, in units of the true change, and how often it must hold.
    linear, recorded
        The two answers.
    reasons
        What concerns both, a sentence each.
    next_steps
        What would help, a sentence each, from the numbers.
    not_established
        What these runs do not show.
    """

    eta: float
    n: int
    tolerance: float
    probability: float
    linear: Answer
    recorded: Answer
    reasons: tuple[str, ...]
    next_steps: tuple[str, ...]
    not_established: tuple[str, ...]

    @property
    def answers(self) -> dict[str, Answer]:
        """Question -> answer."""
        return {"linear": self.linear, "recorded": self.recorded}

    def table(self) -> pd.DataFrame:
        """Return a row for each question: its answer, error over updates, next update, and batch size."""
        rows = [
            {
                "question": QUESTIONS[name],
                "answer": found.answer,
                "by": found.estimator or "-",
                "error": plus_minus(found.mean, found.se),
                "next_update": _span(found.low, found.high),
                "sequences": _sequences(found),
                f"n={self.n}": found.enough,
            }
            for name, found in self.answers.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=False, border=0)
        return html

    def __str__(self) -> str:
        title = (
            f"eta {self.eta:g}, tolerance ±{self.tolerance:g}, probability {self.probability:.0%}, batch of {self.n}"
        )
        lines = [title, self.table().to_string(index=False)]
        parts = {
            QUESTIONS["linear"]: self.linear.reasons,
            QUESTIONS["recorded"]: self.recorded.reasons,
            "Both": self.reasons,
            "Next": self.next_steps,
            "Not established": self.not_established,
        }
        for heading, sentences in parts.items():
            lines += [heading, *(f"  - {sentence}" for sentence in sentences)] if sentences else []
        return "\n".join(lines)


def verdict(
    large_runs: Mapping[str, Run],
    eta: float,
    n: int,
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
) -> Verdict:
    """Return whether the step is linear and whether the recorded linear change is right, each with its batch size.

    *linear* is answered by the trend over etas or by matched - true, whichever has the smaller fixed-effect standard
    error; *recorded* by the ratio, with the score-adjusted value beside it. "yes" is a tolerance statement: with
    confidence 0.9, at least ``probability`` of updates have an error within ``tolerance``. "no": the 90 % interval of
    the mean error lies beyond it, or updates differ too much for any mean. One run never gives a "yes".

    "cannot tell" also where a run is unsound (`run_health`), the reference is within 3 standard errors of 0, the two
    estimates of *linear* differ beyond z = 3, large runs share more than half of their prompts, linear terms lack the
    denominator correction (*recorded*), or ``small_runs`` contradict their prediction at p < 0.01 (*recorded*). How
    often answers are false is measured in ``notebooks/06_known_truth.ipynb``.

    Parameters
    ----------
    large_runs
        Name -> run; each must record ``h_base``.
    eta, n
        Step size, and sequences of one batch.
    tolerance
        Tolerance on the absolute error, in units of the true change.
    probability
        How often a batch, or an update, must be within the tolerance.
    small_runs
        Actual runs, to be set against their prediction.

    Raises
    ------
    RunError
        If a run does not record what is needed.
    ValueError
        If no run has the eta, or an argument is out of range.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> found = verdict(synthetic_runs(3, 512), 1.6e-6, 64)
    >>> found.linear.answer, found.recorded.answer
    ('yes', 'cannot tell')
    """
    goal = Goal(tolerance=tolerance, probability=probability)
    size, step = checked_count(n, "n"), known_eta(large_runs, eta)
    require_runs(small_runs or large_runs, "small_runs")
    copies = same_content(large_runs)
    runs = {name: run for name, run in large_runs.items() if run.has_eta(step) and name not in copies}
    health = run_health(runs)
    flags = health[health["flag"] & (health["eta"].isna() | health["eta"].map(partial(same_eta, step)))]
    change = true_change(runs, step)
    unsound, shared = _unsound(flags), _shared_prompts(runs)
    pilots = straightness_pilots(runs, step)
    linear = _linear(pilots, size, goal, [*unsound, *shared])
    weak = _weak_reference(change)
    agreement, recorded = _recorded(runs, small_runs, step, size, goal, [*unsound, *shared, *weak], flags)
    return Verdict(
        eta=step,
        n=size,
        tolerance=tolerance,
        probability=probability,
        linear=linear,
        recorded=recorded,
        reasons=(*_of_true_change(runs, change, small_runs, step), *_flagged(flags)),
        next_steps=_next_steps(runs, step, goal, pilots, linear, recorded, flags),
        not_established=_not_established(runs, size, change, pilots, agreement, small_runs is not None),
    )


def trusted_eta(runs: Mapping[str, Run], *, tolerance: float = 0.25, probability: float = 0.9) -> float | None:
    """Return the largest eta measured at which the step is linear (a "yes" of `verdict`); None if at none.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> trusted_eta(runs, tolerance=0.25), trusted_eta(runs, tolerance=1e-4)
    (3.2e-06, None)
    """
    for eta in reversed(all_etas(runs)):
        if verdict(runs, eta, LEAST, tolerance=tolerance, probability=probability).linear.answer == YES:
            return eta
    return None


def verdict_map(
    runs: Mapping[str, Run],
    etas: Sequence[float] | None = None,
    n: int = 256,
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
) -> pd.DataFrame:
    """Return the verdict at each eta (None: all measured), by `verdict_table`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_map(synthetic_runs(3, 512))[["eta", "linear"]].to_dict("list")
    {'eta': [1.6e-06, 3.2e-06], 'linear': ['yes', 'yes']}
    """
    small = small_runs or {}
    require_runs(small or runs, "small_runs")
    return verdict_table(
        [
            verdict(
                runs,
                eta,
                n,
                tolerance=tolerance,
                probability=probability,
                small_runs={name: run for name, run in small.items() if run.has_eta(eta)} or None,
            )
            for eta in known_etas(runs, etas)
        ]
    )


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as a table, a row each.

    Returns
    -------
    DataFrame
        Columns eta, n, and for each question ("linear", "recorded") its answer and, prefixed by its name, the fields of
        `Answer` but for the reasons.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_table([verdict(synthetic_runs(3, 512), 1.6e-6, 64)])["linear_estimator"].tolist()
    ['trend']
    """
    rows = []
    for found in verdicts:
        row: dict[str, object] = {"eta": found.eta, "n": found.n}
        for question, answer in found.answers.items():
            fields = asdict(answer)
            row[question] = fields.pop("answer")
            row |= {f"{question}_{name}": value for name, value in fields.items() if name != "reasons"}
        rows.append(row)
    counts = [f"{question}_required_{end}" for question in QUESTIONS for end in ("n", "low", "high")]
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


def true_change(runs: Mapping[str, Run], eta: float) -> Pool:
    """Return the random-effects mean of the true change over the runs that have eta, and tau between them."""
    values, variances = _true_changes(runs, eta)
    return pool(values, variances)


def true_change_p_value(large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float) -> float:
    """Return the p-value that two batch folders have the same mean true change; NaN where too few runs have eta.

    Both folders share one tau; Student's t on ``runs - 2`` degrees of freedom.
    """
    from scipy.special import stdtr

    groups = [_true_changes(runs, eta) for runs in (large_runs, small_runs)]
    freedom = sum(len(values) for values, _ in groups) - 2
    if freedom < 1 or not all(len(values) for values, _ in groups):
        return math.nan
    # Within groups Q(tau^2) = freedom: centre each group, which costs one degree of freedom each.
    tau2 = _common_between_variance(groups, freedom)
    weights = [1 / (variances + tau2) for _, variances in groups]
    means = [float(w @ values / w.sum()) for w, (values, _) in zip(weights, groups, strict=True)]
    error = math.sqrt(sum(1 / float(w.sum()) for w in weights))
    return float(2 * stdtr(freedom, -abs(means[0] - means[1]) / error))


def _true_changes(runs: Mapping[str, Run], eta: float) -> tuple[np.ndarray, np.ndarray]:
    having = [run for run in runs.values() if run.has_eta(eta)]
    errors = [true_total_standard_error(run, eta) for run in having]
    known = [
        (run.measurement(eta).delta_h_true, se**2) for run, se in zip(having, errors, strict=True) if se is not None
    ]
    values, variances = np.array(known).reshape(-1, 2).T
    return values, variances


def _common_between_variance(groups: Sequence[tuple[np.ndarray, np.ndarray]], freedom: int) -> float:
    def excess(tau2: float) -> float:
        total = 0.0
        for values, variances in groups:
            weights = 1 / (variances + tau2)
            total += float(weights @ (values - weights @ values / weights.sum()) ** 2)
        return total - freedom

    low, high = 0.0, sum(float(np.sum((values - values.mean()) ** 2)) for values, _ in groups) / freedom
    if excess(0.0) <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return (low + high) / 2


def _linear(pilots: Mapping[str, Pilot], n: int, goal: Goal, doubts: Sequence[str]) -> Answer:
    if not pilots:
        missing = "it takes two etas a run, or the score: measure more etas on the same sequences, or record the score"
        return Answer(UNSURE, reasons=(f"nonlinearity cannot be estimated: {missing}",))
    chosen = min(pilots, key=lambda method: pilots[method].fixed_effect_error)
    told = [f"nonlinearity {_named(method)}: {plus_minus(p.pooled.mean, p.pooled.se)}" for method, p in pilots.items()]
    z = difference_z(*pilots.values()) if len(pilots) == 2 else math.nan
    differ = [f"the trend and matched − true differ by {abs(z):.1f} standard errors"] if abs(z) > CLEAR_Z else []
    return _answered(chosen, pilots[chosen], n, goal, [*doubts, *differ], told)


def _recorded(
    runs: Mapping[str, Run],
    small_runs: Mapping[str, Run] | None,
    eta: float,
    n: int,
    goal: Goal,
    doubts: Sequence[str],
    flags: pd.DataFrame,
) -> tuple[Agreement | None, Answer]:
    supports = [set(run.supports) for run in runs.values()]
    if not all({"linear", "baseline_entropy"} <= found for found in supports):
        reason = "not every run records its linear terms by sequence (approx.per_sequence[].gdotv)"
        return None, Answer(UNSURE, reasons=(reason,))
    pilot = pilot_of(runs, eta)
    told = [f"err_rel by the ratio: {plus_minus(pilot.pooled.mean, pilot.pooled.se)}"]
    doubts, agreement = list(doubts), None
    if not all("score" in found for found in supports):
        doubts.append("the linear terms lack the denominator correction, so they estimate another quantity")
    else:
        adjusted = pilot_of(runs, eta, estimator="adjusted").pooled
        told.append(f"score-adjusted: {plus_minus(adjusted.mean, adjusted.se)}")
    if small_runs:
        doubts += [f"actual run {name} does not add up" for name, run in small_runs.items() if integrity_problems(run)]
        agreement = agreement_with_prediction(runs, small_runs, eta, reference=pilot.reference)
    if agreement is not None:
        p = f"p = {agreement.p_spread:.2g} for their spread, {agreement.p_mean:.2g} for their mean"
        told.append(f"{_count(agreement.num_runs, 'actual run')} against the prediction: {p}")
        if min(agreement.p_spread, agreement.p_mean) < SURPRISING:
            doubts.append("the actual runs contradict the prediction from the large runs")
    off_policy = flags[flags["check"].isin(OFF_POLICY_CHECKS)]
    if len(off_policy):
        told.append(f"sequences are off-policy (sampler-trainer mismatch): {_listed(off_policy)}")
    return agreement, _answered("ratio", pilot, n, goal, doubts, told)


def _answered(estimator: str, pilot: Pilot, n: int, goal: Goal, doubts: Iterable[str], told: Iterable[str]) -> Answer:
    """Return the answer of a pilot; doubts make it "cannot tell"."""
    tolerance, probability = float(goal.tolerance or 0), goal.probability
    reasons = [f"no answer: {doubt}" for doubt in doubts]
    answer = UNSURE if reasons else _within(pilot, tolerance, probability)
    quantile = normal_quantile(probability)
    spread, (low, high) = math.sqrt(pilot.mean_square_spread), spread_interval(pilot)
    margin, least, most = (quantile * s / math.sqrt(n) for s in (spread, low, high))
    enough = YES if most <= tolerance else NO if least > tolerance else UNSURE
    required, fewest, largest = (size_for(s, tolerance / quantile) for s in (spread, low, high))
    next_low, next_high = predict(pilot, math.inf).interval(probability)
    return Answer(
        answer=answer,
        estimator=estimator,
        mean=pilot.pooled.mean,
        se=pilot.pooled.se,
        low=next_low,
        high=next_high,
        margin=margin,
        enough=enough,
        required_n=required,
        required_low=fewest,
        required_high=largest,
        reasons=(*reasons, *told, f"one batch of {n} estimates the error to ±{margin:.2f} ({least:.2f} to {most:.2f})"),
    )


def _within(pilot: Pilot, tolerance: float, probability: float) -> AnswerWord:
    low, high = pilot.pooled.interval(CONFIDENCE)
    scattered = normal_quantile(probability) * pilot.tau_interval(CONFIDENCE)[0] > tolerance
    if low > tolerance or high < -tolerance or scattered:
        return NO
    confident = pilot.distribution.confidence_within(tolerance, probability) >= CONFIDENCE
    return YES if confident and len(pilot.values) > 1 else UNSURE


def _unsound(flags: pd.DataFrame) -> list[str]:
    found = flags[flags["check"].isin(_UNSOUND)]
    return [f"{_listed(found)}: fix or exclude the run"] if len(found) else []


def _shared_prompts(runs: Mapping[str, Run]) -> list[str]:
    prompts = {name: set(run.prompt_ids.tolist()) for name, run in runs.items() if run.prompt_ids is not None}
    for (one, a), (other, b) in combinations(prompts.items(), 2):
        if len(a & b) > _MOST_SHARED * min(len(a), len(b)):
            return [f"{one} and {other} share more than half of their prompts, so runs are not independent"]
    return []


def _weak_reference(change: Pool) -> list[str]:
    if not change.count or change.se * CLEAR_Z <= abs(change.mean):
        return []
    return [f"the reference, the mean true change, is known to ±{change.se / abs(change.mean):.0%} only"]


def _of_true_change(
    runs: Mapping[str, Run], change: Pool, small_runs: Mapping[str, Run] | None, eta: float
) -> list[str]:
    if not change.count:
        return []
    tau = f", tau {change.tau / abs(change.mean):.0%}" if change.count > 1 else ""
    told = [f"true change {change.mean * 1e3:+.3f} ± {change.se * 1e3:.3f} (10⁻³ nats per token{tau})"]
    small = true_change(small_runs, eta) if small_runs else None
    if small is not None and small.count:
        p = true_change_p_value(runs, small_runs or {}, eta)
        told[0] += f"; actual runs {small.mean * 1e3:+.3f} ± {small.se * 1e3:.3f} (p = {p:.2g} for no difference)"
    return told


def _flagged(flags: pd.DataFrame) -> list[str]:
    return [f"health flags: {_listed(flags)}"] if len(flags) else []


def _next_steps(
    runs: Mapping[str, Run],
    eta: float,
    goal: Goal,
    pilots: Mapping[str, Pilot],
    linear: Answer,
    recorded: Answer,
    flags: pd.DataFrame,
) -> tuple[str, ...]:
    """Return what would help, from the numbers."""
    steps = []
    if flags["check"].isin(OFF_POLICY_CHECKS).any():
        steps.append("fix the sampler: with on-policy sequences the recorded linear change has no bias from sampling")
    trend, matched = pilots.get("trend"), pilots.get("matched")
    fewest = max((len(run.etas) for run in runs.values()), default=0)
    weak = trend is None or (matched is not None and trend.fixed_effect_error > matched.fixed_effect_error / 2)
    if fewest < 5 and weak and (linear.answer == UNSURE or linear.enough != YES):
        steps.append("measure larger etas on the same sequences: nonlinearity is then known better at every eta")
    if recorded.answer == UNSURE and matched is not None and recorded.required_n is not None:
        needed = size_for(
            math.sqrt(matched.mean_square_spread), (goal.tolerance or 0) / normal_quantile(goal.probability)
        )
        if needed < recorded.required_n / 2:
            sizes = f"{needed:,} sequences, {recorded.required_n:,} by the ratio"
            steps.append(f"use the matched estimator: ±{goal.tolerance:g} takes {sizes}")
    recorded_pilot = pilot_of(runs, eta) if recorded.estimator else None
    for question, found, pilot in (
        ("linear", linear, pilots.get(linear.estimator)),
        ("recorded", recorded, recorded_pilot),
    ):
        if found.answer == UNSURE and pilot is not None and not found.reasons[0].startswith("no answer"):
            steps.append(_more_runs(_WHETHER[question], pilot, goal))
    return tuple(steps)


def _more_runs(whether: str, pilot: Pilot, goal: Goal) -> str:
    """Return how many more runs like these would settle a question, if they agree as these do."""
    from scipy.special import ndtri

    count, found = len(pilot.values), pilot.pooled
    variance = float(np.mean(pilot.variances))
    for more in _MORE_RUNS:
        scores = ndtri((np.arange(count + more) + 0.5) / (count + more))
        values = found.mean + scores / scores.std(ddof=1) * math.sqrt(found.tau**2 + variance)
        like = replace(
            pilot, values=values, spreads=np.full(count + more, math.sqrt(variance)), sizes=np.ones(count + more)
        )
        if _within(like, float(goal.tolerance or 0), goal.probability) != UNSURE:
            return f"{_count(more, 'more run')} like these would settle {whether}"
    return f"more runs of this size would not settle {whether}"


def _not_established(
    runs: Mapping[str, Run],
    n: int,
    change: Pool,
    pilots: Mapping[str, Pilot],
    agreement: Agreement | None,
    small_given: bool,
) -> tuple[str, ...]:
    count, found = len(runs), []
    if count < _FEW_RUNS:
        bounds = [f"{pilot.tau_interval(CONFIDENCE)[1]:.2f} ({_named(name)})" for name, pilot in pilots.items()]
        bound = f": tau may be as large as {' or '.join(bounds)}" if bounds and count > 1 else ""
        found.append(f"how much updates differ; with {_count(count, 'large run')} tau is hardly known{bound}")
    if any(len(run.etas) > 1 for run in runs.values()):
        found.append("that etas agree: step sizes within a run share sequences and are not independent")
    if change.count and change.mean:
        found.append(f"the true change to better than ±{change.se / abs(change.mean):.0%}")
    if prompts_per_sequence(runs) is None:
        found.append("that sequences are independent (prompts sampled more than once?): no prompt ids are recorded")
    if runs and n > max(run.num_sequences for run in runs.values()):
        found.append(f"how a batch of {n} behaves: no run is as large")
    if agreement is None:
        found.append("that actual small runs fall where predicted" + ("" if small_given else ": none were given"))
    else:
        found.append(
            f"a small misfit of the actual runs: with {_count(agreement.num_runs, 'run')} a sign test cannot reach "
            f"p < {agreement.smallest_p:g}"
        )
    return tuple(found)


def _named(estimator: str) -> str:
    return {"trend": "by the trend over etas", "matched": "by matched − true", "ratio": "by the ratio"}[estimator]


def _listed(flags: pd.DataFrame) -> str:
    groups = flags.groupby("check", sort=False)["run"]
    return "; ".join(f"{check} in {', '.join(dict.fromkeys(names))}" for check, names in groups)


def plus_minus(mean: float, se: float) -> str:
    """Return a mean and its standard error with as many decimals as the error needs."""
    if math.isnan(mean):
        return "-"
    decimals = 2 if se >= 0.01 else min(6, 1 - math.floor(math.log10(se))) if se > 0 else 3
    return f"{mean:+.{decimals}f} ± {se:.{decimals}f}"


def _span(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def _sequences(found: Answer) -> str:
    if found.required_n is None:
        return "-"
    return f"{found.required_n:,} ({found.required_low:,} to {found.required_high:,})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
