"""A run in memory: one evaluation batch, its update direction, and the change measured at each step size.

Build one with `Run.from_arrays` from a training loop; runs on disk are read by `analysis_helpers.load_runs`. Arrays are
float64 and read-only, one entry per sequence. Units: entropies in nats, summed over a sequence's tokens; step sizes as
recorded; ``gdotv`` in nats per token per unit eta.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    FieldError,
    FloatArray,
    RunError,
    checked_array,
    checked_entropies,
    checked_eta,
    checked_logp,
    checked_number,
    checked_prompts,
    checked_tokens,
    checked_total,
    fields_of,
    frozen,
    same_eta,
)

FIELDS_BEHIND = {
    "linear": "approx.per_sequence[].gdotv",
    "score": "approx.per_sequence[].extras.denom_corr_unscaled (or jH_sum, wjlogp_sum, H_base_mean)",
    "baseline_entropy": "true.entries[].diagnostics.h_base",
    "curvature": "approx.per_sequence[].vhvv",
    "logp": "approx.per_sequence[].sum_logp",
    "prompts": "approx.per_sequence[].prompt_id",
}
"""What a run may record beyond its totals -> the field of ``results.json`` that holds it."""

TOTAL_TOLERANCE = 1e-6
"""Largest relative difference between a stored total and the same total from the sequences."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """The true change of entropy at one step size, by self-normalised importance sampling (SNIS).

    Attributes
    ----------
    eta
        Step size, rounded to 12 significant digits.
    delta_h_true, base_entropy
        Stored totals (nats per token): the change, and the entropy before the step.
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

    @property
    def unchanged(self) -> bool:
        """Whether entropies and weights are those before the step: it was skipped."""
        same = self.h_base is not None and np.array_equal(self.h_new, self.h_base)
        return same and float(np.ptp(self.weights)) <= 1e-12 * float(self.weights.max())

    @classmethod
    def from_log_weights(
        cls, eta: float, tokens: FloatArray, h_base: FloatArray, h_new: FloatArray, log_weights: FloatArray
    ) -> Measurement:
        """Return the measurement with its weights, totals and effective sample size; see `Run.from_arrays`."""
        raw = np.exp(log_weights - log_weights.max())
        weights, entropy = frozen(raw / raw.sum()), float(h_base.sum() / tokens.sum())
        weighted_tokens = checked_total(weights * tokens, f"log_weights[{eta}] (weights times tokens)")
        change, ess = float(weights @ h_new / weighted_tokens) - entropy, float(1.0 / (weights @ weights))
        return cls(
            eta=eta,
            delta_h_true=change,
            base_entropy=entropy,
            weights=weights,
            h_new=h_new,
            h_base=h_base,
            log_weights=log_weights,
            ess=ess,
        )


@dataclass(frozen=True, eq=False)
class ScoreTerms:
    """The parts of the linear terms with denominator correction; arrays of shape ``(N,)``.

    ``gdotv / scale = wjlogp_sum + jH_sum + denom_corr_unscaled`` with
    ``denom_corr_unscaled = -h_base_mean * T * score``.
    """

    wjlogp_sum: FloatArray
    jH_sum: FloatArray
    denom_corr_unscaled: FloatArray
    h_base_mean: float


