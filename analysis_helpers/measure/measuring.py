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
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .._checks import (
    FloatArray,
    checked_array,
    checked_choice,
    checked_count,
    checked_eta,
    warn_about_runs,
)
from ..runs import RESULTS_FILE, Run, write_run
from ..synthetic import Baseline, Steps
from .direction import direction_from_optimizer
from .resuming import Arrays, inputs_digest, resumed
from .sampling import Batch, called, drawn_prompts, output_layer, sample, undisturbed
from .truncation import warn_if_truncated

Tensors = Mapping[str, Tensor]

_CHUNK = 2**24  # logits at once
_WIDE = 0.2  # SD of log weights above which the step is measured at two points instead of its midpoint


def measure(
    model: Module,
    batch: Batch,
    v: Tensors,
    etas: Sequence[float],
    *,
    microbatch: int = 16,
    change: Literal["midpoint", "difference"] = "midpoint",
    baseline: FloatArray | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> Run:
    """Return the run that a batch of responses gives: true change at each eta, and linear terms with their parts.

    The model is differentiated on its own device (CPU or GPU) and left unchanged. Cost in forward passes over the
    batch: 3 to 5, and as many for each eta (twice that where two points are needed). Memory: the hidden states of a
    microbatch and a chunk of logits, twice; the updated parameters are stored as a second copy. Only logits of response
    tokens are computed. A progress bar is shown if standard error is a terminal.

    Parameters
    ----------
    model
        The policy theta; see `sample` for what it must accept. Float32 is advised; log-softmax is computed in at least
        that. Attention runs in PyTorch's own operations ("eager" or "sdpa", there the math kernel), as no faster kernel
        has a forward mode. Operations made by ``torch.library.custom_op`` silently drop derivatives: if a model has
        some, compare with ``change="difference"``.
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
        is exact enough: not with TF32, autocast or a 16-bit model. Only it captures the jumps of a mixture of experts
        when a token changes experts.
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
        nats per unit step size. `logp`, `sampler_logp`, `prompt_ids` and the fingerprint of v are recorded.

    Raises
    ------
    ValueError
        If the model cannot be differentiated this way (quantised, an attention kernel without forward mode), v names a
        parameter that the model lacks or is not finite, eta is so small that the step is lost in rounding, or
        ``change`` needs a higher precision than the model's.

    Warns
    -----
    RunWarning
        If the effective sample size is below half of the batch at an eta, or the sampler of a batch from elsewhere
        seems to have truncated (p < 0.0001).

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
    if change == "difference":
        _refuse_low_precision(model)
    policy = _Policy(model, batch, microbatch, _checked_direction(model, v))
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
        start = policy.tokens(0.0)
        logp, entropy, d_logp, d_entropy = start
        score = sums(d_logp)
        for eta in steps:
            if change == "difference":
                made = policy.tokens(eta, derivatives=False)[:2] - start[:2]
            else:
                nodes = (0.5 - 12**-0.5, 0.5 + 12**-0.5) if eta * np.std(score) > _WIDE else (0.5,)
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
    policy = _Policy(model, batch, microbatch)
    with undisturbed(model):
        return policy.steps.baseline(policy.tokens(0.0)[1], positions, kind)


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
    and writes a run to ``out/E_<n>/step_<steps made>/results.json``. Training is unaffected: same random numbers, same
    weights. In distributed training the first process measures; the others wait for it at their next collective
    operation, at most until its timeout. Parameters must not be sharded. It raises what `measure` raises.

    Parameters
    ----------
    prompts
        Token ids of prompts to draw from.
    etas
        Step sizes (learning rates).
    n
        Sequences in a batch.
    every
        Steps between two runs.
    out
        Folder to create the batch folder in.
    max_new_tokens, eos, seed, microbatch
        As for `sample`; every step draws its own prompts and responses.

    Examples
    --------
    >>> callback = MeasureEntropy([[1, 5]], [1e-6, 2e-6], 2048, 100, "my_runs", max_new_tokens=256, eos=0)
    >>> # trainer = GRPOTrainer(..., callbacks=[callback])
    """

    prompts: Sequence[Sequence[int]]
    etas: Sequence[float]
    n: int
    every: int
    out: str | os.PathLike[str]
    _: KW_ONLY
    max_new_tokens: int
    eos: int | Collection[int] | None
    seed: int = 0
    microbatch: int = 16

    def __post_init__(self) -> None:
        checked_count(self.n, "n")
        checked_count(self.every, "every")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Measure the step that is about to be made; called by the trainer."""
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        model, seed = getattr(given["model"], "module", given["model"]), [self.seed, state.global_step]
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "eos": self.eos, "seed": seed}
        v = direction_from_optimizer(model, given["optimizer"])
        batch = sample(model, drawn_prompts(self.prompts, self.n, seed), microbatch=self.microbatch, **options)
        run = measure(model, batch, v, self.etas, microbatch=self.microbatch)
        write_run(Path(self.out) / f"E_{self.n}" / f"step_{state.global_step:06d}" / RESULTS_FILE, run)


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
    policy, by_token = _Policy(model, batch, microbatch), np.repeat(advantages, batch.token_counts)
    for places, tokens in policy.groups:
        logp = policy(*(x.to(policy.device) for x in tokens))[0]
        logp.backward(torch.from_numpy(-by_token[places]).to(logp))


# --- derivatives of every response token -----------------------------------------------------------------------------


class _Policy(Module):
    """A model and N responses; as a module, it returns log pi and entropy of their tokens.

    Arrays concatenate the tokens of the responses, so that a single long response does not make them large.

    Hidden states are captured at the input of the output layer, which then gets one position per sequence; those of the
    response pass through it in chunks. If the model changes logits after that layer, the full logits are used.
    """

    def __init__(self, model: Module, batch: Batch, microbatch: int, v: Tensors | None = None) -> None:
        super().__init__()
        _refuse_what_has_no_forward_mode(model)
        self.model, self.direction, self.whole, self.temperature = model, v or {}, False, batch.temperature
        self.kept: str | None = None  # how the names of files with computed values begin
        self.device = next(model.parameters()).device
        self.steps, counts = Steps(batch.token_counts), batch.token_counts
        starts, positions = self.steps.starts, self.steps.positions
        self.groups = []
        order = np.argsort(batch.prompt_lengths + counts, kind="stable")
        for first in range(0, len(batch), checked_count(microbatch, "microbatch")):
            group = order[first : first + microbatch]
            rows = np.repeat(np.arange(len(group)), counts[group])
            places = np.concatenate([starts[i] + np.arange(counts[i]) for i in group])
            columns = batch.prompt_lengths[group][rows] + positions[places]
            # Padded on the right, where causal attention never looks: no mask, no position ids.
            ids = pad_sequence([torch.from_numpy(batch.sequences[i]) for i in group], batch_first=True)
            # The token before predicts the one at this place.
            tokens = (ids, *map(torch.from_numpy, (rows, columns - 1)), ids[rows, columns])
            self.groups.append((places, tokens))
        with undisturbed(model):
            head, hidden, logits = self._caught(self.groups[0][1][0][:1].to(self.device))
            self.whole = not torch.equal(head(hidden[:, :1]), logits[:, :1])  # it changes them afterwards

    def forward(self, ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
        """Return log pi of ``targets`` and entropy (nats), each after the token at a row and column of ``ids``."""
        head, states, logits = self._caught(ids)
        chunk = max(1, _CHUNK // logits.shape[-1])
        parts = []
        for state, target in zip(states[rows, columns].split(chunk), targets.split(chunk), strict=True):
            values = head(state) / self.temperature
            if torch.isneginf(values).any():  # of a padded vocabulary; 0 * inf is no entropy
                values = values.clamp(min=torch.finfo(values.dtype).min)
            log_probs = torch.log_softmax(values, dim=-1, dtype=torch.promote_types(values.dtype, torch.float32))
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
            parts.append(torch.stack((log_probs.gather(1, target[:, None])[:, 0], entropy)))
        return torch.cat(parts, dim=1)

    def _caught(self, ids: Tensor) -> tuple[Module, Tensor, Tensor]:
        """Return the output layer, what enters it, and the model's logits; or a layer that does nothing, and logits."""
        captured: list[Tensor] = []

        def keep(_: Module, inputs: tuple[Tensor, ...]) -> Tensor:
            captured.append(inputs[0])
            return inputs[0][:, :1]

        head = None if self.whole else output_layer(self.model)
        with nullcontext() if head is None else head.register_forward_pre_hook(keep):
            logits = called(self.model, ids, {"use_cache": False}).logits
        return (torch.nn.Identity(), logits, logits) if head is None else (head, captured[0], logits)

    def tokens(self, step: float, *, derivatives: bool = True) -> FloatArray:
        """Return log pi and entropy of every token at ``theta + step * v``, and the derivatives of both along v.

        Shape ``(4, tokens)``; the derivatives are 0 if not requested.
        """
        moved, out = self._moved(step), np.zeros((4, self.steps.lengths.sum()))
        along = self.direction if derivatives else {}
        tangents = {f"model.{name}": values.to(moved[f"model.{name}"]) for name, values in along.items()}

        def computed(group: tuple[NDArray[np.int64], tuple[Tensor, ...]]) -> Arrays:
            with forward_ad.dual_level():
                duals = {name: forward_ad.make_dual(moved[name], tangent) for name, tangent in tangents.items()}
                try:
                    result = functional_call(self, moved | duals, tuple(x.to(self.device) for x in group[1]))
                except NotImplementedError as error:
                    rule = "consist of operations that have a forward mode (experts_implementation: 'eager')"
                    raise ValueError(f"model must {rule}: {error}") from error
                pair = forward_ad.unpack_dual(result)
            parts = [pair.primal] if pair.tangent is None else [pair.primal, pair.tangent]
            return (torch.cat(parts).double().cpu().numpy(),)

        bar = tqdm(self.groups, desc=f"step {step:g}", unit="microbatch", disable=None, leave=False)
        path = None if self.kept is None else Path(f"{self.kept}-{step!r}-{len(tangents)}.values")
        for (places, _), [values] in resumed(path, bar, computed):
            out[: len(values), places] = values
        return out

    def _moved(self, step: float) -> dict[str, Tensor]:
        """Return the parameters that v names at ``theta + step * v``, or raise if rounding removes most of the step."""
        moved, lost, made = {}, 0.0, 0.0
        for name, values in self.direction.items():
            p = self.model.get_parameter(name).detach()
            wanted = step * values.to(p.device).double()
            moved[f"model.{name}"] = p + wanted.to(p.dtype)
            rounding = moved[f"model.{name}"].double() - p.double() - wanted
            lost, made = lost + float(rounding.square().sum()), made + float(wanted.square().sum())
        if lost > made / 4:
            dtype = str(p.dtype).removeprefix("torch.")
            raise ValueError(
                f"eta must be large enough to move the parameters: a step of {step:g} v is lost in the rounding of "
                f"{dtype} (error {(lost / made) ** 0.5:.0%} of the step); load the model in float32"
            )
        return moved


# --- what is refused -------------------------------------------------------------------------------------------------


def _checked_direction(model: Module, v: Tensors) -> dict[str, Tensor]:
    """Return ``v`` by the first name of each parameter: tied weights have several."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = {p: name for name, p in model.named_parameters()}
    direction = {}
    for name, values in v.items():
        if name not in parameters:
            raise ValueError(f"v must name parameters of the model; it has no {name!r}")
        shape = tuple(parameters[name].shape)
        if values.shape != shape:
            raise ValueError(f"v[{name!r}] must have shape {shape}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"v[{name!r}] must be finite")
        direction[first[parameters[name]]] = values.detach()
    if not any(values.any() for values in direction.values()):
        raise ValueError("v must move something; it is zero everywhere")
    return direction


def _refuse_what_has_no_forward_mode(model: Module) -> None:
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise ValueError("model must not be quantised: rounded weights have no derivative; load it in float32")
    kind = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kind not in (None, "eager", "sdpa"):
        raise ValueError(
            f"model must use attention that has a forward mode, 'eager' or 'sdpa', got {kind!r}; "
            'load it with attn_implementation="sdpa"'
        )


def _refuse_low_precision(model: Module) -> None:
    p = min(model.parameters(), key=lambda p: p.dtype.itemsize)
    autocast = torch.is_autocast_enabled(p.device.type)
    tf32 = torch.backends.cuda.matmul.fp32_precision.replace("none", torch.backends.fp32_precision) == "tf32"  # type: ignore[attr-defined]
    if p.dtype.itemsize < 4 or autocast or tf32:
        raise ValueError(
            'change="difference" must not be used in low precision, where rounding exceeds a difference of log-'
            f"probabilities; got {p.dtype}, autocast {autocast}, TF32 {tf32} (which torch.set_float32_matmul_precision"
            '("high") turns on even after allow_tf32 = False): use change="midpoint"'
        )
