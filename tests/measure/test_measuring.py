"""Measured runs against enumeration, against the synthetic policy, and against themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model

from analysis_helpers import Run, run_health, synthetic_runs
from analysis_helpers._checks import RunWarning
from analysis_helpers.measure import Batch, entropy_baseline, measure, sample
from analysis_helpers.measure.measuring import fingerprint
from analysis_helpers.runs import integrity_problems
from analysis_helpers.synthetic.policy import entropy_derivative, sample_sequences
from analysis_helpers.synthetic.runs import default_policy, entropy_to_go_baseline, evaluate, update_direction
from analysis_helpers.synthetic.validation import short_policy
from tests.measure.models import MODELS, TabularPolicy, as_batch, gpt2, known, normal_direction
from tests.measure.precision import noise_table

# One library about the other, where both are new.
OWN_WARNING = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
PROMPTS = [[1, 5], [3], [2, 4, 6], [1, 5]] * 5


def every_response(vocabulary: int, length: int) -> Batch:
    """Return every response to the prompt [1] of tokens 0 (the end) to vocabulary - 1, cut at a length."""
    inner = range(1, vocabulary)
    rows: list[tuple[int, ...]] = [(*row, 0) for t in range(length) for row in itertools.product(inner, repeat=t)]
    rows.extend(itertools.product(inner, repeat=length))
    return Batch.from_sequences([[1, *row] for row in rows], [1] * len(rows), [len(row) for row in rows])


@contextmanager
def moved(model: torch.nn.Module, v: dict[str, torch.Tensor], eta: float) -> Iterator[None]:
    """Move the parameters by ``eta * v`` meanwhile."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, values in v.items():
            model.get_parameter(name).add_(values, alpha=eta)
    yield
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(kept[name])


def terms(run: Run) -> NDArray[np.float64]:
    """Return the linear term of each sequence, unscaled."""
    assert run.score is not None
    return run.score.wjlogp_sum + run.score.jH_sum + run.score.denom_corr_unscaled


def columns(run: Run) -> dict[str, NDArray[np.float64]]:
    """Return every recorded column by name."""
    assert run.score is not None
    found = {"tokens": run.token_counts, "logp": known(run.logp), "terms": terms(run), "jH": run.score.jH_sum}
    for m in run.measurements:
        found |= {"h_base": known(m.h_base), f"h_new {m.eta}": m.h_new, f"log_weights {m.eta}": known(m.log_weights)}
    return found


def assert_same(one: Run, other: Run, tolerance: float) -> None:
    for name, values in columns(one).items():
        wanted = columns(other)[name]
        np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(), err_msg=name)


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def enumerated() -> tuple[Any, Batch, dict[str, torch.Tensor]]:
    model = gpt2(vocab_size=5).double()
    return model, every_response(5, 5), normal_direction(model, seed=4)


def exact_entropy(model: torch.nn.Module, batch: Batch, v: dict[str, torch.Tensor]) -> float:
    run = measure(model, batch, v, [1e-6], microbatch=512)
    return float(
        np.exp(known(run.logp)) @ known(run.measurements[0].h_base) / (np.exp(known(run.logp)) @ run.token_counts)
    )


def test_the_expected_linear_change_is_the_derivative_of_the_exact_entropy(enumerated: Any) -> None:
    model, batch, v = enumerated
    assert len(batch) == 1365
    h = 1e-4
    around = []
    for step in (-2 * h, -h, h, 2 * h):
        with moved(model, v, step):
            around.append(exact_entropy(model, batch, v))
    derivative = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * h)
    for baseline in (np.zeros(5), np.array([1.0, -3.0, 0.5, 2.0, 7.0])):  # any that is fixed
        run = measure(model, batch, v, [1e-6], microbatch=512, baseline=baseline)
        probability = np.exp(known(run.logp))
        assert probability.sum() == pytest.approx(1, abs=1e-12)
        # In the expectation over responses, the per-token entropy is that of all of them, not of the list.
        assert run.score is not None
        score = -run.score.denom_corr_unscaled / run.score.h_base_mean
        linear = run.score.wjlogp_sum + run.score.jH_sum - exact_entropy(model, batch, v) * score
        expected = probability @ linear / (probability @ run.token_counts)
        assert expected == pytest.approx(derivative, rel=1e-6)


@pytest.mark.parametrize("change", ["midpoint", "difference"])
@pytest.mark.parametrize("eta", [2.5e-4, 1e-3])
def test_the_expected_true_change_is_that_of_the_exact_entropy(enumerated: Any, change: Any, eta: float) -> None:
    model, batch, v = enumerated
    run = measure(model, batch, v, [eta], microbatch=512, change=change)
    [m] = run.measurements
    weights = np.exp(known(run.logp) + known(m.log_weights))
    with moved(model, v, eta):
        after = exact_entropy(model, batch, v)
    assert weights @ m.h_new / (weights @ run.token_counts) == pytest.approx(after, abs=1e-6)
    assert abs(after - exact_entropy(model, batch, v)) > 1e-4


