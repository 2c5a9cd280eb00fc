"""Batches drawn again and again from a small policy whose answer is known, and the verdicts on them.

Sequences are short, so that thousands of batches take seconds. One update direction serves for all; differences between
updates are put in by shifting the linear terms of a run, which moves its err_rel by a known amount and changes nothing
else.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from itertools import accumulate
from statistics import NormalDist

import numpy as np
import pandas as pd

from analysis_helpers._checks import FloatArray, checked_count
from analysis_helpers.inference.decision import Goal
from analysis_helpers.inference.prediction import pooled_err_rel
from analysis_helpers.inference.verdicts import enough
from analysis_helpers.runs import Run
from analysis_helpers.runs.run import SEQUENCE_COLUMNS
from analysis_helpers.synthetic.policy import (
    Policy,
    entropy_change,
    entropy_derivative,
    random_policy,
    sample_sequences,
)
from analysis_helpers.synthetic.runs import evaluate, update_direction

ETA = 1.6e-6

_TOLERANCE, _PROBABILITY = 0.5, 0.9  # of the verdicts asked for
_SIZES = (512, 512, 512, 512, 2)  # of the runs drawn; the last is not asked
_POLICY_SEED = 3
_CHUNK = 200_000  # sequences evaluated at once


def short_policy() -> Policy:
    """Return a policy of about 20 tokens per sequence, sampled 12 times as fast as that of the sample data."""
    return random_policy(np.random.default_rng(_POLICY_SEED), end_logit=2.0, max_length=30)


def replicates(
    count: int, sizes: Sequence[int], *, tau: float = 0.0, bias: float = 0.0, seed: int = 0
) -> Iterator[list[Run]]:
    """Yield replicates: runs of these sizes, newly drawn, each with its own update.

    Parameters
    ----------
    count
        Number of replicates.
    sizes
        Sequences of each run.
    tau
        Between-run SD of err_rel beyond sampling.
    bias
        Mean err_rel beyond the nonlinearity of the step.
    seed
        Seed of sequences and shifts.
    """
    total, rng, exact = sum(sizes), np.random.default_rng(seed), exact_change()
    at_once = max(1, _CHUNK // total)
    for start in range(0, checked_count(count, "count"), at_once):
        now = min(at_once, count - start)
        drawn = world(now * total, int(rng.integers(2**32)))
        firsts = accumulate([*sizes] * now, initial=0)
        for _ in range(now):
            runs = [batch_of(drawn, next(firsts), size) for size in sizes]
            yield [shifted(run, rng.normal(bias, tau) * exact / ETA) for run in runs]


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """Return runs by the names run_01, run_02 and so on."""
    return {f"run_{k:02d}": run for k, run in enumerate(runs, start=1)}


def expected_error(bias: float = 0.0) -> float:
    """Return the expectation of err_rel over runs, with the exact reference: the nonlinearity of the step, and bias."""
    change = exact_change()
    return bias + (ETA * exact_derivative() - change) / change


def batch_of(run: Run, first: int, size: int) -> Run:
    """Return ``size`` sequences of a run that records the score, from ``first`` on, as a run."""
    part = slice(first, first + size)
    return Run.from_arrays(
        token_counts=run.token_counts[part],
        h_base=np.asarray(run.measurements[0].h_base)[part],
        h_new={m.eta: m.h_new[part] for m in run.measurements},
        log_weights={m.eta: np.asarray(m.log_weights)[part] for m in run.measurements},
        score=np.asarray(run.score)[part],
        source=run.source,
        direction=run.direction,
        vocabulary=run.vocabulary,
        method=run.method,
        **{
            name: values[part]
            for name in {column.name for column in SEQUENCE_COLUMNS} - {"gdotv", "denom_corr_unscaled"}  # made anew
            if (values := getattr(run, name)) is not None
        },
    )


def shifted(run: Run, change: float) -> Run:
    """Return the run with ``change`` (nats per token per unit eta) added to the linear change of every subset alike."""
    added = change * run.token_counts
    parts, gdotv = np.asarray(run.wjlogp_sum) + added, np.asarray(run.gdotv) + added / run.total_tokens
    return replace(run, delta_h_per_lr=run.delta_h_per_lr + change, wjlogp_sum=parts, gdotv=gdotv)


@cache
def true_spread() -> float:
    """Return S of err_rel (SE = S / sqrt(n)) over the exact change, known to about 1 % from one very large batch."""
    return float(pooled_err_rel({"all": world(_CHUNK, 1)}, ETA, reference=exact_change()).spreads[0])


@lru_cache(maxsize=8)  # the same sequences serve every tau and bias
def world(size: int, seed: int, *, etas: tuple[float, ...] = (ETA,), temperature: float = 1.0) -> Run:
    """Return one very large evaluation batch; the update direction is the same for every size and seed.

    A ``temperature`` other than 1 samples off-policy, as in `analysis_helpers.synthetic_runs`.
    """
    policy, direction, baseline = _update()
    sampler = Policy(policy.logits / temperature, policy.max_length)
    return evaluate(policy, direction, sample_sequences(sampler, size, np.random.default_rng(seed)), etas, baseline)


def exact_change(eta: float = ETA) -> float:
    """Return the exact change of per-token entropy under the update of `world`, in nats per token."""
    policy, direction, _ = _update()
    return entropy_change(policy, direction, eta)


def exact_derivative() -> float:
    """Return its exact derivative, in nats per token per unit eta."""
    policy, direction, _ = _update()
    return entropy_derivative(policy, direction)


@cache
def _update() -> tuple[Policy, FloatArray, FloatArray]:
    """Return the policy, the update direction and the baseline of every batch."""
    policy = short_policy()
    direction, update_batch = update_direction(policy, np.random.default_rng(_POLICY_SEED))
    entropies = policy.state_entropies()[update_batch.places]
    return policy, direction, update_batch.baseline(entropies, policy.max_length, "entropy_to_go")


def enough_records(sizes: Sequence[int], *, tau: float, count: int, seed: int) -> pd.DataFrame:
    """Return whether verdicts on four runs of 512 say that a batch of each size is enough, beside the truth.

    The error of the recorded linear change is asked, with the tolerance 0.5 and the probability 0.9.

    Returns
    -------
    DataFrame
        Columns n, within (how often a batch truly keeps to the tolerance), truth, answer.
    """
    rows = []
    within = {n: probability_within(_TOLERANCE, 0.0, true_spread() / math.sqrt(n)) for n in sizes}
    for *runs, _ in replicates(count, _SIZES, tau=tau, seed=seed):
        ratio = pooled_err_rel(named(runs), ETA)
        rows += [(n, within[n], enough(ratio, Goal(n, _TOLERANCE, _PROBABILITY))) for n in sizes]
    table = pd.DataFrame(rows, columns=["n", "within", "answer"])
    return table.assign(truth=np.where(table["within"] >= _PROBABILITY, "yes", "no"))


def probability_within(tolerance: float, mean: float, sd: float) -> float:
    """Return P(abs(x) <= tolerance) for a normal x."""
    normal = NormalDist(mean, max(sd, sys.float_info.min))  # a point is a narrow one
    return normal.cdf(tolerance) - normal.cdf(-tolerance)
