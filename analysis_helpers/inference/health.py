"""Is a run sound? Each check has a value, a limit, a flag and one sentence on its meaning.

A new check is one function and one entry in `CHECKS`: tables, verdicts and sentences follow. No flag does not mean that
a batch is large enough: good weights say that importance sampling is sound, not that it is precise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from .._checks import FloatArray, same_eta
from ..estimators import (
    columns,
    equal_but_for_rounding,
    mean_log_probability_excess,
    mean_score,
    support_bound,
    true_total,
)
from ..runs import Measurement, Run, Runs
from .random_effects import student_quantile
from .trend import fit_trend

LEAST_ESS_SHARE, UNEVEN = 0.2, 0.35  # below the latter, the tail of the weights matters
MOST_WEIGHT_SHARE = 0.2
MOST_NOISE_SHARE = 0.2
MOST_STEP_ERROR = 0.1
CLEAR_Z = 3.0  # standard errors
_TAIL = 0.00135  # of a normal distribution, beyond three standard errors on one side
MOST_OFFSET_Z, MOST_OFFSET_Z_OF_TWO = 4.0, 6.0
MOST_WEIGHT_DISAGREEMENT = 0.01
MOST_SLOPE_ERROR, WRONG_SLOPE = 0.2, 0.5  # the latter is further off than nonlinearity brings it
MOST_ENTROPY_MISMATCH = 0.25
LEAST_SUPPORT, FULL_SUPPORT = 100, 300  # tokens: a sampler that truncates draws from fewer than the former
MOST_SAMPLER_MISMATCH = 0.1  # nats per square root of a token; 16-bit samplers differ by 0.01 to 0.05
LEAST_ENTROPY_SLOPE, _FEWEST_FOR_ORDER = 0.5, 64  # 1 to 1.3 in sound runs; below 64 sequences false alarms come up
_MOST_PARETO_K = 0.7
_FEWEST_FOR_TAIL = 100  # sequences; below, healthy weights would often be flagged (7 % at 64, 30 % at 32)


@dataclass(frozen=True)
class Finding:
    """What a check finds on a run.

    Attributes
    ----------
    value, limit
        The number found (NaN if it cannot be computed), and the limit that it is compared with.
    flag
        Whether the value is beyond the limit; None: decided by its severity.
    detail
        Details about this run, as sentences.
    eta
        The step size; NaN if the check concerns the run as a whole.
    check, run
        Their names, filled in when the findings of several runs are listed.
    """

    value: float
    limit: float
    flag: bool | None = None
    detail: str = ""
    eta: float = math.nan
    check: str = ""
    run: str = ""


@dataclass(frozen=True)
class Check:
    """A health check.

    Attributes
    ----------
    meaning
        One sentence that says what the value is, and what it means when it is beyond the limit.
    find
        ``run -> findings``; it is called once for each run.
    takes
        What a run must record; shown if the value is missing.
    severity
        How bad a value is: the largest is shown as the worst.
    unsound
        Whether a flagged run gives no answer and must be fixed or left out.
    over_change
        Whether values are nats per token, to be divided by the mean true change of the runs that are checked together.
    together
        The value of all runs that are checked together, which replaces that of each; None: each has its own.
    """

    meaning: str
    find: Callable[[Run], Iterable[Finding]]
    takes: str = ""
    severity: Callable[[float], float] = abs
    unsound: bool = False
    over_change: bool = False
    together: Callable[[Runs], float] | None = None


def _at_each_eta(find: Callable[[Run, Measurement], Finding]) -> Callable[[Run], Iterable[Finding]]:
    return lambda run: [replace(find(run, each), eta=each.eta) for each in run.measurements]


def _integrity(run: Run) -> list[Finding]:
    return [Finding(len(run.problems), 0.0, detail=" ".join(f"{problem}." for problem in run.problems))]


def _score(run: Run) -> list[Finding]:
    return [Finding(math.nan if run.score is None else mean_score(run).z, _clear_z(run))]


def _excess(run: Run) -> list[Finding]:
    recorded = run.logp is not None and run.measurements[0].h_base is not None
    return [Finding(mean_log_probability_excess(run).z if recorded else math.nan, _clear_z(run))]


def sampler_mismatch(logp: FloatArray, sampler_logp: FloatArray, tokens: FloatArray) -> Finding:
    """Return the RMS difference of two log-probabilities of sequences, each over the square root of its tokens."""
    value = float(np.sqrt(np.mean((logp - sampler_logp) ** 2 / np.maximum(tokens, 1))))
    detail = f"At most {np.abs(logp - sampler_logp).max():.3g} nats in a sequence."
    return Finding(value, MOST_SAMPLER_MISMATCH, detail=detail)


def _sampler_mismatch(run: Run) -> list[Finding]:
    if run.logp is None or run.sampler_logp is None:
        return [Finding(math.nan, MOST_SAMPLER_MISMATCH)]
    return [sampler_mismatch(run.logp, run.sampler_logp, run.token_counts)]


def _clear_z(run: Run) -> float:
    """Return three standard errors; with few prompts, the quantile of Student's t with the same tail probability."""
    prompts = math.inf if run.prompt_ids is None else len(np.unique(run.prompt_ids))
    return CLEAR_Z if math.isinf(prompts) or prompts < 2 else student_quantile(prompts - 1, _TAIL)


