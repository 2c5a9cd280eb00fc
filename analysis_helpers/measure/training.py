"""Where models, prompts and update directions come from: a training that runs, saved models, and a tiny one to try."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import ArrayLike
from torch.nn import Module

from .._checks import checked_choice, checked_count
from ..runs import RESULTS_FILE, Run, write_run
from .direction import direction_from_optimizer
from .measuring import entropy_baseline, measure
from .sampling import Batch, log_softmax, logits_of, options_for, sample

_DEMO_ETAS = (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4)

_TINY_PROMPTS = [[1, *tokens] for tokens in itertools.product(range(2, 24), repeat=3)]


class MeasureEntropy(transformers.TrainerCallback):
    """Measures the entropy change of optimizer steps while a transformers or TRL trainer makes them.

    Before every ``every``-th step it takes the direction of that step, samples a fresh batch from the model as it is,
    and writes a run to ``out/E_<n>/step_<steps made>/results.json``. Training goes on as without it: the same random
    numbers, the same weights. In a distributed training the first process measures, and the others wait; it needs all
    parameters (not sharded ones).

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
        Folder that the batch folder goes into.
    max_new_tokens, eos, seed, microbatch
        As for `sample`; every step has draws of its own, of prompts too.

    Examples
    --------
    >>> callback = MeasureEntropy([[1, 5]], [1e-6, 2e-6], 2048, 100, "my_runs", max_new_tokens=256, eos=0)
    >>> # trainer = GRPOTrainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        etas: Sequence[float],
        n: int,
        every: int,
        out: str | os.PathLike[str],
        *,
        max_new_tokens: int,
        eos: int | Collection[int] | None,
        seed: int = 0,
        microbatch: int = 16,
    ) -> None:
        self.prompts, self.etas, self.out = list(prompts), list(etas), Path(out)
        self.n, self.every = checked_count(n, "n"), checked_count(every, "every")
        self.max_new_tokens, self.eos, self.seed, self.microbatch = max_new_tokens, eos, seed, microbatch

    def on_pre_optimizer_step(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **given: Any,
    ) -> None:
        """Measure the step that is about to be made; called by the trainer."""
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        model = getattr(given["model"], "module", given["model"])
        v = direction_from_optimizer(model, given["optimizer"])
        batch = sample(
            model,
            drawn_prompts(self.prompts, self.n, [self.seed, state.global_step]),
            max_new_tokens=self.max_new_tokens,
            eos=self.eos,
            seed=[self.seed, state.global_step],
            microbatch=self.microbatch,
        )
        run = measure(model, batch, v, self.etas, microbatch=self.microbatch)
        write_run(self.out / f"E_{self.n}" / f"step_{state.global_step:06d}" / RESULTS_FILE, run)


def load_policy(
    model: str | os.PathLike[str] = "tiny", prompts: str | os.PathLike[str] = "tiny"
) -> tuple[Any, list[list[int]], list[int]]:
    """Return a model in float32 (the tiny one: float64), the token ids of prompts, and the ids that end a response.

    Parameters
    ----------
    model
        Name or folder of a causal language model of transformers; "tiny": `tiny_model`.
    prompts
        File with a prompt a line, as JSON: ``{"prompt": "text"}``, ``{"messages": [...]}`` (through the chat template)
        or ``{"ids": [...]}``. "tiny": 10,648 prompts of four tokens, for the tiny model only.

    Raises
    ------
    ValueError
        If a line holds none of the three, there are no prompts, or the model names no token that ends a response.
    OSError
        If a file or the model is not there.

    Examples
    --------
    >>> model, prompts, eos = load_policy()
    >>> len(prompts), eos
    (10648, [0])
    """
    tiny, own = str(model) == "tiny", str(prompts) == "tiny"
    if own and not tiny:
        raise ValueError('prompts must name a file, got "tiny"')
    lines = [] if own else Path(prompts).read_text(encoding="utf-8").splitlines()
    given = [json.loads(line) for line in lines if line.strip()]
    if not given and not own:
        raise ValueError(f"prompts must hold at least one prompt, got none in {prompts}")
    policy = tiny_model(0) if tiny else transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    text = not tiny and any("ids" not in line for line in given)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model) if text else None
    rows = [_prompt_ids(line, tokenizer, f"{prompts}, prompt {k}") for k, line in enumerate(given, start=1)]
    end = policy.generation_config.eos_token_id
    if end is None:
        raise ValueError("model must name the token that ends a response (eos_token_id of its generation config)")
    return policy, rows or [list(row) for row in _TINY_PROMPTS], [end] if isinstance(end, int) else list(end)


