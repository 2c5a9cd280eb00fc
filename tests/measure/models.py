"""Tiny models for tests: the synthetic policy as a torch module, and transformers models without download."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import analysis_helpers.measure
from analysis_helpers import Run
from analysis_helpers.measure import Batch
from analysis_helpers.synthetic.policy import Policy, Sequences

Tensors = Mapping[str, torch.Tensor]
MODELS = ["gpt2", "llama", "qwen2"]
HYBRIDS = ["bamba", "falcon_h1"]
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3}
SIZES |= {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_ssm": 32}
SIZES |= {"attn_layer_indices": [1]}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}


def tiny(family: str = "gpt2", *, vocab_size: int = 11) -> Any:
    """Return a model with random weights: GPT-2 with dropout and tied weights, Llama, or Qwen2 with tied weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, tie_word_embeddings=family != "llama", **SIZES, **TOKENS
    )
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are <eos>, <bos> and a to i."""
    words = {word: k for k, word in enumerate(["<eos>", "<bos>", *"abcdefghi"])}
    inner = Tokenizer(WordLevel(words, unk_token="a"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        chat_template="{% for m in messages %}<bos> {{ m['content'] }} {% endfor %}",
    )


class TabularPolicy(torch.nn.Module):
    """The synthetic policy: token ids as there, and prompt p as the token ``num_tokens + p`` in front."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(policy.logits.copy()))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token."""
        states = torch.cat((torch.zeros_like(input_ids[:, :1]), input_ids[:, 1:]), dim=1)
        return self.table[input_ids[:, :1] - self.table.shape[-1], states]


class Plain(torch.nn.Module):
    """A module that takes token ids and returns logits, soft-capped as Gemma 2 does; it knows nothing of caches."""

    def __init__(self, model: Any, cap: float) -> None:
        super().__init__()
        self.inner, self.cap = model, cap
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token."""
        return self.cap * torch.tanh(self.inner(input_ids=input_ids).logits / self.cap)


class Clipped(torch.optim.SGD):
    """SGD that clips the norm of all its gradients inside its step."""

    def __init__(self, params: Any, lr: float, most: float) -> None:
        super().__init__(params, lr)
        self.most = most

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Clip, then step."""
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.most)
        super().step(closure)


def as_batch(policy: Policy, drawn: Sequences) -> Batch:
    """Return the synthetic policy's sequences for `TabularPolicy`."""
    actions = np.split(drawn.actions, np.cumsum(drawn.lengths)[:-1])
    first = policy.logits.shape[-1] + drawn.prompts
    ids = [np.concatenate(([p], row)) for p, row in zip(first, actions, strict=True)]
    return replace(Batch.from_sequences(ids, np.ones(len(ids), dtype=int), drawn.lengths), full_softmax=True)


def normal_direction(model: torch.nn.Module, scale: float = 1.0, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random direction over all parameters that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    moving = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {name: scale * torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in moving}


def flat(tensors: Tensors) -> torch.Tensor:
    """Return the values of all tensors as one vector, by name."""
    return torch.cat([tensors[name].detach().ravel() for name in sorted(tensors)])


def assert_step(v: Tensors, before: Tensors, after: Tensors, *, lr: float) -> None:
    """Check that the step from ``before`` to ``after`` is ``lr * v``, to 1e-4 of its length."""
    made = flat(after) - flat(before)
    assert made.norm() > 0
    assert (made - lr * flat(v)).norm() < 1e-4 * made.norm()


def recipe(part: str) -> str:
    """Return the code in the documentation of `analysis_helpers.measure` that holds a text."""
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", str(analysis_helpers.measure.__doc__))
    return textwrap.dedent(next(block for block in blocks if part in block))


def known(values: NDArray[Any] | None) -> NDArray[Any]:
    """Return a column that is recorded."""
    assert values is not None
    return values


def columns(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return every recorded column of a measured run by name."""
    names = ("token_counts", "logp", "jH_sum", "wjlogp_sum", "denom_corr_unscaled", "score")
    found = {name: known(getattr(run, name)) for name in names}
    for m in run.measurements:
        found |= {"h_base": known(m.h_base), f"h_new {m.eta}": m.h_new, f"log_weights {m.eta}": known(m.log_weights)}
    return found


def assert_same(one: Run, other: Run, *, tolerance: float) -> None:
    """Check that all columns agree, relative to the largest value of each."""
    for name, values in columns(one).items():
        wanted = columns(other)[name]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=name)