def _entropy_mismatch(run: Run) -> list[Finding]:
    h_base = run.measurements[0].h_base
    if run.logp is None or h_base is None or not run.logp.any():
        return [Finding(math.nan, MOST_ENTROPY_MISMATCH)]
    ratio = float(h_base.sum() / -run.logp.sum())
    error = mean_log_probability_excess(run).se / -float(np.mean(run.logp))
    return [Finding(ratio - 1, MOST_ENTROPY_MISMATCH + 4 * error)]


def _entropy_slope(run: Run) -> list[Finding]:
    """Return the slope of -log pi on entropy, by sequence, beside that on length; 0 on average in a permuted order."""
    h_base, finding = run.measurements[0].h_base, Finding(math.nan, LEAST_ENTROPY_SLOPE)
    if run.logp is None or h_base is None:
        return [finding]
    if run.n < _FEWEST_FOR_ORDER:
        return [replace(finding, detail=f"Fewer than {_FEWEST_FOR_ORDER} sequences: the slope says little.")]
    lengths = run.token_counts - run.token_counts.mean()
    given = lengths / (np.linalg.norm(lengths) or 1.0)
    surprise, entropy = (x - x.mean() - given * (given @ x) for x in (-run.logp, h_base))
    if np.linalg.norm(entropy) <= 1e-9 * np.linalg.norm(h_base):
        return [replace(finding, detail="Entropies do not vary beside their lengths.")]
    variance = float(entropy @ entropy)
    slope = float(entropy @ surprise) / variance
    parts = entropy * (surprise - slope * entropy)
    if run.prompt_ids is not None:
        parts = np.bincount(np.unique(run.prompt_ids, return_inverse=True)[1], parts)
    error = float(np.linalg.norm(parts)) / variance  # the sandwich
    return [replace(finding, value=slope, limit=LEAST_ENTROPY_SLOPE - _clear_z(run) * error)]


def _support(run: Run) -> list[Finding]:
    # No flag of its own: a small vocabulary has few tokens too. One run alone gives a rough figure.
    return [Finding(math.nan if run.min_logp is None else 0.0, LEAST_SUPPORT, flag=False)]


def support_of(runs: Runs) -> float:
    """Return the bound on the tokens that the sampler could draw, from all runs that record it; NaN if none does."""
    recorded = [run for run in runs.values() if run.min_logp is not None]
    if not recorded:
        return math.nan
    lowest, tokens = ([getattr(run, name) for run in recorded] for name in ("min_logp", "token_counts"))
    return support_bound(np.concatenate(lowest), np.concatenate(tokens))


