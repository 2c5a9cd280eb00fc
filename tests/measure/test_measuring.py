"""Measured runs against enumeration, against the synthetic policy, and against themselves."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from analysis_helpers import Run, run_health
from analysis_helpers._checks import RunWarning
from analysis_helpers.measure import Batch, entropy_baseline, load_model, measure, sample
from analysis_helpers.measure.measuring import fingerprint
from analysis_helpers.synthetic.policy import entropy_derivative, sample_sequences
from analysis_helpers.synthetic.runs import default_policy, evaluate, update_direction
from tests.calibration.drawing import short_policy
from tests.measure.models import MODELS, TabularPolicy, as_batch, assert_same, columns, known, normal_direction, tiny
from tests.measure.precision import noise_table

PROMPTS = [[1, 5], [3], [2, 4, 6], [1, 5]] * 5


def responses(model: Any, prompts: list[list[int]] = PROMPTS) -> Batch:
    return sample(model, prompts, max_new_tokens=12, eos=0, seed=3)


def both_ways(model: Any, batch: Batch, v: dict[str, torch.Tensor], eta: float) -> list[Run]:
    """Return the run by the midpoint and the run by differences."""
    return [measure(model, batch, v, [eta]), measure(model, batch, v, [eta], change="difference")]


def moved(model: Any, v: dict[str, torch.Tensor], eta: float) -> Any:
    """Return the model with its parameters moved by ``eta * v``."""
    other = copy.deepcopy(model)
    for name, values in v.items():
        other.get_parameter(name).data.add_(values, alpha=eta)
    return other


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enumerated() -> tuple[Any, Batch, dict[str, torch.Tensor]]:
    """Return a model of five tokens with all its responses of at most five: 0 ends one, and five tokens cut it."""
    model = tiny(vocab_size=5).double()
    rows = [(*row, 0) for t in range(5) for row in itertools.product(range(1, 5), repeat=t)]
    rows += itertools.product(range(1, 5), repeat=5)
    assert len(rows) == 1365
    batch = Batch.from_sequences([[1, *row] for row in rows], [1] * len(rows), [len(row) for row in rows])
    return model, batch, normal_direction(model, seed=4)


def exact_entropy(model: torch.nn.Module, batch: Batch, v: dict[str, torch.Tensor]) -> float:
    run = measure(model, batch, v, [1e-6], microbatch=512)
    probability = np.exp(known(run.logp))
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    return float(probability @ known(run.measurements[0].h_base) / (probability @ run.token_counts))


def test_the_expected_linear_change_is_the_derivative_of_the_exact_entropy(enumerated: Any) -> None:
    model, batch, v = enumerated
    h = 1e-4
    around = [exact_entropy(moved(model, v, step), batch, v) for step in (-2 * h, -h, h, 2 * h)]
    derivative = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * h)
    entropy = exact_entropy(model, batch, v)
    for baseline in (np.zeros(5), np.array([1.0, -3.0, 0.5, 2.0, 7.0])):  # any that is fixed
        run = measure(model, batch, v, [1e-6], microbatch=512, baseline=baseline)
        probability, found = np.exp(known(run.logp)), columns(run)
        # In the expectation over responses, the per-token entropy is that of all of them, not of the list.
        linear = found["wjlogp_sum"] + found["jH_sum"] - entropy * run.token_counts * found["score"]
        assert probability @ linear / (probability @ run.token_counts) == pytest.approx(derivative, rel=1e-6)


@pytest.mark.parametrize("change", ["midpoint", "difference"])
def test_the_expected_true_change_is_that_of_the_exact_entropy(enumerated: Any, change: Any) -> None:
    model, batch, v = enumerated
    run, before = measure(model, batch, v, [2.5e-4, 1e-3], microbatch=512, change=change), exact_entropy(*enumerated)
    for m in run.measurements:
        weights = np.exp(known(run.logp) + known(m.log_weights))
        after = exact_entropy(moved(model, v, m.eta), batch, v)
        assert weights @ m.h_new / (weights @ run.token_counts) == pytest.approx(after, abs=1e-6)
        assert abs(after - before) > 1e-4


@pytest.mark.parametrize("baseline", ["entropy_to_go", "none"])
def test_the_synthetic_policy_gives_the_same_arrays(baseline: str) -> None:
    policy, rng = default_policy(), np.random.default_rng(0)
    direction, update_batch = update_direction(policy, rng)
    at = np.zeros(policy.max_length)
    if baseline == "entropy_to_go":
        entropies = policy.state_entropies()[update_batch.places]
        at = update_batch.baseline(entropies, policy.max_length, "entropy_to_go")
    drawn, etas = sample_sequences(policy, 64, rng), [1.6e-6, 3.2e-6]
    wanted = evaluate(policy, direction, drawn, etas, at)
    model, v = TabularPolicy(policy), {"table": torch.from_numpy(direction)}
    run = measure(model, as_batch(policy, drawn), v, etas, change="difference", baseline=at)
    assert_same(run, wanted, tolerance=1e-10)
    np.testing.assert_allclose(known(run.gdotv), known(wanted.gdotv), rtol=0, atol=1e-10 * abs(run.delta_h_per_lr))
    middle = measure(model, as_batch(policy, drawn), v, etas, baseline=at)
    for m, exact in zip(middle.measurements, wanted.measurements, strict=True):
        np.testing.assert_allclose(known(m.log_weights), known(exact.log_weights), atol=1e-6)
        assert m.delta_h_true == pytest.approx(exact.delta_h_true, rel=1e-5)


@pytest.mark.parametrize(("policy", "size"), [(short_policy(), 64), (default_policy(), 32)], ids=["short", "long"])
def test_the_baseline_makes_the_linear_change_four_times_as_precise_and_no_less_true(policy: Any, size: int) -> None:
    """Over 200 batches, against the exact derivative; a mean beyond 3 SE comes by chance in 0.3 % of seeds.

    The SD with entropy-to-go alone is 5 to 7 times as large, for responses of 20 and of 115 tokens.
    """
    rng = np.random.default_rng(8)
    direction, update_batch = update_direction(policy, rng)
    exact = entropy_derivative(policy, direction)
    model, v = TabularPolicy(policy), {"table": torch.from_numpy(direction)}
    pilot = as_batch(policy, update_batch)
    fixed: dict[str, Any] = {"leave_one_out": None}
    for kind in ("centred", "entropy_to_go"):
        fixed[kind] = entropy_baseline(model, pilot, policy.max_length, kind=kind, microbatch=512)
    found: dict[str, list[float]] = {kind: [] for kind in fixed}
    for _ in range(200):
        batch = as_batch(policy, sample_sequences(policy, size, rng))
        for kind, baseline in fixed.items():
            run = measure(model, batch, v, [1e-9], microbatch=size, baseline=baseline)
            found[kind].append(run.delta_h_per_lr / exact)
    spread = {kind: np.std(values, ddof=1) for kind, values in found.items()}
    for kind, values in found.items():
        assert abs(np.mean(values) - 1) < 3 * spread[kind] / 200**0.5, kind
    assert max(spread["leave_one_out"], spread["centred"]) < spread["entropy_to_go"] / 4


def test_the_baseline_of_a_sequence_is_made_from_the_others_and_from_the_entropy_spent_where_there_are_none() -> None:
    """Two responses, of 1 and 3 tokens: for each, the other's entropy to go as a fixed baseline gives the same."""
    model, batch = tiny().double(), Batch.from_sequences([[1, 2], [1, 3, 4, 5]], [1, 1], [1, 3])
    v = normal_direction(model)
    run = measure(model, batch, v, [1e-6])
    entropy = run.measurements[0].base_entropy
    for i, alive in ((0, 3), (1, 1)):
        other = Batch.from_sequences([batch.sequences[1 - i]], [1], [3 - 2 * i])
        others = entropy_baseline(model, other, 3, kind="entropy_to_go") - entropy * alive
        others[alive:] = -entropy * np.arange(alive + 1, 4)
        wanted = columns(measure(model, batch, v, [1e-6], baseline=others))["wjlogp_sum"][i]
        assert columns(run)["wjlogp_sum"][i] == pytest.approx(wanted, rel=1e-10)


