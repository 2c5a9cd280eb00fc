"""Two questions about runs, each with its own answer and its own batch size.

*Is the step linear?* Does the true change stay proportional to eta? *Is the recorded linear change right?* Does the
number from derivatives agree with the true change? Answers are "yes", "no" and "cannot tell". A verdict also lists what
these runs do not establish.

Three steps: `evidence_of` computes the evidence at one eta, `decide` answers from it, and
`analysis_helpers.inference.wording` makes the sentences.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from .._checks import check_goal, checked_count, same_eta
from ..estimators import Estimate, columns, true_total
from ..runs import Run, Runs, default_n, shared_etas
from .decision import AnswerWord, Goal, chances, within
from .health import (
    CLEAR_Z,
    OFF_POLICY_CHECKS,
    Finding,
    by_check,
    cause_of_off_policy,
    findings,
    support_of,
    unsound_flags,
)
from .origin import SameStatesError, same_states_error
from .prediction import LEAST, Agreement, PooledEstimate, agreement_of, pooled_err_rel, predict, size_for
from .random_effects import CONFIDENCE, Pool, between_variances, normal_quantile
from .trend import disagreement, nonlinearity_estimates, trends_of
from .wording import CONCERN_NO_ANSWER, QUESTIONS, Doubt, Note, low_to_high, plus_minus, sizes, words

SURPRISING = 0.01  # actual runs with a p-value below contradict their prediction
_FEW_RUNS = 10
_FEW_ETAS = 5
_FEW_PROMPTS = 30
_ANOTHER_UNIT = 20  # times the true change: a linear change so far off is hardly one in the unit of the format


@dataclass(frozen=True)
class Answer:
    """The answer to one question; errors are in units of the true change.

    Attributes
    ----------
    answer
        "yes" | "no" | "cannot tell": does the error of the next update lie within the tolerance, with the given
        probability?
    estimator
        The estimator used: "trend", "matched" or "ratio"; empty if the runs record too little for any.
    mean, se
        Mean error over updates and its standard error (random effects). Like all numbers, NaN or None if a run is
        unsound.
    low, high
        Prediction interval, with that probability, of the error of the next update; NaN with one run.
    margin
        Largest distance of the error on one batch of n from its expectation, with that probability.
    enough
        Is that margin within the tolerance?
    required_n, required_low, required_high
        Sequences at which the margin equals the tolerance, with a 90 % interval; None if unknown.
    doubts
        Why there is no "yes" or "no": codes, with the runs and numbers that they concern.
    notes
        Other reasons for the answer, in the same form.
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
    doubts: tuple[Doubt, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Doubts and notes in words, a sentence each."""
        return tuple(map(words, (*self.doubts, *self.notes)))


@dataclass(frozen=True, repr=False)
class Verdict:
    """The verdict of the runs at one eta.

    Attributes
    ----------
    eta, n, tolerance, probability
        The question: tolerance on the absolute error, in units of the true change, and how often it must hold.
    linear, recorded
        The two answers.
    notes, steps, unknown
        Notes on both answers, next steps, and what these runs do not establish: codes, runs and numbers.
    """

    eta: float
    n: int
    tolerance: float
    probability: float
    linear: Answer
    recorded: Answer
    notes: tuple[Note, ...]
    steps: tuple[Note, ...]
    unknown: tuple[Note, ...]

    @property
    def answers(self) -> dict[str, Answer]:
        """Question -> answer."""
        return {"linear": self.linear, "recorded": self.recorded}

    @property
    def reasons(self) -> tuple[str, ...]:
        """What concerns both answers, a sentence each."""
        return tuple(map(words, self.notes))

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What would help, a sentence each."""
        return tuple(map(words, self.steps))

    @property
    def not_established(self) -> tuple[str, ...]:
        """What these runs do not establish, a sentence each."""
        return tuple(map(words, self.unknown))

    def record(self) -> dict[str, Any]:
        """Return the verdict as data for JSON: fields, codes and numbers, None for NaN and infinity."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return record

    def table(self) -> pd.DataFrame:
        """Return a row for each question: its answer, error over updates, next update, and batch size."""
        rows = [
            {
                "question": QUESTIONS[name],
                "answer": answer.answer,
                "by": answer.estimator or "-",
                "error": plus_minus(answer.mean, answer.se),
                "next_update": low_to_high(answer.low, answer.high),
                f"batch for ±{self.tolerance:g}": sizes(answer.required_n, answer.required_low, answer.required_high),
                f"{self.n} enough?": answer.enough,
            }
            for name, answer in self.answers.items()
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
        """Reasons, next steps, and what is not established, one sentence per line."""
        parts = {QUESTIONS[name]: answer.reasons for name, answer in self.answers.items()}
        parts |= {"Both": self.reasons, "Next": self.next_steps, "Not established": self.not_established}
        lines = ("\n  - ".join([heading, *sentences]) for heading, sentences in parts.items() if sentences)
        return "\n".join(lines)


def verdict(
    large_runs: Mapping[str, Run],
    eta: float | None = None,
    n: int | None = None,
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
    etas: Sequence[float] | None = None,
) -> Verdict:
    """Return whether the step is linear and whether the recorded linear change is right, each with its batch size.

    *linear* is answered by the trend over etas or by matched - true, whichever has the smaller fixed-effect standard
    error; *recorded* by the ratio, with the score-adjusted value beside it. "yes" is a tolerance statement: with
    confidence 0.9, at least ``probability`` of updates have an error within ``tolerance``. "no": the 90 % interval of
    the mean error lies beyond it, or updates differ too much for any mean. One run describes only its own update and
    never gives a "yes". The error that runs share through their prompts is added once to the variance of their mean.

    The answer is also "cannot tell" if a run is unsound (`run_health`), or the reference is within 3 standard errors of
    0. For *linear*: if its two estimates differ beyond z = 3 and by more than a fourth of the tolerance, or a parabola
    does not describe the changes and there is no score. For *recorded*: if linear terms lack the denominator correction
    or are in another unit, or ``small_runs`` contradict their prediction at p < 0.01. The rates of false answers are
    measured in ``notebooks/06_known_truth.ipynb``.

    Parameters
    ----------
    large_runs
        Name -> run; each must record ``h_base``.
    eta
        Step size; None: the smallest that the runs share, with the small runs where there are any.
    n
        Sequences of one batch; None: as many as the small runs have or, without these, an eighth of the large ones.
    tolerance
        Tolerance on the absolute error, in units of the true change.
    probability
        How often a batch, or an update, must be within the tolerance.
    small_runs
        Actual runs, to be compared with their prediction.
    etas
        Step sizes used by trend and health checks, beside ``eta``; None: all measured.

    Raises
    ------
    RunError
        If a run does not record what is needed.
    ValueError
        If no run has the eta, or an argument is out of range.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> answers = verdict(synthetic_runs(3, 512), 1.6e-6, 64)
    >>> answers.linear.answer, answers.recorded.answer
    ('yes', 'cannot tell')
    """
    return decide(*_asked(large_runs, eta, n, tolerance, probability, small_runs, etas))


def answers_alone(
    large_runs: Mapping[str, Run],
    eta: float | None = None,
    n: int | None = None,
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
) -> Verdict:
    """Return `verdict` without notes, next steps and what is not established, which take most of its time.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> alone = answers_alone(synthetic_runs(3, 512), 1.6e-6, 64)
    >>> alone.linear.answer, alone.steps
    ('yes', ())
    """
    evidence, goal = _asked(large_runs, eta, n, tolerance, probability, small_runs)
    answers = linear_answer(evidence, goal), recorded_answer(evidence, goal)
    return Verdict(evidence.eta, goal.n, goal.tolerance, goal.probability, *answers, (), (), ())


def _asked(
    large_runs: Mapping[str, Run],
    eta: float | None,
    n: int | None,
    tolerance: float,
    probability: float,
    small_runs: Mapping[str, Run] | None,
    etas: Sequence[float] | None = None,
) -> tuple[Evidence, Goal]:
    """Return the evidence and the question for the arguments of `verdict`."""
    check_goal(tolerance, probability)
    large, small = Runs.of(large_runs, "large_runs"), _small(small_runs)
    size = default_n(large.median_n, small.median_n if small else 0) if n is None else checked_count(n, "n")
    if etas is not None:
        large = large.restricted(large.etas_of(etas) if eta is None else [*large.etas_of(etas), large.eta(eta)])
    step = shared_etas(large.shared_etas, small.shared_etas)[0] if eta is None else large.eta(eta)
    return evidence_of(large.at(step), small.at(step), step), Goal(size, tolerance, probability)


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
    """Return the verdict at each eta, by `verdict_table`.

    Without ``etas``, at all step sizes of the runs, and at larger ones that only the small runs have, from these.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_map(synthetic_runs(3, 512))[["eta", "linear"]].to_dict("list")
    {'eta': [1.6e-06, 3.2e-06], 'linear': ['yes', 'yes']}
    """
    collection = Runs.of(runs)
    steps = collection.etas_of(etas)
    large, small = collection.at_each(steps), _small(small_runs).at_each(steps)
    goal: Any = {"tolerance": tolerance, "probability": probability}
    verdicts = [answers_alone(large[eta], eta, n, small_runs=small[eta], **goal) for eta in steps]
    if etas is None and small_runs:
        reaching = _small(small_runs)
        further = [eta for eta in reaching.etas if eta > steps[-1] and not same_eta(eta, steps[-1])]
        verdicts += [answers_alone(of_eta, eta, n, **goal) for eta, of_eta in reaching.at_each(further).items()]
    return verdict_table(verdicts)


def _small(runs: Mapping[str, Run] | None) -> Runs:
    return Runs.of(runs, "small_runs") if runs else Runs({})


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as a table, a row each.

    Returns
    -------
    DataFrame
        Columns eta, n, and for each question ("linear", "recorded") its answer and, prefixed by its name, the other
        numbers of `Answer`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_table([verdict(synthetic_runs(3, 512), 1.6e-6, 64)])["linear_estimator"].tolist()
    ['trend']
    """
    answers = [{name: asdict(answer) for name, answer in each.answers.items()} for each in verdicts]
    table = pd.json_normalize(answers, sep="_").rename(columns={f"{name}_answer": name for name in QUESTIONS})
    table.insert(0, "eta", [each.eta for each in verdicts])
    table.insert(1, "n", [each.n for each in verdicts])
    counts = [f"{name}_required_{end}" for name in QUESTIONS for end in ("n", "low", "high")]
    table = table.drop(columns=[f"{name}_{part}" for name in QUESTIONS for part in ("doubts", "notes")])
    return table.astype(dict.fromkeys(counts, "Int64"))


def errors_by_run(
    found: Verdict, large_runs: Mapping[str, Run], small_runs: Mapping[str, Run] | None = None
) -> pd.DataFrame:
    """Return what each answer of a verdict rests on: the error of each run, their mean, and the next update.

    Parameters
    ----------
    found
        From `verdict`; its estimators are used.
    large_runs, small_runs
        The runs that it was made from.

    Returns
    -------
    DataFrame
        Columns question ("linear" | "recorded"), kind ("large run" | "mean" | "next update" | "small run"), run,
        sequences (missing for mean and next update, which one run lacks), error, low, high (90 % interval; of the next
        update with the verdict's probability), in units of the true change of the large runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> table = errors_by_run(verdict(runs, 1.6e-6, 64), runs)
    >>> table.query("question == 'linear'")["kind"].tolist()
    ['large run', 'large run', 'large run', 'mean', 'next update']
    """
    large, small = Runs.of(large_runs).at(found.eta), _small(small_runs).at(found.eta)
    rows: list[tuple[object, ...]] = []
    for question, answer in found.answers.items():
        if math.isnan(answer.mean):
            continue  # there is no estimate, or a run is unsound
        estimate, *others = _estimates(question, answer.estimator, [large, small], found.eta)
        rows += [(question, "large run", *row) for row in _error_of_each(estimate, estimate.reference)]
        if not math.isnan(answer.low):
            rows.append((question, "mean", "", None, answer.mean, *estimate.distribution.mean_interval))
            middle = predict(estimate, math.inf).mean
            rows.append((question, "next update", "", None, middle, answer.low, answer.high))
        for other in others:
            rows += [(question, "small run", *row) for row in _error_of_each(other, estimate.reference)]
    names = ["question", "kind", "run", "sequences", "error", "low", "high"]
    return pd.DataFrame(rows, columns=names).astype({"sequences": "Int64"})


def _estimates(question: str, method: str, batches: Iterable[Runs], eta: float) -> list[PooledEstimate]:
    """Return the error by one method from each batch of runs that allows it."""
    able = [runs if question == "linear" else runs.recording("linear", "baseline_entropy") for runs in batches]
    if question == "recorded":
        return [pooled_err_rel(runs, eta) for runs in able if runs]
    return [estimates[method] for runs in able if method in (estimates := nonlinearity_estimates(runs, eta))]


def _error_of_each(estimate: PooledEstimate, reference: float) -> Iterator[tuple[object, ...]]:
    """Yield name, sequences, error and 90 % interval of each run, in units of a reference."""
    for name, error in estimate.errors.items():
        scaled = error * (estimate.reference / reference)
        reach = normal_quantile(CONFIDENCE) * scaled.se
        yield name, error.n, scaled.value, scaled.value - reach, scaled.value + reach


# --- evidence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence at eta from runs measured there, each number computed once.

    Attributes
    ----------
    runs, small_runs, eta
        Large and actual small runs, all of which have the eta.
    flags
        What `run_health` flags at this eta.
    unsound
        Doubts about both answers: runs that must be fixed or left out.
    up_to
        Largest eta up to which a parabola describes the true changes; infinite where it describes all.
    tested
        Whether there are enough step sizes up to there for a test of the parabola.
    missing
        Doubts that leave nothing to estimate: steps that changed nothing, or what err_rel takes and runs lack.
    nonlinearity
        Method -> nonlinearity, by each method that the runs record.
    ratio, adjusted
        err_rel by these estimators; None where runs do not record what it takes.
    agreement
        Whether the small runs fell where the ratio predicts; None without them.
    same_states
        The error of the linear change on the same states; None where it is not recorded.
    change, small_change, change_p
        Mean true change of large and small runs (None where no run has its standard error), and the p-value of no
        difference.
    """

    runs: Runs
    small_runs: Runs
    eta: float
    flags: tuple[Finding, ...]
    unsound: tuple[Doubt, ...]
    up_to: float
    tested: bool
    missing: tuple[Doubt, ...]
    nonlinearity: Mapping[str, PooledEstimate]
    ratio: PooledEstimate | None
    adjusted: PooledEstimate | None
    agreement: Agreement | None
    same_states: SameStatesError | None
    change: Pool | None
    small_change: Pool | None
    change_p: float


def evidence_of(runs: Runs, small_runs: Runs, eta: float) -> Evidence:
    """Return the evidence of runs that all have the eta."""
    flagged = tuple(filter(attrgetter("flag"), findings(runs, [eta])))
    unsound = tuple(Doubt("unsound", *each) for each in by_check(unsound_flags(flagged)))
    still = tuple(each.run for each in flagged if each.check == "unchanged")
    missing = (Doubt("skipped_step", still),) if still else _unrecorded(runs)
    trends = None if still else trends_of(runs)
    up_to = trends.up_to if trends and trends.left_out else math.inf
    tested = trends is not None and trends.lack_of_fit[1] > 0
    nonlinearity = {} if still else nonlinearity_estimates(runs, eta)
    ratio = None if missing else pooled_err_rel(runs, eta)
    adjusted = pooled_err_rel(runs, eta, estimator="adjusted") if ratio and not runs.lacking("score") else None
    agreement = _agreement(ratio, runs, small_runs) if ratio else None
    same = None if missing or unsound else same_states_error(runs, eta)
    totals = [_true_totals(each, eta) for each in (runs, small_runs)]
    changes = [PooledEstimate.of(eta, 1.0, each).pooled if each else None for each in totals]
    estimates = (
        nonlinearity,
        ratio,
        adjusted,
        agreement,
        same,
        changes[0],
        changes[1],
        _p_value(*(list(each.values()) for each in totals)),
    )
    return Evidence(runs, small_runs, eta, flagged, unsound, up_to, tested, missing, *estimates)


def _unrecorded(runs: Runs) -> tuple[Doubt, ...]:
    """Return what some runs lack for err_rel."""
    if without := runs.lacking("linear", "baseline_entropy"):
        return (Doubt("linear_terms_missing", tuple(without)),)
    without = runs.lacking("score")
    return (Doubt("correction_missing", tuple(without)),) if 0 < len(without) < len(runs) else ()


def _agreement(ratio: PooledEstimate, runs: Runs, small_runs: Runs) -> Agreement | None:
    actual = small_runs.beside(runs.select(list(ratio.errors)))
    if not actual:
        return None
    errors = [columns(run, ratio.eta).error.value / ratio.reference for run in actual.values()]
    return agreement_of(ratio, np.array(errors), np.array([run.n for run in actual.values()]))


def _true_totals(runs: Runs, eta: float) -> dict[str, Estimate]:
    """Return the true change of each run where its standard error is known."""
    totals = {name: true_total(run, eta) for name, run in runs.items()}
    return {name: total for name, total in totals.items() if not math.isnan(total.se)}


def _p_value(*groups: Sequence[Estimate]) -> float:
    """Return the p-value that two groups of runs have the same mean true change; NaN where there are too few runs.

    Both groups share one tau; Student's t on ``runs - 2`` degrees of freedom.
    """
    from scipy.special import stdtr

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


# --- decisions --------------------------------------------------------------------------------------------------------


def decide(evidence: Evidence, goal: Goal) -> Verdict:
    """Return the verdict that follows from the evidence."""
    answers = linear, recorded = linear_answer(evidence, goal), recorded_answer(evidence, goal)
    if evidence.unsound:
        rest: tuple[Iterable[Note], ...] = ((), [Note("fix_runs")], ())
    else:
        rest = _notes(evidence), _steps(evidence, goal, linear, recorded), _unknown(evidence, goal)
    return Verdict(evidence.eta, goal.n, goal.tolerance, goal.probability, *answers, *map(tuple, rest))


def linear_answer(evidence: Evidence, goal: Goal) -> Answer:
    """Return the answer to the first question: is the step linear?"""
    estimates = evidence.nonlinearity
    if not estimates:
        skipped = tuple(each for each in evidence.missing if each.code == "skipped_step")
        misfit = (Doubt("no_parabola", values={"up_to": evidence.up_to}),) if math.isfinite(evidence.up_to) else ()
        return Answer("cannot tell", doubts=skipped or misfit or (Doubt("nothing_recorded"),))
    chosen = min(estimates, key=lambda method: estimates[method].fixed_effect_error)
    off, z = disagreement(*estimates.values()) if len(estimates) == 2 else (math.nan, math.nan)
    differ = []
    if abs(z) > CLEAR_Z and abs(off) > goal.tolerance / 4:
        differ.append(Doubt("estimates_differ", values={"z": abs(z), "difference": off}))
    weak = _weak_reference(evidence, estimates[chosen].reference_error if chosen == "trend" else 0.0)
    notes = [Note("nonlinearity", values={"method": name, **_mean(each.pooled)}) for name, each in estimates.items()]
    if math.isfinite(evidence.up_to):
        code = "parabola_up_to" if evidence.tested else "parabola_untested"
        notes.append(Note(code, values={"up_to": evidence.up_to}))
    return answered(chosen, estimates[chosen], goal, [*evidence.unsound, *weak, *differ], notes)


def recorded_answer(evidence: Evidence, goal: Goal) -> Answer:
    """Return the answer to the second question: is the recorded linear change right?"""
    ratio, adjusted, agreement = evidence.ratio, evidence.adjusted, evidence.agreement
    if ratio is None:
        return Answer("cannot tell", doubts=evidence.missing)
    notes = [Note("err_rel", values=_mean(ratio.pooled))]
    doubts = [*evidence.unsound]
    if weak := _weak_reference(evidence):
        doubts += weak
    elif abs(times := 1 + ratio.pooled.mean) > _ANOTHER_UNIT:
        doubts.append(Doubt("another_unit", values={"times": times}))
    if adjusted is None:
        doubts.append(Doubt("correction_unknown"))
    else:
        notes.append(Note("score_adjusted", values=_mean(adjusted.pooled)))
    doubts += [Doubt("actual_run_unsound", (name,)) for name, run in evidence.small_runs.items() if run.problems]
    if agreement is not None:
        values = {"count": agreement.num_runs, "p_spread": agreement.p_spread, "p_mean": agreement.p_mean}
        notes.append(Note("actual_runs", values=values))
        if min(agreement.p_spread, agreement.p_mean) < SURPRISING:
            doubts.append(Doubt("actual_runs_contradict", values=values))
    if same := evidence.same_states:
        errors = {each: _mean(error) for each, error in same.errors.items()}
        derivative = _mean(same.derivative) if same.derivative else None
        told: dict[str, Any] = {"errors": errors, "derivative": derivative, "source": same.source}
        notes.append(Note("same_states", values=told))
    notes += _off_policy(evidence)
    return answered("ratio", ratio, goal, doubts, notes)


def _weak_reference(evidence: Evidence, relative: float = 0.0) -> list[Doubt]:
    """Return a doubt where the true change, by which errors are divided, is within three standard errors of 0.

    ``relative`` is the relative standard error of the slope where it takes the place of the change.
    """
    change = evidence.change
    worst = max(relative, _relative(change) if change and change.mean else 0.0)
    return [Doubt("weak_reference", values={"relative": worst})] if worst * CLEAR_Z > 1 else []


def answered(
    estimator: str, estimate: PooledEstimate, goal: Goal, doubts: Iterable[Doubt] = (), notes: Iterable[Note] = ()
) -> Answer:
    """Return the answer of an estimate; doubts make it "cannot tell"."""
    doubts, pooled, reach = tuple(doubts), estimate.pooled, normal_quantile(goal.probability)
    if any(each.code == "unsound" for each in doubts):  # no number that could be taken for an estimate
        return Answer("cannot tell", estimator, doubts=tuple(each for each in doubts if each.code == "unsound"))
    answer: AnswerWord = "cannot tell" if doubts else within(estimate, goal)
    low, high = predict(estimate, math.inf).interval(goal.probability)
    margin, least, most = _margins(estimate, goal)
    n, *interval = (size_for(spread, goal.tolerance / reach) for spread in estimate.spread_interval)
    fewest, largest = interval if pooled.count > 1 else (None, None)  # one run does not show how runs differ
    batch = {"n": goal.n, "margin": margin, "low": least, "high": most, "probability": goal.probability}
    if pooled.count == 1:
        batch |= {"low": math.nan, "high": math.nan}
        notes = [Note("this_update", values={"answer": answer}), *notes]
    if answer == "no" and reach * pooled.tau_low > goal.tolerance:
        notes = [Note("updates_differ", values={"tau_low": pooled.tau_low}), *notes]
    errors, sizes = (pooled.mean, pooled.se, low, high, margin), (n, fewest, largest)
    notes = (*notes, Note("batch", values=batch))
    return Answer(answer, estimator, *errors, enough(estimate, goal), *sizes, doubts, notes)


def enough(estimate: PooledEstimate, goal: Goal) -> AnswerWord:
    """Return whether one batch of n estimates the error to within the tolerance."""
    _, least, most = _margins(estimate, goal)
    if goal.n < LEAST:
        return "cannot tell"
    return "yes" if most <= goal.tolerance else "no" if least > goal.tolerance else "cannot tell"


def _margins(estimate: PooledEstimate, goal: Goal) -> list[float]:
    reach = normal_quantile(goal.probability) / math.sqrt(goal.n)
    return [reach * spread for spread in estimate.spread_interval]


def _notes(evidence: Evidence) -> Iterator[Note]:
    """Return what concerns both answers."""
    if change := evidence.change:
        values = _mean(change) | ({"tau": change.tau} if change.count > 1 and change.mean else {})
        if small := evidence.small_change:
            values |= {"small_mean": small.mean, "small_se": small.se, "p": evidence.change_p}
        yield Note("true_change", values=values)
    concern = [flag for flag in evidence.flags if flag.check not in CONCERN_NO_ANSWER]
    yield from (Note("health", *each) for each in by_check(concern))


def _steps(evidence: Evidence, goal: Goal, linear: Answer, recorded: Answer) -> Iterator[Note]:
    """Return what would help, from the numbers."""
    for each in _off_policy(evidence):
        yield replace(each, code="fix_sampler")
    if any(doubt.code == "weak_reference" for doubt in (*linear.doubts, *recorded.doubts)):
        yield Note("clear_change")
    behind = {"linear": (linear, evidence.nonlinearity.get(linear.estimator)), "recorded": (recorded, evidence.ratio)}
    unsettled = {
        question: estimate
        for question, (answer, estimate) in behind.items()
        if answer.answer == "cannot tell" and estimate is not None and not answer.doubts
    }
    if unsettled and len(evidence.runs) == 1:
        yield Note("other_updates")
    trend, matched = evidence.nonlinearity.get("trend"), evidence.nonlinearity.get("matched")
    few = max(len(run.etas) for run in evidence.runs.values()) < _FEW_ETAS
    weak = trend is None or (matched is not None and trend.fixed_effect_error > matched.fixed_effect_error / 2)
    undecided = linear.answer == "cannot tell" and len(evidence.runs) > 1  # of one run, more etas give no yes
    if few and weak and (undecided or linear.enough != "yes"):
        yield Note("larger_etas")
    if recorded.answer == "cannot tell" and matched and not linear.doubts and recorded.required_n is not None:
        needed = size_for(matched.spread_interval[0], goal.tolerance / normal_quantile(goal.probability))
        if needed < recorded.required_n / 2:
            sizes = {"matched_n": needed, "ratio_n": recorded.required_n}
            yield Note("use_matched", values={"tolerance": goal.tolerance, **sizes})
    if evidence.adjusted is None:
        yield Note("record_score")
    if len(evidence.runs) > 1:
        yield from (_more_runs(question, estimate, goal) for question, estimate in unsettled.items())


def _more_runs(question: str, estimate: PooledEstimate, goal: Goal) -> Note:
    """Return the chances that more runs like these would give an answer."""
    outlook = chances(estimate, goal)
    if outlook is None:
        return Note("more_runs_in_vain", values={"question": question})
    return Note("more_runs", values={"question": question, "count": outlook.more, **asdict(outlook)})


def _unknown(evidence: Evidence, goal: Goal) -> Iterator[Note]:
    """Return what these runs do not show."""
    runs, change, agreement = evidence.runs, evidence.change, evidence.agreement
    if len(runs) < _FEW_RUNS:
        taus = {name: each.pooled.tau_high for name, each in evidence.nonlinearity.items() if each.pooled.tau_high}
        yield Note("tau", values={"count": len(runs), "tau_high": taus if len(runs) > 1 else {}})
    if any(len(run.etas) > 1 for run in runs.values()):
        yield Note("other_etas")
    if change and change.mean:
        yield Note("true_change_closer", values={"relative": _relative(change)})
    shared = max((each.shared_share for each in (*evidence.nonlinearity.values(), evidence.ratio) if each), default=0.0)
    if shared:
        yield Note("shared_prompts", values={"share": shared})
    prompts = [len(np.unique(run.prompt_ids)) for run in runs.values() if run.prompt_ids is not None]
    if prompts and min(prompts) < _FEW_PROMPTS:
        yield Note("few_prompts" if min(prompts) > 1 else "one_prompt", values={"prompts": min(prompts)})
    for need, code in (("prompts", "independence"), ("score", "log_weights"), ("logp", "entropies")):
        if without := runs.lacking(need):
            yield Note(code, tuple(without))
    if goal.n > max(run.n for run in runs.values()):
        yield Note("batch_of_n", values={"n": goal.n})
    if agreement is None:
        yield Note("actual_runs_unused" if evidence.small_runs else "no_actual_runs")
    else:
        yield Note("small_misfit", values={"count": agreement.num_runs, "smallest_p": agreement.smallest_p})


def _off_policy(evidence: Evidence) -> list[Note]:
    """Return a note on off-policy sequences and their cause, if any run has them."""
    flagged = [each for each in evidence.flags if each.check in OFF_POLICY_CHECKS]
    names = tuple(dict.fromkeys(each.run for each in flagged))
    if not flagged:
        return []
    runs = evidence.runs.select(names)
    support, vocabulary = support_of(runs), min((run.vocabulary or 0 for run in runs.values()), default=0) or None
    checks = ", ".join(dict.fromkeys(each.check for each in flagged))
    cause = cause_of_off_policy(support, vocabulary)
    return [Note("off_policy", names, {"checks": checks, "support": support, "vocabulary": vocabulary, "cause": cause})]


def _mean(pooled: Pool) -> dict[str, float]:
    return {"mean": pooled.mean, "se": pooled.se}


def _relative(change: Pool) -> float:
    return change.se / abs(change.mean)
