from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from analysis_helpers import Run, load_runs, merge_runs, read_run
from analysis_helpers.__main__ import main
from analysis_helpers.measure import (
    Batch,
    MeasureEntropy,
    direction_from_optimizer,
    drawn_prompts,
    entropy_baseline,
    load_policy,
    measure,
    reinforce,
    sample,
    tiny_model,
)
from analysis_helpers.measure.measuring import fingerprint
from tests.measure.models import gpt2

WORDS = ["<eos>", "<bos>", *"abcdefghi"]


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="a"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        chat_template="{% for m in messages %}<bos> {{ m['content'] }} {% endfor %}",
    )


class Steps(TrainerCallback):
    """Keeps the parameters around each optimizer step, and its learning rate."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        self.before.append({name: p.detach().clone() for name, p in given["model"].named_parameters()})
        self.rates.append(given["optimizer"].param_groups[0]["lr"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: D102
        self.after.append({name: p.detach().clone() for name, p in given["model"].named_parameters()})


def reward(completions: list[str], **_: Any) -> list[float | None]:
    return [float(text.count("a") - text.count("b")) for text in completions]


def train(folder: Path, *callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
    """Train a tiny random model by TRL's GRPO for four steps; return its parameters."""
    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        max_steps=4,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        seed=3,
    )
    trainer = GRPOTrainer(
        model=gpt2(),
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"<bos> {a} {b}"} for a in "cde" for b in "fgh"]),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )
    trainer.train()
    assert trainer.model is not None
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.filterwarnings("default")  # of libraries about each other
def test_grpo_is_measured_step_by_step_and_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directions: list[dict[str, torch.Tensor]] = []

    def kept(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
        directions.append(direction_from_optimizer(model, optimizer))
        return directions[-1]

    monkeypatch.setattr("analysis_helpers.measure.training.direction_from_optimizer", kept)
    prompts = [[1, 4, 7], [1, 5, 8]]
    callback = MeasureEntropy(prompts, [1e-4, 2e-4], 16, 2, tmp_path / "runs", max_new_tokens=8, eos=0)
    steps = Steps()
    plain = train(tmp_path / "plain")
    measured = train(tmp_path / "measured", callback, steps)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    runs = load_runs(tmp_path / "runs" / "E_16")
    assert list(runs) == ["step_000000", "step_000002"]
    assert len(directions) == 2
    for run, v, step in zip(runs.values(), directions, (0, 2), strict=True):
        assert run.direction == fingerprint(v)
        assert (run.num_sequences, run.etas) == (16, (1e-4, 2e-4))
        made = torch.cat([(steps.after[step][name] - old).ravel() for name, old in steps.before[step].items()])
        wanted = torch.cat([steps.rates[step] * v[name].ravel() for name in steps.before[step]])
        assert made.norm() > 0
        assert (made - wanted).norm() < 1e-4 * made.norm()


def test_two_processes_measure_slices_that_merge_into_the_whole(tmp_path: Path) -> None:
    script = """
import sys
import torch
from analysis_helpers import write_run
from analysis_helpers.measure import *

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
model, prompts, eos = load_policy()
baseline = entropy_baseline(model, sample(model, prompts[:128], max_new_tokens=16, eos=eos, seed=1), 16)
v = torch.load(folder + "/v.pt")
batch = sample(model, prompts[:64], max_new_tokens=16, eos=eos, seed=2)
run = measure(model, batch[rank::2], v, [1e-5, 1e-4], baseline=baseline)
write_run(f"{folder}/shards/{rank:03d}/results.json", run)
"""
    model, prompts, eos = load_policy()
    reinforce(model, sample(model, prompts[:64], max_new_tokens=16, eos=eos, seed=0))
    v = direction_from_optimizer(model, torch.optim.AdamW(model.parameters(), lr=1.0))
    torch.save(v, tmp_path / "v.pt")
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    merged = merge_runs(load_runs(tmp_path / "shards"))
    baseline = entropy_baseline(model, sample(model, prompts[:128], max_new_tokens=16, eos=eos, seed=1), 16)
    whole_batch = sample(model, prompts[:64], max_new_tokens=16, eos=eos, seed=2)
    whole = measure(model, whole_batch, v, [1e-5, 1e-4], baseline=baseline)
    order = np.argsort([*range(0, 64, 2), *range(1, 64, 2)])
    assert merged.direction == whole.direction == fingerprint(v)
    assert merged.delta_h_per_lr == pytest.approx(whole.delta_h_per_lr, rel=1e-5)
    for one, other in zip(merged.measurements, whole.measurements, strict=True):
        assert one.delta_h_true == pytest.approx(other.delta_h_true, rel=1e-4)
    assert merged.prompt_ids is not None
    assert whole.prompt_ids is not None
    assert merged.gdotv is not None
    assert whole.gdotv is not None
    np.testing.assert_array_equal(merged.prompt_ids[order], whole.prompt_ids)
    np.testing.assert_allclose(merged.gdotv[order], whole.gdotv, atol=1e-5 * np.abs(whole.gdotv).max())


def test_the_policy_gradient_is_that_of_the_rewards() -> None:
    """Against a central difference of ``mean(A log pi)`` along a random direction."""
    model = gpt2().double()
    model.train(False)
    batch = sample(model, [[1, 5], [3], [2, 4, 6]] * 6, max_new_tokens=6, eos=0, seed=0)
    rewards = np.random.default_rng(0).normal(size=len(batch))
    reinforce(model, batch, rewards, microbatch=7)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.manual_seed(0)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    slope = -sum(float((gradients[name] * v[name]).sum()) for name in gradients)
    run = measure(model, batch, v, [1e-6])
    advantages = (rewards - rewards.mean()) / rewards.std()
    assert run.score is not None
    score = -run.score.denom_corr_unscaled / run.score.h_base_mean / run.token_counts
    assert slope == pytest.approx(float(np.mean(advantages * score)), rel=1e-6)


# --- saved models and prompts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model before and after a step at lr 1e-3, its tokenizer, and prompts in all three forms."""
    folder = tmp_path_factory.mktemp("saved")
    model = gpt2()
    batch = sample(model, [[1, 5]] * 64, max_new_tokens=8, eos=0, seed=0)
    for name in ("before", "after"):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
        if name == "before":
            reinforce(model, batch)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            optimizer.step()
    lines = [{"prompt": "<bos> d"}, {"messages": [{"role": "user", "content": "d e"}]}, {"ids": [1, 6]}]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    return folder


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["measure", *map(str, arguments)])


