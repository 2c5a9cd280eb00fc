"""Runs of a tiny policy whose true answer is known, for tests, teaching and as sample data.

Each run does what a real one does: it samples an update batch, forms an Adam-like policy-gradient direction from a
reward that favours confident answers, samples an evaluation batch, and records the true change by importance sampling
and the linear terms in the entropy-to-go form. Unlike in a real run, sequences are exactly on-policy unless a
``sampling_temperature`` is given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .._checks import FloatArray, checked_choice, checked_count
from ..runs import RESULTS_FILE, Measurement, Run, ShardError, write_run
from .policy import (
    IntArray,
    Policy,
    Sequences,
    entropy_change,
    entropy_derivative,
    per_token_entropy,
    random_policy,
    sample_sequences,
)

Baseline = Literal["entropy_to_go", "centred"]

SAMPLE_ETAS = (1.6e-6, 3.2e-6)
SAMPLE_SEED = 20240
SAMPLE_BATCHES = {2048: SAMPLE_ETAS, 256: (0.8e-6, 1.6e-6, 3.2e-6, 6.4e-6, 12.8e-6)}
SAMPLE_NOISE = 0.005  # nats; 0.012, as in real runs, would flag every run, as these log weights vary less
EXACT_FILE = "exact_change.json"

_POLICY_SEED = 2  # the one of a few whose entropy, length and spread of err_rel are most like those of real runs
_STEP_SCALE = 1750.0  # logits move by eta times this, so that the change is about -1e-3 nats per token at eta 1.6e-6
_UPDATE_PROMPTS, _SAMPLES_PER_PROMPT = 64, 8
_SHARD = 8  # sequences


@dataclass(frozen=True, eq=False)
class SyntheticRun:
    """A run with its known answer.

    Attributes
    ----------
    run
        The run, as it would be loaded from a results file.
    policy
        The policy before the step.
    direction
        The update direction v, of the shape of the policy's logits.
    """

    run: Run
    policy: Policy
    direction: FloatArray

    def exact_change(self, eta: float) -> float:
        """Return the change of per-token entropy at ``eta`` that the run estimates, in nats per token."""
        return entropy_change(self.policy, self.direction, eta)

    def exact_derivative(self) -> float:
        """Return the derivative that ``delta_h_per_lr`` estimates, in nats per token per unit eta."""
        return entropy_derivative(self.policy, self.direction)


def default_policy() -> Policy:
    """Return the policy of the sample data: 12 tokens, about 0.6 nats per token, 115 tokens per sequence."""
    return random_policy(np.random.default_rng(_POLICY_SEED))


def synthetic_runs(
    num_runs: int = 4,
    num_sequences: int = 2048,
    etas: Sequence[float] = SAMPLE_ETAS,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    baseline: Baseline = "entropy_to_go",
    sampling_temperature: float = 1.0,
    log_weight_noise: float = 0.0,
    record_logp: bool = False,
) -> dict[str, Run]:
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
        `analysis_helpers.measure` takes it (see `centred_baseline`). Changes their noise, and nothing else.
    sampling_temperature
        Divides the logits while the evaluation batch is sampled, and only then: other than 1 gives off-policy runs
        (sampler-trainer mismatch).
    log_weight_noise
        SD of noise added to every log weight (nats), as low-precision arithmetic does.
    record_logp
        Whether to record the log-probability of each sequence.

    Raises
    ------
    ValueError
        If a count is not a whole number of at least 1, or the temperature not positive.
    RunError
        If an eta is not positive.

    Examples
    --------
    >>> runs = synthetic_runs(2, 64)
    >>> list(runs), runs["run_01"].num_sequences, runs["run_01"].etas
    (['run_01', 'run_02'], 64, (1.6e-06, 3.2e-06))
    """
    made = synthetic_runs_with_truth(
        num_runs,
        num_sequences,
        etas,
        seed=seed,
        policy=policy,
        baseline=baseline,
        sampling_temperature=sampling_temperature,
    )
    return _recorded(made, seed, log_weight_noise, record_logp)


