"""Sampled responses, batches from elsewhere, saved models and files of prompts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from analysis_helpers.measure import Batch, drawn_prompts, load_policy, measure, sample
from tests.building import refused
from tests.measure.models import HYBRIDS, MODELS, Plain, assert_same, known, normal_direction, tiny, tokenizer

PROMPTS = [[1, 5], [1, 5], [3], [2, 4, 6], [1, 5], [2, 4, 6]]


def rows(batch: Batch) -> list[list[int]]:
    return [row.tolist() for row in batch.sequences]


@pytest.mark.parametrize("name", MODELS)
def test_responses_do_not_depend_on_the_microbatch_nor_on_the_cache(name: str) -> None:
    model = tiny(name)
    wanted = rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3, microbatch=1))
    assert rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)) == wanted
    assert rows(sample(Plain(model, 1e6), PROMPTS, max_new_tokens=12, eos=0, seed=3)) == wanted
    assert rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=[3, 1])) != wanted


def test_prompts_of_any_length_go_together_and_finished_responses_are_left_out() -> None:
    model, prompts = tiny(), [[2] * k for k in range(1, 21)]
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    batch = sample(model, prompts, max_new_tokens=8, eos=0, seed=3)
    ends = batch.prompt_lengths + batch.token_counts
    assert len(seen) == ends.max() - 1  # after the first token of each, one call for each position
    assert seen == [(int((ends > at).sum()), 1) for at in range(1, ends.max())]


@pytest.mark.parametrize("name", HYBRIDS)
def test_models_with_layers_of_another_kind_than_attention_read_the_same_positions(name: str) -> None:
    """Their caches keep finished rows; some count positions from 0 again after the prompt."""
    model = tiny(name).double()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    assert rows(batch) == rows(sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3, microbatch=1))
    logp = known(measure(model, batch, normal_direction(model), [1e-6]).logp)
    np.testing.assert_allclose(known(batch.sampler_logp), logp, atol=1e-3)


def test_a_response_ends_with_its_first_eos_or_is_cut() -> None:
    batch = sample(tiny(), [[1]] * 200, max_new_tokens=8, eos=[0, 7], seed=0)
    responses = [row[1:] for row in rows(batch)]
    assert {len(row) for row in responses} == set(range(1, 9))
    assert [len(row) for row in responses] == batch.token_counts.tolist()
    assert all(not {0, 7} & set(row[:-1]) for row in responses)
    assert all(len(row) == 8 or row[-1] in (0, 7) for row in responses)
    again = sample(tiny(), [[1]] * 200, max_new_tokens=8, eos={0, 7}, seed=[0])
    assert rows(again) == rows(batch)
    assert (sample(tiny(), [[1]] * 20, max_new_tokens=8, eos=None, seed=0).token_counts == 8).all()


def test_responses_come_from_the_softmax() -> None:
    """Chi-square of 4,000 responses of two tokens over all 21 of them; fails by chance once in 10,000 seeds."""
    model = tiny(vocab_size=5)
    batch = sample(model, [[1]] * 4000, max_new_tokens=2, eos=0, seed=5, microbatch=4000)
    every = [(0,), *itertools.product(range(1, 5), range(5))]
    drawn = [tuple(row[1:]) for row in rows(batch)]
    all_of_them = Batch.from_sequences([[1, *row] for row in every], [1] * 21, [len(row) for row in every])
    expected = 4000 * np.exp(known(measure(model, all_of_them, normal_direction(model), [1e-6]).logp))
    assert expected.sum() == pytest.approx(4000, rel=1e-5)
    counts = np.array([drawn.count(row) for row in every])
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-4, 20)


def test_a_temperature_is_that_of_the_model_with_its_logits_divided() -> None:
    model, scaled = tiny().double(), tiny().double()
    given: dict[str, Any] = {"max_new_tokens": 12, "eos": 0, "seed": 3}
    scaled.lm_head.register_forward_hook(lambda _, __, logits: logits / 0.6)
    batch, wanted = sample(model, PROMPTS, temperature=0.6, **given), sample(scaled, PROMPTS, **given)
    assert rows(batch) == rows(wanted) != rows(sample(model, PROMPTS, **given))
    v = normal_direction(model)
    assert_same(measure(model, batch, v, [1e-6]), measure(scaled, wanted, v, [1e-6]), tolerance=1e-10)
    np.testing.assert_allclose(known(batch.sampler_logp), known(wanted.sampler_logp), rtol=1e-10)
    other = Batch.from_sequences(batch.sequences, batch.prompt_lengths, batch.token_counts, temperature=0.6)
    assert_same(measure(model, other, v, [1e-6]), measure(scaled, wanted, v, [1e-6]), tolerance=1e-10)


def test_a_vocabulary_padded_with_minus_infinity_is_that_without_the_padding() -> None:
    model, padded = tiny().double(), tiny().double()
    padding = torch.nn.functional.pad
    padded.lm_head.register_forward_hook(lambda _, __, logits: padding(logits, (0, 5), value=-torch.inf))
    batches = [sample(each, PROMPTS, max_new_tokens=12, eos=0, seed=3) for each in (model, padded)]
    assert rows(batches[0]) == rows(batches[1])
    v = normal_direction(model, 1e-2)
    runs = [measure(each, batches[0], v, [1e-3, 0.3]) for each in (model, padded)]
    assert_same(*runs, tolerance=1e-12)


@pytest.mark.parametrize("cap", [2.0, 1e6])
def test_the_log_probability_is_that_of_the_policy_as_it_is(cap: float) -> None:
    model = Plain(tiny().double(), cap)
    run = measure(model, sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3), normal_direction(model), [1e-6])
    np.testing.assert_allclose(known(run.sampler_logp), known(run.logp), atol=1e-10)
    assert (known(run.sampler_logp) < 0).all()


def test_equal_prompts_have_equal_ids_in_every_batch() -> None:
    ids = sample(tiny(), PROMPTS, max_new_tokens=2, eos=0, seed=3).prompt_ids.tolist()
    assert ids[0] == ids[1] == ids[4]
    assert ids[3] == ids[5]
    assert len(set(ids)) == 3
    assert Batch.from_sequences([[9, 9, 0], [1, 5, 4]], [1, 2], [2, 1]).prompt_ids[1] == ids[0]
    assert max(ids) < 2**53  # exact in JSON


def test_sampling_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = tiny().train()
    model.transformer.h[0].train(False)
    modes = [module.training for module in model.modules()]
    before = torch.random.get_rng_state()
    sample(model, PROMPTS, max_new_tokens=4, eos=0, seed=3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_no_batch_is_refused() -> None:
    for arguments, message in (
        (([[1, 2]], [1], [0]), "token_counts must hold whole numbers of at least 1"),
        (([[1, 2]], [0], [2]), "prompt_lengths must hold whole numbers of at least 1"),
        (([[1, 2]], [1], [2]), r"ids\[0\] must hold prompt and response, 3 tokens, got 2"),
        (([[1, 2]], [1], [1.0]), r"token_counts must hold whole numbers of at least 1, .*, got \[1.0\]"),
        (
            ([[1, 2], [1, 2]], [1], [1, 1]),
            r"prompt_lengths must hold whole numbers of at least 1, one for each of the 2 sequences, got \[1\]",
        ),
        (([[1, -2]], [1], [1]), r"ids\[0\] must hold whole numbers of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Batch.from_sequences(*arguments)
    with refused("prompt_ids must hold one whole number or text for each of the 1 sequences"):
        Batch.from_sequences([[1, 2]], [1], [1], prompt_ids=[1, 2])
    with refused("sampler_logp must have one value for each of the 1 sequences"):
        Batch.from_sequences([[1, 2]], [1], [1], sampler_logp=[-1.0, -2.0])
    given: dict[str, Any] = {"max_new_tokens": 4, "eos": 0, "seed": 0}
    for prompts, options, message in (
        ([], {}, "number of prompts must be a whole number of at least 1, got 0"),
        ([[1], []], {}, r"prompts\[1\] must hold whole numbers of at least 0, at least one, got \[\]"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ([[11]], {}, "must be below the size of the model's vocabulary, .*, got ids up to 11"),
        ([[1]], {"max_new_tokens": 66, "eos": None}, "prompt and response no longer than its positions"),
        ([[1]], {"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ([[1]], {"temperature": float("nan")}, "temperature must be finite"),
        ([[1]], {"microbatch": 0}, "microbatch must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(tiny(), prompts, **given | options)


def test_prompts_are_drawn_anew_and_each_before_any_comes_again() -> None:
    prompts = [[k] for k in range(5)]
    drawn = drawn_prompts(prompts, 12, [1, 2])
    assert sorted(map(list, drawn[:5])) == sorted(map(list, drawn[5:10])) == prompts
    assert len(drawn) == 12
    assert drawn == drawn_prompts(prompts, 12, [1, 2]) != drawn_prompts(prompts, 12, [1, 3])


def test_saved_models_and_files_of_prompts_are_read(tmp_path: Path) -> None:
    model, path = tiny(), tmp_path / "prompts.jsonl"
    model.bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    path.write_text(
        '{"prompt": "<bos> d"}\n\n{"prompt": [{"role": "user", "content": "d\u2028e"}]}\n', encoding="utf-8"
    )
    policy, prompts, eos = load_policy(tmp_path, path)
    assert (prompts, eos) == ([[1, 5], [1, 5, 6]], [0])
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    for content, message in (
        (json.dumps({"text": "d"}), 'jsonl, line 1: must be an object with "prompt", .*, got {"text": "d"}'),
        ('{"prompt": ""}', 'jsonl, line 1: must be .* of at least one token, got {"prompt": ""}'),
        ("Say d", 'jsonl, line 1: must be an object with "prompt", .*, got Say d'),
        ("\n", "prompts must hold at least one prompt, got none in .*prompts.jsonl"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_policy(tmp_path, path)
    path.write_text('{"prompt": "d"}', encoding="utf-8")
    model.generation_config.eos_token_id = None
    model.generation_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model must name the token that ends a response \(eos_token_id"):
        load_policy(tmp_path, path)
