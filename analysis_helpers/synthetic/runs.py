"""Runs of a tiny policy whose true answer is known, for tests, teaching and as sample data.

Each run follows the procedure of a real one: it samples an update batch, forms an Adam-like policy-gradient direction
from a reward that favours confident answers, samples an evaluation batch, and records the true change by importance
sampling and the linear terms in the entropy-to-go form. Sequences are exactly on-policy unless an option of the sampler
says otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from .._checks import FloatArray, checked_choice, checked_count, frozen
from ..runs import RESULTS_FILE, Measurement, Run, Runs, write_run
from .policy import (
    Baseline,
    Policy,
    Sequences,
    entropy_change,
    entropy_derivative,
    per_token_entropy,
    random_policy,
    sample_sequences,
    sampler_of,
)

SAMPLE_ETAS = (1.6e-6, 3.2e-6)
SAMPLE_SEED = 20240
SAMPLE_BATCHES = {2048: SAMPLE_ETAS, 256: (0.8e-6, 1.6e-6, 3.2e-6, 6.4e-6, 12.8e-6)}
SAMPLE_NOISE = 0.005  # nats; 0.012, as in real runs, would flag every run, as these log weights vary less
EXACT_FILE = "exact_change.json"

_POLICY_SEED = 2  # the one of a few whose entropy, length and spread of err_rel are most like those of real runs
_STEP_SCALE = 1750.0  # logits move by eta times this, so that the change is about -1e-3 nats per token at eta 1.6e-6
_UPDATE_PROMPTS, _SAMPLES_PER_PROMPT = 64, 8


def default_policy() -> Policy:
    """Return the policy of the sample data: 12 tokens, about 0.6 nats per token, 115 tokens per sequence."""
    return random_policy(np.random.default_rng(_POLICY_SEED))


def wide_policy() -> Policy:
    """Return a policy that chooses from 1,000 tokens, of which a sampler may keep few.

    About 1.4 nats per token and 56 tokens per sequence; the 50 most probable tokens have all but a few thousandths.
    """
    rng = np.random.default_rng(_POLICY_SEED)
    return random_policy(rng, (1, 1000), end_logit=12.0, max_length=60, logit_sd=5.7)


def synthetic_runs(
    num_runs: int = 4,
    num_sequences: int = 2048,
    etas: Sequence[float] = SAMPLE_ETAS,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    baseline: Baseline = "entropy_to_go",
    sampling_temperature: float = 1.0,
    sampling_top_k: int | None = None,
    sampling_top_p: float = 1.0,
    record_logp: bool = False,
) -> Runs:
    """Return runs of a policy whose entropy is known, named run_01, run_02 and so on.

    Parameters
    ----------
    num_runs
        Number of runs; each has its own update direction and evaluation batch.
    num_sequences
        Sequences in an evaluation batch.
    etas
        Step sizes.
    seed
        Seed; each run has its own stream, so the first runs are the same for any ``num_runs``.
    policy
        The policy; None: `default_policy`.
    baseline
        Of the linear terms, from the update batch: "entropy_to_go", as in published runs, or "centred", as
        `analysis_helpers.measure` does (see `Steps.baseline`). It changes only their noise.
    sampling_temperature, sampling_top_k, sampling_top_p
        Options of the sampler of the evaluation batch (see `sampler_of`): values other than these defaults give
        off-policy runs (sampler-trainer mismatch).
    record_logp
        Whether to record the log-probability of each sequence, and the lowest of a token.

    Raises
    ------
    ValueError
        If a count is not a whole number of at least 1, or an option of the sampler is out of range.
    RunError
        If an eta is not positive.

    Examples
    --------
    >>> runs = synthetic_runs(2, 64)
    >>> list(runs), runs["run_01"].n, runs["run_01"].etas
    (['run_01', 'run_02'], 64, (1.6e-06, 3.2e-06))
    """
    checked_count(num_sequences, "num_sequences")
    checked_choice(baseline, "baseline", get_args(Baseline))
    start = default_policy() if policy is None else policy
    sampler = sampler_of(start, temperature=sampling_temperature, top_k=sampling_top_k, top_p=sampling_top_p)
    runs = {}
    for name, rng in _streams(num_runs, seed).items():
        direction, update_batch = update_direction(start, rng)
        batch = sample_sequences(sampler, num_sequences, rng)
        at = update_batch.baseline(start.state_entropies()[update_batch.places], start.max_length, baseline)
        run = evaluate(start, direction, batch, etas, at)
        recorded: dict[str, Any] = {} if record_logp else {"logp": None, "min_logp": None}
        runs[name] = replace(run, source=f"synthetic {name}", **recorded)
    return Runs(runs)


def update_directions(policy: Policy, num_runs: int, *, seed: int) -> dict[str, FloatArray]:
    """Return the update direction of each of the `synthetic_runs` of a policy; with it the exact answer is known."""
    return {name: update_direction(policy, rng)[0] for name, rng in _streams(num_runs, seed).items()}


def _streams(num_runs: int, seed: int) -> dict[str, np.random.Generator]:
    """Return the random stream of each run by the run's name; the first streams are the same for any number of runs."""
    seeds = np.random.SeedSequence(seed).spawn(checked_count(num_runs, "num_runs"))
    return {f"run_{k:02d}": np.random.default_rng(each) for k, each in enumerate(seeds, start=1)}


