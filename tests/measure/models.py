"""Tiny models for tests: the synthetic policy as a torch module, and transformers models without download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from analysis_helpers.measure import Batch
from analysis_helpers.synthetic.policy import Policy, Sequences

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def known(values: NDArray[Any] | None) -> NDArray[Any]:
    """Return a column that is recorded."""
    assert values is not None
    return values


class TabularPolicy(torch.nn.Module):
    """The synthetic policy: token ids as there, and prompt p as the token ``num_tokens + p`` in front."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.from_numpy(policy.logits.copy()))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token."""
        states = torch.cat((torch.zeros_like(input_ids[:, :1]), input_ids[:, 1:]), dim=1)
        return self.table[input_ids[:, :1] - self.table.shape[-1], states]


def as_batch(policy: Policy, drawn: Sequences) -> Batch:
    """Return the synthetic policy's sequences for `TabularPolicy`."""
    actions = np.split(drawn.actions, np.cumsum(drawn.lengths)[:-1])
    first = policy.logits.shape[-1] + drawn.prompts
    ids = [np.concatenate(([p], row)) for p, row in zip(first, actions, strict=True)]
    return Batch.from_sequences(ids, np.ones(len(ids), dtype=int), drawn.lengths)


def gpt2(vocab_size: int = 11, *, seed: int = 0, positions: int = 64) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def llama(*, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, **SIZES))


def qwen2(*, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=11, tie_word_embeddings=True, **SIZES))


MODELS = {"gpt2": gpt2, "llama": llama, "qwen2": qwen2}


def normal_direction(model: torch.nn.Module, *, scale: float = 1.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a random direction over all parameters that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