def tiny_model(seed: int) -> Any:
    """Return a GPT-2 of 24 tokens and 28,288 parameters with random weights, in float64; token 0 ends a response.

    Its distributions are uneven enough, and its responses different enough in length, to be worth measuring; in float64
    its numbers are the same on every machine.
    """
    sizes: dict[str, Any] = {"vocab_size": 24, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, bos_token_id=1, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.GPT2LMHeadModel(config).train(False).double()


def reinforce(model: Module, batch: Batch, rewards: ArrayLike | None = None, *, microbatch: int = 16) -> None:
    """Add the policy gradient to the parameters' gradients, as a loss for an optimizer: ``-mean(A_i log pi_i)``.

    Parameters
    ----------
    model, batch
        The policy and its responses.
    rewards
        Shape ``(N,)``; advantages A are these, standardised over the batch. None: the log-probability of a response
        per token, by the sampler: confident answers are favoured.
    microbatch
        Sequences at once.

    Raises
    ------
    ValueError
        If ``rewards`` are None and the batch does not record the sampler's log-probability.
    """
    if rewards is None:
        if batch.sampler_logp is None:
            raise ValueError("rewards must be given where the batch does not record sampler_logp")
        rewards = batch.sampler_logp / batch.token_counts
    raw = np.asarray(rewards, dtype=np.float64)
    advantages = torch.from_numpy((raw - raw.mean()) / (raw.std() + 1e-8) / len(batch))
    device = next(model.parameters()).device
    for first in range(0, len(batch), microbatch):
        rows = range(first, min(first + microbatch, len(batch)))
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(batch.sequences[i]) for i in rows], batch_first=True)
        ids = padded.to(device)
        logp = log_softmax(logits_of(model(input_ids=ids, **options_for(model, ids)))[:, :-1])
        taken = logp.gather(2, ids[:, 1:, None])[:, :, 0]
        weights = torch.zeros_like(taken)
        for row, i in enumerate(rows):
            start = batch.prompt_lengths[i] - 1
            weights[row, start : start + batch.token_counts[i]] = advantages[i]
        (-(weights * taken).sum()).backward()


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
    kind: Literal["leave_one_out", "entropy_to_go"] = "leave_one_out",
    microbatch: int = 16,
) -> dict[str, Run]:
    """Return runs of the first steps of a training that favours confident answers, run_01 and so on.

    Each step is AdamW's at the largest eta, on the policy gradient of 256 responses (see `reinforce`); before it is
    made, it is measured on a fresh batch. The model is trained on meanwhile.

    Parameters
    ----------
    model, prompts, max_new_tokens, eos, seed, microbatch
        As for `sample`; each batch draws its prompts (see `drawn_prompts`).
    etas, n
        Step sizes, and sequences in a batch.
    num_runs
        Steps.
    kind
        Baseline of the linear terms: "leave_one_out", as `measure` takes it; "entropy_to_go", the usual one, from the
        responses of the step, for comparison. Responses and steps are the same.

    Examples
    --------
    >>> model, prompts, eos = load_policy()
    >>> runs = measured_steps(model, prompts, [1e-5, 2e-5], 32, max_new_tokens=8, eos=eos, num_runs=2)
    >>> list(runs), runs["run_01"].num_sequences
    (['run_01', 'run_02'], 32)
    """
    checked_choice(kind, "kind", ("leave_one_out", "entropy_to_go"))
    optimizer, runs = torch.optim.AdamW(model.parameters(), lr=max(etas)), {}
    drawn: dict[str, Any] = {"max_new_tokens": max_new_tokens, "eos": eos, "microbatch": microbatch}
    for step in range(checked_count(num_runs, "num_runs")):
        learned = sample(model, drawn_prompts(prompts, 256, [seed, step]), seed=[seed, step], **drawn)
        optimizer.zero_grad()
        reinforce(model, learned, microbatch=microbatch)
        v = direction_from_optimizer(model, optimizer)
        usual = kind == "entropy_to_go"
        baseline = entropy_baseline(model, learned, max_new_tokens, kind="entropy_to_go") if usual else None
        batch = sample(model, drawn_prompts(prompts, n, [seed, step, n]), seed=[seed, step, n], **drawn)
        run = measure(model, batch, v, etas, microbatch=microbatch, baseline=baseline)
        runs[f"run_{step + 1:02d}"] = run
        optimizer.step()
    return runs


def write_demo(root: str | os.PathLike[str], *, sizes: Sequence[int] = (1024, 128), seed: int = 0) -> None:
    """Train the tiny model for four steps and write the runs: ``root/E_<size>/run_<k>``, at five step sizes.

    Parameters
    ----------
    root
        Folder; made where it is missing.
    sizes
        Batch sizes: each step is measured on a fresh batch of each.
    seed
        Seed of model and draws.
    """
    _, prompts, eos = load_policy()
    for size in sizes:
        options: dict[str, Any] = {"max_new_tokens": 32, "eos": eos, "seed": seed, "microbatch": 256}
        for name, run in measured_steps(tiny_model(seed), prompts, _DEMO_ETAS, size, **options).items():
            write_run(Path(root) / f"E_{size}" / name / RESULTS_FILE, run)


def drawn_prompts(prompts: Sequence[Sequence[int]], n: int, seed: int | Sequence[int]) -> list[Sequence[int]]:
    """Return n prompts drawn at random, every one before any comes again: batches from a large pool share few."""
    rng = np.random.default_rng(seed)
    return [prompts[i] for _ in range(0, n, len(prompts)) for i in rng.permutation(len(prompts))][:n]


def _prompt_ids(line: Any, tokenizer: Any, where: str) -> list[int]:
    if not isinstance(line, dict) or not line.keys() & {"ids", "prompt", "messages"}:
        raise ValueError(f"{where} must be an object with prompt, messages or ids, got {json.dumps(line)[:60]}")
    if "ids" in line:
        return [int(token) for token in line["ids"]]
    if tokenizer is None:
        raise ValueError(f"{where} must be given as ids: the tiny model has no tokenizer")
    if "messages" in line:
        made = tokenizer.apply_chat_template(line["messages"], add_generation_prompt=True, return_dict=True)
        return list(made["input_ids"])
    return list(tokenizer(line["prompt"])["input_ids"])
