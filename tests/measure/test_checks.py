"""The self-tests of a measurement: each fault is found, with its cause, and healthy models of many kinds pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from analysis_helpers import Run
from analysis_helpers._checks import RunWarning
from analysis_helpers.measure import Batch, measure, sample
from tests.measure.models import SIZES, TOKENS, Plain, assert_same, known, normal_direction, tiny

# One library about the other, where both are new.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

PROMPTS = [[1, 5], [3], [2, 4, 6], [1, 5]] * 5
Edit = Callable[[Any], Any]


def responses(model: Any) -> Batch:
    return sample(model, PROMPTS, max_new_tokens=12, eos=0, seed=3)


def by_hand(model: Any, v: dict[str, torch.Tensor], batch: Batch, eta: float) -> tuple[Any, Any]:
    """Return log pi and entropy sums of each response, one by one, of a copy moved by ``eta * v``."""
    other = copy.deepcopy(model).double().train(False)
    for name, values in v.items():
        other.get_parameter(name).data.add_(values.double(), alpha=eta)
    found = []
    with torch.no_grad():
        for ids, prompt in zip(batch.sequences, batch.prompt_lengths, strict=True):
            logits = other(input_ids=torch.from_numpy(ids)[None]).logits[0, -len(ids) :][prompt - 1 : -1]
            log_probs = torch.log_softmax(logits.double(), dim=-1)
            logp = log_probs.gather(1, torch.from_numpy(ids[prompt:])[:, None]).sum()
            found.append((float(logp), float(-(log_probs.exp() * log_probs).sum())))
    return tuple(np.array(found).T)


def assert_exact(run: Run, model: Any, v: dict[str, torch.Tensor], batch: Batch, *, tolerance: float) -> None:
    """Check log weights, entropies and score of a run against a loop written by hand."""
    eta, h = run.etas[0], 1e-4
    states = {step: by_hand(model, v, batch, step) for step in (0.0, eta, -h, h)}
    m = run.measurements[0]
    for found, wanted in (
        (m.log_weights, states[eta][0] - states[0.0][0]),
        (m.h_new - known(m.h_base), states[eta][1] - states[0.0][1]),
        (run.score, (states[h][0] - states[-h][0]) / (2 * h)),
        (run.jH_sum, (states[h][1] - states[-h][1]) / (2 * h)),
    ):
        assert np.abs(known(found) - wanted).max() < tolerance * np.abs(wanted).max()


# --- healthy models --------------------------------------------------------------------------------------------------

FAMILIES = ["gpt2", "llama", "qwen2", "mistral", "gemma2", "opt", "gpt_neox", "phi3", "olmo2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_healthy_models_pass_without_a_note(family: str, dtype: torch.dtype) -> None:
    """OPT has kinks, several compute norms in float32 whatever their dtype; a note would be an error here."""
    model = tiny(family).to(dtype)
    batch, v = responses(model), normal_direction(model, 1e-2)
    etas = [1.0] if dtype == torch.bfloat16 else [1e-4, 0.2]
    assert measure(model, batch, v, etas).n == len(PROMPTS)


@pytest.mark.parametrize("eta", [1e-9, 1e-3])
def test_peaked_policies_and_tiny_steps_pass(eta: float) -> None:
    """Where most tokens are certain, few hold all of the derivative."""
    model = tiny("llama")
    model.lm_head.weight.data *= 4
    v = normal_direction(model)
    if eta == 1e-9:  # in float32 the parameters would not move
        model, v = model.double(), {name: values.double() for name, values in v.items()}
    assert measure(model, responses(model), v, [eta]).n == len(PROMPTS)


@pytest.mark.parametrize("compiled", ["module", "forward", "in place"])
def test_compiled_models_are_measured_as_they_are_written(compiled: str) -> None:
    """Compiled code drops tangents; it is not run."""
    plain, model = tiny("llama"), tiny("llama")
    v = normal_direction(plain)
    if compiled == "module":
        model = torch.compile(model, backend="aot_eager")
        v = {f"_orig_mod.{name}": values for name, values in v.items()}
    elif compiled == "forward":
        model.forward = torch.compile(model.forward, backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    batch = responses(model)
    wanted = measure(plain, batch, normal_direction(plain), [1e-3])
    assert_same(measure(model, batch, v, [1e-3]), wanted, tolerance=1e-6)


def test_soft_prompts_are_measured_behind_their_virtual_tokens() -> None:
    """Logits are longer than the ids, and aligned from the end."""
    soft = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(tiny().double(), soft)
    batch, v = responses(model), {name: x.double() for name, x in normal_direction(model).items()}
    run = measure(model, batch, v, [1e-3])
    np.testing.assert_allclose(known(run.logp), by_hand(model, {}, batch, 0.0)[0], atol=1e-9)
    assert_exact(run, model, v, batch, tolerance=1e-4)


def test_a_vocabulary_padded_with_minus_infinity_is_that_of_the_tokens_there_are() -> None:
    model = tiny(vocab_size=16).double()
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.arange(11, 16), -torch.inf))
    batch, v = responses(model), {name: x.double() for name, x in normal_direction(model).items()}
    run = measure(model, batch, v, [1e-3])
    assert run.vocabulary == 11
    assert all(np.isfinite(known(values)).all() for values in (run.score, run.jH_sum, run.measurements[0].h_new))
    cut = tiny(vocab_size=16).double()
    cut.lm_head.register_forward_hook(lambda _, __, logits: logits[..., :11])
    assert_same(measure(cut, batch, v, [1e-3]), run, tolerance=1e-9)


# --- derivatives that are lost ---------------------------------------------------------------------------------------


def dora(model: Any) -> Any:
    """Return the model with an adapter whose norm is detached."""
    adapter = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False, fan_in_fan_out=True, use_dora=True)
    return get_peft_model(model, adapter)


def detached(model: Any) -> Any:
    """Return the model with all derivatives cut before its last norm."""
    model.transformer.ln_f.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
    return model


def half_detached(model: Any) -> Any:
    """Return the model with a tenth of the derivatives cut there."""
    model.transformer.ln_f.register_forward_pre_hook(lambda _, inputs: (0.9 * inputs[0] + 0.1 * inputs[0].detach(),))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("edit", [dora, detached, half_detached])
def test_where_tangents_are_lost_central_differences_are_taken(edit: Edit, dtype: torch.dtype) -> None:
    model = edit(tiny().to(dtype))
    batch, v = responses(model), normal_direction(model, 0.05)
    with pytest.warns(RunWarning, match=r"forward mode is off by \d+% .*: the model drops derivatives"):
        run = measure(model, batch, v, [1e-2])
    assert_exact(run, model, v, batch, tolerance=5e-3)


def test_a_tangent_that_is_missing_for_good_is_not_taken_for_zero() -> None:
    """The only parameters that move are behind the cut."""
    model = detached(tiny())
    batch, every = responses(model), normal_direction(model, 0.05)
    v = {name: values for name, values in every.items() if ".h.0." in name}
    with pytest.warns(RunWarning, match="forward mode is off by 100%"):
        run = measure(model, batch, v, [1e-2])
    assert_exact(run, model, v, batch, tolerance=5e-3)


def test_in_16_bits_lost_derivatives_are_refused() -> None:
    model = dora(tiny().bfloat16())
    batch, v = responses(model), normal_direction(model, 0.05)
    with pytest.raises(ValueError, match=r"must have derivatives: forward mode is off by 2\d% .*load it in float32"):
        measure(model, batch, v, [1.0])


@pytest.mark.parametrize("spacing", [0.5, 0.05, 1e-3])
def test_straight_through_estimators_are_refused(spacing: float) -> None:
    """They have a derivative that is not that of the policy."""
    model = tiny("llama")

    def rounded(_: Any, __: Any, x: torch.Tensor) -> torch.Tensor:
        return x + ((x / spacing).round() * spacing - x).detach()

    model.model.norm.register_forward_hook(rounded)
    batch, v = responses(model), normal_direction(model, 1e-2)
    with pytest.raises(ValueError, match=r"among themselves: .* jumps \(straight-through estimators, quantisation\)"):
        measure(model, batch, v, [1e-2])


def test_a_direction_that_changes_no_probability_is_refused() -> None:
    """The last norm takes away what all embeddings are moved by."""
    model = tiny()
    v = {"transformer.wte.weight": torch.ones(11, 16)}
    with pytest.raises(ValueError, match="v must change the policy: where it moves parameters"):
        measure(model, responses(model), v, [1e-3])


# --- jumps, and responses of another policy --------------------------------------------------------------------------


def test_a_mixture_of_many_experts_has_derivatives_though_some_tokens_jump_at_any_step() -> None:
    model = tiny("qwen2_moe")
    model.set_experts_implementation("eager")
    with pytest.warns(RunWarning, match="it jumps, as in a mixture") as notes:
        run = measure(model, responses(model), normal_direction(model, 1e-2), [0.1])
    assert len([note for note in notes if note.category is RunWarning]) == 1
    assert run.method == "difference"


def test_a_mixture_in_16_bits_is_refused_as_differences_would_be_lost() -> None:
    model = tiny("mixtral").bfloat16()
    model.set_experts_implementation("eager")
    with pytest.raises(ValueError, match=r"it jumps, .*; differences take float32: load the model"):
        measure(model, responses(model), normal_direction(model), [0.05])


def scaled(kind: str, length: int) -> Any:
    """Return a model with rotary positions scaled beyond a length, as that depends on what is fed."""
    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "original_max_position_embeddings": length}
    sizes = SIZES | {"max_position_embeddings": length if kind == "dynamic" else 64}
    config = AutoConfig.for_model("llama", vocab_size=11, rope_parameters=rope, **sizes, **TOKENS)
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_of_the_batch_are_refused_beyond_it(kind: str) -> None:
    model = scaled(kind, 32)
    assert measure(model, responses(model), normal_direction(model), [1e-3]).n == len(PROMPTS)
    model = scaled(kind, 8)
    state = {name: x.clone() for name, x in model.named_buffers()}
    with pytest.raises(
        ValueError, match=rf"responses must come from the policy .*; its {kind} rope scaling depends on"
    ):
        measure(model, responses(model), normal_direction(model), [1e-3])
    assert all(torch.equal(x, state[name]) for name, x in model.named_buffers())
    assert model.model.rotary_emb.max_seq_len_cached == model.config.max_position_embeddings


def test_responses_of_another_policy_are_refused_wherever_they_are() -> None:
    """In the shortest sequences too, which the self-test does not look at; rounding in 16 bits is no fault."""
    model = tiny()
    batch, v = responses(model), normal_direction(model)
    rng = np.random.default_rng(0)
    rounding = 0.03 * np.sqrt(batch.token_counts) * rng.normal(size=len(batch))
    logp = known(batch.sampler_logp)

    def given(change: Any) -> Batch:
        ids = batch.sequences
        return Batch.from_sequences(ids, batch.prompt_lengths, batch.token_counts, sampler_logp=np.minimum(change, 0))

    assert measure(model, given(logp + rounding), v, [1e-3]).n == len(batch)
    shortest = np.argsort(batch.token_counts)[:2]
    for change in (1.1 * logp, logp - np.isin(np.arange(len(batch)), shortest)):
        with pytest.raises(ValueError, match=r"responses must come from the policy .*; was there top-k"):
            measure(model, given(change), v, [1e-3])


# --- plain modules ---------------------------------------------------------------------------------------------------


def test_a_plain_module_is_not_blamed_for_experts_or_a_vocabulary_that_it_has_not() -> None:
    class Unusual(Plain):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros(3)[torch.tensor([5])] * super().forward(input_ids)

    model = Unusual(tiny(), 30.0)
    with pytest.raises(ValueError, match="raised IndexError: index 5 is out of bounds"):
        measure(model, responses(tiny()), normal_direction(model), [1e-3])
