from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

import analysis_helpers.measure
from analysis_helpers import load_runs, write_run
from analysis_helpers.measure import difference, direction_from_optimizer, measure, sample
from analysis_helpers.measure.measuring import fingerprint
from tests.measure.models import Clipped, assert_step, flat, normal_direction, recipe, tiny

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, amsgrad=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), fused=True),
}


def backward(model: torch.nn.Module, seed: int) -> None:
    ids = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    model(input_ids=ids).logits.square().mean().backward()


def trained(make: Make, dtype: torch.dtype = torch.float32) -> tuple[Any, torch.optim.Optimizer]:
    """Return a model with an optimizer that has made three steps, and gradients for the fourth."""
    model = tiny().to(dtype).train(False)
    optimizer = make(model.parameters())
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
    backward(model, 3)
    return model, optimizer


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direction_is_that_of_the_step_without_rounding(name: str, dtype: torch.dtype) -> None:
    """As a twin in float64 makes it, with the same state and gradients."""
    model, optimizer = trained(OPTIMIZERS[name], dtype)
    v, twin = direction_from_optimizer(model, optimizer), copy.deepcopy(model).double()
    other = OPTIMIZERS[name](twin.parameters())
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.double()
    before = parameters(twin)
    other.step()
    for parameter, after in parameters(twin).items():
        made = ((after - before[parameter]) / 1e-3).float()
        assert torch.allclose(v[parameter], made, rtol=1e-5, atol=1e-6), parameter


def test_groups_keep_their_relative_learning_rates() -> None:
    model = torch.nn.Linear(2, 1)
    groups: list[dict[str, Any]] = [{"params": [model.weight]}, {"params": [model.bias], "lr": 4e-6}]
    optimizer = torch.optim.SGD(groups, lr=1e-6)
    (model.weight.sum() + model.bias.sum()).backward()
    v = direction_from_optimizer(model, optimizer)
    assert v["weight"].tolist() == [[-1.0, -1.0]]
    assert v["bias"].tolist() == [-4.0]
    optimizer.param_groups[0]["lr"] = 0.0  # as at the first step of a warm-up: rates have no ratio
    with pytest.raises(ValueError, match=r"first group must have a learning rate above 0, .*, got 0.0"):
        direction_from_optimizer(model, optimizer)


def test_a_step_that_is_not_its_rate_times_a_direction_is_refused_with_the_cause() -> None:
    for make, cause in (
        (lambda p: Clipped(p, 1e-3, 0.01), "parameters change each other's steps"),
        (lambda p: torch.optim.Adafactor(p, lr=1e-3), "it is not proportional to the rate"),
    ):
        model, optimizer = trained(make)
        with pytest.raises(ValueError, match=rf"must be rate times v; that of group 0 is off by \d+%: {cause}"):
            direction_from_optimizer(model, optimizer)
    model, optimizer = trained(lambda p: Clipped(p, 1e-3, 1e6))  # has no effect
    assert direction_from_optimizer(model, optimizer)