@dataclass(frozen=True, eq=False)
class ShardError:
    """A stored standard error: of the *mean* over shards of sequences, where the shards *sum* to the total.

    Multiplied by the number of shards it is the standard error of the total.

    Attributes
    ----------
    field
        Field of the file, such as ``approx.variance.se_shard``.
    value, num_shards
        As stored, in the units of the total.
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
        Stored total of the linear terms: the linear change per unit eta (nats per token).
    gdotv
        Linear terms, shape ``(N,)``, summing to ``delta_h_per_lr``; None in a totals-only run.
    score
        Parts of the linear terms; None without denominator correction.
    vhvv
        Curvature terms, shape ``(N,)``; None where not recorded.
    scale
        Stored factor between a linear term and its parts, 1 / (tokens of the batch); None where not recorded.
    source
        Origin of the run, for messages; not compared.
    shard_errors
        Standard errors as stored; empty where there are none.
    logp
        Log-probability of each sequence under the policy that is differentiated (nats), shape ``(N,)``; None where not
        recorded.
    sampler_logp
        The same by the sampler that drew the sequence.
    prompt_ids
        Prompt of each sequence, whole numbers or texts, shape ``(N,)``; None where not recorded.
    direction
        Fingerprint of the update direction: the same where the direction is; None where not recorded.
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
    direction: str | None = None

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
        direction: str | None = None,
        source: str = "run in memory",
    ) -> Run:
        """Return a run built from arrays, for training loops that write their own runs; totals and weights follow.

        Give the linear change in one of three ways: its parts ``score``, ``wjlogp_sum`` and ``jH_sum`` (best: they
        support every analysis); ``gdotv`` alone (no denominator correction); ``delta_h_per_lr`` alone (a total).

        Parameters
        ----------
        token_counts, h_base
            Tokens and entropy sums before the step (nats) of the responses, shape ``(N,)``.
        h_new, log_weights
            Per eta: entropy sums after the step (nats) and log importance weights on any common scale, shape ``(N,)``.
        gdotv
            Linear terms, shape ``(N,)``, which sum to the linear change per unit eta (nats per token).
        score
            Derivative of the sequence's log-probability along the update direction, shape ``(N,)``.
        wjlogp_sum, jH_sum
            Score-function part and direct part of the derivative of the entropy sum, shape ``(N,)``.
        vhvv
            Curvature terms, shape ``(N,)``.
        delta_h_per_lr
            Linear change per unit eta, where there are no per-sequence terms.
        logp, sampler_logp
            Log-probability of each sequence (nats, not positive), shape ``(N,)``: under the policy, and by the sampler.
        prompt_ids
            Prompt of each sequence (whole numbers or texts; the same in all runs), shape ``(N,)``: those of one prompt
            are not independent.
        direction
            Fingerprint of the update direction, by which `merge_runs` knows shards of one batch.
        source
            Name of the run in messages.

        Raises
        ------
        RunError
            If an array breaks a rule (length, finiteness, sign).
        ValueError
            If the etas of ``h_new`` and ``log_weights`` differ or there are none, or the linear change is not given in
            exactly one way.

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
        ways = {"score": score, "wjlogp_sum": wjlogp_sum, "jH_sum": jH_sum}
        ways |= {"gdotv": gdotv, "delta_h_per_lr": delta_h_per_lr}
        given = [name for name, values in ways.items() if values is not None]
        if given not in (["score", "wjlogp_sum", "jH_sum"], ["gdotv"], ["delta_h_per_lr"]):
            rule = "score, wjlogp_sum and jH_sum together, or gdotv, or delta_h_per_lr"
            raise ValueError(f"give the linear change in one way: {rule}; got {', '.join(given) or 'none of these'}")
        if not isinstance(h_new, Mapping) or not isinstance(log_weights, Mapping):
            raise ValueError("h_new and log_weights must each be a dict of eta -> array")
        with fields_of(source):
            tokens = checked_tokens(token_counts, "token_counts")
            base = checked_entropies(h_base, "h_base", tokens)
            new = {checked_eta(eta, "key of h_new"): values for eta, values in h_new.items()}
            logs = {checked_eta(eta, "key of log_weights"): values for eta, values in log_weights.items()}
            if new.keys() != logs.keys() or not new:
                rule = "must hold the same etas, at least one"
                raise ValueError(f"h_new and log_weights {rule}, got {list(h_new)} and {list(log_weights)}")
            check_distinct_etas(h_new, "h_new")

            def column(values: Any, name: str, checked: Callable[..., Any] = checked_array) -> Any:
                return None if values is None else checked(values, name, length=len(tokens))

            measurements = []
            for eta, values in new.items():
                after = checked_entropies(values, f"h_new[{eta}]", tokens)
                log = checked_array(logs[eta], f"log_weights[{eta}]", length=len(tokens))
                measurements.append(Measurement.from_log_weights(eta, tokens, base, after, log))
            linear, terms, total = column(gdotv, "gdotv"), None, float(tokens.sum())
            if score is not None:
                entropy = measurements[0].base_entropy
                terms = ScoreTerms(
                    wjlogp_sum=column(wjlogp_sum, "wjlogp_sum"),
                    jH_sum=column(jH_sum, "jH_sum"),
                    denom_corr_unscaled=frozen(-entropy * tokens * column(score, "score")),
                    h_base_mean=entropy,
                )
                linear = frozen((terms.wjlogp_sum + terms.jH_sum + terms.denom_corr_unscaled) / total)
            return cls(
                token_counts=tokens,
                measurements=tuple(measurements),
                delta_h_per_lr=checked_number(delta_h_per_lr if linear is None else linear.sum(), "delta_h_per_lr"),
                gdotv=linear,
                score=terms,
                vhvv=column(vhvv, "vhvv"),
                scale=1.0 / total,
                source=source,
                logp=column(logp, "logp", checked_logp),
                sampler_logp=column(sampler_logp, "sampler_logp", checked_logp),
                prompt_ids=column(prompt_ids, "prompt_ids", checked_prompts),
                direction=direction,
            )

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

    @cached_property
    def scores(self) -> FloatArray | None:
        """Score of each sequence, shape ``(N,)``, 0 where there are no tokens; None where it is not recorded."""
        if self.score is None:
            return None
        tokens, tokens_times_scores = self.token_counts, -self.score.denom_corr_unscaled / self.score.h_base_mean
        return frozen(np.divide(tokens_times_scores, tokens, out=np.zeros(len(tokens)), where=tokens > 0))

    @property
    def etas(self) -> tuple[float, ...]:
        """Step sizes measured, in the order of the file."""
        return tuple(m.eta for m in self.measurements)

    @property
    def supports(self) -> tuple[str, ...]:
        """What the run records beyond its totals: any of the keys of `FIELDS_BEHIND`."""
        base = all(m.h_base is not None for m in self.measurements) or None
        recorded = (self.gdotv, self.score, base, self.vhvv, self.logp, self.prompt_ids)
        return tuple(name for name, column in zip(FIELDS_BEHIND, recorded, strict=True) if column is not None)

    def measurement(self, eta: float) -> Measurement:
        """Return what was measured at ``eta``, looked up with a relative tolerance of 1e-6.

        Raises
        ------
        ValueError
            If the run has no such eta.
        """
        for m in self.measurements:
            if same_eta(m.eta, eta):
                return m
        raise ValueError(f"{self.source}: no eta {eta!r} in this run; there are {', '.join(map(repr, self.etas))}")

    def has_eta(self, eta: float) -> bool:
        """Return whether the run was measured at ``eta``."""
        return any(same_eta(m.eta, eta) for m in self.measurements)

    def __eq__(self, other: object) -> bool:
        return _same(self, other)


