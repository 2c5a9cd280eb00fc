"""The change of a causal language model's entropy along an update direction, measured on a batch of its own responses.

Everything is a directional derivative, by forward mode: one pass gives, for every response token, log pi and the
entropy of its distribution, and the derivatives of both along v. Write j_t and D H_t for these derivatives, G_t for the
entropy of the *later* tokens of the sequence, T for its length and H for the batch's per-token entropy. Then

    linear change  = eta / sum T * sum over sequences of [ sum_t (G_t - b_t) j_t + sum_t D H_t - H T sum_t j_t ]

for any baseline b_t that does not depend on the sequence, as E[j_t] = 0. The baseline determines how many sequences are
needed. The usual b_t, the mean of G_t, leaves the last term uncontrolled; here b_t is the mean of G_t - H T over the
*other* sequences that are alive at position t, which best predicts the factor of j_t. (Baselines:
Greensmith, Bartlett and Baxter, 2004; leave-one-out: Kool, van Hoof and Welling, 2019; forward mode: Baydin et al.,
2018.)

Log weights and entropies after the step come from the same derivatives, taken in the middle of the step:
log pi(theta + eta v) - log pi(theta) = eta * D log pi(theta + eta v / 2), up to a relative eta^2 / 24. Unlike the
difference of two log-probabilities, this is not lost in rounding if the step is small.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from torch.nn import Module

from .._checks import (
    FloatArray,
    checked_array,
    checked_choice,
    checked_count,
    checked_eta,
    warn_about_runs,
)
from ..estimators import columns
from ..inference import change_by_origin, effective_share, plus_minus
from ..runs import RESULTS_FILE, Run, write_run
from ..synthetic import Baseline, Steps
from .checks import Change, nodes_of, require_same_policy, self_test
from .derivatives import Tensors, TokenPolicy
from .direction import NoStepError, direction_from_optimizer
from .resuming import inputs_digest
from .sampling import Batch, drawn_prompts, sample, undisturbed
from .truncation import warn_if_truncated


def measure(
    model: Module,
    batch: Batch,
    v: Tensors,
    etas: Sequence[float],
    *,
    microbatch: int = 16,
    change: Change = "midpoint",
    baseline: FloatArray | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> Run:
    """Return the run that a batch of responses gives: true change at each eta, and linear terms with their parts.

    The model is differentiated on its own device (CPU or GPU) and left unchanged. Cost in forward passes over the
    batch: 3 to 5, and as many for each eta (twice that where two points are needed). Before, self-tests on 16 sequences
    hold log-probabilities against the sampler's, derivatives against central differences, and the change along the step
    against its difference (see `checks`); for a 16-bit model they take a copy of it in float32. Memory: the hidden
    states of a microbatch and a chunk of logits, twice; the updated parameters are stored as a second copy. Only logits
    of response tokens are computed. A progress bar is shown if standard error is a terminal.

    Parameters
    ----------
    model
        The policy theta; see `sample` for what it must accept. Float32 is advised; log-softmax is computed in at least
        that. Attention runs in PyTorch's own operations ("eager" or "sdpa", there the math kernel), as no faster kernel
        has a forward mode. Compiled parts run as written.
    batch
        Responses of this very policy, from `sample` or `Batch.from_sequences`.
    v
        Update direction, name of a parameter -> tensor of its shape, of any floating dtype and device: the parameters
        move by ``eta * v``. Others do not move. From `direction_from_optimizer` or `difference`.
    etas
        Step sizes. Measuring curvature at larger ones on the same sequences is far cheaper than with more sequences.
    microbatch
        Sequences per forward pass; changes memory and speed, not the result.
    change
        "midpoint": log weights and entropies after the step by derivatives in the middle of it, or at the two points of
        Gauss where the SD of log weights passes 0.2. "difference": by subtraction, an independent check where float32
        is exact enough: not with TF32, autocast or a 16-bit model. Only it captures the jumps of a mixture when a token
        changes experts, and is taken where the self-test finds some.
    baseline
        b_t by position (nats), shape of at least the longest response, that does not depend on this batch: then
        parts of a batch, measured by several processes, merge into exactly the run of the whole. From
        `entropy_baseline`. None: leave-one-out, from the batch itself.
    keep
        Folder in which the values of each microbatch, by token, are written as they are computed: after a kill, the
        same call goes on from there, with the same result. None: nowhere.

    Returns
    -------
    Run
        Columns of shape ``(N,)`` in float64: entropies, log weights and log-probabilities in nats; linear terms in
        nats per unit step size. `logp`, `sampler_logp`, `min_logp`, `prompt_ids`, the size of the vocabulary, the
        fingerprint of v and the method are recorded.

    Raises
    ------
    ValueError
        If the model cannot be differentiated this way (quantised, an attention kernel without forward mode), v names a
        parameter that the model lacks, is not finite or does not change the policy, eta is so small that the step is
        lost in rounding, the responses come from another policy, or derivatives fail the self-test, or ``change`` needs
        differences, in a precision too low for these.

    Warns
    -----
    RunWarning
        If derivatives fail the self-test and central differences are taken, or the change jumps; if the effective
        sample size is below half of the batch at an eta; if the sampler of a batch from elsewhere seems to have
        truncated (p < 0.0001).

    Examples
    --------
    >>> from analysis_helpers.measure import load_policy, sample
    >>> model, prompts, eos = load_policy()
    >>> batch = sample(model, prompts[:64], max_new_tokens=8, eos=eos, seed=1)
    >>> v = {name: torch.sin(torch.arange(p.numel())).reshape(p.shape) for name, p in model.named_parameters()}
    >>> run = measure(model, batch, v, [1e-3, 2e-3])
    >>> run.n, run.etas, run.supports
    (64, (0.001, 0.002), ('baseline_entropy', 'linear', 'score', 'logp', 'prompts'))
    """
    checked_choice(change, "change", ("midpoint", "difference"))
    policy = TokenPolicy(model, batch, microbatch, v)
    if keep is not None:
        ids = np.concatenate(batch.sequences)
        inputs = (model, fingerprint(policy.direction), ids, batch.prompt_lengths, batch.token_counts)
        policy.kept = str(Path(keep) / f"pass-{inputs_digest(*inputs, batch.temperature, microbatch)}")
    sums = policy.steps.sums
    steps = [checked_eta(eta, "etas") for eta in etas]
    fixed = None if baseline is None else checked_array(baseline, "baseline")
    if len(set(steps)) != len(etas) or not steps:
        raise ValueError(f"etas must hold at least one step size, and each once, got {list(etas)}")
    longest = batch.token_counts.max()
    if fixed is not None and len(fixed) < longest:
        raise ValueError(f"baseline must have a value for each of the {longest} positions, got {len(fixed)}")
    if not batch.full_softmax:
        warn_if_truncated(model, batch)
    h_new, log_weights = {}, {}
    with undisturbed(model):
        change = self_test(policy, steps, change)
        start = policy.tokens(0.0)
        logp, entropy, d_logp, d_entropy = start
        score = sums(d_logp)
        require_same_policy(policy, sums(logp))
        for eta in steps:
            if change == "difference":
                made = policy.tokens(eta, derivatives=False)[:2] - start[:2]
            else:
                nodes = nodes_of(eta * float(np.std(score)))
                made = eta * np.mean([policy.tokens(eta * node)[2:] for node in nodes], axis=0)
                if sums(entropy + made[1]).min() < 0:  # much too far; the other etas are still good
                    made[1] = policy.tokens(eta, derivatives=False)[1] - entropy
            log_weights[eta], h_new[eta] = sums(made[0]), sums(entropy + made[1])
    baselines = _leave_one_out(policy.steps, entropy) if fixed is None else fixed[policy.steps.positions]
    run = Run.from_arrays(
        token_counts=batch.token_counts,
        h_base=sums(entropy),
        h_new=h_new,
        log_weights=log_weights,
        score=score,
        wjlogp_sum=sums((policy.steps.to_go(entropy) - baselines) * d_logp),
        jH_sum=sums(d_entropy),
        logp=sums(logp),
        sampler_logp=batch.sampler_logp,
        min_logp=np.minimum.reduceat(logp, policy.steps.starts),
        vocabulary=policy.vocabulary,
        method=change + (", derivatives by central differences" if policy.by_difference else ""),
        prompt_ids=batch.prompt_ids,
        direction=fingerprint(policy.direction),
        source="measured run",
    )
    for m in run.measurements:
        if m.ess is not None and m.ess < len(batch) / 2:
            size = f"{m.ess:.0f} of {len(batch)} sequences"
            warn_about_runs(f"eta {m.eta:g}: the effective sample size is {size}; take smaller etas")
    return run


def entropy_baseline(
    model: Module,
    batch: Batch,
    positions: int,
    *,
    kind: Baseline = "centred",
    microbatch: int = 16,
) -> FloatArray:
    """Return a baseline for `measure` from a batch that is not the one measured, shape ``(positions,)``, in nats.

    A few hundred responses are enough. Costs one forward pass. Raises ValueError as `measure` does.

    Parameters
    ----------
    model, batch, microbatch
        As for `measure`.
    positions
        Tokens of the longest possible response: ``max_new_tokens``.
    kind
        "centred": the mean of ``G_t - H T`` over the sequences alive at position t, with H their per-token entropy;
        past the longest, ``-H (t + 1)``. "entropy_to_go": the mean of G_t, and 0: the usual one, for comparison.

    Examples
    --------
    >>> from analysis_helpers.measure import load_policy, sample
    >>> model, prompts, eos = load_policy()
    >>> pilot = sample(model, prompts[:64], max_new_tokens=8, eos=eos, seed=1)
    >>> entropy_baseline(model, pilot, 8).shape
    (8,)
    """
    checked_count(positions, "positions")
    checked_choice(kind, "kind", ("centred", "entropy_to_go"))
    policy = TokenPolicy(model, batch, microbatch)
    with undisturbed(model):
        return policy.steps.baseline(policy.tokens(0.0, derivatives=False)[1], positions, kind)


def _leave_one_out(steps: Steps, entropy: FloatArray) -> FloatArray:
    """Return, for each token, the mean of ``G_t - H T`` over the others alive at its t; ``-H (t + 1)`` if none are."""
    per_token, positions = float(entropy.mean()), steps.positions
    values = steps.to_go(entropy) - per_token * np.repeat(steps.lengths, steps.lengths)
    sums = np.bincount(positions, values)[positions] - values
    others = np.bincount(positions)[positions] - 1
    return np.where(others > 0, sums / np.maximum(others, 1), -per_token * (positions + 1))


def fingerprint(v: Tensors) -> str:
    """Return a digest of an update direction: names, shapes and values as float32."""
    digest = hashlib.sha256()
    for name in sorted(v):
        digest.update(f"{name} {tuple(v[name].shape)} ".encode())
        digest.update(v[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# --- steps of a training ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class MeasureEntropy(transformers.TrainerCallback):
    """Measures the entropy change of optimizer steps while a transformers or TRL trainer makes them.

    Before every ``every``-th step it takes the direction of that step, samples a fresh batch from the current model,
    and writes a run to ``out/E_<sequences>/step_<steps made>/results.json``. Training is unaffected: same random
    numbers, same weights. In distributed training the first process measures; the others wait for it at their next
    collective operation, at most until its timeout. Parameters must not be sharded.

    With `add_to`, the trainer's next log holds the true and the linear change, the true change on the same states
    (nats per token) and the nonlinearity (in units of the true change), at each eta, and ``report_to`` receives them.

    Parameters
    ----------
    prompts
        Token ids of prompts to draw from.
    etas
        Step sizes (learning rates).
    n
        Prompts in a batch.
    every
        Steps between two runs.
    out
        Folder to create the batch folder in.
    responses, temperature
        Responses to each prompt of a batch; T of the policy ``softmax(logits / T)`` that is sampled and measured.
    max_new_tokens, eos, seed, microbatch
        As for `sample`; every step draws its own prompts and responses.
    change
        As for `measure`.
    on_error
        "warn": what goes wrong is a RunWarning, and training goes on. "raise": it raises what `measure` raises. A step
        that the optimizer does not make (gradients that are 0 or overflowed, rate 0) is skipped with a warning always.

    Examples
    --------
    >>> callback = MeasureEntropy([[1, 5]], [1e-6, 2e-6], 2048, 100, "my_runs", max_new_tokens=256, eos=0)
    >>> # callback.add_to(GRPOTrainer(...))
    """

    prompts: Sequence[Sequence[int]]
    etas: Sequence[float]
    n: int
    every: int
    out: str | os.PathLike[str]
    _: KW_ONLY
    max_new_tokens: int
    eos: int | Collection[int] | None
    responses: int = 1
    temperature: float = 1.0
    seed: int = 0
    microbatch: int = 16
    change: Change = "midpoint"
    on_error: Literal["warn", "raise"] = "warn"

    def __post_init__(self) -> None:
        for name in ("n", "every", "responses"):
            checked_count(getattr(self, name), name)
        checked_choice(self.on_error, "on_error", ("warn", "raise"))
        self._unlogged: dict[str, float] = {}

    def add_to(self, trainer: Any) -> None:
        """Add this callback to a trainer, in front of those that report what it logs."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure the step that is about to be made; called by the trainer."""
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        try:
            self._unlogged = _as_logged(self._measured(state.global_step, given["model"], given["optimizer"]))
        except Exception as error:  # whatever it is, it must not end a training
            if self.on_error == "raise" and not isinstance(error, NoStepError):
                raise
            warn_about_runs(f"step {state.global_step} is not measured: {error}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Add what was measured to the log; called by the trainer."""
        for log in (logs, state.log_history[-1] if state.log_history else None):
            if log is not None:
                log.update(self._unlogged)
        self._unlogged = {}

    def _measured(self, step: int, model: Module, optimizer: Any) -> Run:
        """Return the run of the step that is about to be made, written to its folder."""
        model, seed = getattr(model, "module", model), [self.seed, step]
        v = direction_from_optimizer(model, optimizer)
        prompts = [prompt for prompt in drawn_prompts(self.prompts, self.n, seed) for _ in range(self.responses)]
        options = {name: getattr(self, name) for name in ("max_new_tokens", "eos", "temperature", "microbatch")}
        batch = sample(model, prompts, seed=seed, **options)
        run = measure(model, batch, v, self.etas, microbatch=self.microbatch, change=self.change)
        write_run(Path(self.out) / f"E_{len(batch)}" / f"step_{step:06d}" / RESULTS_FILE, run)
        return run


def _as_logged(run: Run) -> dict[str, float]:
    """Return the entries that a run adds to a trainer's log."""
    logged = dict[str, float]()
    for eta in run.etas:
        total, same = (_part(run, eta, part) for part in ("total", "same states"))
        numbers = {"true": total["true"], "linear": total["linear"], "same_states": same["true"]}
        numbers["nonlinearity"] = columns(run, eta, "matched").error.value / total["true"]
        logged |= {f"entropy_change/{name}/{eta:g}": float(number) for name, number in numbers.items()}
    return logged


def _part(run: Run, eta: float, part: str) -> dict[str, float]:
    """Return the numbers of a part of the change."""
    table = change_by_origin({"run": run}, [eta])
    [row] = table[(table["part"] == part) & (table["run"] == "run")].to_dict("records")
    return {str(name): value for name, value in row.items()}


def summary(run: Run) -> str:
    """Return a run in a few lines: entropy, sequences, and at each eta the ESS and both changes with both parts.

    Examples
    --------
    >>> from analysis_helpers import synthetic_runs
    >>> print(summary(synthetic_runs(1, 256, [1.6e-6])["run_01"]))
    256 sequences of 114.3 tokens, entropy 0.6012 nats per token; changes in nats per token:
    eta 1.6e-06, effective sample size 100%
      true   -0.00125 ± 0.00018: -0.000836 ± 0.000014 on the same states, -0.00042 ± 0.00018 by visiting others
      linear -0.00109 ± 0.00060: -0.000836 ± 0.000014 on the same states, -0.00025 ± 0.00059 by visiting others
    """
    entropy = run.measurements[0].base_entropy
    mean = f"{run.n:,} sequences of {run.total_tokens / run.n:.1f} tokens"
    lines = [f"{mean}, entropy {entropy:.4f} nats per token; changes in nats per token:"]
    for m in run.measurements:
        lines.append(f"eta {m.eta:g}, effective sample size {effective_share(m):.0%}")
        for name in ("true", "linear"):
            total, same, other = (
                plus_minus(row[name], row[f"{name}_se"])
                for row in (_part(run, m.eta, part) for part in ("total", "same states", "other states"))
            )
            lines.append(f"  {name:6} {total}: {same} on the same states, {other} by visiting others")
    return "\n".join(lines)


def measured_steps(
    model: Module,
    prompts: Sequence[Sequence[int]],
    etas: Sequence[float],
    n: int,
    *,
    max_new_tokens: int,
    eos: int | Collection[int] | None,
    seed: int = 0,
    num_runs: int = 4,
    baseline: Literal["leave_one_out", "entropy_to_go"] = "leave_one_out",
    microbatch: int = 16,
) -> dict[str, Run]:
    """Return runs of the first training steps that favour confident answers, named run_01 and so on.

    Each step is AdamW's at the largest eta, on the policy gradient of 256 responses (see `reinforce`); before it is
    made, it is measured on a fresh batch. The model is trained in the process.

    Parameters
    ----------
    model, prompts, max_new_tokens, eos, seed, microbatch
        As for `sample`; each batch draws its prompts (see `drawn_prompts`).
    etas, n
        Step sizes, and sequences in a batch.
    num_runs
        Steps.
    baseline
        Of the linear terms: "leave_one_out", as `measure` takes it; "entropy_to_go", the usual one, from the responses
        of the step, for comparison. Responses and steps are the same.

    Examples
    --------
    >>> from analysis_helpers.measure import load_policy
    >>> model, prompts, eos = load_policy()
    >>> runs = measured_steps(model, prompts, [1e-5, 2e-5], 32, max_new_tokens=8, eos=eos, num_runs=2)
    >>> list(runs), runs["run_01"].n
    (['run_01', 'run_02'], 32)
    """
    optimizer, runs = torch.optim.AdamW(model.parameters(), lr=max(etas)), {}
    drawn: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos": eos, "microbatch": microbatch}
    for step in range(checked_count(num_runs, "num_runs")):
        learned = sample(model, drawn_prompts(prompts, 256, [seed, step]), seed=[seed, step], **drawn)
        optimizer.zero_grad()
        reinforce(model, learned, microbatch=microbatch)
        v = direction_from_optimizer(model, optimizer)
        usual = baseline == "entropy_to_go"
        fixed = entropy_baseline(model, learned, max_new_tokens, kind="entropy_to_go") if usual else None
        batch = sample(model, drawn_prompts(prompts, n, [seed, step, n]), seed=[seed, step, n], **drawn)
        runs[f"run_{step + 1:02d}"] = measure(model, batch, v, etas, microbatch=microbatch, baseline=fixed)
        optimizer.step()
    return runs


def reinforce(model: Module, batch: Batch, *, microbatch: int = 16) -> None:
    """Add the gradient of ``-mean(A_i log pi_i)`` to the parameters' gradients.

    Advantages A_i are the sampler's log-probabilities per token, standardised: confident answers are favoured.
    """
    rewards = np.asarray(batch.sampler_logp) / batch.token_counts
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8) / len(batch)
    policy, by_token = TokenPolicy(model, batch, microbatch), np.repeat(advantages, batch.token_counts)
    for places, tokens in policy.groups:
        logp = policy(*(x.to(policy.device) for x in tokens))[0]
        logp.backward(torch.from_numpy(-by_token[places]).to(logp))