# --- the same, whichever way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_microbatches_padding_and_differences_change_nothing(name: str) -> None:
    model = tiny(name)
    batch, v = responses(model), normal_direction(model, 1e-2)
    wanted = measure(model, batch, v, [1e-2, 1e-1], microbatch=1)  # nothing to pad
    padded = [np.pad(ids, (0, 20 - len(ids)), constant_values=9) for ids in batch.sequences]
    again = Batch.from_sequences(padded, batch.prompt_lengths, batch.token_counts)
    for same, microbatch in ((batch, 7), (batch, 64), (again, 16)):
        assert_same(measure(model, same, v, [1e-2, 1e-1], microbatch=microbatch), wanted, tolerance=1e-4)
    # Llama's norm computes in float32 even here.
    assert_same(*both_ways(model.double(), batch, v, 0.02), tolerance=1e-5 if name == "gpt2" else 1e-3)


def test_above_an_sd_of_a_fifth_two_points_are_taken() -> None:
    model = tiny().double()
    batch, v = responses(model, PROMPTS * 4), normal_direction(model, 1e-2)
    for eta, wide in ((0.1, False), (0.8, True)):
        logs, exact = (known(run.measurements[0].log_weights) for run in both_ways(model, batch, v, eta))
        assert (np.std(exact) > 0.2) == wide
        assert np.abs(logs - exact).max() < 3e-3 * np.std(exact)


