"""The command: saved models, checks before a model is loaded, stopped and repeated commands, several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from analysis_helpers import read_run, synthetic_runs, write_run
from analysis_helpers.__main__ import main
from analysis_helpers.measure import drawn_prompts, load_policy, resuming, sample
from analysis_helpers.measure.measuring import reinforce
from tests.measure.models import known, tiny, tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model before and after a step, and prompts."""
    model, folder = tiny(), tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "before")
    tokenizer().save_pretrained(folder / "before")
    reinforce(model, sample(model, [[1, 5]] * 64, max_new_tokens=8, eos=0, seed=0))
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    model.save_pretrained(folder / "after")
    (folder / "prompts.jsonl").write_text('{"prompt": "<bos> d"}\n"<bos> e f"\n', encoding="utf-8")
    return folder


def options(saved: Path, out: Path, *more: object) -> list[str]:
    """Return the options of a command of 64 sequences, in four microbatches of each kind."""
    given = ["--model", saved / "before", "--prompts", saved / "prompts.jsonl", "--after", saved / "after"]
    given += ["--lr", "1e-3", "--eta", "1e-4", "--eta", "2e-4", "--sequences", 64, "--max-new-tokens", 8]
    return [*map(str, [*given, "--sample-microbatch", 16, "--microbatch", 16, "--out", out, *more])]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["measure", *map(str, arguments)])


def written(result: Any) -> Path:
    """Return the path that a command printed."""
    assert result.exit_code == 0, result.output
    return Path(result.stdout.splitlines()[-1])


@pytest.mark.filterwarnings("default:eta 10")  # the command says it in a note
def test_saved_models_are_measured_from_the_command_line(saved: Path, tmp_path: Path) -> None:
    for k in (1, 2):
        path = written(call(*options(saved, tmp_path, "--seed", k)))
        assert path == tmp_path / "E_64" / f"run_{k:02d}" / "results.json"
        assert [each.name for each in path.parent.iterdir()] == ["results.json"]
    assert (read_run(path).n, read_run(path).etas) == (64, (1e-4, 2e-4))
    reverse = options(saved, tmp_path, "--seed", 2, "--before", saved / "after", "--after", saved / "before")
    back = read_run(written(call(*reverse)))
    assert back.delta_h_per_lr == pytest.approx(-read_run(path).delta_h_per_lr)
    warm = read_run(written(call(*options(saved, tmp_path, "--temperature", 0.5))))
    assert warm.measurements[0].base_entropy < 0.8 * back.measurements[0].base_entropy
    again = call(*options(saved, tmp_path, "--after", saved / "before"))
    assert again.exit_code == 1
    assert "Error: before and after must differ" in again.output
    far = call(*options(saved, tmp_path, "--eta", 10))
    assert "Note: eta 10: the effective sample size is" in far.stderr
    result = call("--model", "x")
    assert result.exit_code == 2
    assert "give --model, one of --prompts and --responses, --after, --lr, --eta and --out, or --demo" in result.output


def test_responses_of_another_sampler_are_measured(saved: Path, tmp_path: Path) -> None:
    batch = sample(tiny(), [[1, 5], [1, 6, 7]] * 32, max_new_tokens=8, eos=0, seed=0)
    lines = [
        json.dumps({"prompt": row[:k].tolist(), "response": row[k:].tolist(), "sampler_logp": logp})
        for row, k, logp in zip(batch.sequences, batch.prompt_lengths, known(batch.sampler_logp), strict=True)
    ]
    (tmp_path / "responses.jsonl").write_text("\n".join(lines), encoding="utf-8")
    given = options(saved, tmp_path, "--responses", tmp_path / "responses.jsonl")
    del given[2:4]  # the prompts
    run = read_run(written(call(*given)))
    np.testing.assert_allclose(known(run.logp), known(batch.sampler_logp), atol=1e-4)
    both = call(*given, "--prompts", saved / "prompts.jsonl")
    assert both.exit_code == 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_of_peft_are_measured(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["c_attn"], r=2, init_lora_weights=False, fan_in_fan_out=True)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(saved / "before"), lora)
    for name in ("before", "after"):
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        for p in model.parameters():
            p.data += 1e-3 * torch.randn(p.shape) * p.requires_grad
    given = ["--model", tmp_path / "before", "--after", tmp_path / "after", "--eta", "1e-5"]
    run = read_run(written(call(*options(saved, tmp_path, *given))))
    assert np.std(known(run.measurements[0].log_weights)) > 0


def test_what_can_fail_fails_before_a_model_is_loaded(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(name: Any) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr("analysis_helpers.measure.command.load_model", never)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "words.txt").write_text("Say d\n", encoding="utf-8")
    for more, message in (
        (["--prompts", tmp_path / "words.txt"], "words.txt, line 1: must be JSON"),
        (
            ["--max-new-tokens", 62],
            "tokens of prompt and response (max_new_tokens) must fit the model's 64 positions, got up to 65",
        ),
        (["--device", "nowhere"], "nowhere"),
        (["--after", tmp_path / "nothing"], "nothing"),
        (["--rank", 2, "--world-size", 2], "rank must be below the world size, 2, got 2"),
        (["--out", tmp_path / "file"], "file"),
    ):
        result = call(*options(saved, tmp_path / "out", *more))
        assert result.exit_code == 1
        assert message in result.output
    monkeypatch.setattr(os, "sysconf", lambda _: 2)
    result = call(*options(saved, tmp_path / "out"))
    assert "memory of cpu must hold the models: 0.0 GiB of parameters in float32, got 0.0 GiB" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("appended", range(0, 16, 3))
