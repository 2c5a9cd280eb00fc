from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError, merge_runs, read_run, write_run
from analysis_helpers.runs.run import FIELDS_BEHIND
from analysis_helpers.synthetic import synthetic_runs
from tests.building import altered, known, refused, two_sequences, without_score
from tests.calibration.drawing import batch_of


def whole_run(size: int = 60) -> Run:
    run = synthetic_runs(1, size)["run_01"]
    rng = np.random.default_rng(0)
    recorded: dict[str, Any] = {name: -rng.exponential(size=size) for name in ("logp", "sampler_logp", "min_logp")}
    return replace(run, direction="1f3a", vocabulary=24, method="midpoint", prompt_ids=np.arange(size) // 4, **recorded)


def test_merged_shards_are_the_whole_run(tmp_path: Path) -> None:
    run = whole_run()
    shards = {name: batch_of(run, *where) for name, where in {"0": (0, 7), "1": (7, 33), "2": (40, 20)}.items()}
    shards["1"] = replace(shards["1"], measurements=shards["1"].measurements[::-1])  # etas in any order
    merged = merge_runs(shards)
    for name in ("token_counts", "gdotv", "logp", "sampler_logp", "min_logp", "prompt_ids"):
        np.testing.assert_allclose(getattr(merged, name), getattr(run, name), rtol=1e-12)
    for m, wanted in zip(merged.measurements, run.measurements, strict=True):
        assert m.delta_h_true == pytest.approx(wanted.delta_h_true, rel=1e-12)
        assert m.ess == pytest.approx(wanted.ess, rel=1e-12)
        np.testing.assert_allclose(m.weights, wanted.weights, rtol=1e-12)
    assert merged.delta_h_per_lr == pytest.approx(run.delta_h_per_lr, rel=1e-12)
    assert (merged.direction, merged.vocabulary, merged.source) == ("1f3a", 24, "0 + 1 + 2")
    assert merged.method == "midpoint"
    assert merged.supports == run.supports
    write_run(tmp_path / "results.json", merged)
    assert read_run(tmp_path / "results.json") == merged


def test_sequences_without_tokens_are_merged() -> None:
    empty_first: dict[str, Any] = {"h_base": [0.0, 1.0], "h_new": {1e-6: [0.0, 1.1]}, "gdotv": None}
    parts: dict[str, Any] = {"score": [0.0, 0.5], "wjlogp_sum": [0.0, 1.0], "jH_sum": [0.0, 2.0]}
    shards = {str(tokens): two_sequences(token_counts=[0, tokens], **empty_first, **parts) for tokens in (1, 4)}
    merged = merge_runs(shards)
    assert merged.token_counts.tolist() == [0, 1, 0, 4]
    assert known(merged.score) == pytest.approx([0.0, 0.5, 0.0, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: replace(run, direction="77"), "b: direction must be that of the other runs, 1f3a, got 77"),
        (lambda run: replace(run, logp=None), "b: sum_logp must be recorded by all runs or by none"),
        (lambda run: replace(run, prompt_ids=None), "b: prompt_id must be recorded by all runs or by none"),
        (without_score, f"b: {FIELDS_BEHIND['score']} must be recorded"),
        (lambda run: replace(run, measurements=run.measurements[:1] * 2), "b: etas must be those of the other runs"),
        (
            lambda run: replace(run, measurements=run.measurements[:1]),
            "b: etas must be those of the other runs, [1.6e-06, 3.2e-06], got [1.6e-06]",
        ),
        (lambda run: altered(run, h_base=None), "b: true.entries[].diagnostics.h_base must be recorded"),
        (lambda run: altered(run, log_weights=None), "b: true.entries[].diagnostics.log_weights must be recorded"),
        (lambda _: batch_of(whole_run(90), 0, 30), "b: sequences must not be those of another run"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(change: Callable[[Run], Run], message: str) -> None:
    a, b, c = (batch_of(whole_run(90), start, 30) for start in (0, 30, 60))
    with refused(message, error=RunError):
        merge_runs({"a": a, "b": change(b), "c": c})


def test_what_merging_takes_and_no_run_records_is_named() -> None:
    runs = {name: altered(batch_of(whole_run(), start, 30), h_base=None) for name, start in (("a", 0), ("b", 30))}
    with refused("a, b: true.entries[].diagnostics.h_base must be recorded", error=RunError):
        merge_runs(runs)
