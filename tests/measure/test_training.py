"""Any trainer, several processes, and the command line."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from analysis_helpers import change_by_origin, load_runs, merge_runs, synthetic_runs
from analysis_helpers.__main__ import main
from analysis_helpers._checks import RunWarning
from analysis_helpers.measure import Batch, MeasureEntropy, entropy_baseline, load_policy, measure, sample, summary
from analysis_helpers.measure.measuring import fingerprint, reinforce
from tests.measure.models import (
    Clipped,
    assert_same,
    assert_step,
    columns,
    flat,
    known,
    normal_direction,
    recipe,
    tiny,
    tokenizer,
)


class Steps(TrainerCallback):
    """Keeps the parameters before and after each optimizer step, and its learning rate."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        self.rates.append(given["optimizer"].param_groups[0]["lr"])
        self.on_optimizer_step(args, state, control, **given)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        self.states.append({name: p.detach().clone() for name, p in given["model"].named_parameters()})


def reward(completions: list[str], **_: Any) -> list[float | None]:
    return [float(text.count("a") - text.count("b")) for text in completions]


def train(folder: Path, *callbacks: TrainerCallback, bf16: bool = False) -> None:
    """Train a tiny random model by TRL's GRPO for four steps."""
    sizes: dict[str, Any] = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8}
    quiet: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    GRPOTrainer(
        model=tiny(),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder), max_steps=4, learning_rate=1e-3, seed=3, bf16=bf16, **sizes, **quiet),
        train_dataset=Dataset.from_list([{"prompt": f"<bos> {a} {b}"} for a in "cde" for b in "fgh"]),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    ).train()


@pytest.mark.filterwarnings("default")  # of libraries about each other
@pytest.mark.parametrize("bf16", [False, True])
def test_grpo_is_measured_step_by_step_and_not_changed(bf16: bool, tmp_path: Path, directions: Any) -> None:
    callback = MeasureEntropy([[1, 4, 7], [1, 5, 8]], [1e-4, 2e-4], 16, 2, tmp_path, max_new_tokens=8, eos=0)
    plain, steps = Steps(), Steps()
    train(tmp_path / "plain", plain, bf16=bf16)
    train(tmp_path / "measured", callback, steps, bf16=bf16)
    assert torch.equal(flat(plain.states[-1]), flat(steps.states[-1]))
    runs = load_runs(tmp_path / "E_16")
    assert list(runs) == ["step_000000", "step_000002"]
    for run, v, step in zip(runs.values(), directions, (0, 2), strict=True):
        assert (run.direction, run.n, run.etas) == (fingerprint(v), 16, (1e-4, 2e-4))
        assert_step(v, *steps.states[2 * step : 2 * step + 2], lr=steps.rates[step])


# --- any training goes on as it would -------------------------------------------------------------------------------