def _offset(run: Run) -> list[Finding]:
    several = len(run.etas) > 3  # fewer leave no test of an intercept beside a parabola
    limit = MOST_OFFSET_Z if several else MOST_OFFSET_Z_OF_TWO
    if len(run.etas) < 2 or "baseline_entropy" not in run.supports or run.n < 2:
        return [Finding(math.nan, limit)]
    if several:
        trend = fit_trend(run)
        return [Finding(trend.offset_z, limit, trend.is_offset)]
    one, two = sorted(run.etas)[:2]
    changes = true_total(run, one), true_total(run, two)
    offset = changes[0] * (two / (two - one)) - changes[1] * (one / (two - one))
    z = offset.value / offset.se if offset.se else 0.0
    large = abs(offset.value) > 0.5 * min(abs(change.value) for change in changes)
    return [Finding(z, limit, large and abs(z) > limit, "Fewer than four etas: strong curvature looks alike.")]


@_at_each_eta
def _unchanged(run: Run, measured: Measurement) -> Finding:
    detail = "The step was skipped: nothing changed." if measured.unchanged else ""
    return Finding(float(measured.unchanged), 0.0, detail=detail)


@_at_each_eta
def _weights_agree(run: Run, measured: Measurement) -> Finding:
    weights, off = measured.weights / measured.weights.sum(), []
    if measured.log_weights is not None:
        raw = np.exp(measured.log_weights - measured.log_weights.max())
        off.append(float(np.abs(raw / raw.sum() - weights).max() / weights.max()))
    if measured.ess is not None:
        off.append(abs(measured.ess * float(weights @ weights) - 1))
    return Finding(round(max(off, default=math.nan), 9), MOST_WEIGHT_DISAGREEMENT)  # rounding is no disagreement


def _log_weight_slope(run: Run) -> list[Finding]:
    """Return findings; a deviation within its limit at a smaller eta may grow in proportion to eta: nonlinearity."""
    found: dict[float, Finding] = {}
    allowed = 0.0  # per unit eta
    for m in sorted(run.measurements, key=lambda each: each.eta):
        finding = _slope_at(run, m, allowed * m.eta)
        healthy = run.score is not None and abs(finding.value) <= finding.limit
        allowed = 2 * abs(finding.value) / m.eta if healthy else 0.0
        found[m.eta] = replace(finding, eta=m.eta)
    return [found[eta] for eta in run.etas]


def _slope_at(run: Run, measured: Measurement, allowed: float) -> Finding:
    expected, logs = _expected_log_weights(run, measured), measured.log_weights
    if expected is None or logs is None or run.n < 3:
        return Finding(math.nan, MOST_SLOPE_ERROR)
    if equal_but_for_rounding(expected):
        return Finding(math.nan, MOST_SLOPE_ERROR, detail="No score or log weight varies.")
    expected, logs = expected - expected.mean(), logs - logs.mean()
    variance = float(expected @ expected)
    slope = float(expected @ logs) / variance
    left = logs - slope * expected
    limit = MOST_SLOPE_ERROR + allowed + 4 * float(np.linalg.norm(expected * left)) / variance  # the sandwich
    if run.score is not None:
        return Finding(slope - 1, limit)
    # Noise at the largest eta makes the slope too small: without a score only others are a fault.
    detail = "Against the log weights of the largest eta, as there is no score."
    return Finding(slope - 1, limit, not -limit <= slope <= 1 + limit, detail)


def _expected_log_weights(run: Run, measured: Measurement) -> FloatArray | None:
    """Return eta times the score or, without it, the log weights of the largest eta scaled down to this one."""
    largest = max(run.measurements, key=lambda each: each.eta)
    if run.score is not None:
        return measured.eta * run.score
    if largest is measured or largest.log_weights is None:
        return None
    return measured.eta / largest.eta * largest.log_weights


@_at_each_eta
def _ess_share(run: Run, measured: Measurement) -> Finding:
    return Finding(effective_share(measured), LEAST_ESS_SHARE)


