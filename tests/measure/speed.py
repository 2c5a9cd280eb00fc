"""Sampling against `generate` of transformers, in one process: ``python -m tests.measure.speed`` prints the table.

A GPT-2 of 36 million parameters with random weights, 128 prompts in batches of 64, responses cut off after 24 tokens
or ended before by one token in twelve: `generate` pads to the longest and draws in float32 by ``torch.multinomial``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis_helpers.measure import sample
from tests.benchmarks.__main__ import Row, ratio_of

VOCABULARY, NEW, BATCH = 32_000, 24, 64
PAD = VOCABULARY - 1
Prompts = list[list[int]]


def model_of_36m() -> Any:
    """Return a GPT-2 of six layers and 512 dimensions."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": 256, "n_embd": 512, "n_layer": 6, "n_head": 8}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=0)).train(False)


def generate(model: Any, prompts: Prompts, ends: list[int]) -> None:
    """Draw responses as one would with transformers: sorted by length, padded on the left, with its cache."""
    ordered = sorted(prompts, key=len)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "use_cache": True}
    for first in range(0, len(ordered), BATCH):
        part = ordered[first : first + BATCH]
        longest = len(part[-1])
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in part])
        mask = (ids != PAD).long()
        model.generate(ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=PAD, **options)


def speed_table(rounds: int = 2) -> list[Row]:
    """Return how many times as fast `sample` is, for prompts of equal and of unequal length."""
    model, rng, table = model_of_36m(), np.random.default_rng(0), []
    lengths = {"32 tokens": np.full(128, 32), "16 to 48 tokens": rng.integers(16, 49, 128)}
    for what, counts in lengths.items():
        prompts = [rng.integers(2000, PAD, k).tolist() for k in counts]
        for how, ends in (("all cut", [0]), ("most ended", list(range(VOCABULARY // 12)))):

            def theirs(prompts: Prompts = prompts, ends: list[int] = ends) -> None:
                generate(model, prompts, ends)

            def ours(prompts: Prompts = prompts, ends: list[int] = ends) -> None:
                sample(model, prompts, max_new_tokens=NEW, eos=ends, seed=0, microbatch=BATCH)

            table.append(Row(f"sample, prompts of {what}, {how}", "generate", ratio_of(theirs, ours, rounds), 1))
    return table


if __name__ == "__main__":
    for row in speed_table():
        print(f"{row.what:50} {row.ratio:5.2f} x {row.baseline}, wanted {row.target:g}")
