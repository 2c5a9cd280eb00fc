import dataclasses
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError
from analysis_helpers.runs.run import SEQUENCE_COLUMNS, skipped_steps
from tests.building import ETAS, altered, known, random_run, refused, totals_only_run, two_sequences, without_score

EMPTY_FIRST: dict[str, Any] = {"token_counts": [0, 1], "h_base": [0.0, 1.0], "h_new": {1e-6: [0.0, 1.0]}}
NEARLY_ONE = {1e-6: [1, 1], 1.0000001e-6: [1, 1]}
PARTS: dict[str, Any] = {"score": [1.0, -1.0], "wjlogp_sum": [10.0, 20.0], "jH_sum": [-4.0, -6.0]}


def test_totals_follow_from_the_arrays() -> None:
    # Weights 1 : 3; after the step (1 * 0.9 + 3 * 1.8) / (1 * 2 + 3 * 3) = 6.3 / 11; before it 3 / 5.
    run = two_sequences()
    [measured] = run.measurements
    assert measured.delta_h_true == pytest.approx(6.3 / 11 - 3 / 5, rel=1e-12)
    assert measured.base_entropy == pytest.approx(0.6, rel=1e-12)
    assert measured.ess == pytest.approx(16 / 10, rel=1e-12)  # (1 + 3)^2 / (1 + 9)
    assert known(measured.log_weights).tolist() == [0.0, np.log(3)]
    assert (run.n, run.total_tokens, run.etas) == (2, 5.0, (1e-6,))
    assert (run.delta_h_per_lr, run.scale) == (-3.0, 0.2)
    shifted = two_sequences(log_weights={1e-6: [2000.0, 2000 + np.log(3)]})  # log weights may be on any scale
    assert shifted.measurements[0].delta_h_true == pytest.approx(measured.delta_h_true, rel=1e-9)


def test_linear_terms_follow_from_their_parts() -> None:
    # H_N = 3 / 5; correction -0.6 * T * j = (-1.2, +1.8); terms (10 - 4 - 1.2) / 5 and (20 - 6 + 1.8) / 5.
    run = two_sequences(gdotv=None, **PARTS)
    assert known(run.gdotv) == pytest.approx([0.96, 3.16], rel=1e-12)
    assert run.delta_h_per_lr == pytest.approx(0.96 + 3.16, rel=1e-12)
    assert run.supports == ("baseline_entropy", "linear", "score")


@pytest.mark.parametrize(
    ("linear", "given"),
    [
        ({"delta_h_per_lr": 1.0}, "gdotv, delta_h_per_lr"),
        (PARTS, "score, wjlogp_sum, jH_sum, gdotv"),
        ({**PARTS, "gdotv": None, "delta_h_per_lr": 1.0}, "score, wjlogp_sum, jH_sum, delta_h_per_lr"),
        ({**PARTS, "gdotv": None, "jH_sum": None}, "score, wjlogp_sum"),
        ({"gdotv": None}, "none of these"),
    ],
)
def test_the_linear_change_is_given_in_one_way_and_wholly(linear: dict[str, Any], given: str) -> None:
    with refused("give the linear change in one way: score, wjlogp_sum and jH_sum together", f"got {given}"):
        two_sequences(**linear)


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ({"token_counts": [0, 0]}, "token_counts must sum to a positive number", "0.0"),
        ({"token_counts": [-1, 2]}, "token_counts must not be negative", "-1.0"),
        ({"h_new": {1e-6: [np.nan, 1.0]}}, "h_new[1e-06] must be finite", "nan"),
        ({"h_new": {-1.0: [1, 1]}}, "key of h_new must be a positive step size", "-1.0"),
        ({"log_weights": {"a": [0, 0]}}, "key of log_weights must be a positive step size", "'a'"),
        (
            {**EMPTY_FIRST, "log_weights": {1e-6: [0.0, -1000.0]}},
            "log_weights[1e-06] (weights times tokens) must sum to a positive number",
            "0.0",
        ),
        (dict.fromkeys(("h_new", "log_weights"), NEARLY_ONE), "h_new must hold each eta once", "1.0000001e-06"),
        ({"gdotv": None, "delta_h_per_lr": float("nan")}, "delta_h_per_lr must be finite", "nan"),
        ({"gdotv": None, "delta_h_per_lr": "x"}, "delta_h_per_lr must be a number", "'x'"),
        ({"logp": [-3.0, 1e-5]}, "logp must not be positive (it is a log-probability)", "1e-05 at position 1"),
    ],
)
def test_bad_arrays_are_refused_by_field_rule_and_value(changed: dict[str, Any], field: str, value: str) -> None:
    with refused(f"loop: {field}", value, error=RunError):
        two_sequences(**changed, source="loop")


@pytest.mark.parametrize(
    "name", ["token_counts", "h_base", "h_new", "log_weights", "gdotv", "logp", "sampler_logp", "min_logp", *PARTS]
)
def test_every_array_is_held_against_the_number_of_sequences_by_its_name(name: str) -> None:
    by_eta = name in ("h_new", "log_weights")
    arrays: dict[str, Any] = {"gdotv": None, **PARTS} if name in PARTS else {}
    arrays |= {name: {1e-6: [1.0, 2.0, 3.0]} if by_eta else [1.0, 2.0, 3.0]}
    # The token counts say how many sequences there are, so that the next array is the wrong one.
    shown, size = ("h_base", 3) if name == "token_counts" else (f"{name}[1e-06]" if by_eta else name, 2)
    with pytest.raises(RunError) as caught:
        two_sequences(**arrays, source="loop")
    assert (caught.value.file, caught.value.field) == ("loop", shown)
    assert f"{size} sequences" in caught.value.rule