class State(TrainerCallback):
    """Keeps everything that a step may change: parameters, buffers, random numbers, hooks and training mode."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        model = given["model"]
        tensors = [x.detach().clone() for x in (*model.parameters(), *model.buffers())]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        modes = [m.training for m in model.modules()]
        numbers = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
        grads = [p.requires_grad for p in model.parameters()]
        self.seen.append((tensors, hooks, modes, numbers, grads, model.config.use_cache))


class Edited(TrainerCallback):
    """Changes the gradients before one step."""

    def __init__(self, step: int, factor: float) -> None:
        self.step, self.factor = step, factor

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        if state.global_step == self.step:
            for p in given["model"].parameters():
                if p.grad is not None:
                    p.grad *= self.factor


def adapted(**options: Any) -> Any:
    """Return a tiny model with adapters of low rank."""
    return get_peft_model(tiny(), LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True, **options))


def plus(model: Any) -> torch.optim.Optimizer:
    """Return an optimizer with a rate 16 times as large for the second matrix of each adapter."""
    second = [p for name, p in model.named_parameters() if "lora_B" in name]
    first = [p for name, p in model.named_parameters() if "lora_A" in name]
    groups: list[dict[str, Any]] = [{"params": first}, {"params": second, "lr": 1.6e-2}]
    return torch.optim.AdamW(groups, lr=1e-3)


def supervise(
    folder: Path, model: Any, callbacks: list[TrainerCallback], *, scale: float = 0, make: Any = None, **options: Any
) -> Trainer:
    """Return the trainer of a model that has learned four steps from a few sequences; a scale is that of a scaler."""
    quiet: dict[str, Any] = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    rows = [{"input_ids": [1, 4 + k % 5, 3, 2, 0], "labels": [1, 4 + k % 5, 3, 2, 0]} for k in range(16)]
    chosen = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, **quiet, **options}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **chosen),
        train_dataset=rows,
        callbacks=callbacks,
        optimizers=(make(model), None) if make else (None, None),
    )
    if scale:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=1e-30)
    trainer.train()
    return trainer


CASES: dict[str, Any] = {
    # name: model, options of the training, steps that are not measured, steps whose direction is not that of one made
    "plain": (tiny, {}, []),
    "dropout and checkpointing": (lambda: tiny("gpt2"), {"gradient_checkpointing": True}, []),
    "lora": (adapted, {}, []),
    "lora+ in a warm-up": (adapted, {"make": plus, "warmup_steps": 2}, [0]),
    "dora": (lambda: adapted(use_dora=True), {}, []),
    "scaled gradients": (tiny, {"scale": 1024.0, "max_grad_norm": 0.0}, []),
    "an overflow": (tiny, {"scale": 2.0**127, "max_grad_norm": 0.0}, [0]),
    "zero gradients": (tiny, {"edit": Edited(1, 0.0)}, [1]),
    "a warm-up": (tiny, {"warmup_steps": 2}, [0]),
    "bf16": (tiny, {"bf16": True}, []),
    "momentum": (tiny, {"make": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)}, []),
    "clipped in the step": (tiny, {"make": lambda model: Clipped(model.parameters(), 1e-3, 0.01)}, [0, 1, 2, 3]),
    "a rate of its own": (tiny, {"optim": "adafactor"}, None),
}


@pytest.mark.filterwarnings("default")  # of libraries about each other
@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_as_without_measuring_whatever_happens(case: str, tmp_path: Path, directions: Any) -> None:
    make, options, skipped = CASES[case]
    edits, seen = [options["edit"]] if "edit" in options else [], []
    options = {name: value for name, value in options.items() if name != "edit"}
    for measured in (False, True):
        state, steps = State(), Steps()
        callback = MeasureEntropy([[1, 4]], [1e-3], 4, 1, tmp_path, max_new_tokens=5, eos=0, responses=2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            supervise(tmp_path, make(), [*edits, *([callback] if measured else []), state, steps], **options)
        seen.append(state.seen)
    for one, other in zip(*seen, strict=True):
        assert all(map(torch.equal, one[0], other[0]))
        assert one[1:] == other[1:]
    notes = [str(note.message) for note in caught if "is not measured" in str(note.message)]
    runs = load_runs(tmp_path / "E_8") if skipped is None or len(skipped) < 4 else {}
    if skipped is not None:
        assert [f"step {k} is not" in " ".join(notes) for k in range(4)] == [k in skipped for k in range(4)], notes
        assert list(runs) == [f"step_{k:06d}" for k in range(4) if k not in skipped]
    for name, v in zip(runs, directions, strict=True):
        k = int(name[-1])
        moved = [{n: x for n, x in states.items() if n in v} for states in steps.states[2 * k : 2 * k + 2]]
        assert_step(v, *moved, lr=steps.rates[k])


def test_what_goes_wrong_is_raised_if_asked_for_but_not_an_ordinary_event(tmp_path: Path) -> None:
    prompts: dict[str, Any] = {"max_new_tokens": 5, "eos": 0, "on_error": "raise"}
    with pytest.warns(RunWarning, match=r"step 0 is not measured: .* learning rate above 0, .*, got 0.0"):
        supervise(tmp_path, tiny(), [MeasureEntropy([[1, 4]], [1e-3], 4, 4, tmp_path, **prompts)], warmup_steps=2)
    (tmp_path / "file").write_text("", encoding="utf-8")
    unwritable = MeasureEntropy([[1, 4]], [1e-3], 4, 4, tmp_path / "file", **prompts)
    with pytest.raises(OSError, match="file"):
        supervise(tmp_path, tiny(), [unwritable])
    with pytest.raises(ValueError, match="on_error must be one of 'warn', 'raise', got 'ignore'"):
        MeasureEntropy([[1, 4]], [1e-3], 4, 4, tmp_path, **prompts | {"on_error": "ignore"})


def test_the_trainers_log_holds_what_was_measured_where_it_reports_to(tmp_path: Path) -> None:
    class Reporter(TrainerCallback):
        """As those of report_to, it stands before the callbacks that are given."""

        received: list[dict[str, float]] = []  # noqa: RUF012

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            self.received.append(dict(logs))

    callback = MeasureEntropy([[1, 4]], [1e-3, 2e-3], 8, 2, tmp_path, max_new_tokens=5, eos=0)
    trainer = Trainer(
        model=tiny(),
        args=TrainingArguments(output_dir=str(tmp_path), max_steps=4, logging_steps=1, report_to=[], use_cpu=True),
        train_dataset=[{"input_ids": [1, 4, 3, 0], "labels": [1, 4, 3, 0]}] * 8,
        callbacks=[Reporter()],
    )
    callback.add_to(trainer)
    trainer.train()
    runs = load_runs(tmp_path / "E_8")
    for log, history, run in zip(
        Reporter.received[:4:2],
        trainer.state.log_history[:4:2],
        (runs["step_000000"], runs["step_000002"]),
        strict=True,
    ):
        for m in run.measurements:
            found = {name: log[f"entropy_change/{name}/{m.eta:g}"] for name in ("true", "linear", "same_states")}
            same = (known(m.h_new) - known(m.h_base)).sum() / run.total_tokens
            assert found == pytest.approx(
                {"true": m.delta_h_true, "linear": m.eta * run.delta_h_per_lr, "same_states": same}
            )
            assert np.isfinite(log[f"entropy_change/nonlinearity/{m.eta:g}"])
        assert log.items() <= history.items()
    assert not any(name.startswith("entropy_change") for name in Reporter.received[1])


def test_the_summary_of_a_run_has_both_parts_of_both_changes() -> None:
    run = synthetic_runs(1, 256, [1.6e-6])["run_01"]
    numbers = [float(x) for x in re.findall(r"[-+]\d\.\d+", summary(run))]
    table = change_by_origin({"run": run}).query("run == 'run'").set_index("part")
    wanted = [table.loc[part, name] for name in ("true", "linear") for part in ("total", "same states", "other states")]
    assert numbers == pytest.approx(wanted, rel=0.02)


def test_two_processes_measure_slices_that_merge_into_the_whole(tmp_path: Path) -> None:
    """The recipe of the documentation, in two processes as torchrun starts them."""
    model, prompts, eos = load_policy()
    etas, prompts, v = [1e-5, 1e-4], prompts[:300], normal_direction(model)
    torch.save(v, tmp_path / "v.pt")
    code = "import os\nimport torch\nfrom analysis_helpers import *\nfrom analysis_helpers.measure import *\n"
    code += "model, prompts, eos = load_policy()\n"
    code += f"v, etas, prompts = torch.load('v.pt'), {etas}, prompts[:300]\n"
    code += recipe("world_size").replace("max_new_tokens=256", "max_new_tokens=16")
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"RANK": rank, "WORLD_SIZE": "2"})
        for rank in "01"
    ]
    assert [process.wait() for process in started] == [0, 0]
    merged = merge_runs(load_runs(tmp_path / "shards"))
    given: dict[str, Any] = {"max_new_tokens": 16, "eos": eos}
    shards = [sample(model, prompts[rank::2], seed=[2, rank], **given) for rank in range(2)]
    lengths, counts = (
        np.concatenate([getattr(shard, name) for shard in shards]) for name in ("prompt_lengths", "token_counts")
    )
    batch = Batch.from_sequences([ids for shard in shards for ids in shard.sequences], lengths, counts)
    baseline = entropy_baseline(model, sample(model, prompts[:256], seed=1, **given), 16)
    whole = measure(model, batch, v, etas, baseline=baseline)
    assert merged.direction == whole.direction == fingerprint(v)
    assert_same(merged, whole, tolerance=1e-9)
    assert merged.delta_h_per_lr == pytest.approx(whole.delta_h_per_lr, rel=1e-9)
    for one, other in zip(merged.measurements, whole.measurements, strict=True):
        assert one.delta_h_true == pytest.approx(other.delta_h_true, rel=1e-9)


def test_the_policy_gradient_favours_confident_answers() -> None:
    """It is that of the mean of ``A log pi``, whose derivative along a direction is the mean of ``A j``."""
    model = tiny().double()
    batch = sample(model, [[1, 5], [3], [2, 4, 6]] * 6, max_new_tokens=6, eos=0, seed=0)
    reinforce(model.train(False), batch, microbatch=7)
    v = normal_direction(model)
    slope = -float(flat({name: p.grad for name, p in model.named_parameters()}) @ flat(v))
    rewards = np.asarray(batch.sampler_logp) / batch.token_counts
    score = columns(measure(model, batch, v, [1e-6]))["score"]
    assert slope == pytest.approx(np.mean((rewards - rewards.mean()) / rewards.std() * score), rel=1e-6)


# --- the command -----------------------------------------------------------------------------------------------------


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["measure", *map(str, arguments)])


def test_the_demo_reaches_a_verdict(tmp_path: Path) -> None:
    result = call("--demo", tmp_path)
    assert result.exit_code == 0, result.output
    assert "eta 5e-05, tolerance ±0.25, probability 90%, batch of 128" in result.stdout
    for size in (1024, 128):
        runs = load_runs(tmp_path / f"E_{size}")
        assert len(runs) == 4
        assert all(run.n == size and len(run.etas) == 5 for run in runs.values())
    assert len({run.direction for run in runs.values()}) == 4
