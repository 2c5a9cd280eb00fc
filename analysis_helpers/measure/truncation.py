"""Whether a sampler left out unlikely tokens: top-k, top-p or min-p, which bias the linear change.

For a rule that keeps the likeliest tokens, take as its limit the furthest that a drawn token went: the largest rank,
the largest probability of likelier tokens, the smallest probability relative to the likeliest token. If tokens come
from the full softmax, none goes further with a probability that is the product, over tokens, of that within the limit.
A few thousand tokens then tell a truncated sampler from a confident policy; their log-probabilities alone do not.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from .._checks import warn_about_runs
from .sampling import Batch, called, output_layer, undisturbed

_TOKENS, _PER_SEQUENCE = 4096, 128  # looked at, in all and in one response
_LIKELIEST = 1024  # tokens of a distribution that are told apart
_FALSE_ALARM = 1e-4


def warn_if_truncated(model: Module, batch: Batch) -> None:
    """Warn if a batch from another sampler cannot, at p < 0.0001, come from the model's full softmax."""
    ranks, before, ratios, likeliest, size = _looked_up(model, batch)
    kept = likeliest.cumsum(dim=1)
    limits = {
        f"the {int(ranks.max()) + 1:,} likeliest of {size:,}": torch.arange(kept.shape[1]) <= ranks.max(),
        f"the likeliest with probability {before.max():.3f} together": kept - likeliest <= before.max(),
        f"those {ratios.min():.2g} times as likely as the likeliest": likeliest >= ratios.min() * likeliest[:, :1],
    }
    inside = {
        # All tokens, if the limit lies beyond those told apart.
        name: torch.where(rule.expand_as(kept)[:, -1], 1.0, (likeliest * rule).sum(dim=1).clamp(max=1.0))
        for name, rule in limits.items()
    }
    name = min(inside, key=lambda name: float(inside[name].log().sum()))
    if float(inside[name].log().sum()) < math.log(_FALSE_ALARM / len(limits)):
        warn_about_runs(
            f"the sampler seems to truncate: of {len(ranks):,} tokens none is beyond {name}, where "
            f"{float((1 - inside[name]).sum()):.0f} were expected; transformers' generate keeps 50 (top_k) unless told "
            "otherwise, vLLM what the model's generation_config.json says: pass top_k=0 (vLLM: -1), top_p=1.0, "
            "min_p=0.0, or give the temperature if it was below 1"
        )


def _looked_up(model: Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return rank, probability of likelier tokens, and probability relative to the likeliest, of a few thousand tokens.

    And the probabilities of the likeliest, shape ``(tokens, 1024)``, and the size of the vocabulary.
    """
    device, head, found, size = next(model.parameters()).device, output_layer(model), [], 0
    sequences = int(_TOKENS / batch.token_counts.clip(max=_PER_SEQUENCE).mean())
    with undisturbed(model):
        for i in np.unique(np.linspace(0, len(batch) - 1, sequences).astype(int)):
            start = int(batch.prompt_lengths[i])
            ids = torch.from_numpy(batch.sequences[i][: start + _PER_SEQUENCE]).to(device)
            drawn = len(ids) - start
            # The token before predicts each.
            keep = None if head is None else head.register_forward_pre_hook(lambda _, x, n=drawn: x[0][:, -n - 1 :])
            with nullcontext() if keep is None else keep:
                logits = called(model, ids[None], {"use_cache": False}).logits[0, -drawn - 1 : -1]
            probability = torch.softmax(logits.float() / batch.temperature, dim=-1)
            own = probability.gather(1, ids[start:, None])
            likelier = probability > own
            likeliest = probability.topk(min(_LIKELIEST, size := probability.shape[1])).values
            rows = likelier.sum(dim=1), (probability * likelier).sum(dim=1), (own / likeliest[:, :1])[:, 0], likeliest
            found.append([x.double().cpu() for x in rows])
    ranks, before, ratios, likeliest = map(torch.cat, zip(*found, strict=True))
    return ranks, before, ratios, likeliest, size