def update_direction(policy: Policy, rng: np.random.Generator) -> tuple[FloatArray, Sequences]:
    """Return an update direction for the policy's logits, and the update batch that it comes from.

    The reward of a sequence is its mean log-probability per token; advantages are standardised among the samples of one
    prompt; the gradient g of the policy-gradient objective becomes ``g / (|g| + rms(g))`` elementwise, as a damped
    first step of Adam.
    """
    prompts = np.repeat(rng.integers(len(policy.logits), size=_UPDATE_PROMPTS), _SAMPLES_PER_PROMPT)
    batch = sample_sequences(policy, len(prompts), rng, prompts=prompts)
    log_probs, at = policy.log_probs(), batch.places
    reward = batch.sums(log_probs[(*at, batch.actions)]) / batch.lengths
    grouped = reward.reshape(_UPDATE_PROMPTS, _SAMPLES_PER_PROMPT)
    advantage = (grouped - grouped.mean(axis=1, keepdims=True)) / (grouped.std(axis=1, keepdims=True) + 1e-8)
    step_advantage = np.repeat(advantage.ravel(), batch.lengths)
    taken, visited = np.zeros_like(log_probs), np.zeros(log_probs.shape[:2])
    np.add.at(taken, (*at, batch.actions), step_advantage)
    np.add.at(visited, at, step_advantage)
    gradient = taken - visited[..., None] * np.exp(log_probs)
    return _STEP_SCALE * gradient / (np.abs(gradient) + np.sqrt(np.mean(gradient**2))), batch


def evaluate(
    policy: Policy, direction: FloatArray, batch: Sequences, etas: Sequence[float], baseline: FloatArray
) -> Run:
    """Return the run of an evaluation batch: the true change by importance sampling, and the linear terms.

    With the entropy-to-go ``G_t = sum of H_s over s > t``, a baseline b_t and ``D`` the derivative along ``direction``,
    a sequence's linear term is ``sum_t (G_t - b_t) D log pi_t + sum_t D H_t - H_N T sum_t D log pi_t``, over all
    tokens.

    Parameters
    ----------
    policy, direction, etas
        The step: logits move by ``eta * direction``.
    batch
        The evaluation batch.
    baseline
        b_t by position, shape ``(policy.max_length,)``, in nats; must not depend on ``batch``.
    """
    log_probs, entropies = policy.log_probs(), policy.state_entropies()
    probs = np.exp(log_probs)
    scores = direction - np.sum(probs * direction, axis=-1, keepdims=True)  # D log pi(a | s)
    entropy_slopes = -np.sum(probs * scores * log_probs, axis=-1)  # D H(s)
    state, action = batch.places, (*batch.places, batch.actions)
    step_scores = scores[action]
    to_go = batch.to_go(entropies[state]) - baseline[batch.positions]
    moved = {eta: policy.step(direction, eta) for eta in etas}
    return Run.from_arrays(
        token_counts=batch.lengths,
        h_base=batch.sums(entropies[state]),
        h_new={eta: batch.sums(new.state_entropies()[state]) for eta, new in moved.items()},
        log_weights={eta: batch.sums((new.log_probs() - log_probs)[action]) for eta, new in moved.items()},
        score=batch.sums(step_scores),
        wjlogp_sum=batch.sums(to_go * step_scores),
        jH_sum=batch.sums(entropy_slopes[state]),
        logp=batch.sums(log_probs[action]),
        min_logp=np.minimum.reduceat(log_probs[action], batch.starts),
        vocabulary=log_probs.shape[-1],
        source="synthetic run",
    )


def write_sample_data(root: str | os.PathLike[str]) -> None:
    """Write the sample data: four runs in ``E_2048``, four in ``E_256``, and ``exact_change.json``.

    On one machine the files are the same each time, byte for byte.

    Parameters
    ----------
    root
        Folder to write to, created if missing. Files of the same names are replaced, others are kept.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_sample_data(root)
    ...     sorted(path.name for path in Path(root).iterdir())
    ['E_2048', 'E_256', 'exact_change.json']
    """
    folder, policy = Path(root).expanduser(), default_policy()
    exact: dict[str, dict[str, object]] = {}
    for seed, (size, etas) in enumerate(SAMPLE_BATCHES.items(), start=SAMPLE_SEED):
        runs = synthetic_runs(4, size, etas, seed=seed, policy=policy, record_logp=True)
        rng = np.random.default_rng([seed, 1])
        for name, direction in update_directions(policy, 4, seed=seed).items():
            noise = {eta: rng.normal(0.0, SAMPLE_NOISE, size) for eta in etas}  # imitates low-precision arithmetic
            write_run(folder / f"E_{size}" / name / RESULTS_FILE, with_log_weights(runs[name], noise))
            changes = {repr(eta): entropy_change(policy, direction, eta) for eta in etas}
            exact[f"E_{size}/{name}"] = {"derivative": entropy_derivative(policy, direction), "change": changes}
    truth = {"unit": "nats per token", "per_token_entropy": per_token_entropy(policy), "runs": exact}
    (folder / EXACT_FILE).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def with_log_weights(run: Run, change: Mapping[float, FloatArray]) -> Run:
    """Return a run with ``change[eta]``, shape ``(N,)``, added to its log weights; totals follow."""
    measured = []
    for m in run.measurements:
        base, logs = np.asarray(m.h_base), frozen(np.asarray(m.log_weights) + change[m.eta])
        measured.append(Measurement.from_log_weights(m.eta, run.token_counts, base, m.h_new, logs))
    return replace(run, measurements=tuple(measured))
