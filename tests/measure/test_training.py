"""Any trainer, several processes, and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from analysis_helpers import load_runs, merge_runs
from analysis_helpers.__main__ import main
from analysis_helpers.measure import Batch, MeasureEntropy, entropy_baseline, load_policy, measure, sample
from analysis_helpers.measure.measuring import fingerprint, reinforce
from tests.measure.models import assert_same, assert_step, columns, flat, normal_direction, recipe, tiny, tokenizer


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
