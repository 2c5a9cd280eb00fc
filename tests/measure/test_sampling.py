from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from analysis_helpers.measure import Batch, measure, sample
from tests.measure.models import MODELS, gpt2, known, normal_direction

PROMPTS = [[1, 5], [1, 5], [3], [2, 4, 6], [1, 5], [2, 4, 6]]


def rows(batch: Batch) -> list[list[int]]:
    return [row.tolist() for row in batch.sequences]


class WithoutCache(torch.nn.Module):
    """A plain module: takes token ids, returns logits, knows nothing of caches."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token."""
        logits: torch.Tensor = self.inner(input_ids=input_ids).logits
        return logits


@pytest.mark.parametrize("name", MODELS)
def test_responses_do_not_depend_on_the_microbatch_nor_on_the_cache(name: str) -> None:
    model = MODELS[name]()
    wanted = rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3, microbatch=1))
    assert rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)) == wanted
    assert rows(sample(WithoutCache(model), PROMPTS, max_new_tokens=12, eos=0, seed=3)) == wanted
    assert rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=[3, 1])) != wanted


def test_a_response_ends_with_its_first_eos_or_is_cut() -> None:
    batch = sample(gpt2(), [[1]] * 200, max_new_tokens=8, eos=[0, 7], seed=0)
    responses = [row[1:] for row in rows(batch)]
    assert {len(row) for row in responses} == set(range(1, 9))
    assert [len(row) for row in responses] == batch.token_counts.tolist()
    assert all(not {0, 7} & set(row[:-1]) for row in responses)
    assert all(len(row) == 8 or row[-1] in (0, 7) for row in responses)
    assert (sample(gpt2(), [[1]] * 20, max_new_tokens=8, eos=None, seed=0).token_counts == 8).all()


def test_responses_come_from_the_softmax() -> None:
    """Chi-square of 4,000 responses of two tokens over all 20 of them; fails by chance once in 10,000 seeds."""
    model = gpt2(vocab_size=5)
    batch = sample(model, [[1]] * 4000, max_new_tokens=2, eos=0, seed=5, microbatch=4000)
    every = [(0,), *itertools.product(range(1, 5), range(5))]
    drawn = [tuple(row[1:]) for row in rows(batch)]
    all_of_them = Batch.from_sequences([[1, *row] for row in every], [1] * 21, [len(row) for row in every])
    run = measure(model, all_of_them, normal_direction(model), [1e-6])
    expected = 4000 * np.exp(known(run.logp))
    assert expected.sum() == pytest.approx(4000, rel=1e-5)
    counts = np.array([drawn.count(row) for row in every])
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-4, 20)


def test_the_log_probability_is_that_of_the_policy() -> None:
    model = gpt2()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    run = measure(model, batch, normal_direction(model), [1e-6])
    np.testing.assert_allclose(known(run.sampler_logp), known(run.logp), atol=1e-4)
    assert (known(run.sampler_logp) < 0).all()


def test_equal_prompts_have_equal_ids_in_every_batch() -> None:
    batch = sample(gpt2(), PROMPTS, max_new_tokens=2, eos=0, seed=3)
    ids = batch.prompt_ids.tolist()
    assert ids[0] == ids[1] == ids[4]
    assert ids[3] == ids[5]
    assert len(set(ids)) == 3
    other = Batch.from_sequences([[9, 9, 0], [1, 5, 4]], [1, 2], [2, 1])
    assert other.prompt_ids[1] == ids[0]
    assert max(ids) < 2**53  # exact in JSON


def test_sampling_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = gpt2().train()
    model.transformer.h[0].train(False)
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    sample(model, PROMPTS, max_new_tokens=4, eos=0, seed=3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_is_cut_for_several_processes() -> None:
    batch = sample(gpt2(), PROMPTS, max_new_tokens=4, eos=0, seed=3)
    part = batch[1::2]
    assert rows(part) == rows(batch)[1::2]
    assert len(part) == 3
    np.testing.assert_array_equal(part.prompt_ids, batch.prompt_ids[1::2])
    np.testing.assert_array_equal(known(part.sampler_logp), known(batch.sampler_logp)[1::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [1], [0]), "token_counts must hold whole numbers of at least 1"),
        (([[1, 2]], [0], [2]), "prompt_lengths must hold whole numbers of at least 1"),
        (([[1, 2]], [1], [2]), r"ids\[0\] must hold prompt and response, 3 tokens, got 2"),
        (([[1, 2]], [1], [1.0]), "token_counts must hold whole numbers of at least 1, got float64"),
        (([[1, 2], [1, 2]], [1], [1, 1]), r"prompt_lengths must hold one value for each of the 2 sequences"),
        (([[1, -2]], [1], [1]), r"ids\[0\] must hold whole numbers of at least 0"),
    ],
)
def test_what_is_no_batch_is_refused(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batch.from_sequences(*arguments)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "number of prompts must be a whole number of at least 1, got 0"),
        ([[1], []], {}, r"prompts\[1\] must hold at least one token"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ([[1]], {"microbatch": 0}, "microbatch must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(prompts: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(gpt2(), prompts, **{"max_new_tokens": 4, "eos": 0, "seed": 0, **options})