@pytest.mark.parametrize("baseline", ["entropy_to_go", "none"])
def test_the_synthetic_policy_gives_the_same_arrays(baseline: str) -> None:
    policy, rng = default_policy(), np.random.default_rng(0)
    direction, update_batch = update_direction(policy, rng)
    at = entropy_to_go_baseline(policy, update_batch) if baseline == "entropy_to_go" else np.zeros(policy.max_length)
    drawn, etas = sample_sequences(policy, 64, rng), [1.6e-6, 3.2e-6]
    wanted = evaluate(policy, direction, drawn, etas, at)
    model, v = TabularPolicy(policy), {"table": torch.from_numpy(direction)}
    run = measure(model, as_batch(policy, drawn), v, etas, change="difference", baseline=at)
    assert run.score is not None
    assert wanted.score is not None
    np.testing.assert_allclose(known(run.gdotv), known(wanted.gdotv), rtol=0, atol=1e-10 * abs(run.delta_h_per_lr))
    for part in ("wjlogp_sum", "jH_sum", "denom_corr_unscaled"):
        values = getattr(wanted.score, part)
        np.testing.assert_allclose(getattr(run.score, part), values, rtol=0, atol=1e-10 * np.abs(values).max())
    for m, exact in zip(run.measurements, wanted.measurements, strict=True):
        np.testing.assert_allclose(known(m.h_base), known(exact.h_base), atol=1e-10)
        np.testing.assert_allclose(m.h_new, exact.h_new, atol=1e-10)
        np.testing.assert_allclose(known(m.log_weights), known(exact.log_weights), atol=1e-10)
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
    fixed = {
        "centred": entropy_baseline(model, pilot, policy.max_length, microbatch=512),
        "entropy_to_go": entropy_baseline(model, pilot, policy.max_length, kind="entropy_to_go", microbatch=512),
        "leave_one_out": None,
    }
    found: dict[str, list[float]] = {kind: [] for kind in fixed}
    for _ in range(200):
        batch = as_batch(policy, sample_sequences(policy, size, rng))
        for kind, baseline in fixed.items():
            run = measure(model, batch, v, [1e-9], microbatch=size, baseline=baseline)
            found[kind].append(run.delta_h_per_lr / exact)
    spread = {kind: np.std(values, ddof=1) for kind, values in found.items()}
    for kind, values in found.items():
        assert abs(np.mean(values) - 1) < 3 * spread[kind] / 200**0.5, kind
    assert spread["leave_one_out"] < spread["entropy_to_go"] / 4
    assert spread["centred"] < spread["entropy_to_go"] / 4


def test_where_no_other_sequence_is_alive_the_baseline_is_the_entropy_spent() -> None:
    """By hand: two responses, of 1 and 3 tokens; the longer is alone at positions 1 and 2."""
    model = gpt2().double()
    batch = Batch.from_sequences([[1, 2], [1, 3, 4, 5]], [1, 1], [1, 3])
    v = normal_direction(model)
    run = measure(model, batch, v, [1e-6])
    mean = run.measurements[0].base_entropy
    # A baseline enters as -sum_t b_t j_t, so unit vectors show j_t, and zeros the rest.
    plain = [measure(model, batch, v, [1e-6], baseline=b) for b in np.vstack((np.zeros(3), np.eye(3)))]
    parts = [each.score.wjlogp_sum for each in plain if each.score]
    j = np.array([parts[0] - part for part in parts[1:]])  # position, sequence
    first_of_longer = measure(model, batch[1:], v, [1e-6], baseline=np.zeros(3))
    cut = Batch.from_sequences([[1, 3]], [1], [1])
    spent = known(measure(model, cut, v, [1e-6], baseline=np.zeros(1)).measurements[0].h_base)
    to_go = first_of_longer.measurements[0].base_entropy * 3 - spent[0]
    wanted = [parts[0][0] - (to_go - 3 * mean) * j[0, 0]]
    wanted.append(parts[0][1] - (0 - mean) * j[0, 1] + 2 * mean * j[1, 1] + 3 * mean * j[2, 1])
    assert run.score is not None
    np.testing.assert_allclose(run.score.wjlogp_sum, wanted, rtol=1e-10)


