"""The checks of a run's health: each is a function that finds, a limit, and one sentence of what it means.

A new check is one function and one entry in `CHECKS`: tables, verdicts and sentences follow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .checks import FloatArray, same_eta
from .estimators import columns, error_influence_values, influence_values, score_z, scores, standard_deviation
from .integrity import integrity_problems
from .pooling import reference_for
from .runs import Measurement, Run

LEAST_ESS_SHARE = 0.5
MOST_WEIGHT_SHARE = 0.05
MOST_NOISE_SHARE = 0.2
MOST_STEP_ERROR = 0.1
MOST_SCORE_Z = 3.0
_STORED_ERROR_SDS = 4.0
_FEWEST_FOR_TAIL = 100  # sequences; below, healthy weights would often be flagged (7 % at 64, 30 % at 32)

References = Mapping[float, float]  # eta -> mean true change of the runs that are checked together


@dataclass(frozen=True)
class Finding:
    """What a check finds on a run.

    Attributes
    ----------
    value, limit, flag
        The number found (NaN where it cannot be had), what it is held against, and whether it is beyond.
    detail
        What is special about this run, as sentences.
    eta
        The step size; NaN where the check is about the run as a whole.
    """

    value: float
    limit: float
    flag: bool
    detail: str = ""
    eta: float = math.nan


@dataclass(frozen=True)
class Check:
    """A check of health.

    Attributes
    ----------
    meaning
        One sentence that says what the value is, and what it means when it is beyond the limit.
    find
        ``(run, references) -> findings``.
    severity
        How bad a value is: the largest is shown as the worst.
    """

    meaning: str
    find: Callable[[Run, References], Iterable[Finding]]
    severity: Callable[[float], float] = abs


def _at_each_eta(find: Callable[[Run, Measurement], Finding]) -> Callable[[Run, References], Iterable[Finding]]:
    def found(run: Run, references: References) -> Iterator[Finding]:
        return (dataclasses.replace(find(run, each), eta=each.eta) for each in run.measurements)

    return found


def _integrity(run: Run, references: References) -> list[Finding]:
    problems = integrity_problems(run)
    detail = ". ".join(problems) + ("." if problems else "")
    return [Finding(float(len(problems)), 0.0, bool(problems), detail)]


def _score(run: Run, references: References) -> list[Finding]:
    if run.score is None or run.num_sequences < 2:
        return [Finding(math.nan, MOST_SCORE_Z, False, "Not recorded: it takes the score.")]
    z = score_z(run)
    return [Finding(z, MOST_SCORE_Z, abs(z) > MOST_SCORE_Z)]


def _ess_share(run: Run, measured: Measurement) -> Finding:
    weights = measured.weights
    share = float(weights.sum() ** 2 / (weights @ weights)) / run.num_sequences
    return Finding(share, LEAST_ESS_SHARE, share < LEAST_ESS_SHARE)


def _largest_weight(run: Run, measured: Measurement) -> Finding:
    share = float(measured.weights.max() / measured.weights.sum())
    most = max(MOST_WEIGHT_SHARE, 10 / run.num_sequences)
    return Finding(share, most, share > most)


def _pareto_k(run: Run, measured: Measurement) -> Finding:
    size = run.num_sequences
    limit = min(1 - 1 / math.log10(size), 0.7) if size > 10 else 0.0
    shape, detail = _pareto_shape(measured.weights)
    return Finding(shape, limit, shape > limit, detail)


def _pareto_shape(weights: FloatArray) -> tuple[float, str]:
    """Return the Pareto shape of the largest weights, or NaN and why it cannot be had."""
    from arviz_stats.base import array_stats

    if len(weights) < _FEWEST_FOR_TAIL:
        return math.nan, f"Fewer than {_FEWEST_FOR_TAIL} sequences: the tail cannot be fitted."
    try:
        # psislw takes log likelihoods, the negative of log weights; it divides by zero where many weights are the same.
        with np.errstate(divide="ignore", invalid="ignore"):
            _, shape = array_stats.psislw(-np.log(np.maximum(weights, np.finfo(float).tiny)))
    except ValueError:  # the largest weights are all the same: there is no tail
        return math.nan, "The largest weights are all the same: there is no tail to fit."
    return float(shape), ""


def _noise(run: Run, measured: Measurement) -> Finding:
    found = _log_weight_noise(run, measured)
    variance = 0.0 if measured.log_weights is None else float(np.var(measured.log_weights))
    if found is None or variance == 0:
        detail = "Not recorded: it takes log_weights, and the score or a run at twice the eta."
        return Finding(math.nan, MOST_NOISE_SHARE, False, detail)
    share = found / variance
    return Finding(share, MOST_NOISE_SHARE, share > MOST_NOISE_SHARE)


def _log_weight_noise(run: Run, measured: Measurement) -> float | None:
    """Return the variance of the noise of log weights, or None where it cannot be had."""
    if measured.log_weights is None:
        return None
    if run.score is not None:
        return float(np.var(measured.log_weights - measured.eta * scores(run)))
    twice = next((m for m in run.measurements if same_eta(m.eta, 2 * measured.eta)), None)
    if twice is None or twice.log_weights is None:
        return None
    return float(np.var(twice.log_weights - 2 * measured.log_weights)) / 3


def _step_errors(run: Run, references: References) -> Iterator[Finding]:
    for measured in run.measurements:
        if run.score is None or measured.h_base is None or run.num_sequences < 2:
            detail = "Not recorded: it takes the score and h_base."
            yield Finding(math.nan, MOST_STEP_ERROR, False, detail, measured.eta)
            continue
        true = reference_for(references, run, measured.eta, run.source)
        psi = error_influence_values(columns(run, measured.eta, "matched"))
        share = standard_deviation(psi) / math.sqrt(len(psi)) / abs(true) if true else math.inf
        yield Finding(share, MOST_STEP_ERROR, share > MOST_STEP_ERROR, eta=measured.eta)


def _stored_errors(run: Run, references: References) -> Iterator[Finding]:
    for stored in run.shard_errors:
        computed = (_curvature_error if stored.field.endswith("vHvv") else _linear_error)(run)
        limit = _STORED_ERROR_SDS / math.sqrt(2 * max(stored.num_shards - 1, 1))
        detail = f"{stored.field}:"
        if computed is None or computed == 0 or stored.value <= 0:
            yield Finding(math.nan, math.exp(limit), False, f"{detail} nothing to compare.")
            continue
        ratio = stored.value * stored.num_shards / computed
        yield Finding(ratio, math.exp(limit), abs(math.log(ratio)) > limit, detail)


def _linear_error(run: Run) -> float | None:
    """Return the standard error of the linear total per unit eta."""
    if not {"linear", "baseline_entropy"} <= set(run.supports) or run.num_sequences < 2:
        return None
    eta = run.etas[0]
    _, psi = influence_values(columns(run, eta, "ratio"))
    return standard_deviation(psi) / math.sqrt(len(psi)) / eta


def _curvature_error(run: Run) -> float | None:
    if run.vhvv is None or run.num_sequences < 2:
        return None
    return standard_deviation(run.vhvv) * math.sqrt(run.num_sequences)  # of a sum


CHECKS = {
    "integrity": Check(
        "Contributions must sum to the stored totals; a run that does not add up is left out of everything.",
        _integrity,
    ),
    "score_z": Check(
        "Mean score over its SE; far from 0, sequences did not come exactly from the differentiated policy.",
        _score,
    ),
    "ess_share": Check(
        "Effective sample size of the importance weights over the sequences; near 1, weights are even.",
        _at_each_eta(_ess_share),
        severity=lambda value: -value,
    ),
    "largest_weight_share": Check(
        "Share of the largest weight; large, one sequence decides the true change.",
        _at_each_eta(_largest_weight),
    ),
    "pareto_k": Check(
        "Tail of the importance weights; above the limit, the true change and its SE are unreliable.",
        _at_each_eta(_pareto_k),
    ),
    "noise_share": Check(
        "Share of numerical noise in log weights; large, the step is below the precision floor.",
        _at_each_eta(_noise),
    ),
    "step_error": Check(
        "SE of matched - true over the mean true change; large, this batch cannot tell curvature from noise.",
        _step_errors,
    ),
    "stored_error": Check(
        "Stored SE times its number of shards over the SE computed here; far from 1, one of them is wrong.",
        _stored_errors,
        severity=lambda value: abs(math.log(value)),
    ),
}