def test_prompts_are_read_in_each_form(saved: Path) -> None:
    model, prompts, eos = load_policy(saved / "before", saved / "prompts.jsonl")
    assert prompts == [[1, 5], [1, 5, 6], [1, 6]]
    assert eos == [0]
    assert next(model.parameters()).dtype == torch.float32


def test_prompts_are_drawn_anew_and_each_before_any_comes_again() -> None:
    prompts = [[k] for k in range(5)]
    drawn = drawn_prompts(prompts, 12, [1, 2])
    assert sorted(map(list, drawn[:5])) == sorted(map(list, drawn[5:10])) == prompts
    assert len(drawn) == 12
    assert drawn == drawn_prompts(prompts, 12, [1, 2]) != drawn_prompts(prompts, 12, [1, 3])


def test_saved_models_are_measured_from_the_command_line(saved: Path, tmp_path: Path) -> None:
    options = ["--model", saved / "before", "--prompts", saved / "prompts.jsonl", "--after", saved / "after"]
    options += ["--lr", "1e-3", "--eta", "1e-4", "--eta", "2e-4", "--sequences", 64, "--max-new-tokens", 8]
    for k in (1, 2):
        result = call(*options, "--out", tmp_path, "--seed", k)
        assert result.exit_code == 0, result.output
        path = tmp_path / "E_64" / f"run_{k:02d}" / "results.json"
        assert result.stdout.splitlines()[-1] == str(path)
    run: Run = read_run(path)
    assert (run.num_sequences, run.etas) == (64, (1e-4, 2e-4))
    again = call(*options, "--out", tmp_path, "--before", saved / "after")
    assert again.exit_code == 1
    assert "Error: before and after must differ" in again.output


def test_what_the_command_needs_is_said(saved: Path, tmp_path: Path) -> None:
    result = call("--model", "x")
    assert result.exit_code == 2
    assert "give --model, --prompts, --after, --lr, --eta and --out, or --demo" in result.output
    bad = tmp_path / "bad.jsonl"
    for line, message in (
        ('{"text": "d"}', 'prompt 1 must be an object with prompt, messages or ids, got {"text": "d"}'),
        ("", "prompts must hold at least one prompt"),
    ):
        bad.write_text(line, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_policy(saved / "before", bad)
    bad.write_text('{"prompt": "d"}', encoding="utf-8")
    with pytest.raises(ValueError, match="must be given as ids: the tiny model has no tokenizer"):
        load_policy("tiny", bad)
    with pytest.raises(ValueError, match='prompts must name a file, got "tiny"'):
        load_policy(saved / "before")
    with pytest.raises(ValueError, match="rewards must be given"):
        reinforce(tiny_model(0), Batch.from_sequences([[1, 2]], [1], [1]))


def test_the_demo_takes_less_than_a_minute_and_reaches_a_verdict(tmp_path: Path) -> None:
    start = time.process_time()  # on one thread: what it takes where nothing else runs
    result = call("--demo", tmp_path)
    assert result.exit_code == 0, result.output
    assert time.process_time() - start < 60
    assert "eta 5e-05, tolerance ±0.25, probability 90%, batch of 128" in result.stdout
    for size in (1024, 128):
        runs = load_runs(tmp_path / f"E_{size}")
        assert len(runs) == 4
        assert all(run.num_sequences == size and len(run.etas) == 5 for run in runs.values())
    assert len({run.direction for run in runs.values()}) == 4
