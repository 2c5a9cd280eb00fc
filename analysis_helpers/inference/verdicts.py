"""Two questions about runs, each with its own answer and its own batch size.

*Is the step linear?* Does the true change stay proportional to eta? *Is the recorded linear change right?* Does the
number from derivatives agree with the true change? Answers are "yes", "no" and "cannot tell". Do not read a "yes" as
more than it says: what these runs do not establish is listed with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from .._checks import checked_count
from ..estimators import Estimate, true_total
from ..runs import Run, Runs
from .health import CLEAR_Z, OFF_POLICY_CHECKS, explained, flags_at, joined, run_health, unsound_flags
from .planning import LEAST, check_goal, size_for, spread_with_interval
from .prediction import Agreement, PooledEstimate, agreement_with_prediction, pooled_err_rel, predict
from .random_effects import CONFIDENCE, Pool, between_variances, normal_quantile
from .trend import difference_z, nonlinearity_estimates, pool_estimates

AnswerWord = Literal["yes", "no", "cannot tell"]
QUESTIONS = {"linear": "Is the step linear?", "recorded": "Is the recorded linear change right?"}
_WHETHER = {"linear": "whether the step is linear", "recorded": "whether the recorded linear change is right"}
_NAMED = {"trend": "by the trend over etas", "matched": "by matched − true"}

SURPRISING = 0.01  # actual runs with a p-value below contradict their prediction
_FEW_RUNS = 10
_MOST_SHARED = 0.5  # of the prompts: beyond, runs are not independent of each other
_ANOTHER_UNIT = 20  # times the true change: a linear change so far off is hardly one in the unit of the format
_MORE_RUNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


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
        Mean error over updates and its standard error (random effects); like all numbers, NaN or None where a run is
        unsound.
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
    enough: AnswerWord = "cannot tell"
    required_n: int | None = None
    required_low: int | None = None
    required_high: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
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

    def table(self) -> pd.DataFrame:
        """Return a row for each question: its answer, error over updates, next update, and batch size."""
        rows = [
            {
                "question": QUESTIONS[name],
                "answer": found.answer,
                "by": found.estimator or "-",
                "error": plus_minus(found.mean, found.se),
                "next_update": low_to_high(found.low, found.high),
                f"batch for ±{self.tolerance:g}": _sequences(found),
                f"{self.n} enough?": found.enough,
            }
            for name, found in self.answers.items()
        ]
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=False, border=0)
        return html

    def __repr__(self) -> str:
        title = (
            f"eta {self.eta:g}, tolerance ±{self.tolerance:g}, probability {self.probability:.0%}, batch of {self.n}"
        )
        return "\n".join([title, self.table().to_string(index=False), self.explanation])

    @property
    def explanation(self) -> str:
        """Why, what would help, and what is not shown, a line for each sentence."""
        parts = {QUESTIONS[name]: found.reasons for name, found in self.answers.items()}
        parts |= {"Both": self.reasons, "Next": self.next_steps, "Not established": self.not_established}
        lines = ("\n  - ".join([heading, *sentences]) for heading, sentences in parts.items() if sentences)
        return "\n".join(lines)

    @property
    def answers(self) -> dict[str, Answer]:
        """Question -> answer."""
        return {"linear": self.linear, "recorded": self.recorded}


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

    "cannot tell" also where a run is unsound (`run_health`) or large runs share more than half of their prompts; for
    *linear* where its two estimates differ beyond z = 3; for *recorded* where the reference is within 3 standard errors
    of 0, linear terms lack the denominator correction or are in another unit, or ``small_runs`` contradict their
    prediction at p < 0.01. How often answers are false is measured in ``notebooks/06_known_truth.ipynb``.

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
    check_goal(tolerance, probability)
    large = Runs.of(large_runs, "large_runs")
    size, step = checked_count(n, "n"), large.eta(eta)
    runs, small = large.at(step), Runs(small_runs or {}, "small_runs").at(step)
    case = Case(runs, small, step, size, tolerance, probability)
    answers, told = (case.linear, case.recorded), (case.reasons, case.next_steps, case.not_established)
    return Verdict(step, size, tolerance, probability, *answers, *told)


def trusted_eta(runs: Mapping[str, Run], *, tolerance: float = 0.25, probability: float = 0.9) -> float | None:
    """Return the largest eta measured at which the step is linear (a "yes" of `verdict`); None if at none.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> trusted_eta(runs, tolerance=0.25), trusted_eta(runs, tolerance=1e-4)
    (3.2e-06, None)
    """
    table = verdict_map(runs, n=LEAST, tolerance=tolerance, probability=probability)
    return max(table.loc[table["linear"] == "yes", "eta"].tolist(), default=None)


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
    collection, goal = Runs.of(runs), {"tolerance": tolerance, "probability": probability}
    found = collection.etas_of(etas)
    large, small = collection.at_each(found), Runs(small_runs or {}, "small_runs").at_each(found)
    return verdict_table([verdict(large[eta], eta, n, small_runs=small[eta], **goal) for eta in found])


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
    records: list[dict[str, Any]] = [
        {"eta": found.eta, "n": found.n, **{name: asdict(answer) for name, answer in found.answers.items()}}
        for found in verdicts
    ]
    counts = [f"{name}_required_{end}" for name in QUESTIONS for end in ("n", "low", "high")]
    table = pd.json_normalize(records, sep="_").rename(columns={f"{name}_answer": name for name in QUESTIONS})
    return table.drop(columns=[f"{name}_reasons" for name in QUESTIONS]).astype(dict.fromkeys(counts, "Int64"))


def true_change(runs: Mapping[str, Run], eta: float) -> Pool | None:
    """Return the random-effects mean of the true change over the runs, and tau between them; None if it is unknown."""
    totals = _true_totals(runs, eta)
    return pool_estimates(totals) if totals else None


def true_change_p_value(large_runs: Mapping[str, Run], small_runs: Mapping[str, Run], eta: float) -> float:
    """Return the p-value that two batch folders have the same mean true change; NaN where too few runs have eta.

    Both folders share one tau; Student's t on ``runs - 2`` degrees of freedom.
    """
    from scipy.special import stdtr

    groups = [_true_totals(runs, eta) for runs in (large_runs, small_runs)]
    freedom = sum(map(len, groups)) - 2
    if freedom < 1 or not all(groups):
        return math.nan
    values, errors = np.array([(total.value, total.se) for group in groups for total in group]).T
    variances, member = errors**2, np.repeat(np.eye(2), [len(group) for group in groups], axis=0)
    # Within groups Q(tau^2) = freedom: centre each group, which costs one degree of freedom each.
    weights = 1 / (variances + between_variances(values, variances, np.array([freedom]), member))
    totals = weights @ member
    first, second = (weights * values) @ member / totals
    return float(2 * stdtr(freedom, -abs(first - second) / math.sqrt(np.sum(1 / totals))))


def _true_totals(runs: Mapping[str, Run], eta: float) -> list[Estimate]:
    """Return the true change of each run that has eta, where its standard error is known."""
    totals = [true_total(run, eta) for run in runs.values() if run.has_eta(eta)]
    return [total for total in totals if not math.isnan(total.se)]


@dataclass(frozen=True, eq=False)
class Case:
    """Runs that were measured at eta, and a question, as in `verdict`; what follows from them is computed once."""

    runs: Runs
    small_runs: Runs
    eta: float
    n: int
    tolerance: float
    probability: float

    @cached_property
    def linear(self) -> Answer:
        """Is the step linear?"""
        if not self._pilots:
            missing = (
                "it takes two etas a run, or the score: measure more etas on the same sequences, or record the score"
            )
            return Answer("cannot tell", reasons=(self._skipped or f"nonlinearity cannot be estimated: {missing}",))
        chosen = min(self._pilots, key=lambda method: self._pilots[method].fixed_effect_error)
        told = [f"nonlinearity {_NAMED[method]}: {_estimate(pilot)}" for method, pilot in self._pilots.items()]
        z = difference_z(*self._pilots.values()) if len(self._pilots) == 2 else math.nan
        differ = [f"the trend and matched − true differ by {abs(z):.1f} standard errors"] if abs(z) > CLEAR_Z else []
        return self.answered(chosen, self._pilots[chosen], [*self._doubts, *differ], told)

    @cached_property
    def recorded(self) -> Answer:
        """Is the recorded linear change right?"""
        if self.ratio is None:
            return Answer("cannot tell", reasons=(self._skipped or self._unrecorded,))
        told, doubts, change = [f"err_rel by the ratio: {_estimate(self.ratio)}"], list(self._doubts), self._change
        if change and change.se * CLEAR_Z > abs(change.mean):
            doubts.append(f"the reference, the mean true change, is known to ±{_relative(change)} only")
        elif abs(times := 1 + self.ratio.pooled.mean) > _ANOTHER_UNIT:
            doubts.append(
                f"the linear change is {times:,.0f} times the true one: gdotv or entropies may have another unit"
            )
        if not self._without("score"):
            told.append(f"score-adjusted: {_estimate(pooled_err_rel(self.runs, self.eta, estimator='adjusted'))}")
        else:
            doubts.append("whether the linear terms include the denominator correction is not recorded")
        off = [name for name, run in self.small_runs.items() if run.problems]
        doubts += [f"actual run {name} does not add up" for name in off]
        if (found := self._agreement) is not None:
            p = f"p = {found.p_spread:.2g} for their spread, {found.p_mean:.2g} for their mean"
            told.append(f"{counted(found.num_runs, 'actual run')} against the prediction: {p}")
            if min(found.p_spread, found.p_mean) < SURPRISING:
                doubts.append("the actual runs contradict the prediction from the large runs")
        if len(self._off_policy):
            told.append(f"sequences are off-policy (sampler-trainer mismatch) by {joined(self._off_policy['check'])}")
        return self.answered("ratio", self.ratio, doubts, told)

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """The reasons that concern both answers."""
        told, change = [], self._change
        if self._unsound:
            return ()
        if change:
            tau = f", tau {change.tau / abs(change.mean):.0%}" if change.count > 1 and change.mean else ""
            told.append(f"true change, mean by random effects: {_milli(change)} (10⁻³ nats per token{tau})")
        if change and (small := true_change(self.small_runs, self.eta)):
            p = true_change_p_value(self.runs, self.small_runs, self.eta)
            told[0] += f"; actual runs {_milli(small)} (p = {p:.2g} for no difference)"
        return (*told, *(f"health: {flag}" for flag in explained(self._flags)))

    @cached_property
    def next_steps(self) -> tuple[str, ...]:
        """What would help, from the numbers."""
        linear, recorded, steps = self.linear, self.recorded, []
        if self._unsound:
            return ("fix or exclude the runs named above",)
        if self._shared:
            steps.append(
                "measure runs with other prompts (if ids begin anew in each run, number them across runs): more "
                "sequences, etas or runs with these prompts settle nothing"
            )
        if len(self._off_policy):
            steps.append(
                "fix the sampler: with on-policy sequences the recorded linear change has no bias from sampling"
            )
        trend, matched = self._pilots.get("trend"), self._pilots.get("matched")
        few = not self._shared and max(len(run.etas) for run in self.runs.values()) < 5
        weak = trend is None or (matched is not None and trend.fixed_effect_error > matched.fixed_effect_error / 2)
        if few and weak and (linear.answer == "cannot tell" or linear.enough != "yes"):
            steps.append("measure larger etas on the same sequences: nonlinearity is then known better at every eta")
        settled = matched is not None and not linear.reasons[0].startswith("no answer")
        if recorded.answer == "cannot tell" and matched and settled and recorded.required_n is not None:
            needed = self._size_for(math.sqrt(matched.mean_square_spread))
            if needed < recorded.required_n / 2:
                sizes = f"{needed:,} sequences, {recorded.required_n:,} by the ratio"
                steps.append(f"use the matched linear change, not the recorded one: ±{self.tolerance:g} takes {sizes}")
        if self._unrecorded or self._without("score"):
            steps.append("record score, wjlogp_sum and jH_sum of each sequence in every run, in place of gdotv")
        behind = {"linear": (linear, self._pilots.get(linear.estimator)), "recorded": (recorded, self.ratio)}
        for question, (found, pilot) in behind.items():
            if found.answer == "cannot tell" and pilot is not None and not found.reasons[0].startswith("no answer"):
                steps.append(self.more_runs(_WHETHER[question], pilot))
        return tuple(steps)

    @cached_property
    def not_established(self) -> tuple[str, ...]:
        """What these runs do not show."""
        if self._unsound:
            return ()
        count, found, change = len(self.runs), [], self._change
        if count < _FEW_RUNS:
            taus = {name: pilot.pooled.tau_high for name, pilot in self._pilots.items()}
            bounds = [f"{tau:.{_decimals(tau)}f} ({_NAMED[name]})" for name, tau in taus.items() if tau]
            bound = f": tau may be as large as {' or '.join(bounds)}" if bounds and count > 1 else ""
            found.append(f"how much updates differ; with {counted(count, 'large run')} tau is hardly known{bound}")
        if any(len(run.etas) > 1 for run in self.runs.values()):
            found.append("agreement between etas: step sizes within a run share sequences and are not independent")
        if change and change.mean:
            found.append(f"the true change to better than ±{_relative(change)}")
        if any(run.prompt_ids is None for run in self.runs.values()):
            found.append("that sequences are independent (prompts sampled more than once?): no prompt ids are recorded")
        if self._without("score"):
            found.append("that log weights have the right sign and scale: the score is not recorded")
        if self._without("logp"):
            found.append("that entropies are sums of nats over the sequence: log-probabilities are not recorded")
        if self.n > max(run.n for run in self.runs.values()):
            found.append(f"how a batch of {self.n} behaves: no run is as large")
        if self._agreement is None:
            given = "" if self.small_runs else ": none were given at this eta"
            return (*found, f"that actual small runs fall where predicted{given}")
        runs, p = counted(self._agreement.num_runs, "run"), self._agreement.smallest_p
        return (*found, f"a small misfit of the actual runs: with {runs} a sign test cannot reach p < {p:g}")

    @cached_property
    def ratio(self) -> PooledEstimate | None:
        """err_rel by the ratio; None where runs do not record it alike."""
        return None if self._skipped or self._unrecorded else pooled_err_rel(self.runs, self.eta)

    def answered(self, estimator: str, pilot: PooledEstimate, doubts: Iterable[str], told: Iterable[str]) -> Answer:
        """Return the answer of a pilot; doubts make it "cannot tell"."""
        reasons, pooled = [f"no answer: {doubt}" for doubt in doubts], pilot.pooled
        answer = "cannot tell" if reasons else _within(pilot, self.tolerance, self.probability)
        if self._unsound:  # no number that could be taken for an estimate
            return Answer(answer, estimator, reasons=tuple(f"no answer: {doubt}" for doubt in self._doubts))
        spreads = spread_with_interval(pilot)
        margins = self._margins(spreads, self.n)
        margin, least, most = (f"{end:.{_decimals(margins[0])}f}" for end in margins)
        batch = (
            f"one batch of {self.n} is off by at most {margin} ({least} to {most}) in {self.probability:.0%} of cases"
        )
        low, high = predict(pilot, math.inf).interval(self.probability)
        if answer == "no" and normal_quantile(self.probability) * pooled.tau_low > self.tolerance:
            reasons.append(f"updates differ too much for a yes: tau is at least {pooled.tau_low:.2g}")
        required, fewest, largest = map(self._size_for, spreads)
        errors, sizes = (pooled.mean, pooled.se, low, high, margins[0]), (required, fewest, largest)
        return Answer(answer, estimator, *errors, self.enough(pilot, self.n), *sizes, (*reasons, *told, batch))

    def enough(self, pilot: PooledEstimate, n: int) -> AnswerWord:
        """Return whether one batch of ``n`` estimates the error to within the tolerance."""
        _, least, most = self._margins(spread_with_interval(pilot), n)
        if n < LEAST:
            return "cannot tell"
        return "yes" if most <= self.tolerance else "no" if least > self.tolerance else "cannot tell"

    def more_runs(self, whether: str, pilot: PooledEstimate) -> str:
        """Return how many more runs like these would settle a question, and how."""
        from scipy.special import ndtri

        count, found = len(pilot.values), pilot.pooled
        variance = float(np.mean(pilot.variances))
        for more in _MORE_RUNS:
            scores = ndtri((np.arange(count + more) + 0.5) / (count + more))
            values = found.mean + scores / scores.std(ddof=1) * math.sqrt(found.tau**2 + variance)
            spreads = np.full(count + more, math.sqrt(variance))
            like = replace(pilot, values=values, spreads=spreads, sizes=np.ones(count + more))
            if (answer := _within(like, self.tolerance, self.probability)) != "cannot tell":
                return f'{counted(more, "more run")} like these would settle {whether}: "{answer}"'
        return f"more runs of this size would not settle {whether}"

    @cached_property
    def _flags(self) -> pd.DataFrame:
        """What `run_health` flags at this eta."""
        return flags_at(run_health(self.runs), [self.eta])

    @cached_property
    def _skipped(self) -> str:
        """Why nothing can be estimated: a step that changed nothing; empty where there is none."""
        names = self._flags.loc[self._flags["check"] == "unchanged", "run"]
        return f"no answer: the step changed nothing in {', '.join(names)}: exclude the run" if len(names) else ""

    @cached_property
    def _off_policy(self) -> pd.DataFrame:
        """Flags of off-policy sequences."""
        return self._flags[self._flags["check"].isin(OFF_POLICY_CHECKS)]

    @cached_property
    def _change(self) -> Pool | None:
        """The true change over the runs; None where no run has its standard error."""
        return true_change(self.runs, self.eta)

    @cached_property
    def _pilots(self) -> dict[str, PooledEstimate]:
        """Nonlinearity, by each method that the runs record."""
        return {} if self._skipped else nonlinearity_estimates(self.runs, self.eta)

    @cached_property
    def _unrecorded(self) -> str:
        """What some runs lack for err_rel, and which; empty where it is nothing."""
        if without := self._without("linear", "baseline_entropy"):
            return f"linear terms by sequence (approx.per_sequence[].gdotv) are not recorded in {', '.join(without)}"
        without = self._without("score")
        if 0 < len(without) < len(self.runs):
            return f"the denominator correction of other runs is not recorded in {', '.join(without)}"
        return ""

    @cached_property
    def _agreement(self) -> Agreement | None:
        """Whether actual runs fell where predicted; None without them."""
        return agreement_with_prediction(self.ratio, self.runs, self.small_runs) if self.ratio else None

    @cached_property
    def _unsound(self) -> list[str]:
        """For which flags a run must be fixed or left out."""
        return explained(unsound_flags(self._flags))

    @cached_property
    def _doubts(self) -> list[str]:
        """What concerns both answers."""
        return [f"fix or exclude the run: {flag}" for flag in self._unsound] + self._shared

    @cached_property
    def _shared(self) -> list[str]:
        """That runs share their prompts, where they do."""
        return _shared_prompts(self.runs)

    def _without(self, *needs: str) -> list[str]:
        return self.runs.lacking(*needs)

    def _margins(self, spreads: Iterable[float], n: int) -> list[float]:
        return [normal_quantile(self.probability) * spread / math.sqrt(n) for spread in spreads]

    def _size_for(self, spread: float) -> int:
        return size_for(spread, self.tolerance / normal_quantile(self.probability))


def _within(pilot: PooledEstimate, tolerance: float, probability: float) -> AnswerWord:
    low, high = pilot.pooled.interval
    scattered = normal_quantile(probability) * pilot.pooled.tau_low > tolerance
    if low > tolerance or high < -tolerance or scattered:
        return "no"
    confident = pilot.distribution.confidence_within(tolerance, probability) >= CONFIDENCE
    return "yes" if confident and len(pilot.values) > 1 else "cannot tell"


def _shared_prompts(runs: Mapping[str, Run]) -> list[str]:
    prompts = {name: set(run.prompt_ids.tolist()) for name, run in runs.items() if run.prompt_ids is not None}
    for (one, a), (other, b) in combinations(prompts.items(), 2):
        if len(a & b) > _MOST_SHARED * min(len(a), len(b)):
            return [f"{one} and {other} share more than half of their prompts, so runs are not independent"]
    return []


def _milli(change: Pool) -> str:
    return f"{change.mean * 1e3:+.3f} ± {change.se * 1e3:.3f}"


def _relative(change: Pool) -> str:
    return f"{change.se / abs(change.mean):.0%}"


def _estimate(pilot: PooledEstimate) -> str:
    return plus_minus(pilot.pooled.mean, pilot.pooled.se)


def plus_minus(mean: float, se: float) -> str:
    """Return a mean and its standard error with as many decimals as the error needs."""
    if math.isnan(mean):
        return "-"
    decimals = _decimals(se)
    return f"{mean:+z.{decimals}f} ± {se:.{decimals}f}"


def low_to_high(low: float, high: float) -> str:
    """Return the ends of an interval with as many decimals as its width needs."""
    decimals = _decimals(high - low)
    return "-" if math.isnan(low) else f"{low:+z.{decimals}f} to {high:+z.{decimals}f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> counted(1, "run"), counted(2048, "sequence")
    ('1 run', '2,048 sequences')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _decimals(scale: float) -> int:
    return 2 if not 0 <= scale < 0.01 else min(6, 1 - math.floor(math.log10(scale))) if scale else 3


def _sequences(found: Answer) -> str:
    if found.required_n is None:
        return "-"
    if found.required_high == LEAST:
        return f"at most {LEAST}"
    return f"{found.required_n:,} ({found.required_low:,} to {found.required_high:,})"
