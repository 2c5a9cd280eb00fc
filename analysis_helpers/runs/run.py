"""A run in memory: one evaluation batch, its update direction, and the change measured at each step size.

Build one with `Run.from_arrays` from a training loop; runs on disk are read by `analysis_helpers.load_runs`. Arrays are
float64 and read-only, one entry per sequence. Units: entropies in nats, summed over a sequence's tokens; step sizes as
recorded; ``gdotv`` in nats per token per unit eta.

Each array is declared once, by `_column`: its place in ``results.json``, its rule, and what it is. Reading, writing,
merging, `Run.from_arrays` and its documentation follow from the declaration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import (
    FieldError,
    FloatArray,
    RunError,
    checked_count,
    checked_entropies,
    checked_eta,
    checked_logp,
    checked_number,
    checked_numbers,
    checked_prompts,
    checked_tokens,
    checked_total,
    checked_weights,
    fields_of,
    frozen,
    same_eta,
)

TOTAL_TOLERANCE = 1e-6
"""Largest relative difference between a stored total and the same total from the sequences."""

Rule = Callable[[Any, str, FloatArray], NDArray[Any]]
"""``(values, name, tokens) -> array``, which raises a `FieldError`."""


@dataclass(frozen=True)
class Column:
    """An array with one value per sequence, as declared by `_column`.

    Attributes
    ----------
    name
        Attribute of `Run` or `Measurement`, and argument of `Run.from_arrays`.
    path
        Field of a sequence, or list of a step size, in ``results.json``.
    about
        What it is, with its unit.
    check
        Its rule.
    support
        What a run that records it supports (see `Run.supports`); empty where that follows from other columns.
    required
        Whether every run records it.
    """

    name: str
    path: str
    about: str
    check: Rule
    support: str
    required: bool


def _column(path: str, about: str, check: Rule = checked_numbers, *, support: str = "", required: bool = False) -> Any:
    declared = {"path": path, "about": about, "check": check, "support": support, "required": required}
    return field(metadata=declared) if required else field(default=None, metadata=declared)


def _columns_of(cls: type[Any]) -> tuple[Column, ...]:
    return tuple(Column(f.name, **f.metadata) for f in fields(cls) if f.metadata)


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """The true change of entropy at one step size, by self-normalised importance sampling (SNIS).

    Attributes
    ----------
    eta
        Step size, rounded to 12 significant digits.
    delta_h_true, base_entropy
        Stored totals (nats per token): the change, and the entropy before the step.
    ess
        Effective sample size, or None where not recorded.
    weights, log_weights, h_base, h_new
        Arrays of shape ``(N,)``, as `MEASURED_COLUMNS` describes them; None where not recorded.
    """

    eta: float
    delta_h_true: float
    base_entropy: float
    ess: float | None = None
    weights: FloatArray = _column("normalized_weights", "normalised importance weights", checked_weights, required=True)
    log_weights: FloatArray | None = _column("log_weights", "log importance weights on any common scale")
    h_base: FloatArray | None = _column(
        "h_base", "entropy sums before the step (nats)", checked_entropies, support="baseline_entropy"
    )
    h_new: FloatArray = _column("h_new", "entropy sums after the step (nats)", checked_entropies, required=True)

    @property
    def unchanged(self) -> bool:
        """Whether entropies and weights did not change: the step was skipped."""
        same = self.h_base is not None and np.array_equal(self.h_new, self.h_base)
        return same and float(np.ptp(self.weights)) <= 1e-12 * float(self.weights.max())

    @classmethod
    def from_log_weights(
        cls, eta: float, tokens: FloatArray, h_base: FloatArray, h_new: ArrayLike, log_weights: ArrayLike
    ) -> Measurement:
        """Return the measurement with its weights, totals and effective sample size; see `Run.from_arrays`."""
        after = checked_entropies(h_new, f"h_new[{eta}]", tokens)
        logs = checked_numbers(log_weights, f"log_weights[{eta}]", tokens)
        raw = np.exp(logs - logs.max())
        weights, entropy = frozen(raw / raw.sum()), float(h_base.sum() / tokens.sum())
        weighted_tokens = checked_total(weights * tokens, f"log_weights[{eta}] (weights times tokens)")
        return cls(
            eta=eta,
            delta_h_true=float(weights @ after / weighted_tokens) - entropy,
            base_entropy=entropy,
            ess=float(1.0 / (weights @ weights)),
            weights=weights,
            log_weights=logs,
            h_base=h_base,
            h_new=after,
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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
    h_base_mean
        Per-token entropy in the denominator correction (nats per token); None where there is none.
    scale
        Stored factor between a linear term and its parts, 1 / (tokens of the batch); None where not recorded.
    direction
        Fingerprint of the update direction: equal for equal directions; None if not recorded.
    vocabulary
        Tokens that the policy chooses from at each position; None if not recorded.
    method
        How the change was taken, in words; None if not recorded.
    source
        Origin of the run, for messages; not compared.
    gdotv, wjlogp_sum, jH_sum, denom_corr_unscaled, logp, sampler_logp, min_logp, prompt_ids
        Arrays of shape ``(N,)``, as `SEQUENCE_COLUMNS` describes them; None where not recorded. The three parts of the
        derivative sum to ``gdotv / scale``. Sequences of one prompt are not independent.
    """

    token_counts: FloatArray
    measurements: tuple[Measurement, ...]
    delta_h_per_lr: float
    h_base_mean: float | None = None
    scale: float | None = None
    direction: str | None = None
    vocabulary: int | None = None
    method: str | None = None
    source: str = field(default="run in memory", compare=False)
    gdotv: FloatArray | None = _column(
        "gdotv", "linear terms, which sum to the linear change per unit eta (nats per token)", support="linear"
    )
    wjlogp_sum: FloatArray | None = _column(
        "extras.wjlogp_sum", "score-function part of the derivative of the entropy sum (nats per unit eta)"
    )
    jH_sum: FloatArray | None = _column(
        "extras.jH_sum", "direct part of the derivative of the entropy sum (nats per unit eta)"
    )
    denom_corr_unscaled: FloatArray | None = _column(
        "extras.denom_corr_unscaled",
        "correction, -h_base_mean * T * score (nats per unit eta)",
        support="score",
    )
    logp: FloatArray | None = _column(
        "sum_logp", "log-probability under the policy that is differentiated (nats)", checked_logp, support="logp"
    )
    sampler_logp: FloatArray | None = _column("sampler_logp", "the same, as computed by the sampler", checked_logp)
    min_logp: FloatArray | None = _column(
        "min_logp", "lowest log-probability of one of its tokens (nats)", checked_logp
    )
    prompt_ids: NDArray[Any] | None = _column(
        "prompt_id", "prompt, a whole number or text, the same in all runs", checked_prompts, support="prompts"
    )

    @classmethod
    def from_arrays(
        cls,
        *,
        token_counts: ArrayLike,
        h_base: ArrayLike,
        h_new: Mapping[float, ArrayLike],
        log_weights: Mapping[float, ArrayLike],
        score: ArrayLike | None = None,
        delta_h_per_lr: float | None = None,
        direction: str | None = None,
        vocabulary: int | None = None,
        method: str | None = None,
        source: str = "run in memory",
        **columns: ArrayLike | None,
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
        score
            Derivative of the sequence's log-probability along the update direction, shape ``(N,)``.
        delta_h_per_lr
            Linear change per unit eta, where there are no per-sequence terms.
        direction
            Fingerprint of the update direction, by which `merge_runs` recognises shards of one batch.
        vocabulary
            Tokens that the policy chooses from at each position.
        method
            How the change was taken, in words.
        source
            Name of the run in messages.
        {columns}

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
        ...     h_new={{1e-6: [0.9, 1.8]}},
        ...     log_weights={{1e-6: [0.0, 0.0]}},
        ...     gdotv=[-1.0, -2.0],
        ... )
        >>> round(run.measurements[0].delta_h_true, 12)  # 2.7 / 5 - 3 / 5
        -0.06
        >>> run.supports
        ('baseline_entropy', 'linear')
        """
        if unknown := columns.keys() - _ARGUMENTS.keys():
            raise TypeError(f"no column {', '.join(sorted(unknown))}; there are score, {', '.join(_ARGUMENTS)}")
        _require_one_linear_change({**columns, "score": score, "delta_h_per_lr": delta_h_per_lr})
        if not isinstance(h_new, Mapping) or not isinstance(log_weights, Mapping):
            raise ValueError("h_new and log_weights must each be a dict of eta -> array")
        with fields_of(source):
            tokens = checked_tokens(token_counts, "token_counts")
            base = checked_entropies(h_base, "h_base", tokens)
            measurements = _measured(tokens, base, h_new, log_weights)
            arrays: dict[str, Any] = {
                name: _ARGUMENTS[name].check(values, name, tokens)
                for name, values in columns.items()
                if values is not None
            }
            total, entropy = float(tokens.sum()), None
            if score is not None:
                entropy = measurements[0].base_entropy
                correction = frozen(-entropy * tokens * checked_numbers(score, "score", tokens))
                linear = frozen((arrays["wjlogp_sum"] + arrays["jH_sum"] + correction) / total)
                arrays |= {"denom_corr_unscaled": correction, "gdotv": linear}
            per_lr = arrays["gdotv"].sum() if "gdotv" in arrays else delta_h_per_lr
            return cls(
                token_counts=tokens,
                measurements=measurements,
                delta_h_per_lr=checked_number(per_lr, "delta_h_per_lr"),
                h_base_mean=entropy,
                scale=1.0 / total,
                direction=direction,
                vocabulary=None if vocabulary is None else checked_count(vocabulary, "vocabulary"),
                method=method,
                source=source,
                **arrays,
            )

    def __repr__(self) -> str:
        return f"<Run {self.source!r}: {self.n} sequences, etas {', '.join(map(repr, self.etas))}>"

    @cached_property
    def n(self) -> int:
        """Batch size N, in sequences."""
        return len(self.token_counts)

    @cached_property
    def total_tokens(self) -> float:
        """Tokens in the batch."""
        return float(self.token_counts.sum())

    @cached_property
    def score(self) -> FloatArray | None:
        """Derivative of each sequence's log-probability along the update, shape ``(N,)``; None where not recorded.

        0 where a sequence has no tokens.
        """
        if self.denom_corr_unscaled is None or self.h_base_mean is None:
            return None
        tokens, tokens_times_score = self.token_counts, -self.denom_corr_unscaled / self.h_base_mean
        return frozen(np.divide(tokens_times_score, tokens, out=np.zeros(len(tokens)), where=tokens > 0))

    @cached_property
    def etas(self) -> tuple[float, ...]:
        """Step sizes measured, in the order of the file."""
        return tuple(m.eta for m in self.measurements)

    @cached_property
    def supports(self) -> tuple[str, ...]:
        """What the run records beyond its totals: any of the keys of `FIELDS_BEHIND`."""
        recorded = {c.support for c in SEQUENCE_COLUMNS if getattr(self, c.name) is not None}
        for column in MEASURED_COLUMNS:
            if all(getattr(m, column.name) is not None for m in self.measurements):
                recorded.add(column.support)
        return tuple(support for support in FIELDS_BEHIND if support in recorded)

    def measurement(self, eta: float) -> Measurement:
        """Return what was measured at ``eta``, looked up with a relative tolerance of 1e-6.

        Raises
        ------
        ValueError
            If the run has no such eta.
        """
        for m in self.measurements:
            if m.eta == eta or (eta not in self.etas and same_eta(m.eta, eta)):
                return m
        raise ValueError(f"{self.source}: no eta {eta!r} in this run; there are {', '.join(map(repr, self.etas))}")

    def has_eta(self, eta: float) -> bool:
        """Return whether the run was measured at ``eta``."""
        return eta in self.etas or any(same_eta(m.eta, eta) for m in self.measurements)

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """Stored totals that disagree with those from the sequences, one sentence each.

        The tolerance is relative to the sum of *absolute* contributions: totals are small differences of large numbers,
        so single precision or six digits cause a larger error relative to the total.
        """
        return tuple(dict.fromkeys(_disagreements(self)))

    @cached_property
    def derived(self) -> dict[object, Any]:
        """Cache of results computed from the run, by key: a run never changes."""
        return {}

    @cached_property
    def totals(self) -> tuple[float, ...]:
        """Numbers that differ between most runs; runs of the same content share them."""
        changes = [number for m in self.measurements for number in (m.eta, m.delta_h_true, m.base_entropy)]
        return (self.n, self.delta_h_per_lr, *changes)

    @cached_property
    def digest(self) -> str:
        """Digest of the content: the same for equal runs."""
        return sha256(b"|".join(_bytes_of(self))).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self is other or self.digest == other.digest)

    __hash__ = None  # type: ignore[assignment]  # as of other values that hold arrays


SEQUENCE_COLUMNS = _columns_of(Run)
"""Arrays of a run, fields of ``approx.per_sequence[]``."""

MEASURED_COLUMNS = _columns_of(Measurement)
"""Arrays at each step size, lists of ``true.entries[].diagnostics``."""

FIELDS_BEHIND = {c.support: f"true.entries[].diagnostics.{c.path}" for c in MEASURED_COLUMNS if c.support}
FIELDS_BEHIND |= {c.support: f"approx.per_sequence[].{c.path}" for c in SEQUENCE_COLUMNS if c.support}
FIELDS_BEHIND["score"] += " (or jH_sum, wjlogp_sum, H_base_mean)"
"""What a run may record beyond its totals -> the field of ``results.json`` that holds it."""

SCORE_PARTS = ("wjlogp_sum", "jH_sum", "denom_corr_unscaled")
"""Columns that, with `Run.h_base_mean`, make the linear terms with denominator correction."""

_ARGUMENTS = {column.name: column for column in SEQUENCE_COLUMNS if column.name != "denom_corr_unscaled"}
_LINES = [f"{c.name}\n            {c.about[0].upper()}{c.about[1:]}, shape ``(N,)``." for c in _ARGUMENTS.values()]
Run.from_arrays.__func__.__doc__ = (Run.from_arrays.__doc__ or "").format(  # type: ignore[attr-defined]
    columns="\n        ".join(_LINES)
)


def _require_one_linear_change(arguments: Mapping[str, object]) -> None:
    names = ("score", "wjlogp_sum", "jH_sum", "gdotv", "delta_h_per_lr")
    given = [name for name in names if arguments.get(name) is not None]
    if given not in (["score", "wjlogp_sum", "jH_sum"], ["gdotv"], ["delta_h_per_lr"]):
        rule = "score, wjlogp_sum and jH_sum together, or gdotv, or delta_h_per_lr"
        raise ValueError(f"give the linear change in one way: {rule}; got {', '.join(given) or 'none of these'}")


def _measured(
    tokens: FloatArray, base: FloatArray, h_new: Mapping[float, ArrayLike], log_weights: Mapping[float, ArrayLike]
) -> tuple[Measurement, ...]:
    new = {checked_eta(eta, "key of h_new"): values for eta, values in h_new.items()}
    logs = {checked_eta(eta, "key of log_weights"): values for eta, values in log_weights.items()}
    if new.keys() != logs.keys() or not new:
        rule = "must hold the same etas, at least one"
        raise ValueError(f"h_new and log_weights {rule}, got {list(h_new)} and {list(log_weights)}")
    check_distinct_etas(h_new, "h_new")
    return tuple(Measurement.from_log_weights(eta, tokens, base, new[eta], logs[eta]) for eta in new)


def require_run(run: object) -> None:
    """Raise a `ValueError` if ``run`` is not a single run; the message says what was given."""
    if not isinstance(run, Run):
        one = f": give one of them, such as runs[{next(iter(run))!r}]" if isinstance(run, Mapping) and run else ""
        raise ValueError(f"run must be a single Run, as from read_run, got {kind_of(run)}{one}")


def kind_of(value: object) -> str:
    """Return what was given in place of runs, for messages."""
    if isinstance(value, Mapping) and value:
        return f"a dict of {type(next(iter(value.values()))).__name__}"
    if isinstance(value, str | os.PathLike):
        return f"the path {os.fspath(value)!r}"
    return "a single Run" if isinstance(value, Run) else type(value).__name__


def check_distinct_etas(etas: Iterable[float], name: str) -> None:
    """Raise a `FieldError` if two step sizes are the same."""
    for lower, upper in pairwise(sorted(etas)):
        if same_eta(lower, upper):
            raise FieldError(name, "must hold each eta once", f"{float(upper)!r} twice")


def merge_runs(runs: Mapping[str, Run]) -> Run:
    """Return the run whose sequences are those of all the runs, in their order: shards of one batch.

    Totals, weights and corrections are recomputed. If the shards were measured with one fixed baseline, the result is
    the run of the whole batch.

    Parameters
    ----------
    runs
        Name -> run, as from `load_runs`: same etas, same update direction, with ``h_base``, log weights and the parts
        of the linear term recorded.

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
    >>> merge_runs({"0": one["run_01"], "1": other["run_01"]}).n
    80
    """
    if not isinstance(runs, Mapping) or not runs or not all(isinstance(run, Run) for run in runs.values()):
        raise ValueError(f"runs must be a dict of name -> Run, as from load_runs, got {kind_of(runs)}")
    shards = list(runs.values())
    first = shards[0]
    for k, (name, run) in enumerate(runs.items()):
        if len(run.etas) != len(first.etas) or not all(map(run.has_eta, first.etas)):
            raise RunError(name, "etas", f"must be those of the other runs, {list(first.etas)}", list(run.etas))
        if run.direction != first.direction:
            raise RunError(name, "direction", f"must be that of the other runs, {first.direction}", run.direction)
        if any(run == other for other in shards[:k]):
            raise RunError(name, "sequences", "must not be those of another run")

    def joined(path: str, array_of: Callable[[Run], Any], *, required: bool = True) -> Any:
        arrays = {name: array_of(run) for name, run in runs.items()}
        lacking = [name for name, array in arrays.items() if array is None]
        if lacking and (required or len(lacking) < len(runs)):
            rule = "must be recorded" if required else "must be recorded by all runs or by none"
            raise RunError(", ".join(lacking), path, rule)
        return None if lacking else np.concatenate(list(arrays.values()))

    def measured(name: str, eta: float) -> Any:
        return joined(f"true.entries[].diagnostics.{name}", lambda run: getattr(run.measurement(eta), name))

    return Run.from_arrays(
        token_counts=joined("token_counts", lambda run: run.token_counts),
        h_base=measured("h_base", first.etas[0]),
        h_new={eta: measured("h_new", eta) for eta in first.etas},
        log_weights={eta: measured("log_weights", eta) for eta in first.etas},
        score=joined(FIELDS_BEHIND["score"], lambda run: run.score),
        direction=first.direction,
        vocabulary=first.vocabulary,
        method=" + ".join(dict.fromkeys(run.method for run in shards if run.method)) or None,
        source=" + ".join(runs),
        **{
            name: joined(column.path, attrgetter(name), required=False)
            for name, column in _ARGUMENTS.items()
            if name != "gdotv"  # made anew
        },
    )


@np.errstate(over="ignore", invalid="ignore")  # an overflowing sum is a problem to report, not a warning
def _disagreements(run: Run) -> list[str]:
    tokens, total = run.token_counts, run.total_tokens
    compared: list[tuple[str, float | None, FloatArray | None]] = [
        ("per_sequence_meta.scale", run.scale, np.array([1 / total])),
        ("delta_h_per_lr", run.delta_h_per_lr, run.gdotv),
    ]
    for m in run.measurements:
        change = m.weights * m.h_new / (m.weights @ tokens) - tokens / total * m.base_entropy
        before = np.array([m.base_entropy]) if m.h_base is None else m.h_base / total
        compared.append((f"delta_h_true at eta {m.eta!r}", m.delta_h_true, change))
        compared.append((f"base_entropy at eta {m.eta!r}", m.base_entropy, before))
        compared.append(("H_base_mean", run.h_base_mean, before))
    problems = []
    for name, stored, parts in compared:
        if stored is not None and parts is not None:
            computed, size = float(parts.sum()), float(np.abs(parts).sum())
            if not abs(stored - computed) <= TOTAL_TOLERANCE * max(size, abs(stored)) < np.inf:
                problems.append(f"{name} is {stored:.7g}, its sequences give {computed:.7g}")
    return problems


def skipped_steps(run: Run) -> list[str]:
    """Return a sentence on the steps of a run that changed nothing; an empty list if there are none."""
    etas = ", ".join(repr(m.eta) for m in run.measurements if m.unchanged)
    return [f"at eta {etas} nothing changed: the step was skipped"] if etas else []


def _bytes_of(value: Any) -> Iterator[bytes]:
    """Yield the content of a value: of dataclasses field by field, of arrays by value."""
    if is_dataclass(value):
        for f in fields(value):
            if f.compare:
                yield from _bytes_of(getattr(value, f.name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _bytes_of(part)
    else:
        array = np.asarray(value)
        yield (array + 0.0).tobytes() if array.dtype.kind == "f" else repr(array.tolist()).encode()  # 0.0 is -0.0
