from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError
from tests.building import ETAS, random_run, totals_only_run


def test_totals_follow_from_the_arrays() -> None:
    # Weights 1 : 3; after the step (1 * 0.9 + 3 * 1.8) / (1 * 2 + 3 * 3) = 6.3 / 11; before it 3 / 5.
    run = Run.from_arrays(
        token_counts=[2, 3],
        h_base=[1.0, 2.0],
        h_new={1e-6: [0.9, 1.8]},
        log_weights={1e-6: [0.0, np.log(3)]},
        gdotv=[-1.0, -2.0],
    )
    [measured] = run.measurements
    assert measured.delta_h_true == pytest.approx(6.3 / 11 - 3 / 5, rel=1e-12)
    assert measured.base_entropy == pytest.approx(0.6, rel=1e-12)
    assert measured.ess == pytest.approx(16 / 10, rel=1e-12)  # (1 + 3)^2 / (1 + 9)
    assert run.delta_h_per_lr == -3.0
    assert (run.num_sequences, run.total_tokens, run.etas) == (2, 5.0, (1e-6,))


def test_linear_terms_follow_from_their_parts() -> None:
    # H_N = 3 / 5; correction -0.6 * T * j = (-1.2, +1.8); terms (10 - 4 - 1.2) / 5 and (20 - 6 + 1.8) / 5.
    run = Run.from_arrays(
        token_counts=[2, 3],
        h_base=[1.0, 2.0],
        h_new={1e-6: [0.9, 1.8]},
        log_weights={1e-6: [0.0, 0.0]},
        score=[1.0, -1.0],
        wjlogp_sum=[10.0, 20.0],
        jH_sum=[-4.0, -6.0],
    )
    assert run.gdotv is not None
    assert run.gdotv == pytest.approx([0.96, 3.16], rel=1e-12)
    assert run.supports == ("linear", "score", "baseline_entropy")


def test_log_weights_may_be_on_any_scale() -> None:
    run = random_run()
    shifted = Run.from_arrays(
        token_counts=run.token_counts,
        h_base=run.measurements[0].h_base if run.measurements[0].h_base is not None else [],
        h_new={m.eta: m.h_new for m in run.measurements},
        log_weights={m.eta: m.log_weights + 2000 for m in run.measurements if m.log_weights is not None},
        gdotv=run.gdotv,
    )
    assert shifted.measurements[0].delta_h_true == pytest.approx(run.measurements[0].delta_h_true, rel=1e-9)


@pytest.mark.parametrize(
    ("linear", "supports"),
    [
        ({"delta_h_per_lr": -2.0}, ("baseline_entropy",)),
        ({"gdotv": [-1.0, -2.0]}, ("linear", "baseline_entropy")),
        ({"gdotv": [-1.0, -2.0], "vhvv": [1.0, 2.0]}, ("linear", "baseline_entropy", "curvature")),
    ],
)
def test_a_run_says_what_it_supports(linear: dict[str, Any], supports: tuple[str, ...]) -> None:
    measured: dict[str, Any] = {"h_new": {1e-6: [0.9, 1.8]}, "log_weights": {1e-6: [0.0, 0.0]}}
    run = Run.from_arrays(token_counts=[2, 3], h_base=[1.0, 2.0], **measured, **linear)
    assert run.supports == supports


ONE_WAY = "^give the linear change in one way: score, wjlogp_sum and jH_sum; or gdotv; or delta_h_per_lr$"


@pytest.mark.parametrize(
    "linear",
    [
        {},
        {"score": [1.0], "wjlogp_sum": [1.0]},
        {"gdotv": [1.0], "delta_h_per_lr": 1.0},
        {"score": [1.0], "wjlogp_sum": [1.0], "jH_sum": [1.0], "gdotv": [1.0]},
    ],
)
def test_the_linear_change_is_given_in_exactly_one_way(linear: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=ONE_WAY):
        Run.from_arrays(token_counts=[1], h_base=[1.0], h_new={1e-6: [1.0]}, log_weights={1e-6: [0.0]}, **linear)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"h_base": [1.0]}, "loop: h_base must have one value for each of the 2 sequences, got 1 values"),
        ({"token_counts": [0, 0]}, "loop: token_counts must sum to a positive number, got 0.0"),
        ({"h_new": {1e-6: [np.nan, 1.0]}}, r"loop: h_new\[1e-06\] must be finite, got nan at position 0"),
        ({"token_counts": [2, np.inf]}, "loop: token_counts must be finite, got inf at position 1"),
        (
            {"h_new": {-1.0: [1, 1]}, "log_weights": {-1.0: [0, 0]}},
            "loop: h_new must be a positive step size, got -1.0",
        ),
        ({"log_weights": {-1.0: [0, 0]}}, "loop: log_weights must be a positive step size, got -1.0"),
        (
            {"token_counts": [0, 1], "log_weights": {1e-6: [0.0, -1000.0]}},
            r"loop: log_weights\[1e-06\] \(weights times tokens\) must sum to a positive number",
        ),
        (
            {"h_new": {1e-6: [1, 1], 1.0000001e-6: [1, 1]}, "log_weights": {1e-6: [0, 0], 1.0000001e-6: [0, 0]}},
            "loop: h_new must hold each eta once, got 1.0000001e-06 twice",
        ),
    ],
)
def test_bad_arrays_are_refused_by_name(changed: dict[str, Any], message: str) -> None:
    good = {
        "token_counts": [2, 3],
        "h_base": [1.0, 2.0],
        "h_new": {1e-6: [1.0, 1.0]},
        "log_weights": {1e-6: [0.0, 0.0]},
    }
    with pytest.raises(RunError, match=message):
        Run.from_arrays(**{**good, **changed}, gdotv=[0.0, 0.0], source="loop")