def synthetic_runs_with_truth(
    num_runs: int = 4,
    num_sequences: int = 2048,
    etas: Sequence[float] = SAMPLE_ETAS,
    *,
    seed: int = 0,
    policy: Policy | None = None,
    baseline: Baseline = "entropy_to_go",
    sampling_temperature: float = 1.0,
) -> dict[str, SyntheticRun]:
    """Return the runs of `synthetic_runs`, each with its policy and update direction, which give the exact answer.

    All that a run can record is recorded, without noise.
    """
    checked_count(num_runs, "num_runs")
    checked_count(num_sequences, "num_sequences")
    if not 0 < sampling_temperature < np.inf:
        raise ValueError(f"sampling_temperature must be positive, got {sampling_temperature!r}")
    make_baseline = _BASELINES[checked_choice(baseline, "baseline", _BASELINES)]
    source = default_policy() if policy is None else policy
    sampler = Policy(source.logits / sampling_temperature, source.max_length)
    made = {}
    for k, stream in enumerate(np.random.SeedSequence(seed).spawn(num_runs), start=1):
        rng, name = np.random.default_rng(stream), f"run_{k:02d}"
        direction, update_batch = update_direction(source, rng)
        batch = sample_sequences(sampler, num_sequences, rng)
        run = evaluate(source, direction, batch, etas, make_baseline(source, update_batch), f"synthetic {name}")
        made[name] = SyntheticRun(run, source, direction)
    return made


def update_direction(policy: Policy, rng: np.random.Generator) -> tuple[FloatArray, Sequences]:
    """Return an update direction for the policy's logits, and the update batch that it comes from.

    The reward of a sequence is its mean log-probability per token; advantages are standardised among the samples of one
    prompt; the gradient g of the policy-gradient objective becomes ``g / (|g| + rms(g))`` elementwise, as a damped
    first step of Adam.
    """
    prompts = np.repeat(rng.integers(len(policy.logits), size=_UPDATE_PROMPTS), _SAMPLES_PER_PROMPT)
    batch = sample_sequences(policy, len(prompts), rng, prompts=prompts)
    log_probs, at = policy.log_probs(), (batch.step_prompts(), batch.states)
    reward = batch.sum_steps(log_probs[(*at, batch.actions)]) / batch.lengths
    grouped = reward.reshape(_UPDATE_PROMPTS, _SAMPLES_PER_PROMPT)
    advantage = (grouped - grouped.mean(axis=1, keepdims=True)) / (grouped.std(axis=1, keepdims=True) + 1e-8)
    step_advantage = np.repeat(advantage.ravel(), batch.lengths)
    taken, visited = np.zeros_like(log_probs), np.zeros(log_probs.shape[:2])
    np.add.at(taken, (*at, batch.actions), step_advantage)
    np.add.at(visited, at, step_advantage)
    gradient = taken - visited[..., None] * np.exp(log_probs)
    return _STEP_SCALE * gradient / (np.abs(gradient) + np.sqrt(np.mean(gradient**2))), batch