def test_a_stopped_command_goes_on_where_it_was_and_ends_as_if_it_had_not(
    appended: int, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four microbatches are sampled, then four measured in each of three passes; the disk is full in one of them."""
    wanted = written(call(*options(saved, tmp_path / "whole"))).read_bytes()
    append, number = resuming._append, 0

    def fills_up(file: Any, content: bytes, path: Path) -> None:
        nonlocal number
        if number == appended:
            file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device", str(path))
        number += 1
        append(file, content, path)

    monkeypatch.setattr(resuming, "_append", fills_up)
    stopped = call(*options(saved, tmp_path))
    assert stopped.exit_code == 1
    assert "No space left on device" in stopped.output
    monkeypatch.setattr(resuming, "_append", append)
    other = call(*options(saved, tmp_path, "--seed", 1))
    assert f"Note: {tmp_path}/E_64/run_01 was stopped; its command goes on from there (" in other.stderr
    assert written(other).parent.name == "run_02"
    computed: list[Path] = []

    def counted(file: Any, content: bytes, path: Path) -> None:
        computed.append(path)
        append(file, content, path)

    monkeypatch.setattr(resuming, "_append", counted)
    path = written(call(*options(saved, tmp_path)))
    assert path.read_bytes() == wanted
    assert path.parent.name == "run_01"
    assert len(computed) == 16 - appended
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_where_it_was(sent: signal.Signals, saved: Path, tmp_path: Path) -> None:
    code = (
        "import os\nfrom analysis_helpers.measure import resuming\nfrom analysis_helpers.__main__ import main\n"
        "append, number = resuming._append, iter(range(16))\n"
        f"def killed(*given): append(*given); next(number) == 13 and os.kill(os.getpid(), {int(sent)})\n"
        "resuming._append = killed\nmain()\n"
    )
    command = [sys.executable, "-c", code, "measure", *options(saved, tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == (130 if sent == signal.SIGTERM else -sent), process.stderr
    assert ("repeat the command" in process.stderr) == (sent == signal.SIGTERM)
    assert len(list((tmp_path / "E_64" / "run_01" / "unfinished").glob("*.values"))) == 4
    wanted = written(call(*options(saved, tmp_path / "whole")))
    assert written(call(*options(saved, tmp_path))).read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "size"])
def test_a_damaged_record_is_computed_again_and_what_stands_before_it_is_not(damage: str, tmp_path: Path) -> None:
    path, computed = tmp_path / "some.values", list[int]()

    def squared(k: int) -> tuple[Any, ...]:
        computed.append(k)
        return np.full(5, k * k), np.array(k)

    sizes = [path.stat().st_size for _ in resuming.resumed(path, [1, 2, 3], squared)]
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-1]
    elif damage == "flipped":
        content[sizes[1] + 100 :] = bytes(255 - x for x in content[sizes[1] + 100 :])
    else:
        content[sizes[1] : sizes[1] + 8] = b"\xff" * 8
    path.write_bytes(content)
    for _ in range(2):
        found = list(resuming.resumed(path, [1, 2, 3], squared))
        assert [(values[0].tolist(), int(values[1])) for _, values in found] == [([k * k] * 5, k) for k in (1, 2, 3)]
    assert computed == [1, 2, 3, 3]


def test_commands_side_by_side_take_different_numbers_and_leave_none_that_failed(tmp_path: Path) -> None:
    given = {"seed": "0"}
    with resuming.claimed(tmp_path, given) as one, resuming.claimed(tmp_path, given) as two:
        assert (one.run.name, two.run.name) == ("run_01", "run_02")
        with resuming.claimed(tmp_path, given, rank=1) as other_rank:
            assert other_rank.run == one.run
        with pytest.raises(ZeroDivisionError), resuming.claimed(tmp_path, {"seed": "1"}) as third:
            print(third.run.relative_to(tmp_path / "run_03"), 1 // 0)
    assert not (tmp_path / "run_03").exists()


@pytest.mark.parametrize("named", ["option", "variable"])
def test_several_processes_measure_slices_that_the_last_one_merges(
    named: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: tuple[object, ...] = ()
    for rank in (1, 0, 2):
        assert not list(tmp_path.glob("E_64/*/results.json"))
        if named == "option":
            given = ("--rank", rank, "--world-size", 3)
        else:
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", "3")
        result = call(*options(saved, tmp_path, *given))
        assert result.exit_code == 0, result.output
    run = read_run(written(result))
    model, prompts, eos = load_policy(saved / "before", saved / "prompts.jsonl")
    drawn = drawn_prompts(prompts, 64, 0)
    parts = [sample(model, drawn[rank::3], max_new_tokens=8, eos=eos, seed=[0, rank]) for rank in range(3)]
    logp = np.concatenate([known(part.sampler_logp) for part in parts])
    np.testing.assert_allclose(known(run.sampler_logp), logp, rtol=1e-6)
    assert [each.name for each in (tmp_path / "E_64" / "run_01").iterdir()] == ["results.json"]


def test_runs_measured_apart_are_merged_by_a_command(tmp_path: Path) -> None:
    for name, run in [*synthetic_runs(1, 32).items(), *synthetic_runs(1, 48, seed=1).items()]:
        write_run(tmp_path / "parts" / f"{name}_{run.n}" / "results.json", run)
    result = CliRunner().invoke(main, ["merge", str(tmp_path / "parts"), str(tmp_path / "E_80" / "run_01")])
    assert read_run(written(result)).n == 80
