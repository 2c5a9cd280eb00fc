"""Responses sampled from a causal language model, here or elsewhere; models, prompts, and looking at a model."""

from __future__ import annotations

import codecs
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .._checks import (
    FloatArray,
    as_array,
    checked_array,
    checked_count,
    checked_number,
    checked_prompts,
    warn_about_runs,
)
from .resuming import Arrays, inputs_digest, resumed

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Batch:
    """N sequences of token ids, each a prompt and a response.

    Made by `sample`; from those of another sampler by `from_sequences`, `from_vllm` or `read_responses`.

    Attributes
    ----------
    sequences
        Token ids of prompt and response, an array of integers for each sequence.
    prompt_lengths, token_counts
        Tokens of each prompt and of each response (its eos token counted), shape ``(N,)``.
    prompt_ids
        Whole numbers or texts, shape ``(N,)``: equal for equal prompts, in this batch and in any other.
    sampler_logp
        Log-probability of each response (nats) as the sampler computed it, shape ``(N,)``, or None.
    temperature
        T of the policy ``softmax(logits / T)`` that the responses come from, and that `measure` differentiates.
    full_softmax
        Whether responses are known to come from all tokens, as those of `sample`; `measure` tests others.
    """

    sequences: tuple[IntArray, ...]
    prompt_lengths: IntArray
    token_counts: IntArray
    prompt_ids: NDArray[Any]
    sampler_logp: FloatArray | None = None
    temperature: float = 1.0
    full_softmax: bool = False

    @classmethod
    def from_sequences(
        cls,
        ids: Sequence[ArrayLike],
        prompt_lengths: ArrayLike,
        token_counts: ArrayLike,
        *,
        prompt_ids: ArrayLike | None = None,
        sampler_logp: ArrayLike | None = None,
        temperature: float = 1.0,
    ) -> Batch:
        """Return the batch of sequences from another sampler.

        The sequences must come from the very policy that will be differentiated: no top-k, no top-p, no min-p, and the
        temperature given.

        Parameters
        ----------
        ids
            Token ids of each sequence, prompt first, response after it. Padding on the right is cut off; padding on the
            left is not allowed.
        prompt_lengths, token_counts
            Tokens of each prompt (at least 1) and of each response (at least 1; the eos token belongs to it), shape
            ``(N,)``.
        prompt_ids
            Whole numbers or texts, shape ``(N,)``. None: from the tokens of the prompts, the same in every batch and
            process.
        sampler_logp
            The sampler's own log-probability of each response (nats), shape ``(N,)``.
        temperature
            T of the policy ``softmax(logits / T)`` that was sampled; 1 for the model as it is.

        Raises
        ------
        ValueError
            If a response or prompt is empty, a sequence is shorter than its lengths say, a number is not whole, or the
            temperature is not positive.

        Examples
        --------
        >>> batch = Batch.from_sequences([[5, 6, 1, 0], [5, 2, 3, 1]], prompt_lengths=[2, 1], token_counts=[1, 3])
        >>> len(batch), [row.tolist() for row in batch.sequences]
        (2, [[5, 6, 1], [5, 2, 3, 1]])
        """
        size = len(ids)
        prompts = _whole(prompt_lengths, "prompt_lengths", least=1, size=size)
        counts = _whole(token_counts, "token_counts", least=1, size=size)
        rows = [_whole(row, f"ids[{i}]", least=0) for i, row in enumerate(ids)]
        for i, (row, length) in enumerate(zip(rows, prompts + counts, strict=True)):
            if len(row) < length:
                raise ValueError(f"ids[{i}] must hold prompt and response, {length} tokens, got {len(row)}")
        sequences = tuple(row[:length] for row, length in zip(rows, prompts + counts, strict=True))
        if prompt_ids is None:
            prompt_ids = [_digest(row[:length]) for row, length in zip(rows, prompts, strict=True)]
        groups = checked_prompts(prompt_ids, "prompt_ids", counts)
        logp = None if sampler_logp is None else checked_array(sampler_logp, "sampler_logp", length=size)
        return cls(sequences, prompts, counts, groups, logp, checked_temperature(temperature))

    @classmethod
    def from_vllm(cls, outputs: Sequence[Any], *, temperature: float = 1.0) -> Batch:
        """Return the batch of what ``LLM.generate`` of vLLM returned; several responses to a prompt are one each.

        vLLM takes top-k, top-p and temperature from the model's ``generation_config.json`` where they are not given:
        ``SamplingParams(temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, logprobs=0)``. With ``logprobs`` its own
        log-probabilities are recorded; at another temperature than 1 they need
        ``LLM(..., logprobs_mode="processed_logprobs")``.

        Parameters
        ----------
        outputs
            Each with ``prompt_token_ids`` and ``outputs``, and these with ``token_ids`` and ``cumulative_logprob``.
        temperature
            That of the ``SamplingParams``.

        Raises
        ------
        ValueError
            If a request was aborted, or what `from_sequences` refuses.
        """
        pairs = [(request.prompt_token_ids, each) for request in outputs for each in request.outputs]
        if stopped := sum(getattr(each, "finish_reason", None) == "abort" for _, each in pairs):
            raise ValueError(f"outputs must be complete, {stopped} were aborted")
        logp = [each.cumulative_logprob for _, each in pairs]
        return cls.from_sequences(
            [[*prompt, *each.token_ids] for prompt, each in pairs],
            [len(prompt) for prompt, _ in pairs],
            [len(each.token_ids) for _, each in pairs],
            sampler_logp=None if None in logp else logp,
            temperature=temperature,
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def part(self, chosen: slice) -> Batch:
        """Return the batch of some of the sequences, such as every third."""
        logp = None if self.sampler_logp is None else self.sampler_logp[chosen]
        columns = self.prompt_lengths[chosen], self.token_counts[chosen], self.prompt_ids[chosen], logp
        return Batch(self.sequences[chosen], *columns, self.temperature, self.full_softmax)


def sample(
    model: Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int | Collection[int] | None,
    seed: int | Sequence[int],
    temperature: float = 1.0,
    microbatch: int = 64,
    keep: str | os.PathLike[str] | None = None,
) -> Batch:
    """Return one response to each prompt, drawn from the model's full softmax.

    No top-k, no top-p, no min-p: a response comes from exactly the policy that `measure` differentiates. Each
    sequence has its own random stream, so responses do not depend on ``microbatch``. Tokens are drawn by inversion of
    the cumulative distribution (Devroye, 1986), in float64. The model's own state (training mode, hooks, PyTorch's
    random numbers) is left unchanged.

    Parameters
    ----------
    model
        Any causal language model: called with ``input_ids`` of shape ``(B, L)``, it returns logits ``(B, L, V)``, or an
        object with ``logits``. Models with a key-value cache use it.
    prompts
        Token ids of each prompt, at least one; repeat a prompt for several responses to it.
    max_new_tokens
        Tokens after which a response is cut off.
    eos
        Token id, or ids, that end a response; the token belongs to the response. None: no token ends it.
    seed
        Seed of the draws, or several numbers that form a seed, such as ``[seed, rank]``.
    temperature
        T of the policy ``softmax(logits / T)``; the batch records it, and `measure` measures this policy.
    microbatch
        Sequences per forward pass; prompts of similar length are batched together.
    keep
        Folder in which the responses of each microbatch are written as they end: after a kill, the same call goes on
        from there, with the same result. None: nowhere.

    Raises
    ------
    ValueError
        If there is no prompt, a prompt is empty, a count is not a whole number of at least 1, or token ids or lengths
        exceed what the model supports.

    Examples
    --------
    >>> from analysis_helpers.measure import load_policy
    >>> model, _, eos = load_policy()
    >>> batch = sample(model, [[1], [1], [2, 3]], max_new_tokens=4, eos=eos, seed=7)
    >>> len(batch), bool((batch.token_counts <= 4).all()), batch.prompt_lengths.tolist()
    (3, True, [1, 1, 2])
    """
    checked_count(len(prompts), "number of prompts")
    checked_count(max_new_tokens, "max_new_tokens")
    checked_count(microbatch, "microbatch")
    checked_temperature(temperature)
    entropy = np.ravel(seed).tolist()
    rows = [_whole(prompt, f"prompts[{i}]", least=0) for i, prompt in enumerate(prompts)]
    lengths = np.array([len(row) for row in rows])
    ends = [] if eos is None else sorted(map(int, eos)) if isinstance(eos, Collection) else [int(eos)]
    order = np.argsort(lengths, kind="stable")  # neighbours are of similar length
    groups = [order[k : k + microbatch] for k in range(0, len(rows), microbatch)]
    given = (np.concatenate(rows), lengths, entropy, max_new_tokens, ends, temperature, microbatch)
    path = None if keep is None else Path(keep) / f"sample-{inputs_digest(model, *given)}.values"

    def drawn(group: IntArray) -> Arrays:
        streams = np.array([np.random.default_rng([*entropy, i]).random(max_new_tokens) for i in group])
        ids, *others = _generate(model, [rows[i] for i in group], streams, torch.tensor(ends).long(), temperature)
        return np.concatenate(ids), *others

    sequences, counts, logp = list(rows), np.empty_like(lengths), np.empty(len(rows))
    with undisturbed(model):
        bar = tqdm(groups, desc="sampling", unit="microbatch", disable=None, leave=False)
        for group, (ids, counts[group], logp[group]) in resumed(path, bar, drawn):
            parts = np.split(ids, np.cumsum(lengths[group] + counts[group])[:-1])
            for i, row in zip(group, parts, strict=True):
                sequences[i] = row
    batch = Batch.from_sequences(sequences, lengths, counts, sampler_logp=logp, temperature=temperature)
    return replace(batch, full_softmax=True)


def drawn_prompts(prompts: Sequence[Sequence[int]], n: int, seed: int | Sequence[int]) -> list[Sequence[int]]:
    """Return n prompts drawn at random, none repeated before all are used: batches from a large pool share few."""
    rng = np.random.default_rng(seed)
    return [prompts[i] for _ in range(0, n, len(prompts)) for i in rng.permutation(len(prompts))][:n]


def load_policy(
    model: str | os.PathLike[str] = "tiny", prompts: str | os.PathLike[str] = "tiny"
) -> tuple[Any, list[list[int]], list[int]]:
    """Return a model in float32, the token ids of prompts, and the ids that end a response.

    Parameters
    ----------
    model
        Name or folder of a causal language model of transformers, with its tokenizer.
    prompts
        File of prompts, see `read_prompts`. "tiny" for both: a GPT-2 of 24 tokens with random weights, in float64, with
        its 10,648 prompts of four tokens; PyTorch is set to one thread, as more threads are slower there.

    Raises
    ------
    ValueError
        If the file of prompts is refused, or the model names no token that ends a response.
    OSError
        If a file or the model is missing.

    Examples
    --------
    >>> model, prompts, eos = load_policy()
    >>> len(prompts), eos
    (10648, [0])
    """
    if str(model) == str(prompts) == "tiny":
        torch.set_num_threads(1)
        return _tiny_model(), [[1, *tokens] for tokens in itertools.product(range(2, 24), repeat=3)], [0]
    rows, policy = read_prompts(prompts, model), load_model(model)
    return policy, rows, ends_of(policy)


def ends_of(policy: Any) -> list[int]:
    """Return the ids that end a response, or raise a ValueError if the model names none."""
    end = policy.generation_config.eos_token_id
    if end is None:
        raise ValueError("model must name the token that ends a response (eos_token_id of its generation config)")
    return [end] if isinstance(end, int) else list(end)


def load_model(name: str | os.PathLike[str]) -> Any:
    """Return a causal language model of transformers by its name or folder, in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    if hasattr(model, "set_experts_implementation"):  # from transformers 5.0 on
        model.set_experts_implementation("eager")  # a mixture's faster one has no forward mode
    return model


def _tiny_model() -> Any:
    """Return a GPT-2 of 24 tokens and 28,288 parameters with random weights, in float64; token 0 ends a response.

    Its distributions and the lengths of its responses vary enough to be worth measuring; in float64 its numbers are the
    same on every machine.
    """
    sizes: dict[str, Any] = {"vocab_size": 24, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, bos_token_id=1, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).train(False).double()


def read_prompts(path: str | os.PathLike[str], model: str | os.PathLike[str]) -> list[list[int]]:
    """Return the token ids of the prompts in a file, one per line, as JSON (UTF-8 or UTF-16).

    A line is a text, ``{"prompt": "text"}`` or ``"text"``; a conversation, for the chat template:
    ``{"prompt": [{"role": "user", "content": "text"}]}``; or token ids, ``{"prompt": [1, 15043, 3186]}``. The tokenizer
    is that of the model.

    Raises
    ------
    ValueError
        If a line is none of these or has no token, or there are no prompts.
    OSError
        If the file or the tokenizer is missing.

    Warns
    -----
    RunWarning
        If prompts begin with the token that begins a text twice, or end with one that ends it.
    """
    tokenizer, rows = transformers.AutoTokenizer.from_pretrained(model), {}
    for where, line in _json_lines(path):
        rows[where] = _prompt_ids(tokenizer, line.get("prompt") if isinstance(line, dict) else line)
        if not rows[where]:
            rule = 'must be a text, or an object with "prompt": a text, a list of messages or of token ids, not empty'
            raise ValueError(f"{where}: {rule}, got {json.dumps(line)[:60]}")
    for fault, odd in (
        ("begin twice with the token that begins a text", [tokenizer.bos_token_id] * 2),
        ("end with the token that ends a text", [tokenizer.eos_token_id]),
    ):
        found = [w for w, ids in rows.items() if (ids[:2] if len(odd) == 2 else ids[-1:]) == odd != [None] * len(odd)]
        if found:
            warn_about_runs(f"{len(found)} of {len(rows)} prompts {fault} ({odd[0]}): {found[0]}")
    return list(rows.values())


def read_responses(path: str | os.PathLike[str], *, temperature: float = 1.0) -> Batch:
    """Return the batch in a file of responses from another sampler, one per line, as JSON (UTF-8 or UTF-16).

    A line has the token ids of prompt and response, and optionally the sampler's log-probability of the response
    (nats): ``{"prompt": [1, 15043], "response": [3186, 2], "sampler_logp": -4.25}``.

    Raises
    ------
    ValueError
        If a line has other fields, some lines have a log-probability and some have not, or what `Batch.from_sequences`
        refuses.
    OSError
        If the file is missing.
    """
    ids, lengths, logp = [], [], []
    for where, line in _json_lines(path):
        known = isinstance(line, dict) and {"prompt", "response"} <= line.keys() <= {
            "prompt",
            "response",
            "sampler_logp",
        }
        if not known or not all(isinstance(line[name], list) for name in ("prompt", "response")):
            rule = 'must be an object with lists of token ids, "prompt" and "response"; "sampler_logp" is optional'
            raise ValueError(f"{where}: {rule}, got {json.dumps(line)[:60]}")
        ids.append([*line["prompt"], *line["response"]])
        lengths.append((len(line["prompt"]), len(line["response"])))
        logp.append(line.get("sampler_logp"))
    if 0 < logp.count(None) < len(logp):
        raise ValueError(f"{path}: sampler_logp must be on every line or on none, missing on {logp.count(None)}")
    prompts, counts = zip(*lengths, strict=True)
    given = None if None in logp else logp
    return Batch.from_sequences(ids, prompts, counts, sampler_logp=given, temperature=temperature)


def _json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """Yield where each line that is not blank stands, and its value; raise a ValueError if there is none."""
    content = Path(path).read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    lines = content.decode("utf-16" if wide else "utf-8-sig").split("\n")  # splitlines would cut at more than line ends
    if not any(map(str.strip, lines)):
        raise ValueError(f"{path} must have at least one line")
    for k, line in enumerate(lines, 1):
        if line.strip():
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {k}: must be JSON ({error}), got {line[:60]}") from None
            yield f"{path}, line {k}", value


def _prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not isinstance(prompt, list) or not prompt or all(type(token) is int for token in prompt):
        return prompt if isinstance(prompt, list) else []
    if not all(isinstance(message, dict) for message in prompt):
        return []
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


def _generate(
    model: Module, prompts: Sequence[IntArray], streams: FloatArray, ends: Tensor, temperature: float
) -> tuple[list[IntArray], IntArray, FloatArray]:
    """Return prompts with responses, how many tokens these have, and their log-probabilities.

    All rows are at the same position: longer prompts are read, token by token, while responses to shorter ones are
    drawn. So nothing is padded, and the model needs no mask.
    """
    device = next(model.parameters()).device
    draws, ends = torch.from_numpy(streams).to(device), ends.to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    first, most = int(lengths.min()), draws.shape[1]
    ids = pad_sequence([torch.from_numpy(prompt) for prompt in prompts], batch_first=True).to(device)
    ids = torch.nn.functional.pad(ids, (0, most))
    counts, logp, cache = torch.zeros_like(lengths), 0 * draws[:, 0], _Cache(model)
    rows, alive = torch.arange(len(prompts), device=device), torch.ones_like(lengths, dtype=torch.bool)
    for at in range(first, ids.shape[1]):
        drawing = alive[rows] & (at >= lengths[rows])
        logits = cache.logits(ids[rows, :at], drawing) / temperature
        drawn = rows[drawing]
        token, chance = _drawn(logits, draws[drawn, at - lengths[drawn]])
        ids[drawn, at] = token
        counts[drawn] += 1
        logp[drawn] += chance
        ended = torch.isin(token, ends) | (counts[drawn] == most)
        if ended.any():
            alive[drawn[ended]] = False
            rows = cache.without_finished(rows, alive)
        if not alive.any():
            break
    kept = (lengths + counts).tolist()
    return [row[:k] for row, k in zip(ids.cpu().numpy(), kept, strict=True)], counts.cpu().numpy(), logp.cpu().numpy()


def _drawn(logits: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token at ``draw`` of each row's cumulative distribution, and its log-probability."""
    top = logits.amax(dim=-1, keepdim=True)
    cumulative = logits.to(torch.float64, copy=True).sub_(top).exp_()
    torch.cumsum(cumulative, dim=-1, out=cumulative)  # in place, as new memory takes longer than the sum
    total = cumulative[:, -1]
    # A draw next to 1 may round up to the total, and then to a token of probability 0.
    place = torch.minimum(draw * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, place[:, None], right=True)
    return token[:, 0], (logits.gather(1, token).double() - top)[:, 0] - total.log()


class _Cache:
    """Keys and values of the tokens that a model has read, where it hands them out."""

    def __init__(self, model: Module) -> None:
        self.model, self.given, self.read = model, dict[str, Any](), 0
        forward = getattr(model, "get_base_model", lambda: model)().forward  # of an adapter
        self.takes_positions = "position_ids" in inspect.signature(forward).parameters

    def logits(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return the logits after the last token of some rows; the model may have read the first tokens before."""
        given = dict(self.given)
        if self.given and self.takes_positions:  # some hybrids count from 0 again
            given["position_ids"] = torch.arange(self.read, ids.shape[1], device=ids.device)[None]
        head = output_layer(self.model)
        last = None if head is None else head.register_forward_pre_hook(lambda _, inputs: inputs[0][rows, -1:])
        with nullcontext() if last is None else last:
            output = called(self.model, ids[:, self.read :], {"use_cache": True, **given})
        name = "cache" if hasattr(output, "cache") else "past_key_values"  # before transformers 5.x
        if (cache := getattr(output, name, None)) is not None:
            self.given, self.read = {name: cache}, ids.shape[1]
        return cast(Tensor, (output.logits[rows] if head is None else output.logits)[:, -1])

    def without_finished(self, rows: Tensor, alive: Tensor) -> Tensor:
        """Return the rows that go on, and forget the others; all rows where the cache cannot forget some."""
        for cache in self.given.values():
            layers = getattr(cache, "layers", ())
            if type(cache) is not transformers.DynamicCache or any(hasattr(x, "conv_states") for x in layers):
                return rows
            cache.batch_select_indices(alive[rows].nonzero()[:, 0])
        return rows[alive[rows]]


def checked_temperature(temperature: float) -> float:
    """Return a temperature, or raise a `ValueError` if it is not positive and finite."""
    if checked_number(temperature, "temperature") <= 0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    return float(temperature)


def _whole(values: ArrayLike, name: str, *, least: int, size: int | None = None) -> IntArray:
    array = as_array(values)
    length = max(array.size, 1) if size is None else size
    if array.shape != (length,) or array.dtype.kind not in "iu" or array.min() < least:
        wanted = "at least one" if size is None else f"one for each of the {size} sequences"
        raise ValueError(f"{name} must hold whole numbers of at least {least}, {wanted}, got {str(values)[:60]}")
    return array.astype(np.int64)


def _digest(prompt: IntArray) -> int:
    """Return 48 bits of a digest: the same prompt has the same number everywhere, and JSON keeps it exactly."""
    return int.from_bytes(hashlib.sha256(prompt.astype("<i8").tobytes()).digest()[:6])


# --- looking at a model ----------------------------------------------------------------------------------------------


@contextmanager
def undisturbed(model: Module) -> Iterator[None]:
    """Inspect the model without dropout or gradients, with attention that has a forward mode; then restore it.

    Compiled parts run as written, as compiled code has no forward mode. Restored are training mode, buffers and plain
    attributes of modules, which some change in a pass (rope scaling), and PyTorch's random numbers.
    """
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    kept = [({k: x for k, x in vars(m).items() if k[0] != "_"}, dict(m._buffers), m) for m in model.modules()]
    buffers = [(x, x.clone()) for x in model.buffers()]
    try:
        model.train(False)
        eager, attention = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
        with torch.random.fork_rng(devices), eager, torch.no_grad(), attention:
            yield
    finally:
        for attributes, names, module in kept:
            vars(module).update(attributes)
            module._buffers.update(names)
        for buffer, values in buffers:
            buffer.copy_(values)


def output_layer(model: Module) -> Module | None:
    """Return the layer that hidden states enter and logits leave, or None: a plain module need not name one."""
    layer: Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return layer


def called(model: Module, ids: Tensor, options: Mapping[str, Any]) -> Any:
    """Return what the model returns, an object with ``logits``; only models of transformers take options."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        options = {"use_cache": False}  # it puts its soft prompt in front again at every call
    try:
        output = model(input_ids=ids, **(options if hasattr(model, "generation_config") else {}))
    except IndexError as error:
        length = int(options["position_ids"].max()) + 1 if "position_ids" in options else ids.shape[1]
        limits = f"token ids up to {int(ids.max())}, and {length} tokens of prompt and response"
        raise ValueError(f"model must accept {limits}; it raised IndexError: {error}") from error
    return SimpleNamespace(logits=output) if isinstance(output, Tensor) else output