def evaluate(
    policy: Policy,
    direction: FloatArray,
    batch: Sequences,
    etas: Sequence[float],
    baseline: FloatArray,
    source: str = "synthetic run",
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
    source
        Name of the run in messages.
    """
    log_probs, entropies = policy.log_probs(), policy.state_entropies()
    probs = np.exp(log_probs)
    scores = direction - np.sum(probs * direction, axis=-1, keepdims=True)  # D log pi(a | s)
    entropy_slopes = -np.sum(probs * scores * log_probs, axis=-1)  # D H(s)
    state = (batch.step_prompts(), batch.states)
    action = (*state, batch.actions)
    step_scores = scores[action]
    to_go, positions = _entropy_to_go(entropies[state], batch)
    moved = {eta: policy.step(direction, eta) for eta in etas}
    run = Run.from_arrays(
        token_counts=batch.lengths,
        h_base=batch.sum_steps(entropies[state]),
        h_new={eta: batch.sum_steps(new.state_entropies()[state]) for eta, new in moved.items()},
        log_weights={eta: batch.sum_steps((new.log_probs() - log_probs)[action]) for eta, new in moved.items()},
        score=batch.sum_steps(step_scores),
        wjlogp_sum=batch.sum_steps((to_go - baseline[positions]) * step_scores),
        jH_sum=batch.sum_steps(entropy_slopes[state]),
        logp=batch.sum_steps(log_probs[action]),
        source=source,
    )
    return replace(run, shard_errors=stored_shard_errors(run))


def entropy_to_go_baseline(policy: Policy, batch: Sequences) -> FloatArray:
    """Return the mean entropy-to-go by position over a batch, shape ``(max_length,)``, in nats; 0 past the longest."""
    return _mean_by_position(policy.state_entropies()[batch.step_prompts(), batch.states], batch, policy, 0.0)


def centred_baseline(policy: Policy, batch: Sequences) -> FloatArray:
    """Return the mean of ``G_t - H T`` by position, shape ``(max_length,)``, in nats; ``-H (t + 1)`` past the longest.

    G_t is the entropy-to-go, T the length of the sequence, H the per-token entropy of the batch: the whole of what the
    score of a token is multiplied with in the linear term, denominator correction included.
    """
    entropies = policy.state_entropies()[batch.step_prompts(), batch.states]
    return _mean_by_position(entropies, batch, policy, float(entropies.mean()))


def _mean_by_position(entropies: FloatArray, batch: Sequences, policy: Policy, mean: float) -> FloatArray:
    to_go, positions = _entropy_to_go(entropies, batch)
    values = to_go - mean * np.repeat(batch.lengths, batch.lengths)
    counts = np.bincount(positions, minlength=policy.max_length)
    found = np.bincount(positions, values, policy.max_length) / np.maximum(counts, 1)
    return np.where(counts > 0, found, -mean * (np.arange(policy.max_length) + 1.0))


_BASELINES = {"entropy_to_go": entropy_to_go_baseline, "centred": centred_baseline}


def stored_shard_errors(run: Run) -> tuple[ShardError, ...]:
    """Return the standard error of the linear total as real runs store it, of the mean over shards of 8 sequences."""
    num_shards = run.num_sequences // _SHARD
    if run.gdotv is None or num_shards < 2:
        return ()
    sums = run.gdotv[: num_shards * _SHARD].reshape(num_shards, _SHARD).sum(axis=1)
    value = float(sums.std(ddof=1) / np.sqrt(num_shards))
    return (ShardError("approx.variance.se_shard", value, num_shards),)


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
        made = synthetic_runs_with_truth(4, size, etas, seed=seed, policy=policy)
        for name, run in _recorded(made, seed, SAMPLE_NOISE, record_logp=True).items():
            write_run(folder / f"E_{size}" / name / RESULTS_FILE, run)
            changes = {repr(eta): made[name].exact_change(eta) for eta in run.etas}
            exact[f"E_{size}/{name}"] = {"derivative": made[name].exact_derivative(), "change": changes}
    truth = {"unit": "nats per token", "per_token_entropy": per_token_entropy(policy), "runs": exact}
    (folder / EXACT_FILE).write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def with_log_weights(run: Run, change: Mapping[float, FloatArray]) -> Run:
    """Return a run with ``change[eta]``, shape ``(N,)``, added to its log weights; totals follow."""
    measured = []
    for m in run.measurements:
        base, logs = np.asarray(m.h_base), np.asarray(m.log_weights) + change[m.eta]
        measured.append(Measurement.from_log_weights(m.eta, run.token_counts, base, m.h_new, logs, run.source))
    return replace(run, measurements=tuple(measured))


def _recorded(
    made: Mapping[str, SyntheticRun], seed: int, log_weight_noise: float, record_logp: bool
) -> dict[str, Run]:
    """Return the runs with what is to be recorded; the noise has its own stream, so that sequences stay the same."""
    runs = {name: each.run if record_logp else replace(each.run, logp=None) for name, each in made.items()}
    rng = np.random.default_rng([seed, 1])
    for name, run in runs.items() if log_weight_noise else ():
        noise = {m.eta: rng.normal(0.0, log_weight_noise, run.num_sequences) for m in run.measurements}
        runs[name] = with_log_weights(run, noise)
    return runs


def _entropy_to_go(step_entropies: FloatArray, batch: Sequences) -> tuple[FloatArray, IntArray]:
    """Return, for every step, the entropy of the later steps of its sequence, and its position in it."""
    ends = np.cumsum(batch.lengths)
    running = np.cumsum(step_entropies)
    to_go = np.repeat(running[ends - 1], batch.lengths) - running
    return to_go, np.arange(len(step_entropies)) - np.repeat(ends - batch.lengths, batch.lengths)
