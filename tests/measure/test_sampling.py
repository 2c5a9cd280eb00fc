"""Sampled responses, batches from elsewhere, saved models and files of prompts."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.stats import chi2

from analysis_helpers._checks import RunWarning, notes_on_runs
from analysis_helpers.measure import (
    Batch,
    drawn_prompts,
    load_policy,
    measure,
    read_prompts,
    read_responses,
    sample,
)
from analysis_helpers.measure.truncation import warn_if_truncated
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
        ([[11]], {}, "model must accept token ids up to 11, .*; it raised IndexError"),
        ([[1]], {"max_new_tokens": 66, "eos": None}, "model must accept .* 65 tokens of prompt and response"),
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


# --- from elsewhere --------------------------------------------------------------------------------------------------


def request(prompt: list[int], *responses: list[int], logp: float | None = -1.0, finish: str = "stop") -> Any:
    """Return what vLLM's ``LLM.generate`` returns for a prompt: a ``RequestOutput`` with its ``CompletionOutput``."""
    outputs = [
        SimpleNamespace(token_ids=tuple(ids), cumulative_logprob=logp, finish_reason=finish) for ids in responses
    ]
    return SimpleNamespace(prompt_token_ids=prompt, outputs=outputs)


def test_outputs_of_vllm_and_a_file_of_token_ids_are_the_same_batch(tmp_path: Path) -> None:
    batch = Batch.from_vllm([request([1, 5], [3, 0], [4]), request([2], [0])], temperature=0.7)
    assert rows(batch) == [[1, 5, 3, 0], [1, 5, 4], [2, 0]]
    assert (batch.token_counts.tolist(), batch.temperature, batch.full_softmax) == ([2, 1, 1], 0.7, False)
    assert batch.prompt_ids[0] == batch.prompt_ids[1] != batch.prompt_ids[2]
    lines = [
        {"prompt": row[:k].tolist(), "response": row[k:].tolist(), "sampler_logp": -1.0}
        for row, k in zip(batch.sequences, batch.prompt_lengths, strict=True)
    ]
    path = tmp_path / "responses.jsonl"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text("\n\n".join(map(json.dumps, lines)), encoding=encoding)
        read = read_responses(path, temperature=0.7)
        assert rows(read) == rows(batch)
        assert known(read.sampler_logp).tolist() == known(batch.sampler_logp).tolist() == [-1.0] * 3
        assert read.prompt_ids.tolist() == batch.prompt_ids.tolist()
        assert read.temperature == 0.7
    assert Batch.from_vllm([request([1], [0], logp=None)]).sampler_logp is None
    with pytest.raises(ValueError, match="outputs must be complete, 2 were aborted"):
        Batch.from_vllm([request([1], [0]), request([1], [4], [4], finish="abort")])
    for content, message in (
        ("[1, 2]", r"line 1: must be an object with lists of token ids, .*, got \[1, 2\]"),
        ('{"prompt": "d", "response": [0]}', "line 1: must be an object with lists of token ids"),
        ('{"prompt": [1], "response": [0], "logp": -1}', "line 1: must be an object .*sampler_logp. is optional, got"),
        ('{"prompt": [1], "response": [0', "line 1: must be JSON "),
        ('{"prompt": [1], "response": []}', "token_counts must hold whole numbers of at least 1"),
        ("\n", "must have at least one line"),
        (json.dumps(lines[0]) + '\n{"prompt": [1], "response": [0]}', "on every line or on none, missing on 1"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_responses(path)


@pytest.mark.parametrize("kind", ["object", "numpy_nullable", "pyarrow", "table", "tensor"])
def test_columns_of_other_libraries_are_taken(kind: Any) -> None:
    ids, lengths, counts, names, logp = [[5, 6, 1], [5, 2, 1]], [2, 1], [1, 2], ["a", "b"], [-1.0, -2.0]
    frame = pd.DataFrame({"ids": ids, "prompts": lengths, "counts": counts, "names": names, "logp": logp}, index=[7, 9])
    given: Any = (
        frame if kind == "object" else frame.convert_dtypes(dtype_backend=kind) if "t" not in kind[:2] else None
    )
    if kind == "table":
        given = pa.Table.from_pandas(frame)
    if kind == "tensor":
        given = {"ids": torch.tensor(ids), "prompts": torch.tensor(lengths), "counts": torch.tensor(counts)}
        given |= {"names": names, "logp": torch.tensor(logp, dtype=torch.bfloat16, requires_grad=True)}
    named = {"prompt_ids": given["names"], "sampler_logp": given["logp"]}
    batch = Batch.from_sequences(given["ids"], given["prompts"], given["counts"], **named)
    assert rows(batch) == [[5, 6, 1], [5, 2, 1]]
    assert (batch.prompt_ids.tolist(), known(batch.sampler_logp).tolist()) == (names, logp)


class Truncated(torch.nn.Module):
    """A model whose tokens beyond the k likeliest, or beyond probability p, or below m times the likeliest, are cut."""

    def __init__(self, model: Any, *, top_k: int = 10**6, top_p: float = 1.0, min_p: float = 0.0) -> None:
        super().__init__()
        self.inner, self.limits = model, (top_k, top_p, min_p)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits of the next token, -inf for those cut."""
        logits, (top_k, top_p, min_p) = self.inner(input_ids=input_ids).logits, self.limits
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        kept = (torch.arange(ordered.shape[-1]) < top_k) & (ordered.cumsum(dim=-1) - ordered < top_p)
        kept &= ordered >= min_p * ordered[..., :1]
        cut: torch.Tensor = logits.masked_fill(~torch.zeros_like(kept).scatter(-1, order, kept), -torch.inf)
        return cut


def notes_on(model: Any, sampler: Any, seed: int) -> list[str]:
    """Return what is said of 64 responses drawn by a sampler, as responses from elsewhere."""
    batch = sample(sampler, [[1, 2 + k % 7] for k in range(64)], max_new_tokens=24, eos=0, seed=seed)
    with notes_on_runs() as notes:
        warn_if_truncated(model, replace(batch, full_softmax=False))
    return notes


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_sampler_that_truncates_is_found_and_none_that_does_not(scale: float) -> None:
    """Policies with entropies of 5.0 and 2.2 nats per token; a false alarm has probability 0.0001."""
    model = tiny(vocab_size=300)
    model.lm_head.register_forward_hook(lambda _, __, logits: scale * logits)
    for seed in range(8):
        assert notes_on(model, model, seed) == []
    for limit, said in (
        ({"top_k": 50}, "none is beyond the (4[5-9]|50) likeliest of 300"),
        ({"top_p": 0.9}, r"none is beyond the likeliest with probability 0\.\d+ together"),
        ({"min_p": 0.05}, r"none is beyond those 0\.05\d* times as likely as the likeliest"),
    ):
        [note] = notes_on(model, Truncated(model, **limit), 0)
        assert re.search(said, note)


def test_measuring_says_what_another_sampler_left_out() -> None:
    model = tiny(vocab_size=300)
    batch = sample(Truncated(model, top_k=20), [[1]] * 32, max_new_tokens=12, eos=0, seed=0)
    v = normal_direction(model)
    with pytest.warns(RunWarning, match="the sampler seems to truncate: .* none is beyond the 20 likeliest of 300"):
        measure(model, replace(batch, full_softmax=False, sampler_logp=None), v, [1e-6])


# --- files of prompts ------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the folder of a model and its tokenizer."""
    tiny().bfloat16().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_saved_models_are_read_in_float32(saved: Path) -> None:
    path = saved / "prompts.jsonl"
    path.write_text('{"prompt": "<bos> d"}', encoding="utf-8")
    policy, prompts, eos = load_policy(saved, path)
    assert (prompts, eos) == ([[1, 5]], [0])
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    policy.generation_config.eos_token_id = None
    policy.generation_config.save_pretrained(saved)
    with pytest.raises(ValueError, match=r"model must name the token that ends a response \(eos_token_id"):
        load_policy(saved, path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_line_of_prompts_is_a_text_a_conversation_or_token_ids(saved: Path, encoding: str) -> None:
    path = saved / "prompts.jsonl"
    lines = ['{"prompt": "<bos> d"}', "", '"<bos> e"', '{"prompt": [1, 7]}', "[1, 8]"]
    lines.append('{"prompt": [{"role": "user", "content": "d\u2028e"}]}')
    path.write_text("\r\n".join(lines), encoding=encoding)
    assert read_prompts(path, saved) == [[1, 5], [1, 6], [1, 7], [1, 8], [1, 5, 6]]
    for content, message in (
        (json.dumps({"text": "d"}), 'jsonl, line 1: must be a text, or an object with "prompt".*, got {"text": "d"}'),
        ('"d"\n{"prompt": ""}', 'jsonl, line 2: must be .* not empty, got {"prompt": ""}'),
        ('["d"]', r"jsonl, line 1: must be a text.*, got \[\"d\"\]"),
        ("Say d", "jsonl, line 1: must be JSON .*, got Say d"),
        ("\n", "prompts.jsonl must have at least one line"),
    ):
        path.write_text(content, encoding=encoding)
        with pytest.raises(ValueError, match=message):
            read_prompts(path, saved)


def test_a_doubled_beginning_and_an_end_are_said(saved: Path) -> None:
    path = saved / "prompts.jsonl"
    path.write_text('"<bos> d"\n"<bos> <bos> d"\n"<bos> <bos> e <eos>"', encoding="utf-8")
    with notes_on_runs() as notes:
        assert read_prompts(path, saved)[1:] == [[1, 1, 5], [1, 1, 6, 0]]
    assert [note.split(": ")[0] for note in notes] == [
        "2 of 3 prompts begin twice with the token that begins a text (1)",
        "1 of 3 prompts end with the token that ends a text (0)",
    ]
    assert [note[-6:] for note in notes] == ["line 2", "line 3"]