def effective_share(measured: Measurement) -> float:
    """Return the effective sample size of the weights over N."""
    weights = measured.weights
    return float(weights.sum() ** 2 / (weights @ weights)) / len(weights)


@_at_each_eta
def _largest_weight(run: Run, measured: Measurement) -> Finding:
    share = float(measured.weights.max() / measured.weights.sum())
    return Finding(share, max(MOST_WEIGHT_SHARE, 10 / run.n))


@_at_each_eta
def _pareto_k(run: Run, measured: Measurement) -> Finding:
    if run.n < _FEWEST_FOR_TAIL:
        detail = f"Fewer than {_FEWEST_FOR_TAIL} sequences: the tail cannot be fitted."
        return Finding(math.nan, _MOST_PARETO_K, detail=detail)
    shape = _pareto_shape(measured.weights)
    # Its standard error is (1 + k) / sqrt(count); nearly even weights may have any tail, and it does not matter.
    error = 1 / math.sqrt(_tail_count(run.n))
    limit = (min(1 - 1 / math.log10(run.n), _MOST_PARETO_K) + error) / (1 - error)
    detail = "Many of the largest weights are the same: the tail cannot be fitted." if math.isnan(shape) else ""
    return Finding(shape, limit, shape > limit and effective_share(measured) < UNEVEN, detail)


def _tail_count(size: int) -> int:
    return int(3 * math.sqrt(size)) if size > 225 else size // 5


def _pareto_shape(weights: FloatArray) -> float:
    """Return the shape of a generalised Pareto distribution of the largest weights (Zhang and Stephens, 2009).

    With the tail and the prior of Vehtari et al. (2024), as arviz-stats, whose import takes longer than a verdict.
    """
    size, ordered = len(weights), np.sort(weights / weights.max())
    count = _tail_count(size)
    tail = ordered[-count:] - ordered[-count - 1]
    quartile, grid = tail[int(count / 4 + 0.5) - 1], 30 + int(math.sqrt(count))
    if quartile == 0 or tail[0] == tail[-1]:
        return math.nan
    rates = 1 / tail[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-rates[:, None] * tail).mean(axis=1)
    log_likelihoods = count * (np.log(-rates / shapes) - shapes - 1)
    rate = np.average(rates, weights=np.exp(log_likelihoods - log_likelihoods.max()))
    return float((count * np.log1p(-rate * tail).mean() + 5) / (count + 10))


def _noise(run: Run) -> list[Finding]:
    """Return the share of noise in the variance of log weights.

    With the score, noise is what is left of ``log w - eta score`` after a curvature in eta of each sequence is fitted;
    without, a third of the variance of ``log w(2 eta) - 2 log w(eta)``.
    """
    logs = {m.eta: m.log_weights for m in run.measurements if m.log_weights is not None}
    noise, shares = _noise_beside_score(run.score, logs), dict.fromkeys(run.etas, math.nan)
    for eta, values in logs.items():
        twice = next((other for double, other in logs.items() if same_eta(double, 2 * eta)), None)
        if run.score is None:
            noise = math.nan if twice is None else float(np.var(twice - 2 * values)) / 3
        if not equal_but_for_rounding(values):
            shares[eta] = noise / float(np.var(values))
    return [Finding(share, MOST_NOISE_SHARE, eta=eta) for eta, share in shares.items()]


def _noise_beside_score(score: FloatArray | None, logs: Mapping[float, FloatArray]) -> float:
    if score is None or not logs:
        return math.nan
    etas, values = np.array(list(logs)), np.column_stack(list(logs.values()))
    left = values - np.outer(score, etas)
    left -= left.mean(axis=0)
    if len(etas) > 1:
        squares = etas**2 / etas.max() ** 2
        left -= np.outer(left @ squares / (squares @ squares), squares)
    return float((left**2).sum() / len(left) / max(len(etas) - 1, 1))


