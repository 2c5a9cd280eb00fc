"""Is a run sound? Checks with a value, a limit, a flag and one sentence of what it means; and tables of what runs say.

A new check is one function and one entry in `CHECKS`: tables, verdicts and sentences follow. No flag does not mean that
a batch is large enough: good weights say that importance sampling is sound, not that it is precise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .._checks import FloatArray, same_eta, warn_about_runs
from ..estimators import (
    columns,
    equal_but_for_rounding,
    if_recorded,
    mean_log_probability_excess,
    mean_score,
    standard_deviation,
    true_total,
)
from ..runs import FIELDS_BEHIND, Measurement, Run, Runs
from .trend import fit_trend

LEAST_ESS_SHARE = 0.5
MOST_WEIGHT_SHARE = 0.05
MOST_NOISE_SHARE = 0.2
MOST_STEP_ERROR = 0.1
CLEAR_Z = 3.0  # standard errors
MOST_OFFSET_Z, MOST_OFFSET_Z_OF_TWO = 4.0, 6.0
MOST_WEIGHT_DISAGREEMENT = 0.01
MOST_SLOPE_ERROR, WRONG_SLOPE = 0.1, 0.5  # the latter is further off than nonlinearity brings it
MOST_ENTROPY_MISMATCH = 0.25
_FEWEST_FOR_TAIL = 100  # sequences; below, healthy weights would often be flagged (7 % at 64, 30 % at 32)


@dataclass(frozen=True)
class Finding:
    """What a check finds on a run.

    Attributes
    ----------
    value, limit
        The number found (NaN where it cannot be had), and what it is held against.
    flag
        Whether the value is beyond the limit; None: where it is more severe.
    detail
        What is special about this run, as sentences.
    eta
        The step size; NaN where the check is about the run as a whole.
    """

    value: float
    limit: float
    flag: bool | None = None
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
        ``(run, runs) -> findings``, where ``runs`` are those checked together.
    takes
        What a run must record; said where the value is missing.
    severity
        How bad a value is: the largest is shown as the worst.
    unsound
        Whether a run that is flagged gives no answer, and must be fixed or left out.
    """

    meaning: str
    find: Callable[[Run, Runs], Iterable[Finding]]
    takes: str = ""
    severity: Callable[[float], float] = abs
    unsound: bool = False


def _at_each_eta(find: Callable[[Run, Measurement], Finding]) -> Callable[[Run, Runs], Iterable[Finding]]:
    def found(run: Run, runs: Runs) -> Iterator[Finding]:
        return (replace(find(run, each), eta=each.eta) for each in run.measurements)

    return found


def _integrity(run: Run, runs: Runs) -> list[Finding]:
    problems = run.problems
    return [Finding(len(problems), 0.0, detail="".join(f"{problem}. " for problem in problems).strip())]


def _score(run: Run, runs: Runs) -> list[Finding]:
    return [Finding(if_recorded(lambda: mean_score(run).z), CLEAR_Z)]


def _excess(run: Run, runs: Runs) -> list[Finding]:
    return [Finding(if_recorded(lambda: mean_log_probability_excess(run).z), CLEAR_Z)]


def _entropy_mismatch(run: Run, runs: Runs) -> list[Finding]:
    h_base = run.measurements[0].h_base
    if run.logp is None or h_base is None or not run.logp.any():
        return [Finding(math.nan, MOST_ENTROPY_MISMATCH)]
    ratio = float(h_base.sum() / -run.logp.sum())
    error = mean_log_probability_excess(run).se / -float(np.mean(run.logp))
    return [Finding(ratio - 1, MOST_ENTROPY_MISMATCH + 4 * error)]


def _offset(run: Run, runs: Runs) -> list[Finding]:
    several = len(run.etas) > 2
    limit = MOST_OFFSET_Z if several else MOST_OFFSET_Z_OF_TWO
    if len(run.etas) < 2 or "baseline_entropy" not in run.supports or run.n < 2:
        return [Finding(math.nan, limit)]
    if several:
        return [Finding(fit_trend(run).offset_z, limit)]
    one, two = sorted(run.etas)
    changes = true_total(run, one), true_total(run, two)
    offset = changes[0] * (two / (two - one)) - changes[1] * (one / (two - one))
    z = offset.value / offset.se if offset.se else 0.0
    large = abs(offset.value) > 0.5 * min(abs(change.value) for change in changes)
    return [Finding(z, limit, large and abs(z) > limit)]