# --- the same, whichever way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_microbatches_and_padding_change_nothing(name: str) -> None:
    model = MODELS[name]()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    v = normal_direction(model, scale=1e-2)
    wanted = measure(model, batch, v, [1e-2, 1e-1], microbatch=1)  # nothing to pad
    for microbatch in (7, 64):
        assert_same(measure(model, batch, v, [1e-2, 1e-1], microbatch=microbatch), wanted, 1e-4)
    padded = np.full((len(batch), 20), 9)
    for row, ids in zip(padded, batch.sequences, strict=True):
        row[: len(ids)] = ids
    again = Batch.from_sequences(list(padded), batch.prompt_lengths, batch.token_counts)
    assert_same(measure(model, again, v, [1e-2, 1e-1]), wanted, 1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_agree_with_differences(name: str) -> None:
    model = MODELS[name]().double()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    v = normal_direction(model, scale=1e-2)
    run, check = (measure(model, batch, v, [0.02], change=c) for c in ("midpoint", "difference"))
    # Llama's norm computes in float32 even here.
    assert_same(run, check, 1e-5 if name == "gpt2" else 1e-3)
    assert integrity_problems(run) == []


def test_above_an_sd_of_a_fifth_two_points_are_taken() -> None:
    model = gpt2().double()
    batch = sample(model, PROMPTS * 4, max_new_tokens=12, eos=0, seed=3)
    v = normal_direction(model, scale=1e-2)
    for eta, wide in ((0.1, False), (0.8, True)):
        run, check = (measure(model, batch, v, [eta], change=c) for c in ("midpoint", "difference"))
        logs, exact = (known(each.measurements[0].log_weights) for each in (run, check))
        assert (np.std(exact) > 0.2) == wide
        assert np.abs(logs - exact).max() < 1e-2 * np.std(exact)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_output_layer_in_chunks_is_the_whole(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    model.set_attn_implementation(attention)
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    v = normal_direction(model, scale=1e-2)
    wanted = measure(model, batch, v, [1e-2])
    monkeypatch.setattr("analysis_helpers.measure.measuring._CHUNK", 33)  # three tokens of 11 logits
    assert_same(measure(model, batch, v, [1e-2]), wanted, 1e-5)


def test_logits_that_a_model_changes_after_its_output_layer_are_measured_as_they_are() -> None:
    class Capped(torch.nn.Module):
        """A model with soft-capped logits, as Gemma 2."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = gpt2().double()

        def get_output_embeddings(self) -> Any:
            return self.inner.get_output_embeddings()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return 2 * torch.tanh(self.inner(input_ids=input_ids).logits / 2)

    model = Capped()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    run = measure(model, batch, normal_direction(model, scale=1e-2), [1e-2])
    np.testing.assert_allclose(known(run.logp), known(run.sampler_logp), atol=1e-10)


@OWN_WARNING
def test_adapters_of_peft_are_measured_one_at_a_time() -> None:
    config = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False, fan_in_fan_out=True)
    torch.manual_seed(0)
    model = get_peft_model(gpt2().double(), config, adapter_name="one")
    model.add_adapter("two", config)
    for active in ("one", "two"):
        model.set_adapter(active)
        batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
        v = normal_direction(model, scale=0.05)
        assert all(f".{active}." in name for name in v)
        run, check = (measure(model, batch, v, [1e-3], change=c) for c in ("midpoint", "difference"))
        assert_same(run, check, 1e-5)
        assert np.std(known(check.measurements[0].log_weights)) > 1e-4
        assert model.active_adapter == active


@OWN_WARNING
def test_gradient_checkpointing_is_left_as_it_was_found() -> None:
    config = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False, fan_in_fan_out=True)
    plain = get_peft_model(gpt2(), config)
    batch = sample(plain, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    v = normal_direction(plain, scale=0.05)
    wanted = measure(plain, batch, v, [0.02])
    inner: Any = plain.base_model.model
    inner.enable_input_require_grads()
    getattr(plain, "activation_checkpointing_enable", plain.gradient_checkpointing_enable)()
    plain.train()
    hooks = {name: list(module._forward_hooks) for name, module in plain.named_modules()}
    assert any(hooks.values())
    assert_same(measure(plain, batch, v, [0.02]), wanted, 1e-6)
    assert {name: list(module._forward_hooks) for name, module in plain.named_modules()} == hooks
    assert plain.training
    assert any(getattr(module, "gradient_checkpointing", False) for module in plain.modules())
    plain(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(p.grad is not None for p in plain.parameters() if p.requires_grad)


def test_parts_with_one_baseline_and_tied_weights_by_either_name() -> None:
    model = gpt2()
    batch = sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)
    v = {"transformer.wte.weight": torch.ones(11, 16).cumsum(0)}
    run = measure(model, batch, v, [1e-4])
    tied = measure(model, batch, {"lm_head.weight": v["transformer.wte.weight"]}, [1e-4])
    assert run == tied
    assert run.direction == fingerprint(v)


# --- precision -------------------------------------------------------------------------------------------------------


def test_in_low_precision_derivatives_are_exact_where_differences_drown() -> None:
    table = noise_table().set_index(["precision", "change"])["noise"]
    assert table["float32", "midpoint"] < 1e-6
    assert table["tf32", "midpoint"] < 1e-4
    assert table["bf16", "midpoint"] < 1e-2
    assert table["tf32", "difference"] > 0.05
    assert table["bf16", "difference"] > 0.9


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Batch, dict[str, torch.Tensor]]:
    model = gpt2()
    return model, sample(model, PROMPTS, max_new_tokens=6, eos=0, seed=3), normal_direction(model)


def test_a_direction_that_the_model_has_not_is_refused(measured: Any) -> None:
    model, batch, v = measured
    some = v["transformer.wte.weight"]
    for wrong, message in (
        ({"wte.weight": some}, "it has no 'wte.weight'"),
        ({"transformer.wte.weight": some[:2]}, r"must have shape \(11, 16\), got \(2, 16\)"),
        ({"transformer.wte.weight": some * torch.nan}, "must be finite"),
        ({"transformer.wte.weight": 0 * some}, "v must move something"),
        ({}, "v must move something"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(model, batch, wrong, [1e-6])


def test_arguments_are_checked(measured: Any) -> None:
    model, batch, v = measured
    for etas, options, message in (
        ([], {}, "etas must hold at least one step size, and each once"),
        ([-1.0], {}, "etas must be a positive step size, got -1.0"),
        ([1e-6, 1e-6], {}, "etas must hold at least one step size, and each once"),
        ([1e-6], {"change": "middle"}, "change must be one of 'midpoint', 'difference', got 'middle'"),
        ([1e-6], {"microbatch": 0}, "microbatch must be a whole number"),
        ([1e-6], {"baseline": np.zeros(3)}, "baseline must have a value for each of the 6 positions, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(model, batch, v, etas, **options)


def test_a_step_that_bfloat16_swallows_is_refused(measured: Any) -> None:
    _, batch, v = measured
    model = gpt2().bfloat16()
    with pytest.raises(ValueError, match=r"lost in the rounding of bfloat16 .*load the model in float32"):
        measure(model, batch, v, [1e-6])
    measure(model, batch, {name: values * 1e-2 for name, values in v.items()}, [1.0])  # one that is large enough


def test_differences_in_low_precision_are_refused(measured: Any) -> None:
    model, batch, v = measured
    with pytest.raises(ValueError, match="low precision: the model is in bfloat16"):
        measure(gpt2().bfloat16(), batch, v, [1e-2], change="difference")
    with torch.autocast("cpu"), pytest.raises(ValueError, match="low precision: autocast is on"):
        measure(model, batch, v, [1e-2], change="difference")
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match="low precision: TF32 is on"):
            measure(model, batch, v, [1e-2], change="difference")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_attention_without_forward_mode_is_refused(measured: Any) -> None:
    class Fast(torch.autograd.Function):
        """A kernel of its own, with a backward and no forward mode."""

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return 2 * gradient

    model, batch, v = measured
    model.config._attn_implementation, kept = "flash_attention_2", model.config._attn_implementation
    try:
        with pytest.raises(ValueError, match="'eager' or 'sdpa', got 'flash_attention_2'"):
            measure(model, batch, v, [1e-6])
    finally:
        model.config._attn_implementation = kept
    handle = model.transformer.ln_f.register_forward_hook(
        lambda _, __, output: Fast.apply(output)  # type: ignore[no-untyped-call]
    )
    try:
        with pytest.raises(ValueError, match="model must consist of operations that have a forward mode"):
            measure(model, batch, v, [1e-6])
    finally:
        handle.remove()
    measure(model, batch, v, [1e-6])  # the refusal left nothing behind


def test_quantised_weights_are_refused(measured: Any) -> None:
    _, batch, v = measured
    model = gpt2()
    model.packed = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="model must not be quantised"):
        measure(model, batch, v, [1e-6])


def test_an_eta_too_large_for_the_batch_is_warned_about(measured: Any) -> None:
    model, batch, v = measured
    with pytest.warns(RunWarning, match=r"eta 0\.3: the effective sample size is \d+ of 20 sequences"):
        measure(model, batch, v, [0.3])


def test_a_measured_run_is_in_good_health() -> None:
    model = gpt2()
    batch = sample(model, PROMPTS * 20, max_new_tokens=12, eos=0, seed=3)
    run = measure(model, batch, normal_direction(model, scale=1e-2), [1e-2, 2e-2], microbatch=128)
    assert integrity_problems(run) == []
    health = run_health({"run_01": run})
    assert health[health["flag"]].empty
    assert "score" in synthetic_runs(1, 32)["run_01"].supports
    assert set(run.supports) >= {"linear", "score", "baseline_entropy", "logp", "prompts"}