def _step_error(run: Run) -> list[Finding]:
    errors = []
    for m in run.measurements:
        recorded = run.score is not None and run.jH_sum is not None and m.h_base is not None
        errors.append(columns(run, m.eta, "matched").error.se if recorded else math.nan)
    return [Finding(error, MOST_STEP_ERROR, eta=eta) for eta, error in zip(run.etas, errors, strict=True)]


CHECKS = {
    "integrity": Check(
        "Contributions must sum to the stored totals; runs that do not add up are skipped.", _integrity, unsound=True
    ),
    "unchanged": Check("1 where entropies and weights did not change: the step was skipped.", _unchanged, unsound=True),
    "score_z": Check("Mean score over its SE; far from 0, sequences are off-policy.", _score, "the score"),
    "log_probability_excess_z": Check(
        "Mean of log pi(sequence) + its entropy, over its SE; far from 0: off-policy, or entropies do not match.",
        _excess,
        "sum_logp and h_base",
    ),
    "support": Check(
        "Tokens that the sampler could draw at a position, at least; few explain off-policy sequences: it truncates.",
        _support,
        "min_logp",
        severity=lambda value: -value,
        together=support_of,
    ),
    "sampler_mismatch": Check(
        "RMS difference of log pi and the sampler's, in nats over the root of a sequence's tokens; large: off-policy.",
        _sampler_mismatch,
        "sum_logp and sampler_logp",
    ),
    "entropy_mismatch": Check(
        "Sum of entropies over that of −log pi, minus 1; far from 0: other tokens, units (0.44: bits) or temperature.",
        _entropy_mismatch,
        "sum_logp and h_base",
        unsound=True,
    ),
    "entropy_slope": Check(
        "Slope of −log pi on entropy, by sequence and given length: about 1; near 0, columns are in different orders.",
        _entropy_slope,
        "sum_logp and h_base",
        severity=lambda value: -value,
        unsound=True,
    ),
    "ess_share": Check(
        "Effective sample size of the importance weights over N; near 1, weights are even.",
        _ess_share,
        severity=lambda value: -value,
        unsound=True,
    ),
    "largest_weight_share": Check(
        "Share of the largest weight; large, one sequence decides the true change.", _largest_weight, unsound=True
    ),
    "pareto_k": Check(
        "Tail of importance weights; above the limit, with uneven weights, the true change and its SE are unreliable.",
        _pareto_k,
        severity=float,
        unsound=True,
    ),
    "weights_agree": Check(
        "Largest disagreement of stored weights with log weights and ESS.",
        _weights_agree,
        "log_weights or ess",
        unsound=True,
    ),
    "log_weight_slope": Check(
        "Slope of log weights on eta times score, minus 1; −2: reversed, −1: token mean, 0.44: bits, other: wrong eta.",
        _log_weight_slope,
        "log_weights, and the score or a larger eta",
    ),
    "noise_share": Check(
        "Share of numerical noise in log weights; large, the step is below the precision floor.",
        _noise,
        "log_weights, and the score or a run at twice the eta",
    ),
    "offset_z": Check(
        "True change left at eta 0, over its SE; if large: another temperature, dtype, mask or kernel after the step?",
        _offset,
        "two etas and h_base",
        unsound=True,
    ),
    "step_error": Check(
        "SE of matched − true over the mean true change; large, this run cannot show nonlinearity by it.",
        _step_error,
        "the score and h_base",
        over_change=True,
    ),
}
OFF_POLICY_CHECKS = ("score_z", "log_probability_excess_z", "sampler_mismatch")
SamplerCause = Literal["truncated", "not truncated", "either", "unknown"]


