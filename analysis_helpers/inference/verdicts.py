"""Two questions answered from a pilot: is a batch precise enough, and does the next update's error keep to a tolerance?

Each has three answers; "cannot tell" wherever an interval straddles the tolerance.

An answer that can be trusted: is a batch enough, may the linear approximation be trusted, what was not seen.

Each question has three answers, "yes", "no" and "cannot tell"; the last wherever an interval straddles the tolerance,
or the runs behind it are not sound. Do not read a "yes" as more than it says: what these runs could not show stands
beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from .._checks import checked_count, same_eta
from ..err_rel import all_etas, mean_total_error
from ..runs import Run, integrity_problems
from .decomposition import decompose_err_rel, pool_decomposition
from .health import run_health
from .planning import CONFIDENCE, Goal, smallest_batch, spread_interval
from .prediction import Pilot, PooledCheck, pilot_of, pooled_check, predict
from .random_effects import normal_quantile

YES, NO, UNSURE = "yes", "no", "cannot tell"
QUESTIONS = {"enough": "Is the batch enough?", "linear_trusted": "May the linear approximation be trusted?"}


@dataclass(frozen=True)
class Answer:
    """An answer, the sentences that say why, and the numbers in them."""

    answer: str
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]


def precision(pilot: Pilot, n: int, tolerance: float, probability: float) -> Answer:
    """Answer whether err_rel on one fresh batch of n is within ``tolerance`` of its expectation.

    The margin ``z S / sqrt(n)``, with z the normal quantile of the probability, stands against the tolerance, by the
    interval of S.
    """
    quantile = normal_quantile(probability)
    spread = math.sqrt(pilot.mean_square_spread)
    low, high = spread_interval(pilot)
    margin, least, most = (quantile * s / math.sqrt(n) for s in (spread, low, high))
    answer = YES if most <= tolerance else NO if least > tolerance else UNSURE
    required = smallest_batch(pilot, Goal(target_sd=tolerance / quantile)) or 1
    fewest, largest = (math.ceil((quantile * s / tolerance) ** 2) for s in (low, high))
    how_far = (
        f"With probability {probability:.0%}, err_rel on one fresh batch of {n} is within ±{margin:.2f} of its "
        f"expectation ({CONFIDENCE:.0%} interval of that margin: {least:.2f} to {most:.2f}); the tolerance is "
        f"±{tolerance:g}."
    )
    enough = f"about {required:,} sequences on ({fewest:,} to {largest:,})"
    how_large = f"One batch tells err_rel to within the tolerance from {enough}."
    numbers = {
        "margin": margin,
        "margin_low": least,
        "margin_high": most,
        "required_n": float(required),
        "required_low": float(fewest),
        "required_high": float(largest),
    }
    return Answer(answer, (how_far, how_large), numbers)


def linearity(pilot: Pilot, tolerance: float, probability: float) -> Answer:
    """Answer whether the next update's error, without sampling error of its own, lies within ``tolerance``.

    "Yes" where its predictive interval does; "no" where the interval of the mean error lies beyond, or updates differ
    so much that even a mean of 0 would not help. One run never gives a "yes": it does not show how updates differ.
    """
    pooled, next_update = pilot.pooled, predict(pilot, math.inf)
    low, high = next_update.interval(probability)
    mean_low, mean_high = pooled.interval(CONFIDENCE)
    tau_low, tau_high = pilot.tau_interval(CONFIDENCE)
    is_off = mean_low > tolerance or mean_high < -tolerance
    is_scattered = normal_quantile(probability) * tau_low > tolerance
    is_within = max(-low, high) <= tolerance
    unrefuted = YES if is_within and pooled.count > 1 else UNSURE
    answer = NO if is_off or is_scattered else unrefuted
    several = pooled.count > 1
    mean = "mean, in which a more precise run counts for more, " if several else ""
    so_far = f"err_rel is {pooled.mean:+.2f} ± {pooled.se:.2f} ({mean}± standard error)"
    differ = f"; updates differ by tau = {pooled.tau:.2f} ({CONFIDENCE:.0%} interval: {tau_low:.2f} to {tau_high:.2f})"
    next_error = (
        f"{'With' if several else 'If updates do not differ, with'} probability {probability:.0%} the next update's "
        f"error lies between {low:+.2f} and {high:+.2f}, "
        f"{'within' if is_within else 'not within'} the tolerance ±{tolerance:g}."
    )
    reasons = [f"{_over(pooled.count)}, {so_far}{differ if several else ''}.", next_error]
    if is_off:
        reasons.append(f"The mean error itself is beyond the tolerance: {mean_low:+.2f} to {mean_high:+.2f}.")
    if is_scattered:
        reasons.append(
            f"Updates differ too much, by {tau_low:.2f} at least, for any mean error to be within tolerance."
        )
    if pooled.count == 1:
        reasons.append("One run does not show how updates differ.")
    numbers = {
        "mean": pooled.mean,
        "se_mean": pooled.se,
        "mean_low": mean_low,
        "mean_high": mean_high,
        "tau": pooled.tau,
        "tau_low": tau_low,
        "tau_high": tau_high,
        "next_low": low,
        "next_high": high,
    }
    return Answer(answer, tuple(reasons), numbers)


def _over(count: int) -> str:
    return "On the one large run" if count == 1 else f"Over {count} large runs"


CLEAR_Z = 3.0  # a mean further from zero than this many standard errors is called clear
SURPRISING = 0.01  # actual runs with a p-value below contradict their prediction
FEW_RUNS = 10

_UNSOUND = ("integrity", "ess_share", "largest_weight_share", "pareto_k")  # flags that no yes or no survives


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a batch of n sequences at one eta.

    Attributes
    ----------
    eta, n, tolerance, probability
        The question: tolerance in units of the reference, and how often a batch, or an update, must keep to it.
    enough
        Is err_rel on one fresh batch of n within ``tolerance`` of its expectation, with the probability?
    linear_trusted
        Is the linear change within ``tolerance`` of the true one for the next update, with the probability?
    reasons
        Why, a sentence each, with the numbers.
    not_seen
        What these runs could not show.
    numbers
        The numbers behind the reasons.
    because
        "enough" and "linear_trusted" -> those of the reasons that the answer rests on.
    """

    eta: float
    n: int
    tolerance: float
    probability: float
    enough: str
    linear_trusted: str
    reasons: tuple[str, ...]
    not_seen: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    because: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        keeping_to = f"tolerance ±{self.tolerance:g}, probability {self.probability:.0%}"
        lines = [
            f"Verdict at eta {self.eta:g}, batch of {self.n}, {keeping_to}",
            f"  {QUESTIONS['enough']:<43}{self.enough}",
            f"  {QUESTIONS['linear_trusted']:<43}{self.linear_trusted}",
        ]
        for heading, sentences in (("Why", self.reasons), ("Not seen", self.not_seen)):
            lines += [f"{heading}:", *(f"  - {sentence}" for sentence in sentences)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Soundness:
    """Whether the runs at one eta are fit to answer from: ``doubts`` are reasons why they are not, a sentence each."""

    flags: pd.DataFrame
    check: PooledCheck | None
    reference_error: float
    doubts: tuple[str, ...]


def verdict(
    large_runs: Mapping[str, Run],
    eta: float,
    n: int,
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
) -> Verdict:
    """Say whether a batch of n is enough and whether the linear approximation may be trusted, or that one cannot tell.

    *Enough*: the margin of one batch, ``z S / sqrt(n)`` with z the normal quantile of the probability, against the
    tolerance, by the 90 % interval of S. *Linear trusted*: "yes" where the interval of the next update's error (with no
    sampling error of its own) lies within the tolerance; "no" where the 90 % interval of the mean error lies beyond it,
    or updates differ so much that a mean of 0 would not help.

    Neither is answered where a run does not add up or its weights are flagged (``ess_share``,
    ``largest_weight_share``, ``pareto_k``), the reference is within 3 standard errors of zero, or ``small_runs``
    contradict their prediction (p below 0.01). Other flags and a bias are told among the reasons: trusted means within
    tolerance, bias included. A single large run never gives a "yes" for the linear approximation. How often a "yes" or
    "no" is false is measured in ``notebooks/05_known_truth.ipynb``.

    Parameters
    ----------
    large_runs
        Name -> run; each must record per-sequence linear terms and ``h_base``.
    eta, n
        Step size, and sequences of the batch in question.
    tolerance
        Largest error to put up with, in units of the mean true change.
    probability
        How often a batch, or an update, must keep to it.
    small_runs
        Actual runs, to be held against their prediction.

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
    >>> found.enough
    'no'
    >>> print(found)  # doctest: +ELLIPSIS
    Verdict at eta 1.6e-06, batch of 64, tolerance ±0.25, probability 90%
      Is the batch enough?                       no
    ...
    """
    size = checked_count(n, "n")
    Goal(tolerance=tolerance, probability=probability)  # checks both
    pilot = pilot_of(large_runs, eta)
    used = {name: run for name, run in large_runs.items() if run.has_eta(pilot.eta)}
    batch, line = precision(pilot, size, tolerance, probability), linearity(pilot, tolerance, probability)
    state = _soundness(used, pilot, small_runs)
    return Verdict(
        eta=pilot.eta,
        n=size,
        tolerance=tolerance,
        probability=probability,
        enough=UNSURE if state.doubts else batch.answer,
        linear_trusted=UNSURE if state.doubts else line.answer,
        reasons=(
            *state.doubts,
            *batch.reasons,
            *line.reasons,
            *_parts(used, pilot),
            *_agreement(state.check),
            *_flagged(state.flags),
        ),
        not_seen=_not_seen(used, pilot, size, state),
        numbers={
            **batch.numbers,
            **line.numbers,
            "reference": pilot.reference,
            "reference_error": state.reference_error,
        },
        because={"enough": state.doubts or batch.reasons, "linear_trusted": state.doubts or line.reasons},
    )


def trusted_eta(runs: Mapping[str, Run], *, tolerance: float = 0.25, probability: float = 0.9) -> float | None:
    """Return the largest eta measured at which the linear approximation may be trusted; None if at none.

    Trusted is what `verdict` means by it, whatever the size of the batch.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> runs = synthetic_runs(3, 512)
    >>> trusted_eta(runs, tolerance=2.0), trusted_eta(runs, tolerance=0.01)
    (3.2e-06, None)
    """
    for eta in reversed(all_etas(runs)):
        if verdict(runs, eta, 1, tolerance=tolerance, probability=probability).linear_trusted == YES:
            return eta
    return None


def verdict_map(
    runs: Mapping[str, Run],
    etas: Sequence[float] | None = None,
    sizes: Sequence[int] = (64, 256, 1024, 4096),
    *,
    tolerance: float = 0.25,
    probability: float = 0.9,
    small_runs: Mapping[str, Run] | None = None,
) -> pd.DataFrame:
    """Return the verdict for each eta (None: all measured) and batch size, by `verdict_table`.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_map(synthetic_runs(3, 512), [1.6e-6], [64, 16384])[["n", "enough"]].to_dict("records")
    [{'n': 64, 'enough': 'no'}, {'n': 16384, 'enough': 'yes'}]
    """
    ask = partial(verdict, runs, tolerance=tolerance, probability=probability, small_runs=small_runs)
    return verdict_table([ask(eta, n) for eta in etas or all_etas(runs) for n in sizes])


def verdict_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return verdicts as a table, a row each.

    Returns
    -------
    DataFrame
        Columns eta, n, enough, linear_trusted, margin (how far one batch is off, with the probability), required_n,
        required_low, required_high (sequences at which that is the tolerance, with its interval).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> verdict_table([verdict(synthetic_runs(3, 512), 1.6e-6, 64)])["enough"].tolist()
    ['no']
    """
    numbers = ("margin", "required_n", "required_low", "required_high")
    rows = [
        (found.eta, found.n, found.enough, found.linear_trusted, *(found.numbers[name] for name in numbers))
        for found in verdicts
    ]
    counts = dict.fromkeys(numbers[1:], "int64")
    return pd.DataFrame(rows, columns=["eta", "n", "enough", "linear_trusted", *numbers]).astype(counts)


def _soundness(runs: Mapping[str, Run], pilot: Pilot, small_runs: Mapping[str, Run] | None) -> _Soundness:
    health = run_health(runs)
    flags = health[health["flag"] & (health["eta"].isna() | health["eta"].map(partial(same_eta, pilot.eta)))]
    check = None if small_runs is None else pooled_check(runs, small_runs, pilot.eta, reference=pilot.reference)
    broken = [name for name, run in (small_runs or {}).items() if integrity_problems(run)]
    error = mean_total_error(list(runs.values()), pilot.eta)
    relative = math.nan if error is None else error / abs(pilot.reference)
    return _Soundness(flags, check, relative, _doubts(flags, check, relative, broken))


def _doubts(
    flags: pd.DataFrame, check: PooledCheck | None, reference_error: float, broken: Sequence[str]
) -> tuple[str, ...]:
    """Return why neither question can be answered, a sentence each; nothing where both can."""
    found = [f"No answer: actual small {name} does not add up." for name in broken]
    unsound = flags[flags["check"].isin(_UNSOUND)]
    if len(unsound):
        found.append(f"No answer: {_listed(unsound)} must be mended first, or the run left out.")
    if check is not None and min(check.p_sum_z2, check.p_mean_z) < SURPRISING:
        found.append("No answer: the actual small runs do not fall where the large runs predict.")
    if reference_error > 1 / CLEAR_Z:
        found.append(f"No answer: the reference is known to ±{reference_error:.0%} only, too little to divide by.")
    return tuple(found)


def _parts(runs: Mapping[str, Run], pilot: Pilot) -> tuple[str, ...]:
    """Say which part of the error is clear, where every run records the score."""
    if not all("score" in run.supports for run in runs.values()):
        return ()
    raw, adjusted = (
        pool_decomposition(decompose_err_rel(runs, pilot.eta, reference=pilot.reference, score_adjusted=flag)).iloc[0]
        for flag in (False, True)
    )
    off, error = float(raw["linear_minus_matched"]), float(raw["linear_minus_matched_se"])
    clear = "biased" if abs(off) > CLEAR_Z * error else "no clear bias"
    left, rest = float(adjusted["linear_minus_matched"]), float(adjusted["linear_minus_matched_se"])
    bend, bend_error = float(raw["matched_minus_true"]), float(raw["matched_minus_true_se"])
    sentence = (
        f"Recorded linear terms are off the exact derivative by {off:+.2f} ± {error:.2f} ({clear}; score-adjusted "
        f"{left:+.2f} ± {rest:.2f}); going straight is off by {bend:+.2f} ± {bend_error:.2f}."
    )
    return (sentence,)


def _agreement(check: PooledCheck | None) -> tuple[str, ...]:
    if check is None:
        return ()
    count = "1 actual small run falls" if check.num_runs == 1 else f"{check.num_runs} actual small runs fall"
    where = "where predicted" if min(check.p_sum_z2, check.p_mean_z) >= SURPRISING else "elsewhere than predicted"
    sentence = (
        f"{count} {where}: sum of z² {check.sum_z2:.1f} (p = {check.p_sum_z2:.2g}), mean z {check.mean_z:+.2f} "
        f"(p = {check.p_mean_z:.2g})."
    )
    return (sentence,)


def _flagged(flags: pd.DataFrame) -> tuple[str, ...]:
    return (f"Health flags: {_listed(flags)}.",) if len(flags) else ()


def _listed(flags: pd.DataFrame) -> str:
    groups = flags.groupby("check", sort=False)["run"]
    return "; ".join(f"{check} in {', '.join(dict.fromkeys(names))}" for check, names in groups)


def _not_seen(runs: Mapping[str, Run], pilot: Pilot, n: int, state: _Soundness) -> tuple[str, ...]:
    """Return what the runs could not show, a sentence each."""
    count, found = len(runs), []
    if count == 1:
        found.append("How much updates differ: there is only one large run.")
    elif count < FEW_RUNS:
        high = pilot.tau_interval(CONFIDENCE)[1]
        bound = (
            f"tau may be as large as {high:.2f}" if high > 0 else "they happen to agree so well that tau has no bound"
        )
        found.append(f"How much updates differ: with {count} large runs, {bound}.")
    if any(len(run.etas) > 1 for run in runs.values()):
        found.append("Whether other etas agree: all etas of a run stand on one batch and do not confirm each other.")
    if math.isfinite(state.reference_error):
        found.append(f"The reference, the mean true change, to better than ±{state.reference_error:.0%}.")
    noise, step = (state.flags.loc[state.flags["check"] == check, "value"] for check in ("noise_share", "step_error"))
    if len(noise):
        share = f"up to {noise.max():.0%} of the variance of log weights does not go with the score"
        found.append(f"Curvature: {share}; if that share falls as eta grows, this eta is below the precision floor.")
    if len(step):
        found.append(
            f"Curvature: in single runs, matched - true is known only to ±{step.max():.2f} of the true change."
        )
    if not all("score" in run.supports for run in runs.values()):
        found.append("Whether the linear terms are biased: not every run records the score.")
    if n > max(run.num_sequences for run in runs.values()):
        found.append(f"A batch of {n}: no run here is as large.")
    if state.check is None:
        found.append("Whether actual small runs fall where predicted: none were given.")
    else:
        few = f"{state.check.num_runs} actual small runs"
        least = f"all on one side of their prediction they would only show p = {state.check.smallest_p:g}"
        one = "Any but a gross misfit: there is only one actual small run."
        found.append(one if state.check.num_runs == 1 else f"A small misfit of the {few}: {least}.")
    return tuple(found)