def require_runs(runs: object, name: str = "runs") -> None:
    """Raise a `ValueError` if the argument ``name`` is not a dict of at least one run; it says what was given."""
    if not isinstance(runs, Mapping) or not all(isinstance(run, Run) for run in runs.values()):
        raise ValueError(f"{name} must be a dict of name -> Run, as from load_runs, got {_kind(runs)}")
    if not runs:
        raise ValueError(f"no {name} given")


def require_batches(batches: object) -> None:
    """Raise a `ValueError` if ``batches`` is not a dict of dicts of runs; it says what was given."""
    if not isinstance(batches, Mapping) or not all(isinstance(runs, Mapping) for runs in batches.values()):
        raise ValueError(f"batches must be a dict of name -> runs, as from sound_batches, got {_kind(batches)}")
    for runs in batches.values():
        require_runs(runs)


def require_run(run: object) -> None:
    """Raise a `ValueError` if ``run`` is not a single run; it says what was given."""
    if not isinstance(run, Run):
        one = f": give one of them, such as runs[{next(iter(run))!r}]" if isinstance(run, Mapping) and run else ""
        raise ValueError(f"run must be a single Run, as from read_run, got {_kind(run)}{one}")


def _kind(value: object) -> str:
    if isinstance(value, Mapping) and value:
        return f"a dict of {type(next(iter(value.values()))).__name__}"
    if isinstance(value, str | os.PathLike):
        return f"the path {os.fspath(value)!r}"
    return "a single Run" if isinstance(value, Run) else type(value).__name__


