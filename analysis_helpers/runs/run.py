"""A run in memory: one evaluation batch, its update direction, and what was measured at each step size.

Arrays are float64 and read-only, one entry a sequence. Units: entropies in nats (sums over a sequence's tokens), step
sizes as recorded, ``gdotv`` in nats per token per unit eta. How a run lies on disk is the business of
`analysis_helpers.results_json`.

Whether runs add up, and the runs of a folder that do: what is left out is left out with a warning and a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    FloatArray,
    RunError,
    checked_array,
    checked_eta,
    checked_prompts,
    checked_total,
    frozen,
    same_eta,
)

# What a run may support beyond its totals, and the field of results.json that records it.
FIELDS_BEHIND = {
    "linear": "approx.per_sequence[].gdotv",
    "score": "approx.per_sequence[].extras.denom_corr_unscaled (or jH_sum, wjlogp_sum, H_base_mean)",
    "baseline_entropy": "true.entries[].diagnostics.h_base",
    "curvature": "approx.per_sequence[].vhvv",
    "logp": "approx.per_sequence[].sum_logp",
    "prompts": "approx.per_sequence[].prompt_id",
}


@dataclass(frozen=True, eq=False)
class Measurement:
    """The true change of entropy at one step size, by self-normalised importance sampling.

    Attributes
    ----------
    eta
        Step size, canonical (see `canonical_eta`).
    delta_h_true, base_entropy
        Stored totals: the change, and the per-token entropy before the step (nats per token).
    weights
        Normalised importance weights, shape ``(N,)``.
    h_new
        Entropy sums after the step (nats), shape ``(N,)``.
    h_base
        Entropy sums before the step (nats), shape ``(N,)``, or None where not recorded.
    log_weights
        Log importance weights, shape ``(N,)``, or None where not recorded.
    ess
        Effective sample size, or None where not recorded.
    """

    eta: float
    delta_h_true: float
    base_entropy: float
    weights: FloatArray
    h_new: FloatArray
    h_base: FloatArray | None = None
    log_weights: FloatArray | None = None
    ess: float | None = None


@dataclass(frozen=True, eq=False)
class ScoreTerms:
    """The parts of the linear term, recorded since it carries a denominator correction; arrays of shape ``(N,)``.

    ``gdotv / scale = wjlogp_sum + jH_sum + denom_corr_unscaled``, with ``denom_corr_unscaled = -h_base_mean * T *
    score``.
    """

    wjlogp_sum: FloatArray
    jH_sum: FloatArray
    denom_corr_unscaled: FloatArray
    h_base_mean: float


@dataclass(frozen=True, eq=False)
class ShardError:
    """A standard error that a file stores: that of a *mean* over shards, where the shards *sum* to the total.

    Times the number of shards it is the standard error of the total.

    Attributes
    ----------
    field
        Where it is stored, such as ``approx.variance.se_shard``.
    value, num_shards
        As stored; units are those of the total.
    """

    field: str
    value: float
    num_shards: int


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """One evaluation batch of N sequences.

    Attributes
    ----------
    token_counts
        Tokens of each sequence, shape ``(N,)``.
    measurements
        The true change at each step size, in the order of the file.
    delta_h_per_lr
        Stored total of the linear terms: the linear change of per-token entropy per unit eta (nats per token).
    gdotv
        Linear terms, shape ``(N,)``, nats per token per unit eta, summing to ``delta_h_per_lr``; None in a totals-only
        run.
    score
        Parts of the linear term; None where the denominator correction was not recorded.
    vhvv
        Curvature terms, shape ``(N,)``; None where not recorded.
    scale
        Stored factor between a linear term and its parts, one over all tokens; None where not recorded.
    source
        Where the run comes from, for messages; not compared.
    shard_errors
        Standard errors as stored; empty where none are.
    logp
        Log-probability of each sequence under the policy that is differentiated (nats), shape ``(N,)``; None where not
        recorded.
    sampler_logp
        The same by the sampler that drew the sequence.
    prompt_ids
        Prompt of each sequence, whole numbers or texts, shape ``(N,)``; None where not recorded.
    """

    token_counts: FloatArray
    measurements: tuple[Measurement, ...]
    delta_h_per_lr: float
    gdotv: FloatArray | None = None
    score: ScoreTerms | None = None
    vhvv: FloatArray | None = None
    scale: float | None = None
    source: str = field(default="run in memory", compare=False)
    shard_errors: tuple[ShardError, ...] = ()
    logp: FloatArray | None = None
    sampler_logp: FloatArray | None = None
    prompt_ids: NDArray[Any] | None = None

    @classmethod
    def from_arrays(
        cls,
        *,
        token_counts: ArrayLike,
        h_base: ArrayLike,
        h_new: Mapping[float, ArrayLike],
        log_weights: Mapping[float, ArrayLike],
        gdotv: ArrayLike | None = None,
        score: ArrayLike | None = None,
        wjlogp_sum: ArrayLike | None = None,
        jH_sum: ArrayLike | None = None,
        vhvv: ArrayLike | None = None,
        delta_h_per_lr: float | None = None,
        logp: ArrayLike | None = None,
        sampler_logp: ArrayLike | None = None,
        prompt_ids: ArrayLike | None = None,
        source: str = "run in memory",
    ) -> Run:
        """Build a run from what a training loop has at hand; totals, weights and corrections follow.

        The linear change is given in one of three ways: its parts ``score``, ``wjlogp_sum`` and ``jH_sum`` (best:
        everything the suite does is then possible); ``gdotv`` alone (no denominator correction); ``delta_h_per_lr``
        alone (a total).

        Parameters
        ----------
        token_counts, h_base
            Tokens, and entropy sums before the step (nats), shape ``(N,)``.
        h_new, log_weights
            For each eta: entropy sums after the step (nats), and log importance weights, shape ``(N,)``.
        gdotv
            Linear terms (nats per token per unit eta), shape ``(N,)``.
        score
            Sum over tokens of the derivative of log pi along the update direction, shape ``(N,)``.
        wjlogp_sum, jH_sum
            Score-function and direct part of the derivative of the entropy sum, shape ``(N,)``.
        vhvv
            Curvature terms, shape ``(N,)``.
        delta_h_per_lr
            Linear change per unit eta, where no per-sequence terms are at hand.
        logp, sampler_logp
            Log-probability of each sequence (nats), shape ``(N,)``: under the policy, and by the sampler.
        prompt_ids
            Prompt of each sequence (whole numbers or texts), shape ``(N,)``: those of one prompt are not independent.
        source
            A name for messages.

        Raises
        ------
        RunError
            If an array breaks a rule (length, finiteness, sign).
        ValueError
            If the linear change is given in none or more than one of the three ways.

        Examples
        --------
        >>> run = Run.from_arrays(
        ...     token_counts=[2, 3],
        ...     h_base=[1.0, 2.0],
        ...     h_new={1e-6: [0.9, 1.8]},
        ...     log_weights={1e-6: [0.0, 0.0]},
        ...     gdotv=[-1.0, -2.0],
        ... )
        >>> round(run.measurements[0].delta_h_true, 12)  # 2.7 / 5 - 3 / 5
        -0.06
        >>> run.supports
        ('linear', 'baseline_entropy')
        """
        tokens = checked_array(token_counts, "token_counts", source, nonnegative=True)
        size, total = len(tokens), checked_total(tokens, "token_counts", source)
        base = checked_array(h_base, "h_base", source, length=size)
        if not isinstance(h_new, Mapping) or not isinstance(log_weights, Mapping):
            raise ValueError("h_new and log_weights must each be a dict of eta -> array")
        etas = {eta: checked_eta(eta, "h_new", source) for eta in h_new}
        logs = {checked_eta(eta, "log_weights", source): values for eta, values in log_weights.items()}
        if set(etas.values()) != set(logs) or not etas:
            raise ValueError(
                f"h_new and log_weights must hold the same etas, got {list(h_new)} and {list(log_weights)}"
            )
        measurements = []
        for eta, canonical in etas.items():
            new = checked_array(h_new[eta], f"h_new[{eta}]", source, length=size)
            log = checked_array(logs[canonical], f"log_weights[{eta}]", source, length=size)
            measurements.append(_measure(canonical, tokens, base, new, log, source))
        check_distinct_etas(measurements, "h_new", source)
        curvature = None if vhvv is None else checked_array(vhvv, "vhvv", source, length=size)
        parts = {"score": score, "wjlogp_sum": wjlogp_sum, "jH_sum": jH_sum}
        given = {name: values for name, values in parts.items() if values is not None}
        if len(given) not in (0, 3) or bool(given) + (gdotv is not None) + (delta_h_per_lr is not None) != 1:
            raise ValueError(
                "give the linear change in one way: score, wjlogp_sum and jH_sum; or gdotv; or delta_h_per_lr"
            )
        linear, terms = None, None
        if given:
            checked = [checked_array(values, name, source, length=size) for name, values in given.items()]
            linear, terms = _linear_from_parts(tokens, float(base.sum() / total), *checked)
        elif gdotv is not None:
            linear = checked_array(gdotv, "gdotv", source, length=size)
        per_lr = float(linear.sum()) if linear is not None else float(np.float64(delta_h_per_lr))
        if not np.isfinite(per_lr):
            raise RunError(source, "delta_h_per_lr", "must be finite", per_lr)
        logp, sampler_logp = (
            None if values is None else checked_array(values, name, source, length=size)
            for name, values in (("logp", logp), ("sampler_logp", sampler_logp))
        )
        prompts = None if prompt_ids is None else checked_prompts(prompt_ids, "prompt_ids", source, length=size)
        measured, scale = tuple(measurements), 1.0 / total
        return cls(tokens, measured, per_lr, linear, terms, curvature, scale, source, (), logp, sampler_logp, prompts)

    def __repr__(self) -> str:
        return f"<Run {self.source!r}: {self.num_sequences} sequences, etas {', '.join(map(repr, self.etas))}>"

    @property
    def num_sequences(self) -> int:
        """Batch size N."""
        return len(self.token_counts)

    @cached_property
    def total_tokens(self) -> float:
        """Tokens in the batch."""
        return float(self.token_counts.sum())

    @property
    def etas(self) -> tuple[float, ...]:
        """Step sizes measured, in the order of the file."""
        return tuple(m.eta for m in self.measurements)

    @property
    def supports(self) -> tuple[str, ...]:
        """What the run records beyond its totals: any of the keys of `FIELDS_BEHIND`."""
        has = {
            "linear": self.gdotv is not None,
            "score": self.score is not None,
            "baseline_entropy": all(m.h_base is not None for m in self.measurements),
            "curvature": self.vhvv is not None,
            "logp": self.logp is not None,
            "prompts": self.prompt_ids is not None,
        }
        return tuple(name for name in FIELDS_BEHIND if has[name])

    def measurement(self, eta: float) -> Measurement:
        """Return what was measured at ``eta``, looked up with a relative tolerance of 1e-6.

        Raises
        ------
        ValueError
            If the run has no such eta; the message says which there are.
        """
        for m in self.measurements:
            if same_eta(m.eta, eta):
                return m
        raise ValueError(f"{self.source}: no eta {eta!r} in this run; there are {', '.join(map(repr, self.etas))}")

    def has_eta(self, eta: float) -> bool:
        """Return whether the run was measured at ``eta``."""
        return any(same_eta(m.eta, eta) for m in self.measurements)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and _same(self, other)


def check_distinct_etas(measurements: list[Measurement], name: str, source: str) -> None:
    """Raise a `RunError` if two measurements are at the same step size."""
    for lower, upper in pairwise(sorted(m.eta for m in measurements)):
        if same_eta(lower, upper):
            raise RunError(source, name, "must hold each eta once", f"{upper!r} twice")


def _measure(
    eta: float, tokens: FloatArray, base: FloatArray, new: FloatArray, logs: FloatArray, source: str
) -> Measurement:
    raw = np.exp(logs - logs.max())
    weights = frozen(raw / raw.sum())
    checked_total(weights * tokens, f"log_weights[{eta}] (weights times tokens)", source)
    base_entropy = float(base.sum() / tokens.sum())
    delta = float(weights @ new / (weights @ tokens)) - base_entropy
    return Measurement(eta, delta, base_entropy, weights, new, base, logs, float(1.0 / (weights @ weights)))


def _linear_from_parts(
    tokens: FloatArray, mean_entropy: float, score: FloatArray, wjlogp_sum: FloatArray, jh_sum: FloatArray
) -> tuple[FloatArray, ScoreTerms]:
    terms = ScoreTerms(wjlogp_sum, jh_sum, frozen(-mean_entropy * tokens * score), mean_entropy)
    return frozen((wjlogp_sum + jh_sum + terms.denom_corr_unscaled) / tokens.sum()), terms


def _same(one: Any, other: Any) -> bool:
    """Compare dataclasses field by field, arrays by value."""
    if is_dataclass(one):
        return type(one) is type(other) and all(
            _same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.compare
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


TOTAL_TOLERANCE = 1e-6
"""Largest relative difference between a stored total and the sum of its contributions."""


@np.errstate(over="ignore", invalid="ignore")  # sums of huge numbers are infinite: no warning, a problem
def integrity_problems(run: Run) -> list[str]:
    """Return what in a run does not add up, a sentence each: totals against the sums of their contributions.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> integrity_problems(synthetic_runs(1, 32)["run_01"])
    []
    """
    problems = []
    total = run.total_tokens
    if run.scale is not None and _differ(run.scale * total, 1.0):
        problems.append(f"per_sequence_meta.scale is {run.scale:.7g}, one over all tokens is {1 / total:.7g}")
    if run.gdotv is not None and _differ(float(run.gdotv.sum()), run.delta_h_per_lr):
        problems.append(f"delta_h_per_lr is {run.delta_h_per_lr:.7g}, its contributions sum to {run.gdotv.sum():.7g}")
    for m in run.measurements:
        after = float(m.weights @ m.h_new / (m.weights @ run.token_counts))
        if _differ(after - m.base_entropy, m.delta_h_true):
            problems.append(
                f"delta_h_true at eta {m.eta!r} is {m.delta_h_true:.7g}, "
                f"its contributions sum to {after - m.base_entropy:.7g}"
            )
        before = m.base_entropy if m.h_base is None else float(m.h_base.sum()) / total
        if _differ(before, m.base_entropy):
            problems.append(f"base_entropy at eta {m.eta!r} is {m.base_entropy:.7g}, h_base gives {before:.7g}")
        if run.score is not None and _differ(before, run.score.h_base_mean):
            problems.append(f"H_base_mean is {run.score.h_base_mean:.7g}, h_base gives {before:.7g}")
    return list(dict.fromkeys(problems))


def _differ(one: float, other: float) -> bool:
    return not abs(one - other) <= TOTAL_TOLERANCE * max(abs(one), abs(other)) < np.inf
