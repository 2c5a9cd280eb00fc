"""Responses sampled from a causal language model, and what it takes to look at a model without changing it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from .._checks import FloatArray, checked_array, checked_count

IntArray = NDArray[np.int64]

_SOURCE = "batch"


@dataclass(frozen=True, eq=False)
class Batch:
    """N sequences of token ids, each a prompt and a response; made by `sample` or by `Batch.from_sequences`.

    Attributes
    ----------
    sequences
        Token ids of prompt and response, an array of integers for each sequence.
    prompt_lengths, token_counts
        Tokens of each prompt and of each response (its eos token counted), shape ``(N,)``.
    prompt_ids
        Integers, shape ``(N,)``: equal where the prompt is the same, in this batch and in any other.
    sampler_logp
        Log-probability of each response (nats) as the sampler computed it, shape ``(N,)``, or None.
    """

    sequences: tuple[IntArray, ...]
    prompt_lengths: IntArray
    token_counts: IntArray
    prompt_ids: IntArray
    sampler_logp: FloatArray | None = None

    @classmethod
    def from_sequences(
        cls,
        ids: Sequence[ArrayLike],
        prompt_lengths: ArrayLike,
        token_counts: ArrayLike,
        *,
        prompt_ids: ArrayLike | None = None,
        sampler_logp: ArrayLike | None = None,
    ) -> Batch:
        """Return the batch of sequences that some other sampler made, such as vLLM.

        The sequences must come from the very policy that will be differentiated: temperature 1, no top-k, no top-p.

        Parameters
        ----------
        ids
            Token ids of each sequence, prompt first, response after it. Padding on the right is cut off; padding on
            the left must not be there.
        prompt_lengths, token_counts
            Tokens of each prompt (at least 1) and of each response (at least 1; the eos token belongs to it), shape
            ``(N,)``.
        prompt_ids
            Integers, shape ``(N,)``. None: from the tokens of the prompts, the same in every batch and process.
        sampler_logp
            The sampler's own log-probability of each response (nats), shape ``(N,)``.

        Raises
        ------
        ValueError
            If a response or prompt is empty, a sequence is shorter than its lengths say, or a number is not whole.

        Examples
        --------
        >>> batch = Batch.from_sequences([[5, 6, 1, 0], [5, 2, 3, 1]], prompt_lengths=[2, 1], token_counts=[1, 3])
        >>> len(batch), [row.tolist() for row in batch.sequences]
        (2, [[5, 6, 1], [5, 2, 3, 1]])
        """
        size = len(ids)
        prompts, counts = (
            _whole(values, name, size, least=1)
            for name, values in (("prompt_lengths", prompt_lengths), ("token_counts", token_counts))
        )
        rows = [_whole(row, f"ids[{i}]", None, least=0) for i, row in enumerate(ids)]
        for i, (row, length) in enumerate(zip(rows, prompts + counts, strict=True)):
            if len(row) < length:
                raise ValueError(f"ids[{i}] must hold prompt and response, {length} tokens, got {len(row)}")
        sequences = tuple(row[:length] for row, length in zip(rows, prompts + counts, strict=True))
        if prompt_ids is None:
            groups = np.array([_digest(row[:length]) for row, length in zip(rows, prompts, strict=True)])
        else:
            groups = _whole(prompt_ids, "prompt_ids", size)
        logp = None if sampler_logp is None else checked_array(sampler_logp, "sampler_logp", _SOURCE, length=size)
        return cls(sequences, prompts, counts, groups, logp)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, part: slice) -> Batch:
        """Return part of the batch, as for one of several processes: ``batch[rank::world_size]``."""
        logp = None if self.sampler_logp is None else self.sampler_logp[part]
        return Batch(
            self.sequences[part], self.prompt_lengths[part], self.token_counts[part], self.prompt_ids[part], logp
        )


def sample(
    model: Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int | Collection[int] | None,
    seed: int | Sequence[int],
    microbatch: int = 64,
) -> Batch:
    """Return one response to each prompt, drawn from the model's full softmax.

    No temperature, no top-k, no top-p: a response comes from exactly the policy that `measure` differentiates. Each
    sequence has a random stream of its own, so responses do not depend on ``microbatch``. Probabilities are float64.
    The model's own state (training mode, hooks, PyTorch's random numbers) is left as it was found.

    Parameters
    ----------
    model
        Any causal language model: called with ``input_ids`` of shape ``(B, L)``, it returns logits ``(B, L, V)``, or an
        object with ``logits``. Models with a key-value cache use it.
    prompts
        Token ids of each prompt, at least one; repeat a prompt for several responses to it.
    max_new_tokens
        Tokens after which a response is cut.
    eos
        Token id, or ids, that end a response; the token belongs to the response. None: nothing ends it.
    seed
        Seed of the draws, or several numbers that make one, such as ``[seed, rank]``.
    microbatch
        Sequences at once; prompts of one length go together, so that nothing is padded.

    Raises
    ------
    ValueError
        If there is no prompt, a prompt is empty, or a count is not a whole number of at least 1.

    Examples
    --------
    >>> from analysis_helpers.measure import tiny_model
    >>> batch = sample(tiny_model(0), [[1], [1], [2, 3]], max_new_tokens=4, eos=0, seed=7)
    >>> len(batch), bool((batch.token_counts <= 4).all()), batch.prompt_lengths.tolist()
    (3, True, [1, 1, 2])
    """
    checked_count(len(prompts), "number of prompts")
    checked_count(max_new_tokens, "max_new_tokens")
    checked_count(microbatch, "microbatch")
    entropy = [seed] if isinstance(seed, int) else list(seed)
    rows = [_whole(prompt, f"prompts[{i}]", None, least=0) for i, prompt in enumerate(prompts)]
    ends = torch.tensor(sorted([] if eos is None else [eos] if isinstance(eos, int) else eos), dtype=torch.long)
    responses: list[IntArray] = [np.empty(0, np.int64)] * len(rows)
    logp = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with undisturbed(model), progress("sampling", len(rows)) as advance:
        for group in _of_one_length(order, rows, microbatch):
            streams = np.array([np.random.default_rng([*entropy, i]).random(max_new_tokens) for i in group])
            drawn, logs = _generate(model, np.array([rows[i] for i in group]), streams, ends)
            for i, tokens, steps in zip(group, drawn, logs, strict=True):
                ended = np.flatnonzero(np.isin(tokens, ends.numpy()))
                count = int(ended[0]) + 1 if len(ended) else len(tokens)
                responses[i], logp[i] = tokens[:count], steps[:count].sum()
            advance(len(group))
    return Batch.from_sequences(
        [np.concatenate(pair) for pair in zip(rows, responses, strict=True)],
        [len(row) for row in rows],
        [len(response) for response in responses],
        sampler_logp=logp,
    )


def _generate(model: Module, prompts: IntArray, streams: FloatArray, ends: Tensor) -> tuple[IntArray, FloatArray]:
    """Return the tokens drawn, and the log-probability of each, shape ``(B, steps)``; past its end a row is noise."""
    device = next(model.parameters()).device
    ids, draws, ends = (x.to(device) for x in (torch.from_numpy(prompts), torch.from_numpy(streams), ends))
    tokens, logs = [], []
    alive, fed = torch.ones(len(ids), dtype=torch.bool, device=device), ids
    remembered: dict[str, Any] = {}
    with head_input(model, lambda hidden: hidden[:, -1:]):
        for draw in draws.T:
            output = model(input_ids=fed, **options_for(model, ids, use_cache=True), **remembered)
            name = "cache" if hasattr(output, "cache") else "past_key_values"  # before transformers 5.x
            remembered = {name: cache} if (cache := getattr(output, name, None)) is not None else {}
            log_probs = torch.log_softmax(logits_of(output)[:, -1].double(), dim=-1)
            cumulative = log_probs.exp().cumsum(dim=-1)
            token = torch.searchsorted(cumulative, (draw[:, None] * cumulative[:, -1:]), right=True)
            token = token.clamp(max=log_probs.shape[-1] - 1)  # a draw next to 1 may round up to the total
            tokens.append(token[:, 0])
            logs.append(log_probs.gather(1, token)[:, 0])
            alive &= ~torch.isin(token[:, 0], ends)
            if not alive.any():
                break
            ids = torch.cat((ids, token), dim=1)
            fed = token if remembered else ids
    return torch.stack(tokens, dim=1).cpu().numpy(), torch.stack(logs, dim=1).cpu().numpy()


def _of_one_length(order: list[int], rows: list[IntArray], most: int) -> Iterator[list[int]]:
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop - start == most or stop == len(order)
        if full or len(rows[order[stop]]) != len(rows[order[start]]):
            yield order[start:stop]
            start = stop


def _whole(values: ArrayLike, name: str, size: int | None, least: int | None = None) -> IntArray:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) == 0 or (size is not None and len(array) != size):
        wanted = "at least one token" if size is None else f"one value for each of the {size} sequences"
        raise ValueError(f"{name} must hold {wanted}, got shape {array.shape}")
    if array.dtype.kind not in "iu" or (least is not None and (array < least).any()):
        kind = "whole numbers" if least is None else f"whole numbers of at least {least}"
        raise ValueError(f"{name} must hold {kind}, got {array.dtype}, least {array.min()}")
    return array.astype(np.int64)


def _digest(prompt: IntArray) -> int:
    """Return 48 bits of a digest: the same prompt has the same number everywhere, and JSON keeps it exactly."""
    return int.from_bytes(hashlib.sha256(prompt.astype("<i8").tobytes()).digest()[:6])


# --- looking at a model ----------------------------------------------------------------------------------------------


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Look at the model: no dropout, no gradients, attention that has a forward mode; then leave it as it was found.

    Gradient checkpointing and adapters put a hook on the embedding that calls ``requires_grad_``, which forward mode
    forbids; it is lifted meanwhile.
    """
    training = [(module, module.training) for module in model.modules()]
    hooks = [(module, dict(module._forward_hooks)) for module in model.modules() if module._forward_hooks]
    try:
        for module, found in hooks:
            for key, hook in found.items():
                if getattr(hook, "__name__", "") == "make_inputs_require_grads":
                    del module._forward_hooks[key]
        model.train(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, found in hooks:
            module._forward_hooks.clear()
            module._forward_hooks.update(found)
        for module, was in training:
            module.training = was


@contextmanager
def head_input(model: Module, change: Callable[[Tensor], Tensor]) -> Iterator[Module | None]:
    """Pass the hidden states that enter the output layer through ``change``; yield that layer.

    A plain module that names no output layer is left alone: None.
    """
    found = getattr(model, "get_output_embeddings", None)
    head = found() if callable(found) else None
    if head is None:
        yield None
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
    try:
        yield head
    finally:
        handle.remove()


def options_for(model: Module, ids: Tensor, *, use_cache: bool = False) -> dict[str, Any]:
    """Return what a model of transformers is called with beside ``ids``, all of them up to now; others take nothing.

    Every token may be attended to: what causal attention must not see lies to the right.
    """
    if getattr(getattr(model, "config", None), "use_cache", None) is None:
        return {}
    return {"use_cache": use_cache, "attention_mask": torch.ones_like(ids)}


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a model returned."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities, in float32 where logits are in less."""
    return torch.log_softmax(logits.float() if logits.dtype.itemsize < 4 else logits, dim=-1)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar where standard error is a terminal; yield what advances it."""
    with tqdm(total=total, desc=what, unit="seq", disable=None, leave=False) as bar:
        yield bar.update
