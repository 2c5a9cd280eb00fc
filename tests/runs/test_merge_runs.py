from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError, merge_runs, read_run, write_run
from analysis_helpers.synthetic import synthetic_runs
from analysis_helpers.synthetic.validation import batch_of


def whole_run(size: int = 60) -> Run:
    run = synthetic_runs(1, size)["run_01"]
    rng = np.random.default_rng(0)
    recorded: dict[str, Any] = {
        "logp": rng.normal(size=size),
        "sampler_logp": rng.normal(size=size),
        "prompt_ids": np.arange(size) // 4,
    }
    return dataclasses.replace(run, shard_errors=(), direction="1f3a", **recorded)


def shard(run: Run, first: int, size: int) -> Run:
    part = slice(first, first + size)
    assert run.logp is not None
    assert run.sampler_logp is not None
    assert run.prompt_ids is not None
    return dataclasses.replace(
        batch_of(run, first, size),
        logp=run.logp[part],
        sampler_logp=run.sampler_logp[part],
        prompt_ids=run.prompt_ids[part],
        direction=run.direction,
    )


def test_merged_shards_are_the_whole_run(tmp_path: Path) -> None:
    run = whole_run()
    shards = {name: shard(run, *where) for name, where in {"0": (0, 7), "1": (7, 33), "2": (40, 20)}.items()}
    merged = merge_runs(shards)
    for name in ("token_counts", "gdotv", "logp", "sampler_logp", "prompt_ids"):
        np.testing.assert_allclose(getattr(merged, name), getattr(run, name), rtol=1e-12)
    for m, wanted in zip(merged.measurements, run.measurements, strict=True):
        assert m.delta_h_true == pytest.approx(wanted.delta_h_true, rel=1e-12)
        assert m.ess == pytest.approx(wanted.ess, rel=1e-12)
        np.testing.assert_allclose(m.weights, wanted.weights, rtol=1e-12)
    assert merged.delta_h_per_lr == pytest.approx(run.delta_h_per_lr, rel=1e-12)
    assert (merged.direction, merged.supports) == ("1f3a", run.supports)
    write_run(tmp_path / "results.json", merged)
    assert read_run(tmp_path / "results.json") == merged


def test_the_etas_of_shards_may_come_in_any_order() -> None:
    run = whole_run()
    other = shard(run, 30, 30)
    turned = dataclasses.replace(other, measurements=other.measurements[::-1])
    assert merge_runs({"a": shard(run, 0, 30), "b": turned}) == merge_runs({"a": shard(run, 0, 30), "b": other})


def test_sequences_without_tokens_are_merged() -> None:
    shards = {
        str(tokens): Run.from_arrays(
            token_counts=[0, tokens],
            h_base=[0.0, 1.0],
            h_new={1e-6: [0.0, 1.1]},
            log_weights={1e-6: [0.0, 0.1]},
            score=[0.0, 0.5],
            wjlogp_sum=[0.0, 1.0],
            jH_sum=[0.0, 2.0],
        )
        for tokens in (3, 4)
    }
    assert merge_runs(shards).token_counts.tolist() == [0, 3, 0, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "77"}, "b: direction must be that of the other runs, 1f3a, got 77"),
        ({"logp": None}, r"a \+ b: logp must be recorded by all runs or by none, got 1 of 2"),
        ({"score": None}, r"b: approx.per_sequence\[\].extras.denom_corr_unscaled .* must be recorded"),
        ({"measurements": 1}, r"b: etas must be those of the other runs, \[1.6e-06, 3.2e-06\], got \[1.6e-06\]"),
        ({"h_base": None}, r"b: true.entries\[\].diagnostics.h_base must be recorded"),
        ({"log_weights": None}, r"b: true.entries\[\].diagnostics.log_weights must be recorded"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(changes: dict[str, Any], message: str) -> None:
    run = whole_run()
    other = shard(run, 30, 30)
    if changes.keys() <= {"h_base", "log_weights"}:
        changes = {"measurements": tuple(dataclasses.replace(m, **changes) for m in other.measurements)}
    elif changes.keys() == {"measurements"}:
        changes = {"measurements": other.measurements[: changes["measurements"]]}
    with pytest.raises(RunError, match=message):
        merge_runs({"a": shard(run, 0, 30), "b": dataclasses.replace(other, **changes)})


def test_the_same_shard_twice_is_refused() -> None:
    run = whole_run()
    with pytest.raises(RunError, match="c: sequences must not be those of another run"):
        merge_runs({"a": shard(run, 0, 30), "b": shard(run, 30, 30), "c": shard(run, 0, 30)})