def _unchanged(run: Run, measured: Measurement) -> Finding:
    detail = "The step was skipped: nothing changed." if measured.unchanged else ""
    return Finding(float(measured.unchanged), 0.0, detail=detail)


def _weights_agree(run: Run, measured: Measurement) -> Finding:
    weights, off = measured.weights / measured.weights.sum(), []
    if measured.log_weights is not None:
        raw = np.exp(measured.log_weights - measured.log_weights.max())
        off.append(float(np.abs(raw / raw.sum() - weights).max() / weights.max()))
    if measured.ess is not None:
        off.append(abs(measured.ess * float(weights @ weights) - 1))
    return Finding(max(off, default=math.nan), MOST_WEIGHT_DISAGREEMENT)


def _log_weight_slope(run: Run, measured: Measurement) -> Finding:
    expected, found = _expected_log_weights(run, measured), measured.log_weights
    if expected is None or found is None or run.n < 3:
        return Finding(math.nan, MOST_SLOPE_ERROR)
    if equal_but_for_rounding(expected):
        return Finding(math.nan, MOST_SLOPE_ERROR, detail="No score or log weight varies.")
    expected, found = _centred(expected), _centred(found)
    variance = float(expected @ expected)
    slope = float(expected @ found) / variance
    left = found - slope * expected
    limit = MOST_SLOPE_ERROR + 4 * math.sqrt(float(left @ left) / (len(left) - 2) / variance)
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


def _ess_share(run: Run, measured: Measurement) -> Finding:
    return Finding(effective_share(measured), LEAST_ESS_SHARE)


def effective_share(measured: Measurement) -> float:
    """Return the effective sample size of the weights over N."""
    weights = measured.weights
    return float(weights.sum() ** 2 / (weights @ weights)) / len(weights)


def _largest_weight(run: Run, measured: Measurement) -> Finding:
    share = float(measured.weights.max() / measured.weights.sum())
    return Finding(share, max(MOST_WEIGHT_SHARE, 10 / run.n))


def _pareto_k(run: Run, measured: Measurement) -> Finding:
    size = run.n
    limit = min(1 - 1 / math.log10(size), 0.7) if size > 10 else 0.0
    if size < _FEWEST_FOR_TAIL:
        detail = f"Fewer than {_FEWEST_FOR_TAIL} sequences: the tail cannot be fitted."
        return Finding(math.nan, limit, detail=detail)
    shape = _pareto_shape(measured.weights)
    detail = "Many of the largest weights are the same: the tail cannot be fitted." if math.isnan(shape) else ""
    return Finding(shape, limit, detail=detail)