def test_entropies_and_weights_must_be_at_the_same_etas() -> None:
    with refused("h_new and log_weights must", "[1e-06]", "[2e-06]"):
        two_sequences(log_weights={2e-6: [0.0, 0.0]})
    with refused("h_new and log_weights must hold the same etas, at least one"):
        two_sequences(h_new={}, log_weights={})
    wrongs: list[dict[str, Any]] = [{"h_new": [1.0]}, {"log_weights": [1.0]}]
    for wrong in wrongs:
        with refused("h_new and log_weights must"):
            two_sequences(**wrong)
    assert two_sequences(h_new={0.1 + 0.2: [0.9, 1.0]}, log_weights={0.3: [0.0, 0.0]}).etas == (0.3,)


def test_an_unknown_column_is_refused_and_all_columns_are_documented() -> None:
    with refused("no column vhvv; there are score, gdotv", "logp", error=TypeError):
        two_sequences(vhvv=[1.0, 2.0])
    documented = str(Run.from_arrays.__doc__)
    assert [c.name for c in SEQUENCE_COLUMNS if f"{c.name}\n" not in documented] == ["denom_corr_unscaled"]  # derived


def test_arrays_are_kept_read_only_and_said_to_be_supported() -> None:
    extra: dict[str, Any] = {"logp": [-1.0, -2.0], "sampler_logp": [-1.5, -2.0], "prompt_ids": ["a", "b"]}
    run = two_sequences(gdotv=None, **PARTS, **extra)
    assert {name: known(getattr(run, name)).tolist() for name in extra} == extra
    assert run.supports == ("baseline_entropy", "linear", "score", "logp", "prompts")
    assert totals_only_run().supports == ("baseline_entropy",)
    [m] = run.measurements
    arrays = [run.token_counts, run.gdotv, run.denom_corr_unscaled, run.score, m.weights, m.h_new, m.h_base]
    assert not [array for array in (*arrays, *(getattr(run, name) for name in extra)) if known(array).flags.writeable]
    for wrong in (["a", "b", "c"], [1.0, 2.0]):
        with refused("loop: prompt_ids must hold", "2 sequences", error=RunError):
            two_sequences(prompt_ids=wrong, source="loop")
    with refused("loop: prompt_ids must hold whole numbers or texts, got both", error=RunError):
        two_sequences(prompt_ids=[1, "1"], source="loop")
    assert known(two_sequences(prompt_ids=np.array(["a", "b"])).prompt_ids).tolist() == ["a", "b"]


def test_an_eta_is_found_within_tolerance_and_a_missing_one_says_which_there_are() -> None:
    run = random_run()
    assert run.measurement(ETAS[1] * (1 + 1e-9)) is run.measurements[1]
    assert run.has_eta(ETAS[1] * (1 + 1e-9))
    assert not run.has_eta(3e-6)
    with refused("run 0: no eta 3e-06", "1e-06, 2e-06"):
        run.measurement(3e-6)


def test_runs_are_equal_by_value_whatever_their_source() -> None:
    run = random_run()
    assert repr(run) == "<Run 'run 0': 12 sequences, etas 1e-06, 2e-06>"
    assert run == dataclasses.replace(random_run(), source="elsewhere")
    assert run != random_run(seed=1)
    assert run != without_score(run)
    assert run != dataclasses.replace(run, measurements=run.measurements[:1])
    assert run != "a run"


def test_runs_that_add_up_have_no_problem_and_one_part_in_a_million_is_none() -> None:
    run = random_run()
    for sound in (run, totals_only_run(), dataclasses.replace(run, delta_h_per_lr=run.delta_h_per_lr * (1 + 5e-7))):
        assert sound.problems == ()


@pytest.mark.parametrize(
    ("run", "field"),
    [
        (altered(random_run(), ETAS[0], delta_h_true=-9.0), "delta_h_true at eta 1e-06 is -9"),
        (altered(random_run(), ETAS[1], delta_h_true=lambda total: total * (1 + 2e-6)), "delta_h_true at eta 2e-06 is"),
        (altered(random_run(), ETAS[0], h_new=np.full(12, 1e308)), "delta_h_true at eta 1e-06 is"),
        (dataclasses.replace(random_run(), gdotv=known(random_run().gdotv) * np.arange(12)), "delta_h_per_lr is"),
        (dataclasses.replace(random_run(), gdotv=np.full(12, 1e308)), "delta_h_per_lr is"),
        (dataclasses.replace(random_run(), scale=7.0), "per_sequence_meta.scale is 7"),
    ],
)
def test_what_does_not_add_up_is_one_problem_by_name_and_value(run: Run, field: str) -> None:
    [problem] = run.problems  # sums that overflow give no warning, which would be an error here
    assert problem.startswith(field)


def test_base_entropies_that_disagree_are_problems() -> None:
    run = random_run()
    [problem] = dataclasses.replace(run, h_base_mean=1.2).problems
    assert problem.startswith("H_base_mean is 1.2, its sequences give 0.")
    off = altered(run, ETAS[0], base_entropy=lambda entropy: entropy + 1, delta_h_true=lambda total: total - 1)
    [problem] = off.problems
    assert problem.startswith("base_entropy at eta 1e-06 is 1.")


def test_a_step_that_changed_nothing_is_a_problem_of_its_run() -> None:
    still = two_sequences(h_base=[1, 2], h_new={1e-6: [1, 2], 2e-6: [1, 2]}, log_weights={1e-6: [3, 3], 2e-6: [0, 0]})
    assert skipped_steps(still) == ["at eta 1e-06, 2e-06 nothing changed: the step was skipped"]
    assert skipped_steps(two_sequences(h_base=[1, 2], h_new={1e-6: [1, 2]}, log_weights={1e-6: [3, 3.1]})) == []