def test_memory_follows_the_tokens_where_one_response_is_long() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(5, 5))
    model.forward = lambda input_ids: model[0](input_ids)  # type: ignore[method-assign]
    v = {"0.weight": torch.eye(5)}

    def peak(counts: list[int]) -> int:
        batch = replace(Batch.from_sequences([[1] * (n + 1) for n in counts], [1] * 500, counts), full_softmax=True)
        tracemalloc.start()
        try:
            measure(model, batch, v, [1e-3])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak([1] * 500)  # what PyTorch imports at its first use
    assert peak([2000] + [1] * 499) < 2 * peak([5] * 500)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_output_layer_sees_response_tokens_only_and_in_chunks(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    model.set_attn_implementation(attention)
    batch, v = responses(model), normal_direction(model, 1e-2)
    wanted, seen = measure(model, batch, v, [1e-2]), list[int]()
    monkeypatch.setattr("analysis_helpers.measure.derivatives._CHUNK", 33)  # three tokens of 11 logits
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output[..., 0].numel()))
    assert_same(measure(model, batch, v, [1e-2], microbatch=3), wanted, tolerance=1e-5)
    assert max(seen) == 3


# One library about the other, where both are new.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft_are_measured_one_at_a_time_and_checkpointing_is_left_as_it_was() -> None:
    lora = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False, fan_in_fan_out=True)
    model: Any = get_peft_model(tiny().double(), lora, adapter_name="one")
    model.add_adapter("two", lora)
    for active in ("one", "two"):
        model.set_adapter(active)
        batch, v = responses(model), normal_direction(model, 0.05)
        assert all(f".{active}." in name for name in v)
        run, check = both_ways(model, batch, v, 1e-3)
        assert_same(run, check, tolerance=1e-5)
        assert np.std(known(check.measurements[0].log_weights)) > 1e-4
        assert model.active_adapter == active
    model.base_model.model.enable_input_require_grads()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.train()
    assert_same(measure(model, batch, v, [1e-3]), run, tolerance=1e-9)
    assert model.training
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tied_weights_are_moved_by_either_name() -> None:
    model = tiny()
    values = torch.sin(torch.arange(176.0)).reshape(11, 16)
    runs = [
        measure(model, responses(model), {f"{name}.weight": values}, [1e-4]) for name in ("transformer.wte", "lm_head")
    ]
    assert runs[0] == runs[1]
    assert runs[0].direction == fingerprint({"transformer.wte.weight": values})


def test_in_low_precision_derivatives_are_exact_where_differences_drown() -> None:
    noise = noise_table().set_index(["precision", "change"])["noise"]
    assert noise["float32", "midpoint"] < 1e-6
    assert noise["tf32", "midpoint"] < 1e-4
    assert noise["bf16", "midpoint"] < 1e-2
    assert noise["tf32", "difference"] > 0.05
    assert noise["bf16", "difference"] > 0.9


def test_a_measured_run_is_in_good_health() -> None:
    model = tiny()
    batch, v = responses(model, PROMPTS * 20), normal_direction(model, 1e-2)
    run = measure(model, batch, v, [1e-2, 2e-2], microbatch=128)
    assert run.problems == ()
    health = run_health({"run_01": run})
    assert health[health["flag"]].empty
    assert set(run.supports) >= {"linear", "score", "baseline_entropy", "logp", "prompts"}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Batch, dict[str, torch.Tensor]]:
    model = tiny()
    return model, sample(model, PROMPTS, max_new_tokens=6, eos=0, seed=3), normal_direction(model)