def _pareto_shape(weights: FloatArray) -> float:
    """Return the shape of a generalised Pareto distribution of the largest weights (Zhang and Stephens, 2009).

    With the tail and the prior of Vehtari et al. (2024), as arviz-stats, whose import takes longer than a verdict.
    """
    size, ordered = len(weights), np.sort(weights / weights.max())
    count = int(3 * math.sqrt(size)) if size > 225 else size // 5
    tail = ordered[-count:] - ordered[-count - 1]
    quartile, grid = tail[int(count / 4 + 0.5) - 1], 30 + int(math.sqrt(count))
    if quartile == 0 or tail[0] == tail[-1]:
        return math.nan
    rates = 1 / tail[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shapes = np.log1p(-rates[:, None] * tail).mean(axis=1)
    log_likelihoods = count * (np.log(-rates / shapes) - shapes - 1)
    rate = np.average(rates, weights=np.exp(log_likelihoods - log_likelihoods.max()))
    return float((count * np.log1p(-rate * tail).mean() + 5) / (count + 10))


def _noise(run: Run, measured: Measurement) -> Finding:
    """Return the share of noise in the variance of log weights.

    With the score, noise is what is left of ``log w - eta score`` after a curvature in eta of each sequence is fitted;
    without, a third of the variance of ``log w(2 eta) - 2 log w(eta)``.
    """
    log, noise = measured.log_weights, math.nan
    twice = next((m.log_weights for m in run.measurements if same_eta(m.eta, 2 * measured.eta)), None)
    if log is not None and run.score is not None:
        recorded = [(m.eta, m.log_weights) for m in run.measurements if m.log_weights is not None]
        etas = np.array([eta for eta, _ in recorded])
        left = np.column_stack([_centred(each) for _, each in recorded]) - np.outer(_centred(run.score), etas)
        if len(etas) > 1:
            squares = etas**2 / etas.max() ** 2
            left -= np.outer(left @ squares / (squares @ squares), squares)
        noise = float((left**2).sum() / len(left) / max(len(etas) - 1, 1))
    elif log is not None and twice is not None:
        noise = float(np.var(twice - 2 * log)) / 3
    variance = 0.0 if log is None or equal_but_for_rounding(log) else float(np.var(log))
    return Finding(noise / variance if variance else math.nan, MOST_NOISE_SHARE)


def _centred(values: FloatArray) -> FloatArray:
    centred: FloatArray = values - values.mean()
    return centred


def _step_errors(run: Run, runs: Runs) -> Iterator[Finding]:
    for eta in run.etas:
        error = _matched_error(run, eta)
        true = runs.mean_true_change(eta)
        yield Finding(error / abs(true) if true else error * math.inf, MOST_STEP_ERROR, eta=eta)


def _matched_error(run: Run, eta: float) -> float:
    """Return the standard error of matched - true at ``eta``; NaN where it cannot be had."""
    return if_recorded(lambda: columns(run, eta, "matched").error.se)


def _linear_error(run: Run, eta: float) -> float:
    """Return the standard error of the linear total at ``eta``; NaN where it cannot be had."""
    return if_recorded(lambda: columns(run, eta).estimates[1].se)


CHECKS = {
    "integrity": Check(
        "Contributions must sum to the stored totals; runs that do not add up are skipped.", _integrity, unsound=True
    ),
    "unchanged": Check(
        "1 where entropies and weights did not change: the step was skipped.", _at_each_eta(_unchanged), unsound=True
    ),
    "score_z": Check("Mean score over its SE; far from 0, sequences are off-policy.", _score, "the score"),
    "log_probability_excess_z": Check(
        "Mean of log pi(sequence) + its entropy, over its SE; far from 0: off-policy, or entropies do not match.",
        _excess,
        "sum_logp and h_base",
    ),
    "entropy_mismatch": Check(
        "Sum of entropies over that of −log pi, minus 1; far from 0: other tokens, units (0.44: bits) or temperature.",
        _entropy_mismatch,
        "sum_logp and h_base",
        unsound=True,
    ),
    "ess_share": Check(
        "Effective sample size of the importance weights over N; near 1, weights are even.",
        _at_each_eta(_ess_share),
        severity=lambda value: -value,
        unsound=True,
    ),
    "largest_weight_share": Check(
        "Share of the largest weight; large, one sequence decides the true change.",
        _at_each_eta(_largest_weight),
        unsound=True,
    ),
    "pareto_k": Check(
        "Tail of the importance weights; above the limit, the true change and its SE are unreliable.",
        _at_each_eta(_pareto_k),
        severity=float,
        unsound=True,
    ),
    "weights_agree": Check(
        "Largest disagreement of stored weights with log weights and ESS.",
        _at_each_eta(_weights_agree),
        "log_weights or ess",
        unsound=True,
    ),
    "log_weight_slope": Check(
        "Slope of log weights on eta times score, minus 1; −2: reversed, −1: token mean, 0.44: bits, other: wrong eta.",
        _at_each_eta(_log_weight_slope),
        "log_weights, and the score or a larger eta",
    ),
    "noise_share": Check(
        "Share of numerical noise in log weights; large, the step is below the precision floor.",
        _at_each_eta(_noise),
        "log_weights, and the score or a run at twice the eta",
    ),
    "offset_z": Check(
        "True change that does not vanish at eta 0, over its SE; large, entropies were measured differently.",
        _offset,
        "two etas and h_base",
        unsound=True,
    ),
    "step_error": Check(
        "SE of matched − true over the mean true change; large, this run cannot show nonlinearity by it.",
        _step_errors,
        "the score and h_base",
    ),
}
OFF_POLICY_CHECKS = ("score_z", "log_probability_excess_z")


def run_health(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Check the health of runs, one by one.

    What each check is, and its limit, stands in its row (columns meaning, limit); `CHECKS` lists them. The tail of the
    weights is that of Pareto-smoothed importance sampling (Vehtari et al., 2024). How often each is
    raised on healthy runs, and on runs with a fault, is measured in ``notebooks/06_known_truth.ipynb``.

    Parameters
    ----------
    runs
        Name -> run.

    Returns
    -------
    DataFrame
        Columns run, eta (missing where the check is about the run), check, value (missing where it cannot be had),
        limit, flag (bool), meaning (one sentence).

    Raises
    ------
    ValueError
        If there are no runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> table = run_health(synthetic_runs(2, 512))
    >>> int(table["flag"].sum()), table["check"].nunique()
    (0, 13)
    """
    collection = Runs.of(runs)
    rows = [
        {
            "run": name,
            "eta": found.eta,
            "check": check_name,
            "value": found.value,
            "limit": found.limit,
            "flag": check.severity(found.value) > check.severity(found.limit) if found.flag is None else found.flag,
            "meaning": f"{_detail(found, check)} {check.meaning}".strip(),
        }
        for name, run in collection.items()
        for check_name, check in CHECKS.items()
        for found in check.find(run, collection)
    ]
    return pd.DataFrame(rows)


def _detail(found: Finding, check: Check) -> str:
    missing = f"Not recorded: it takes {check.takes}." if math.isnan(found.value) and check.takes else ""
    return found.detail or missing


def flags_at(health: pd.DataFrame, etas: Iterable[float]) -> pd.DataFrame:
    """Return the flagged rows of `run_health` that are about a run as a whole, or about one of the step sizes."""
    here = health["eta"].map(lambda eta: math.isnan(eta) or any(same_eta(eta, each) for each in etas))
    found: pd.DataFrame = health[health["flag"] & here]
    return found


def unsound_flags(flags: pd.DataFrame) -> pd.DataFrame:
    """Return those rows of `flags_at` that make a run unsound: it must be fixed or left out."""
    slopes = flags["check"] == "log_weight_slope"  # all of them, where one is far off: they have the same fault
    wrong = slopes & (flags.loc[slopes, "value"].abs().max() > WRONG_SLOPE)
    unsound = flags["check"].isin([name for name, check in CHECKS.items() if check.unsound])
    found: pd.DataFrame = flags[unsound | wrong]
    return found


def explained(flags: pd.DataFrame) -> list[str]:
    """Return for each check that is flagged its values, the runs, and its meaning."""
    told = []
    for check, rows in flags.groupby("check", sort=False):
        values = " to ".join(dict.fromkeys(f"{end:.3g}" for end in (rows["value"].min(), rows["value"].max())))
        told.append(f"{check} {values} in {joined(rows['run'])}. {rows['meaning'].iloc[0].rstrip('.')}")
    return told


def joined(names: Iterable[str]) -> str:
    """Return names as they come, each once."""
    return ", ".join(dict.fromkeys(names))


def health_of_batches(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return `run_health` of the runs of several batch folders, each run named ``batch/run``.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> health_of_batches({"E_128": synthetic_runs(1, 128)})["run"].unique().tolist()
    ['E_128/run_01']
    """
    tables = [run_health(runs) for runs in batches.values()]
    named = [table.assign(run=batch + "/" + table["run"]) for batch, table in zip(batches, tables, strict=True)]
    return pd.concat(named, ignore_index=True)


def health_overview(health: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each check: its worst value over runs and etas, its limit, the runs flagged, the meaning.

    Parameters
    ----------
    health
        From `run_health`.

    Returns
    -------
    DataFrame
        Columns check, worst, limit, flagged (names of runs, with etas where the check is about these), meaning.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> bool((health_overview(run_health(synthetic_runs(2, 512)))["flagged"] == "").all())
    True
    """
    rows = []
    for check, table in health.groupby("check", sort=False):
        severity = table["value"].map(CHECKS[str(check)].severity, na_action="ignore")
        worst = table.iloc[int(severity.fillna(-math.inf).argmax())]
        flagged = [
            str(run)
            if of_run["eta"].isna().any()
            else f"{run} ({', '.join(f'{eta:g}' for eta in of_run['eta'].tolist())})"
            for run, of_run in table[table["flag"]].groupby("run", sort=False)
        ]
        rows.append((check, worst["value"], worst["limit"], "; ".join(flagged), CHECKS[str(check)].meaning))
    return pd.DataFrame(rows, columns=["check", "worst", "limit", "flagged", "meaning"])


def run_totals(batches: Mapping[str, Mapping[str, Run]]) -> pd.DataFrame:
    """Return the stored totals of each run at each eta.

    Parameters
    ----------
    batches
        Name of the batch folder -> name of the run -> run.

    Returns
    -------
    DataFrame
        Columns batch, run, eta, sequences, group (the batch, and where its runs differ in it, whether linear terms have
        the denominator correction: totals with and without are not averaged), true, linear, true_se, linear_se (nats
        per token; missing where not recorded), ess_share (effective sample size over N).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> run_totals({"E_32": synthetic_runs(1, 32)})[["batch", "run", "eta", "sequences"]].to_dict("records")[0]
    {'batch': 'E_32', 'run': 'run_01', 'eta': 1.6e-06, 'sequences': 32}
    """
    corrections = {batch: len({*map(_correction, runs.values())}) for batch, runs in batches.items()}
    rows = [
        {
            "batch": batch,
            "run": name,
            "eta": m.eta,
            "sequences": run.n,
            "group": batch if corrections[batch] == 1 else f"{batch}, {_correction(run)}",
            "true": m.delta_h_true,
            "linear": m.eta * run.delta_h_per_lr,
            "true_se": true_total(run, m.eta).se,
            "linear_se": _linear_error(run, m.eta),
            "ess_share": effective_share(m),
        }
        for batch, runs in batches.items()
        for name, run in runs.items()
        for m in run.measurements
    ]
    return pd.DataFrame(rows).sort_values(["eta", "batch", "run"], ignore_index=True)


def _correction(run: Run) -> str:
    if "linear" not in run.supports:
        return "totals only"
    return "corrected" if "score" in run.supports else "uncorrected"


def influence_table(runs: Mapping[str, Run], eta: float) -> pd.DataFrame:
    """Return the influence of each sequence (or prompt, where recorded) on both changes of its run at one eta.

    The influence is what the change owes to it, to first order, times the number of rows; its SD over the root of that
    number is the standard error of the change. What a run does not record is missing, with a warning.

    Parameters
    ----------
    runs
        Name -> run; those without eta are skipped with a warning.
    eta
        Step size.

    Raises
    ------
    ValueError
        If no run has the eta.

    Returns
    -------
    DataFrame
        Columns run, true, linear (nats per token).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> len(influence_table(synthetic_runs(2, 32), 1.6e-6))
    64
    """
    collection = Runs.of(runs)
    kept, parts = collection.at(collection.eta(eta)), []
    for change, needs in (("true", ("baseline_entropy",)), ("linear", ("linear", "baseline_entropy"))):
        if without := ", ".join(kept.lacking(*needs)):
            fields = " and ".join(FIELDS_BEHIND[need] for need in needs)
            warn_about_runs(f"the influence on the {change} change is not known of {without}: it takes {fields}")
    for name, run in kept.items():
        true = true_total(run, eta).psi
        linear = columns(run, eta).estimates[1].psi if set(needs) <= set(run.supports) else np.full(len(true), np.nan)
        parts.append(pd.DataFrame({"run": name, "true": true, "linear": linear}))
    return pd.concat(parts, ignore_index=True)


def influence_tails(influence: pd.DataFrame) -> pd.DataFrame:
    """Return, for each run and change, how heavy-tailed the influence of its sequences is.

    Parameters
    ----------
    influence
        From `influence_table`.

    Returns
    -------
    DataFrame
        Columns run, change ("true", "linear"), sd (nats per token), largest (in SDs from the mean), top_1pct_share (of
        the sum of squares about the mean, in the 1 % of sequences furthest out; 0.06 for a normal distribution).

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> influence_tails(influence_table(synthetic_runs(1, 64), 1.6e-6))["change"].tolist()
    ['true', 'linear']
    """
    rows = []
    for run, table in influence.groupby("run"):
        for change in ("true", "linear"):
            values = table[change].dropna().to_numpy()
            if not len(values):
                continue  # not recorded
            squares = np.sort((values - values.mean()) ** 2)[::-1]
            sd, total = standard_deviation(values), float(squares.sum())
            largest, top = float(np.sqrt(squares[0])), float(squares[: max(1, len(squares) // 100)].sum())
            shares = (largest / sd, top / total) if total else (math.nan, math.nan)  # nothing varies
            rows.append((run, change, sd, *shares))
    return pd.DataFrame(rows, columns=["run", "change", "sd", "largest", "top_1pct_share"])