def run_health(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Check the health of runs, one by one.

    Each row states the meaning and the limit of its check; `CHECKS` lists all checks. The tail of the weights is that
    of Pareto-smoothed importance sampling (Vehtari et al., 2024). The rates of flags on healthy runs and on faulty runs
    are measured in ``notebooks/06_known_truth.ipynb``.

    Parameters
    ----------
    runs
        Name -> run.

    Returns
    -------
    DataFrame
        Columns run, eta (missing if the check concerns the run as a whole), check, value (missing if it cannot be
        computed), limit, flag (bool), meaning (one sentence).

    Raises
    ------
    ValueError
        If there are no runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = run_health(synthetic_runs(2, 512))
    >>> int(table["flag"].sum()), table["check"].nunique()
    (0, 16)
    """
    rows = [
        (each.run, each.eta, each.check, each.value, each.limit, each.flag, f"{_detail(each)} {meaning}".strip())
        for each in findings(Runs.of(runs))
        for meaning in [CHECKS[each.check].meaning]
    ]
    return pd.DataFrame(rows, columns=["run", "eta", "check", "value", "limit", "flag", "meaning"])


def _detail(finding: Finding) -> str:
    takes = CHECKS[finding.check].takes
    return finding.detail or (f"Not recorded: it takes {takes}." if math.isnan(finding.value) and takes else "")


def findings(runs: Runs, etas: Sequence[float] | None = None) -> Iterator[Finding]:
    """Return the findings of each check on each run, at these step sizes and for the whole run; cached with the run."""
    change = cache(runs.mean_true_change)
    together = {name: check.together(runs) for name, check in CHECKS.items() if check.together}
    for name, run in runs.items():
        about = [eta for eta in run.etas if etas is None or any(same_eta(eta, each) for each in etas)]
        for check_name, check in CHECKS.items():
            if check not in run.derived:
                run.derived[check] = tuple(check.find(run))
            for each in run.derived[check]:
                if math.isnan(each.eta) or each.eta in about:
                    scale = abs(change(each.eta)) if check.over_change else 1.0
                    value = each.value / scale if scale else each.value * math.inf
                    flag = check.severity(value) > check.severity(each.limit) if each.flag is None else each.flag
                    value = math.nan if math.isnan(value) else together.get(check_name, value)
                    yield replace(each, value=value, flag=flag, check=check_name, run=name)


def cause_of_off_policy(support: float, vocabulary: int | None) -> SamplerCause:
    """Return what a bound on the tokens that the sampler could draw says of why sequences are off-policy.

    "not truncated": temperature, precision or another model version. In a vocabulary of a thousand tokens the bounds
    are lower, and a small one does not tell the causes apart.

    Examples
    --------
    >>> cause_of_off_policy(36.0, 151_936), cause_of_off_policy(5_300.0, None), cause_of_off_policy(7.0, 24)
    ('truncated', 'not truncated', 'either')
    """
    if math.isnan(support):
        return "unknown"
    size = math.inf if vocabulary is None else vocabulary
    if support > min(FULL_SUPPORT, size / 5) and size > FULL_SUPPORT:
        return "not truncated"
    return "truncated" if support < min(LEAST_SUPPORT, size / 15) and size > FULL_SUPPORT else "either"


def unsound_flags(checked: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, from `findings`, that make a run unsound: it must be fixed or left out."""
    flagged = [each for each in checked if each.flag]
    slopes = [abs(each.value) for each in flagged if each.check == "log_weight_slope"]
    # All of them, where one is far off: they have the same fault.
    wrong = ["log_weight_slope"] if max(slopes, default=0.0) > WRONG_SLOPE else []
    return tuple(each for each in flagged if CHECKS[each.check].unsound or each.check in wrong)


def by_check(flagged: Iterable[Finding]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Return for each flagged check the runs, and its name, the range of its values, the lowest limit and details."""
    groups: dict[str, list[Finding]] = {}
    for each in flagged:
        groups.setdefault(each.check, []).append(each)
    grouped = []
    for check, alike in groups.items():
        values = [each.value for each in alike]
        etas = sorted({each.eta for each in alike if not math.isnan(each.eta)})
        numbers = {"check": check, "low": min(values), "high": max(values), "limit": min(each.limit for each in alike)}
        runs = tuple(dict.fromkeys(each.run for each in alike))
        grouped.append((runs, {**numbers, "etas": etas, "detail": alike[0].detail}))
    return grouped