@pytest.mark.parametrize(
    "name", ["token_counts", "h_base", "h_new", "log_weights", "gdotv", "vhvv", "score", "wjlogp_sum", "jH_sum"]
)
@pytest.mark.parametrize("source", ["loop", None])
def test_every_array_is_held_against_the_number_of_sequences_by_its_name(name: str, source: str | None) -> None:
    parts = ("score", "wjlogp_sum", "jH_sum")
    linear: dict[str, Any] = {part: [1.0, 2.0] for part in (parts if name in parts else ("gdotv",))}
    good = {"token_counts": [2, 3], "h_base": [1.0, 2.0], "h_new": [1.0, 1.0], "log_weights": [0.0, 0.0], **linear}
    bad: dict[str, Any] = {**good, name: [1.0, 2.0, 3.0]}
    bad |= {by_eta: {1e-6: bad[by_eta]} for by_eta in ("h_new", "log_weights")}
    shown, size = (f"{name}[1e-06]" if name in ("h_new", "log_weights") else name), 2
    if name == "token_counts":  # which says how many there are
        shown, size = "h_base", 3
    if source:
        bad["source"] = source
    with pytest.raises(RunError) as caught:
        Run.from_arrays(**bad)
    assert (caught.value.file, caught.value.field) == (source or "run in memory", shown)
    assert f"each of the {size} sequences" in caught.value.rule


def test_what_the_arrays_give_is_kept_with_the_run() -> None:
    run = random_run(curvature=True)
    assert run.scale == 1 / run.total_tokens
    assert run.source == "run 0"
    assert run.shard_errors == ()
    assert run.delta_h_per_lr == pytest.approx(float(np.sum(run.gdotv if run.gdotv is not None else [])), rel=1e-12)
    assert [len(m.log_weights) if m.log_weights is not None else 0 for m in run.measurements] == [12, 12]
    assert totals_only_run().delta_h_per_lr == -5.0
    with pytest.raises(RunError, match="token_counts must not be negative"):
        Run.from_arrays(
            token_counts=[-1, 2], h_base=[1, 1], h_new={1e-6: [1, 1]}, log_weights={1e-6: [0, 0]}, gdotv=[0, 0]
        )


def test_entropies_and_weights_must_be_at_the_same_etas() -> None:
    with pytest.raises(ValueError, match=r"must hold the same etas, got \[1e-06\] and \[2e-06\]"):
        Run.from_arrays(token_counts=[1], h_base=[1.0], h_new={1e-6: [1.0]}, log_weights={2e-6: [0.0]}, gdotv=[0.0])


@pytest.mark.parametrize("by_eta", [(), ("h_new",), ("log_weights",)])
def test_measurements_must_be_by_eta(by_eta: tuple[str, ...]) -> None:
    arrays: dict[str, Any] = {name: {1e-6: [1.0]} if name in by_eta else [1.0] for name in ("h_new", "log_weights")}
    with pytest.raises(ValueError, match=r"^h_new and log_weights must each be a dict of eta -> array$"):
        Run.from_arrays(token_counts=[1], h_base=[1.0], gdotv=[0.0], **arrays)


def test_a_run_is_shown_by_its_source_size_and_etas() -> None:
    assert repr(random_run()) == "<Run 'run 0': 12 sequences, etas 1e-06, 2e-06>"


def test_an_eta_is_found_within_tolerance_and_a_missing_one_says_which_there_are() -> None:
    run = random_run()
    assert run.measurement(ETAS[1] * (1 + 1e-9)) is run.measurements[1]
    assert not run.has_eta(3e-6)
    with pytest.raises(ValueError, match="run 0: no eta 3e-06 in this run; there are 1e-06, 2e-06"):
        run.measurement(3e-6)


def test_runs_are_equal_by_value_whatever_their_source() -> None:
    run = random_run()
    assert run == dataclasses.replace(random_run(), source="elsewhere")
    assert run != random_run(seed=1)
    assert run != dataclasses.replace(run, score=None)
    assert run != dataclasses.replace(run, measurements=run.measurements[:1])
    assert run != "a run"


def test_arrays_are_read_only() -> None:
    run = random_run(curvature=True)
    assert run.gdotv is not None
    assert run.vhvv is not None
    assert run.score is not None
    first = run.measurements[0]
    arrays = [
        run.token_counts,
        run.gdotv,
        run.vhvv,
        run.score.denom_corr_unscaled,
        first.weights,
        first.h_new,
        first.h_base,
    ]
    assert all(array is not None and not array.flags.writeable for array in arrays)


def test_a_totals_only_run_supports_only_its_baseline_entropy() -> None:
    assert totals_only_run().supports == ("baseline_entropy",)


def test_etas_that_differ_by_rounding_are_one() -> None:
    run = Run.from_arrays(
        token_counts=[1], h_base=[1.0], h_new={0.1 + 0.2: [0.9]}, log_weights={0.3: [0.0]}, gdotv=[0.0]
    )
    assert run.etas == (0.3,)


def test_totals_that_are_no_numbers_are_refused() -> None:
    measured: dict[str, Any] = {"h_new": {1e-6: [0.9, 1.0]}, "log_weights": {1e-6: [0.0, -1000.0]}}
    with pytest.raises(RunError, match=r"^run in memory: delta_h_per_lr must be finite, got nan"):
        Run.from_arrays(token_counts=[1, 1], h_base=[1.0, 1.0], delta_h_per_lr=float("nan"), **measured)
    with pytest.raises(RunError, match=r"log_weights\[1e-06\] \(weights times tokens\) must sum to a positive number"):
        Run.from_arrays(token_counts=[0, 1], h_base=[0.0, 1.0], delta_h_per_lr=1.0, **measured)
