"""Runs drawn anew again and again from a policy whose answer is known.

A small policy with short sequences, so that thousands of batches take seconds. One update direction serves for all;
differences between updates are put in by shifting the linear terms of a run, which moves its err_rel by a known amount
and changes nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from .checks import FloatArray, checked_count
from .policy import Policy, random_policy, sample_sequences
from .prediction import pilot_of
from .runs import Run, ScoreTerms
from .synthetic import SyntheticRun, entropy_to_go_baseline, evaluate, stored_shard_errors, update_direction

ETA = 1.6e-6

_POLICY_SEED = 3
_CHUNK = 200_000  # sequences evaluated at once


@dataclass(frozen=True, eq=False)
class Replicate:
    """Large runs and a fresh run, all drawn anew, with the answer known.

    Attributes
    ----------
    large
        Name -> run.
    fresh
        The run to be predicted, with an update of its own.
    mean
        The err_rel that runs have on average, over the exact reference.
    """

    large: Mapping[str, Run]
    fresh: Run
    mean: float


def short_policy() -> Policy:
    """Return a policy of about 20 tokens a sequence: 12 times as fast to sample as the one behind the sample data."""
    return random_policy(np.random.default_rng(_POLICY_SEED), end_logit=2.0, max_length=30)


def replicates(
    count: int,
    *,
    num_large: int = 4,
    large_size: int = 512,
    fresh_size: int = 64,
    tau: float = 0.0,
    bias: float = 0.0,
    seed: int = 0,
) -> Iterator[Replicate]:
    """Draw large runs and a fresh run, again and again.

    Parameters
    ----------
    count
        Number of replicates.
    num_large, large_size, fresh_size
        Large runs in a replicate, their sequences, those of the fresh run.
    tau
        SD of err_rel between runs, beyond sampling.
    bias
        Mean err_rel, beyond the nonlinearity of the step.
    seed
        Seed; sequences and shifts come from one stream.
    """
    sizes = [large_size] * checked_count(num_large, "num_large") + [fresh_size]
    at_once = max(1, _CHUNK // sum(sizes))
    rng = np.random.default_rng(seed)
    for start in range(0, checked_count(count, "count"), at_once):
        now = min(at_once, count - start)
        made = world(now * sum(sizes), int(rng.integers(2**32)))
        exact = made.exact_change(ETA)
        first = 0
        for _ in range(now):
            runs = []
            for size in sizes:
                shift = rng.normal(bias, tau) * exact / ETA if tau else bias * exact / ETA
                runs.append(shifted(batch_of(made.run, first, size), shift))
                first += size
            large = {f"run_{k:02d}": run for k, run in enumerate(runs[:-1], start=1)}
            yield Replicate(large, runs[-1], bias + true_error(made))


def batch_of(run: Run, first: int, size: int) -> Run:
    """Return ``size`` sequences of a run, from ``first`` on, as a run of their own.

    Raises
    ------
    ValueError
        If the run does not record the score, ``h_base`` and ``log_weights``.
    """
    if run.score is None or any(m.h_base is None or m.log_weights is None for m in run.measurements):
        raise ValueError("run must record the score, h_base and log_weights")
    part = slice(first, first + size)
    made = Run.from_arrays(
        token_counts=run.token_counts[part],
        h_base=np.asarray(run.measurements[0].h_base)[part],
        h_new={m.eta: m.h_new[part] for m in run.measurements},
        log_weights={m.eta: np.asarray(m.log_weights)[part] for m in run.measurements},
        score=_scores(run.score, run.token_counts, part),
        wjlogp_sum=run.score.wjlogp_sum[part],
        jH_sum=run.score.jH_sum[part],
    )
    return dataclasses.replace(made, shard_errors=stored_shard_errors(made))


def shifted(run: Run, change: float) -> Run:
    """Return the run with its linear change moved by ``change`` (nats per token per unit eta), on every subset alike.

    Raises
    ------
    ValueError
        If the run does not record the score.
    """
    if run.score is None or run.gdotv is None:
        raise ValueError("run must record the score")
    terms = dataclasses.replace(run.score, wjlogp_sum=run.score.wjlogp_sum + change * run.token_counts)
    gdotv = run.gdotv + change * run.token_counts / run.total_tokens
    return dataclasses.replace(run, score=terms, gdotv=gdotv, delta_h_per_lr=run.delta_h_per_lr + change)


def true_error(made: SyntheticRun) -> float:
    """Return the exact err_rel of a step: what going straight misses, over the exact change."""
    change = made.exact_change(ETA)
    return (ETA * made.exact_derivative() - change) / change


@cache
def true_spread() -> float:
    """Return S of err_rel over the exact change, from one batch so large that it is known to about 1 %."""
    made = world(_CHUNK, 1)
    return float(pilot_of({"all": made.run}, ETA, reference=made.exact_change(ETA)).spreads[0])


@lru_cache(maxsize=8)  # the same sequences serve every tau and bias
def world(size: int, seed: int, *, eta: float = ETA, temperature: float = 1.0) -> SyntheticRun:
    """Return one huge evaluation batch; the update direction is the same for every size and seed.

    A ``temperature`` other than 1 samples off the policy, as in `analysis_helpers.synthetic_runs`.
    """
    policy = short_policy()
    direction, update_batch = update_direction(policy, np.random.default_rng(_POLICY_SEED))
    baseline = entropy_to_go_baseline(policy, update_batch)
    sampler = Policy(policy.logits / temperature, policy.max_length)
    batch = sample_sequences(sampler, size, np.random.default_rng(seed))
    return SyntheticRun(evaluate(policy, direction, batch, [eta], baseline), policy, direction)


def _scores(terms: ScoreTerms, tokens: FloatArray, part: slice) -> FloatArray:
    # Of the part only: the whole batch may be a thousand times as large.
    return -terms.denom_corr_unscaled[part] / terms.h_base_mean / tokens[part]
