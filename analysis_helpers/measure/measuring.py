"""The change of a causal language model's entropy along an update direction, measured on a batch of its own responses.

Everything is a directional derivative, by forward mode: one pass gives, for every response token, log pi and the
entropy of its distribution, and the derivatives of both along v. Write j_t and D H_t for these derivatives, G_t for the
entropy of the *later* tokens of the sequence, T for its length and H for the batch's per-token entropy. Then

    linear change  = eta / sum T * sum over sequences of [ sum_t (G_t - b_t) j_t + sum_t D H_t - H T sum_t j_t ]

for any baseline b_t that does not depend on the sequence, as E[j_t] = 0. It decides how many sequences it takes. The
usual b_t, the mean of G_t, leaves the last term uncontrolled; here b_t is the mean of G_t - H T over the *other*
sequences that are alive at position t, which is the best guess of all that j_t is multiplied with.

Log weights and entropies after the step come from the same derivatives, taken in the middle of the step:
log pi(theta + eta v) - log pi(theta) = eta * D log pi(theta + eta v / 2), up to a relative eta^2 / 24. Unlike the
difference of two log-probabilities, this does not drown in rounding where the step is small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn import Module

from .._checks import FloatArray, checked_array, checked_choice, checked_count, checked_eta, warn_about_runs
from ..runs import Run
from .sampling import Batch, IntArray, head_input, log_softmax, logits_of, options_for, progress, undisturbed

Tensors = Mapping[str, Tensor]

GAUSS_ABOVE = 0.2
"""SD of log weights above which the step is measured at two points instead of its midpoint."""

_SOURCE = "measured run"
_CHUNK = 2**24  # logits at once
_LEAST_ESS = 0.5
_MOST_LOST = 0.5  # of a step, by rounding
_FORWARD_MODE = ("eager", "sdpa")


def measure(
    model: Module,
    batch: Batch,
    v: Tensors,
    etas: Sequence[float],
    *,
    microbatch: int = 16,
    change: Literal["midpoint", "difference"] = "midpoint",
    baseline: FloatArray | None = None,
) -> Run:
    """Return the run that a batch of responses gives: true change at each eta, and linear terms with their parts.

    The model is differentiated where it is (CPU or GPU) and left as it was found. Cost in forward passes over the
    batch: 3 to 5, and as many for each eta (twice that where two points are needed). Memory: the hidden states of a
    microbatch and a chunk of logits, twice; parameters moved by v are held once more. Only logits of response tokens
    are computed.

    Parameters
    ----------
    model
        The policy theta; see `sample` for what it must accept. Float32 is advised. Attention runs in PyTorch's own
        operations ("eager" or "sdpa", there the math kernel), as no faster kernel has a forward mode.
    batch
        Responses of this very policy, from `sample` or `Batch.from_sequences`.
    v
        Update direction, name of a parameter -> tensor of its shape: the parameters move by ``eta * v``. Those that
        are not named stay. From `direction_from_optimizer` or `difference`.
    etas
        Step sizes. Larger ones on the same sequences tell curvature far more cheaply than more sequences.
    microbatch
        Sequences at once; changes memory and speed, not the result.
    change
        "midpoint": log weights and entropies after the step by derivatives in the middle of it, or at the two points
        of Gauss where the SD of log weights passes 0.2. "difference": by subtraction, an independent check where
        float32 is exact enough: not with TF32, autocast or a 16-bit model.
    baseline
        b_t by position (nats), shape of at least the longest response, that does not depend on this batch: then
        parts of a batch, measured by several processes, merge into exactly the run of the whole. From
        `entropy_baseline`. None: leave-one-out, from the batch itself.

    Returns
    -------
    Run
        With `logp`, `sampler_logp`, `prompt_ids` and the fingerprint of v recorded.

    Raises
    ------
    ValueError
        If the model cannot be differentiated this way (quantised, an attention kernel without forward mode), v names
        what the model has not or is not finite, eta is so small that the step is lost in rounding, or ``change`` asks
        for a precision that is not there.

    Warns
    -----
    RunWarning
        If the effective sample size is below half of the batch at an eta.

    Examples
    --------
    >>> from analysis_helpers.measure import sample, tiny_model
    >>> model = tiny_model(0)
    >>> batch = sample(model, [[1]] * 64, max_new_tokens=8, eos=0, seed=1)
    >>> v = {name: torch.sin(torch.arange(p.numel())).reshape(p.shape) for name, p in model.named_parameters()}
    >>> run = measure(model, batch, v, [1e-3, 2e-3])
    >>> run.num_sequences, run.etas, run.supports
    (64, (0.001, 0.002), ('linear', 'score', 'baseline_entropy', 'logp', 'prompts'))
    """
    checked_choice(change, "change", ("midpoint", "difference"))
    if change == "difference":
        _refuse_low_precision(model)
    policy, direction = _Policy(model, batch, microbatch), _checked_direction(model, v)
    steps = [checked_eta(eta, "etas", _SOURCE) for eta in etas]
    if len(set(steps)) != len(etas) or not steps:
        raise ValueError(f"etas must hold at least one step size, and each once, got {list(etas)}")
    positions, longest = policy.positions, int(batch.token_counts.max())
    fixed = None if baseline is None else checked_array(baseline, "baseline", _SOURCE)
    if fixed is not None and len(fixed) < longest:
        raise ValueError(f"baseline must have a value for each of the {longest} positions, got {len(fixed)}")
    h_new, log_weights = {}, {}
    with undisturbed(model):
        logp, entropy, d_logp, d_entropy = policy.derivatives(direction, 0.0)
        score = policy.sums(d_logp)
        for eta in steps:
            if change == "difference":
                new_logp, new_entropy = policy.values(direction, eta)
                log_weights[eta], h_new[eta] = policy.sums(new_logp - logp), policy.sums(new_entropy)
            else:
                wide = eta * float(np.std(score)) > GAUSS_ABOVE
                nodes = (0.5 - 12**-0.5, 0.5 + 12**-0.5) if wide else (0.5,)
                slopes = np.mean([policy.derivatives(direction, eta * node)[2:] for node in nodes], axis=0)
                log_weights[eta], h_new[eta] = policy.sums(eta * slopes[0]), policy.sums(entropy + eta * slopes[1])
                if h_new[eta].min() < 0:  # much too far; one more pass, as the other etas are still good
                    h_new[eta] = policy.sums(policy.values(direction, eta)[1])
    h_base, to_go = policy.sums(entropy), policy.entropy_to_go(entropy)
    if fixed is None:
        mean = float(h_base.sum() / batch.token_counts.sum())
        to_go -= _of_the_others(to_go - mean * policy.lengths, positions, -mean * (positions + 1.0))
    else:
        to_go -= fixed[positions]
    run = Run.from_arrays(
        token_counts=batch.token_counts,
        h_base=h_base,
        h_new=h_new,
        log_weights=log_weights,
        score=score,
        wjlogp_sum=policy.sums(to_go * d_logp),
        jH_sum=policy.sums(d_entropy),
        logp=policy.sums(logp),
        sampler_logp=batch.sampler_logp,
        prompt_ids=batch.prompt_ids,
        direction=fingerprint(direction),
        source=_SOURCE,
    )
    for m in run.measurements:
        if m.ess is not None and m.ess < _LEAST_ESS * len(batch):
            size = f"{m.ess:.0f} of {len(batch)} sequences"
            warn_about_runs(f"eta {m.eta:g}: the effective sample size is {size}; take smaller etas")
    return run


def entropy_baseline(
    model: Module,
    batch: Batch,
    positions: int,
    *,
    kind: Literal["centred", "entropy_to_go"] = "centred",
    microbatch: int = 16,
) -> FloatArray:
    """Return a baseline for `measure` from a batch that is not the one measured, shape ``(positions,)``, in nats.

    A few hundred responses are plenty. Costs one forward pass.

    Parameters
    ----------
    model, batch, microbatch
        As for `measure`.
    positions
        Tokens of the longest response that may come: ``max_new_tokens``.
    kind
        "centred": the mean of ``G_t - H T`` over the sequences alive at position t, with H their per-token entropy;
        past the longest, ``-H (t + 1)``. "entropy_to_go": the mean of G_t, and 0: the usual one, for comparison.

    Examples
    --------
    >>> from analysis_helpers.measure import sample, tiny_model
    >>> model = tiny_model(0)
    >>> pilot = sample(model, [[1]] * 64, max_new_tokens=8, eos=0, seed=1)
    >>> entropy_baseline(model, pilot, 8).shape
    (8,)
    """
    checked_count(positions, "positions")
    checked_choice(kind, "kind", ("centred", "entropy_to_go"))
    policy = _Policy(model, batch, microbatch)
    with undisturbed(model):
        entropy = policy.values({}, 0.0)[1]
    mean = float(entropy.mean()) if kind == "centred" else 0.0
    centred, at = policy.entropy_to_go(entropy) - mean * policy.lengths, policy.positions
    counts = np.bincount(at, minlength=positions)[:positions]
    sums = np.bincount(at, centred, positions)[:positions]
    return np.where(counts > 0, sums / np.maximum(counts, 1), -mean * (np.arange(positions) + 1.0))


def fingerprint(v: Tensors) -> str:
    """Return a digest of an update direction: names, shapes and values as float32."""
    digest = hashlib.sha256()
    for name in sorted(v):
        digest.update(f"{name} {tuple(v[name].shape)} ".encode())
        digest.update(v[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_the_others(values: FloatArray, positions: IntArray, alone: NDArray[Any]) -> FloatArray:
    """Return, for each token, the mean of ``values`` over the other sequences alive at its position."""
    counts = np.bincount(positions)[positions]
    others: FloatArray = np.bincount(positions, values)[positions] - values
    return np.where(counts > 1, others / np.maximum(counts - 1, 1), alone)


# --- derivatives of every response token -----------------------------------------------------------------------------


class _Readout(Module):
    """The model with log pi and entropy of the response tokens as its output, so that parameters can be swapped.

    Hidden states are caught where they enter the output layer, which then sees one position a sequence; the response's
    own go through it in chunks. Where the model changes logits after that layer, they are taken whole.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model
        self.whole = False

    def forward(self, ids: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        head, states, logits = self.caught(ids)
        parts = []
        chunk = max(1, _CHUNK // logits.shape[-1])
        for state, target in zip(states[rows, columns].split(chunk), targets.split(chunk), strict=True):
            log_probs = log_softmax(head(state))
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
            parts.append((log_probs.gather(1, target[:, None])[:, 0], entropy))
        logp, entropies = zip(*parts, strict=True)
        return torch.cat(logp), torch.cat(entropies)

    def caught(self, ids: Tensor) -> tuple[Module, Tensor, Tensor]:
        """Return the output layer, what enters it, and the model's logits; or logits, and a layer that does nothing."""
        kept: list[Tensor] = []

        def keep(hidden: Tensor) -> Tensor:
            kept.append(hidden)
            return hidden[:, :1]

        with nullcontext() if self.whole else head_input(self.model, keep) as head:
            logits = logits_of(self.model(input_ids=ids, **options_for(self.model, ids)))
        return (torch.nn.Identity(), logits, logits) if head is None else (head, kept[0], logits)


class _Policy:
    """A model and the responses that it is asked about, in microbatches of similar length."""

    def __init__(self, model: Module, batch: Batch, microbatch: int) -> None:
        checked_count(microbatch, "microbatch")
        _refuse_what_has_no_forward_mode(model)
        self.readout, self.batch = _Readout(model), batch
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.device = next(iter(self.parameters.values())).device
        self.starts = np.cumsum(batch.token_counts) - batch.token_counts
        self.lengths = np.repeat(batch.token_counts, batch.token_counts)
        self.positions = np.arange(len(self.lengths)) - np.repeat(self.starts, batch.token_counts)
        order = np.argsort(batch.prompt_lengths + batch.token_counts, kind="stable")
        self.groups = [order[first : first + microbatch] for first in range(0, len(order), microbatch)]
        with undisturbed(model):
            head, hidden, logits = self.readout.caught(self._padded(order[:1]))
            self.readout.whole = not torch.equal(head(hidden[:, :1]), logits[:, :1])  # it changes them afterwards

    def sums(self, values: FloatArray) -> FloatArray:
        """Return sums over the tokens of each sequence, shape ``(N,)``."""
        summed: FloatArray = np.add.reduceat(values, self.starts)
        return summed

    def entropy_to_go(self, entropy: FloatArray) -> FloatArray:
        """Return, for each token, the entropy of the later tokens of its sequence."""
        to_go = np.repeat(self.sums(entropy), self.batch.token_counts) - entropy
        for start, count in zip(self.starts, self.batch.token_counts, strict=True):
            to_go[start + 1 : start + count] -= np.cumsum(entropy[start : start + count - 1])
        return to_go

    def values(self, v: Tensors, step: float) -> FloatArray:
        """Return log pi and entropy of every token at ``theta + step * v``, shape ``(2, sum of T)``."""
        moved = self._moved(v, step)
        return self._passes(lambda *tokens: functional_call(self.readout, moved, tokens), 2, f"step {step:g}")

    def derivatives(self, v: Tensors, step: float) -> FloatArray:
        """Return the same, followed by the derivatives of both along ``v``, shape ``(4, sum of T)``."""
        moved = self._moved(v, step)
        tangents = {f"model.{name}": values.to(self.parameters[name]) for name, values in v.items()}

        def both(*tokens: Tensor) -> tuple[Tensor, ...]:
            pair: Any = jvp(lambda p: functional_call(self.readout, p, tokens), (moved,), (tangents,))
            return (*pair[0], *pair[1])

        try:
            return self._passes(both, 4, f"derivatives at step {step:g}")
        except (NotImplementedError, RuntimeError) as error:
            if "forward AD" in str(error) or "jvp" in str(error):
                raise ValueError(f"model must consist of operations that have a forward mode: {error}") from error
            raise

    def _moved(self, v: Tensors, step: float) -> dict[str, Tensor]:
        moved = {name: self.parameters[name] + step * values.to(self.parameters[name]) for name, values in v.items()}
        lost = made = 0.0
        for name, values in v.items() if step else ():
            wanted = step * values.to(self.device, torch.float32)
            got = moved[name].float() - self.parameters[name].float()  # exact: both are near each other
            lost, made = lost + float((got - wanted).square().sum()), made + float(wanted.square().sum())
        if lost > _MOST_LOST**2 * made:
            dtype = str(next(iter(moved.values())).dtype).removeprefix("torch.")
            raise ValueError(
                f"eta must be large enough to move the parameters: a step of {step:g} v is lost in the rounding of "
                f"{dtype} (error {(lost / made) ** 0.5:.0%} of the step); load the model in float32"
            )
        return {f"model.{name}": values for name, values in moved.items()}

    def _passes(self, one: Callable[..., tuple[Tensor, ...]], columns: int, what: str) -> FloatArray:
        out = np.empty((columns, len(self.lengths)))
        with progress(what, len(self.batch)) as advance:
            for group in self.groups:
                prompts, counts = self.batch.prompt_lengths[group], self.batch.token_counts[group]
                places = np.concatenate([np.arange(s, s + c) for s, c in zip(self.starts[group], counts, strict=True)])
                where = (np.repeat(np.arange(len(group)), counts), self.positions[places] + np.repeat(prompts, counts))
                ids, rows, at = self._padded(group), *(torch.from_numpy(x).to(self.device) for x in where)
                # The token before predicts the one at this place.
                out[:, places] = torch.stack(one(ids, rows, at - 1, ids[rows, at])).double().cpu().numpy()
                advance(len(group))
        return out

    def _padded(self, group: IntArray) -> Tensor:
        # On the right, where causal attention never looks: no mask, no position ids.
        rows = [torch.from_numpy(self.batch.sequences[i]) for i in group]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)


# --- what is refused -------------------------------------------------------------------------------------------------


def _checked_direction(model: Module, v: Tensors) -> dict[str, Tensor]:
    """Return ``v`` by the first name of each parameter: tied weights have several."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    if unknown := [name for name in v if name not in names]:
        raise ValueError(f"v must name parameters of the model; it has no {', '.join(map(repr, unknown[:3]))}")
    direction = {names[name]: values.detach() for name, values in v.items()}
    for name, values in direction.items():
        shape = model.get_parameter(name).shape
        if values.shape != shape:
            raise ValueError(f"v[{name!r}] must have shape {tuple(shape)}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"v[{name!r}] must be finite")
    if not any(values.any() for values in direction.values()):
        raise ValueError("v must move something; it is zero everywhere")
    return direction


def _refuse_what_has_no_forward_mode(model: Module) -> None:
    if getattr(model, "is_quantized", False) or not all(p.is_floating_point() for p in model.parameters()):
        raise ValueError("model must not be quantised: rounded weights have no derivative; load it in float32")
    kind = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kind not in (None, *_FORWARD_MODE):
        raise ValueError(
            f"model must use attention that has a forward mode, {' or '.join(map(repr, _FORWARD_MODE))}, got {kind!r}; "
            'load it with attn_implementation="sdpa"'
        )


def _refuse_low_precision(model: Module) -> None:
    why = None
    if half := {p.dtype for p in model.parameters() if p.dtype.itemsize < 4}:
        why = f"the model is in {str(half.pop()).removeprefix('torch.')}"
    elif torch.is_autocast_enabled(next(model.parameters()).device.type):
        why = "autocast is on"
    elif torch.backends.cuda.matmul.fp32_precision.replace("none", torch.backends.fp32_precision) == "tf32":  # type: ignore[attr-defined]
        why = 'TF32 is on (torch.set_float32_matmul_precision("high") turns it on even after allow_tf32 = False)'
    if why:
        raise ValueError(
            f'change="difference" must not be asked for in low precision: {why}, and the rounding of two log-'
            'probabilities would drown their difference; use change="midpoint"'
        )