def test_a_direction_that_the_model_has_not_and_other_arguments_are_refused(measured: Any) -> None:
    model, batch, v = measured
    name = "transformer.wte.weight"
    for wrong, etas, options, message in (
        ({"wte.weight": v[name]}, [1e-6], {}, "'wte.weight' is not in the model"),
        ({name: v[name][:2]}, [1e-6], {}, r"must have shape \(11, 16\), got \(2, 16\)"),
        ({name: v[name] * torch.nan}, [1e-6], {}, "must be finite"),
        ({name: 0 * v[name]}, [1e-6], {}, "v must move something"),
        (v, [], {}, "etas must hold at least one step size, and each once"),
        (v, [-1.0], {}, "^etas must be a positive step size, got -1.0"),
        (v, [1e-6, 1e-6], {}, "etas must hold at least one step size, and each once"),
        (v, [1e-6], {"change": "middle"}, "change must be one of 'midpoint', 'difference', got 'middle'"),
        (v, [1e-6], {"microbatch": 0}, "microbatch must be a whole number"),
        (v, [1e-6], {"baseline": [0.0, np.nan]}, "^baseline must be finite, got nan at position 1"),
        (v, [1e-6], {"baseline": np.zeros(3)}, "baseline must have a value for each of the 6 positions, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(model, batch, wrong, etas, **options)


def test_low_precision_is_refused_where_it_matters(measured: Any) -> None:
    model, batch, v = measured
    half = tiny().bfloat16()
    with pytest.raises(ValueError, match=r"lost in the rounding of bfloat16 .*load the model in float32"):
        measure(half, batch, v, [1e-6])
    measure(half, batch, {name: values * 1e-2 for name, values in v.items()}, [1.0])  # one that is large enough
    with pytest.raises(ValueError, match=r"low precision, .*; got torch.bfloat16, autocast False, TF32 False"):
        measure(half, batch, v, [1e-2], change="difference")
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"got torch.float32, autocast True"):
        measure(model, batch, v, [1e-2], change="difference")
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match=r"got torch.float32, autocast False, TF32 True"):
            measure(model, batch, v, [1e-2], change="difference")
    finally:
        torch.set_float32_matmul_precision("highest")


class Twice(torch.autograd.Function):
    """A function with a backward, but no forward mode, as kernels of others have."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return 2 * x


def test_what_has_no_forward_mode_is_refused(measured: Any) -> None:
    def flash(_: Any, __: Any, x: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]

    _, batch, v = measured
    batch = dataclasses.replace(batch, sampler_logp=None)  # the hooks make another policy
    model = tiny()
    handle = model.transformer.ln_f.register_forward_hook(flash)
    with pytest.raises(ValueError, match=r"operations that have a forward mode: Trying to use forward AD"):
        measure(model, batch, v, [1e-6])
    handle.remove()
    handle = model.transformer.ln_f.register_forward_hook(lambda _, __, x: Twice.apply(x))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"forward mode: You must implement the jvp function"):
        measure(model, batch, v, [1e-6])
    handle.remove()
    measure(model, batch, v, [1e-6])  # the refusal left nothing behind
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'eager' or 'sdpa', got 'flash_attention_2'"):
        measure(model, batch, v, [1e-6])
    model = tiny()
    model.packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="model must not be quantised"):
        measure(model, batch, v, [1e-6])


def test_a_mixture_of_experts_has_its_change_taken_by_differences(tmp_path: Path) -> None:
    """Log pi jumps where a token changes experts, which derivatives do not see."""
    model = tiny("mixtral")
    model.save_pretrained(tmp_path)
    batch, v = responses(model), normal_direction(model)
    with pytest.raises(ValueError, match=r"\(load it with experts_implementation='eager'\): .*_grouped_mm"):
        measure(model, batch, v, [1e-3])
    model = load_model(tmp_path).double()
    with pytest.warns(RunWarning, match=r"derivatives miss \d+% of the change along the step: it jumps"):
        run = measure(model, batch, v, [1e-3])
    exact = measure(model, batch, v, [1e-3], change="difference")
    assert run == exact
    smooth = 1e-3 * known(exact.score)
    assert np.std(known(exact.measurements[0].log_weights) - smooth) > 0.2 * np.std(smooth)


def test_an_eta_too_large_for_the_batch_is_warned_about(measured: Any) -> None:
    model, batch, v = measured
    with pytest.warns(RunWarning, match=r"eta 0\.3: the effective sample size is \d+ of 20 sequences"):
        measure(model, batch, v, [0.3])