def test_settings_that_are_attributes_and_wrapped_steps_are_kept_out_of_each_other() -> None:
    """A scheduler of rates wraps the optimizer's own step; that must not be made."""
    model, optimizer = trained(lambda p: torch.optim.AdamW(p, lr=1e-3))
    torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=9)
    before = parameters(model)
    v = direction_from_optimizer(model, optimizer)
    assert torch.equal(flat(parameters(model)), flat(before))
    optimizer.step()
    assert_step(v, before, parameters(model), lr=optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("clipped", [False, True])
def test_gradients_that_a_scaler_has_scaled_are_unscaled(clipped: bool) -> None:
    """As accelerate wraps an optimizer; clipping unscales them, and without it they are still scaled."""
    model, plain = trained(OPTIMIZERS["momentum"])
    wanted = direction_from_optimizer(model, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    Accelerator(cpu=True)  # what the wrapper asks for
    optimizer: Any = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
    for p in model.parameters():
        p.grad *= 1024
    if clipped:
        scaler.unscale_(plain)
    v = direction_from_optimizer(model, optimizer)
    assert torch.allclose(flat(v), flat(wanted), rtol=1e-6)
    before = parameters(model)
    optimizer.step()
    assert_step(v, before, parameters(model), lr=1e-3)
    model.lm_head.weight.grad[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"gradients must be finite, .*; a GradScaler skips such a step"):
        direction_from_optimizer(model, optimizer)


def test_without_gradients_or_with_parameters_of_others_there_is_no_direction() -> None:
    model, optimizer = trained(OPTIMIZERS["adam"])
    with pytest.raises(ValueError, match=r"it has 28 others \(\(11, 16\), "):
        direction_from_optimizer(torch.nn.Linear(1, 1), optimizer)
    model.transformer.wpe.weight.grad = None
    assert "transformer.wpe.weight" not in direction_from_optimizer(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match="gradients must not all be zero"):
        direction_from_optimizer(model, optimizer)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"optimizer must have gradients in place: call backward\(\) first"):
        direction_from_optimizer(model, optimizer)


def test_the_recipe_for_a_loop_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directions: Any) -> None:
    """Its hook measures before each step: the direction is that of the step, and the training is not changed."""
    monkeypatch.chdir(tmp_path)
    names = vars(analysis_helpers.measure) | {
        "numbers": itertools.count(),
        "names": iter("abc"),
        "write_run": write_run,
    }

    def train(hooked: bool) -> list[dict[str, torch.Tensor]]:
        model = tiny().double().train(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        states = [parameters(model)]
        if hooked:
            given = {"model": model, "optimizer": optimizer, "prompts": [[1, 5]] * 8, "eos": 0, "etas": [1e-4]}
            exec(recipe("def before_step").replace("256", "12"), names | given)
        for seed in range(3):
            backward(model, seed)
            optimizer.step()
            states.append(parameters(model))
        return states

    plain, hooked = train(False), train(True)
    assert all(torch.equal(flat(one), flat(other)) for one, other in zip(plain, hooked, strict=True))
    runs = load_runs("my_runs/E_8")
    assert len(runs) == 3
    for run, v, states in zip(runs.values(), directions, itertools.pairwise(hooked), strict=True):
        assert run.direction == fingerprint(v)
        assert_step(v, *states, lr=1e-3)


# --- from two states -------------------------------------------------------------------------------------------------


def test_the_difference_of_two_states_is_the_direction() -> None:
    model, optimizer = trained(OPTIMIZERS["adam"])
    v, before = direction_from_optimizer(model, optimizer), copy.deepcopy(model.state_dict())
    optimizer.step()
    found = difference(before, model.state_dict(), 1e-3)
    assert set(found) == set(v)  # tied weights once
    for name, values in v.items():
        assert torch.allclose(found[name], values, atol=1e-3), name
    batch = sample(model, [[1, 5]] * 8, max_new_tokens=4, eos=0, seed=0)
    assert measure(model, batch, found, [1e-4]).delta_h_per_lr != 0


def test_rows_that_no_token_reached_do_not_count() -> None:
    before = {"wte": torch.zeros(100, 4), "frozen": torch.ones(50), "step": torch.tensor(3)}
    after = {"wte": before["wte"].clone(), "frozen": torch.ones(50), "step": torch.tensor(4)}
    after["wte"][7] = 1e-6
    assert list(difference(before, after, 1e-6)) == ["wte"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_lost_in_16_bits_is_refused_in_whichever_tensors(dtype: torch.dtype) -> None:
    plain = {name: p.detach() for name, p in tiny().named_parameters()}
    before, v = {name: p.to(dtype) for name, p in plain.items()}, normal_direction(tiny())
    after = {name: (p.float() + 1e-5 * v[name]).to(dtype) for name, p in before.items()}
    kind = str(dtype).removeprefix("torch.")
    for one, other in (
        (before, after),
        ({name: p.float() for name, p in before.items()}, {name: p.float() for name, p in after.items()}),  # as loaded
        (plain, {name: p.float() for name, p in after.items()}),
        (before | {"head": torch.zeros(9)}, after | {"head": torch.full((9,), 1e-5)}),  # in float32
    ):
        with pytest.raises(
            ValueError, match=rf"larger than the rounding of after, which is \d+% of it \({kind} values"
        ):
            difference(one, other, 1e-5)
    assert difference(before, {name: (p.float() + v[name]).to(dtype) for name, p in before.items()}, 1.0)  # far enough


def test_in_float32_norms_of_size_1_and_tiny_rates_are_no_fault() -> None:
    """Rounding of a norm's weight is a third of its step; of the whole step it is a tenth, as weights are large."""
    model, optimizer = trained(lambda p: torch.optim.AdamW(p, lr=1e-7))
    v, before = direction_from_optimizer(model, optimizer), parameters(model)
    optimizer.step()
    found = difference(before, parameters(model), 1e-7)
    assert torch.nn.functional.cosine_similarity(flat(found), flat(v), dim=0) > 0.99


def test_states_that_do_not_fit_are_refused() -> None:
    one = {"a": torch.zeros(2)}
    for before, after, lr, message in (
        (
            one,
            {"b": torch.ones(2)},
            1e-6,
            r"must hold the same names, of the same shapes; only one has a \(2,\), b \(2,\)",
        ),
        (one, one, 1e-6, "before and after must differ, got the same values: clone before the step"),
        (one, {"a": torch.ones(2)}, 0.0, "^lr must be a positive step size, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            difference(before, after, lr)