def merge_runs(runs: Mapping[str, Run]) -> Run:
    """Return the run whose sequences are those of all the runs, in their order: shards of one batch.

    Totals, weights and corrections are made anew. Where the shards were measured with one fixed baseline, the result is
    the run of the whole batch. Curvature terms and stored standard errors belong to a shard and are left out.

    Parameters
    ----------
    runs
        Name -> run, as from `load_runs`: same etas, same update direction, and recorded are ``h_base``, log weights and
        the parts of the linear term.

    Raises
    ------
    RunError
        If two runs do not belong together, are the same, or lack a field; the message names run and field.
    ValueError
        If there are no runs.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> one, other = synthetic_runs(1, 32), synthetic_runs(1, 48, seed=1)
    >>> merge_runs({"0": one["run_01"], "1": other["run_01"]}).num_sequences
    80
    """
    require_runs(runs)
    shards = list(runs.values())
    first = shards[0]
    for k, (name, run) in enumerate(runs.items()):
        if len(run.etas) != len(first.etas) or not all(map(run.has_eta, first.etas)):
            raise RunError(name, "etas", f"must be those of the other runs, {list(first.etas)}", list(run.etas))
        if run.direction != first.direction:
            raise RunError(name, "direction", f"must be that of the other runs, {first.direction}", run.direction)
        if any(run == other for other in shards[:k]):
            raise RunError(name, "sequences", "must not be those of another run")

    def column(field: str, values: Iterable[NDArray[Any] | None], *, optional: bool = False) -> Any:
        found = dict(zip(runs, values, strict=True))
        lacking = [name for name, each in found.items() if each is None]
        if lacking and not (optional and len(lacking) == len(runs)):
            rule = "must be recorded by all runs or by none" if optional else "must be recorded"
            raise RunError(", ".join(lacking), field, rule)
        return None if lacking else np.concatenate([each for each in found.values() if each is not None])

    of_run, of_terms = ("logp", "sampler_logp", "prompt_ids"), ("wjlogp_sum", "jH_sum")
    logs = "true.entries[].diagnostics.log_weights"
    measured = {eta: [run.measurement(eta) for run in shards] for eta in first.etas}
    return Run.from_arrays(
        token_counts=column("token_counts", (run.token_counts for run in shards)),
        h_base=column(FIELDS_BEHIND["baseline_entropy"], (run.measurements[0].h_base for run in shards)),
        h_new={eta: column("h_new", (m.h_new for m in found)) for eta, found in measured.items()},
        log_weights={eta: column(logs, (m.log_weights for m in found)) for eta, found in measured.items()},
        score=column(FIELDS_BEHIND["score"], (run.scores for run in shards)),
        **{name: column(name, (getattr(run.score, name) for run in shards)) for name in of_terms},
        **{name: column(name, (getattr(run, name) for run in shards), optional=True) for name in of_run},
        direction=first.direction,
        source=" + ".join(runs),
    )


def check_distinct_etas(etas: Iterable[float], name: str) -> None:
    """Raise a `FieldError` if two step sizes are the same."""
    for lower, upper in pairwise(sorted(etas)):
        if same_eta(lower, upper):
            raise FieldError(name, "must hold each eta once", f"{float(upper)!r} twice")


@np.errstate(over="ignore", invalid="ignore")  # an overflowing sum is a problem to report, not a warning
def integrity_problems(run: Run) -> list[str]:
    """Return what in a run does not add up, one sentence each: stored totals against those from the sequences.

    The tolerance is relative to the sum of *absolute* contributions: totals are small differences of large numbers, so
    single precision or six digits cost more of the total.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> integrity_problems(synthetic_runs(1, 32)["run_01"])
    []
    """
    tokens, total = run.token_counts, run.total_tokens
    problems = []

    def compare(name: str, stored: float, parts: FloatArray) -> None:
        found, size = float(parts.sum()), float(np.abs(parts).sum())
        if not abs(stored - found) <= TOTAL_TOLERANCE * max(size, abs(stored)) < np.inf:
            problems.append(f"{name} is {stored:.7g}, its sequences give {found:.7g}")

    if run.scale is not None:
        compare("per_sequence_meta.scale", run.scale, np.array([1 / total]))
    if run.gdotv is not None:
        compare("delta_h_per_lr", run.delta_h_per_lr, run.gdotv)
    for m in run.measurements:
        change = m.weights * m.h_new / (m.weights @ tokens) - tokens / total * m.base_entropy
        before = np.array([m.base_entropy]) if m.h_base is None else m.h_base / total
        compare(f"delta_h_true at eta {m.eta!r}", m.delta_h_true, change)
        compare(f"base_entropy at eta {m.eta!r}", m.base_entropy, before)
        if run.score is not None:
            compare("H_base_mean", run.score.h_base_mean, before)
    return list(dict.fromkeys(problems))


def skipped_steps(run: Run) -> list[str]:
    """Return in a sentence the steps of a run that changed nothing; nothing if there are none."""
    etas = ", ".join(repr(m.eta) for m in run.measurements if m.unchanged)
    return [f"at eta {etas} nothing changed: the step was skipped"] if etas else []


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal: dataclasses field by field, arrays by value."""
    if is_dataclass(one):
        return type(one) is type(other) and all(
            _same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.compare
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(np.array_equal(one, other))
