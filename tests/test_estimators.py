from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from analysis_helpers import Run, RunError, per_sequence_contributions
from analysis_helpers.estimators import (
    columns,
    estimate,
    influence_values,
    scores,
    tokens_times_score,
    true_total_standard_error,
)
from analysis_helpers.runs.run import FIELDS_BEHIND
from tests.building import ETAS, plain_estimate, random_run, totals_only_run


def without_base_entropy(run: Run) -> Run:
    bare = tuple(dataclasses.replace(m, h_base=None) for m in run.measurements)
    return dataclasses.replace(run, measurements=bare)


@pytest.mark.parametrize(
    ("estimator", "score"),
    [("partial_sum", True), ("partial_sum", False), ("ratio", True), ("ratio", False), ("matched", True)],
)
@pytest.mark.parametrize("eta", ETAS)
def test_sums_give_what_plain_loops_give_on_any_subset(estimator: str, score: bool, eta: float) -> None:
    run = random_run(score=score)
    batch = columns(run, eta, estimator)
    for chosen in ([0], [3, 1, 7], list(range(12))):
        sums = batch.values[chosen].sum(axis=0)
        assert batch.estimate(sums) == pytest.approx(plain_estimate(run, eta, chosen, estimator), rel=1e-11)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio"])
@pytest.mark.parametrize("eta", ETAS)
def test_on_the_full_batch_recorded_linear_terms_give_the_stored_totals(estimator: str, eta: float) -> None:
    run = random_run()
    expected = (run.measurement(eta).delta_h_true, eta * run.delta_h_per_lr)
    assert estimate(run, eta, estimator) == pytest.approx(expected, rel=1e-10)


def test_hand_arithmetic_of_the_ratio_on_one_sequence() -> None:
    # The first sequence alone: R_S = 0.9 / 2, H_S = 1 / 2. T j = 2, H_N = 3 / 5, g = 10 - 4 - 0.6 * 2 = 4.8; linear =
    # eta / 2 * (4.8 - (0.5 - 0.6) * 2) = eta / 2 * 5 = eta / 2 * (10 - 4 - 0.5 * 2): its own entropy in place of H_N.
    run = Run.from_arrays(
        token_counts=[2, 3],
        h_base=[1.0, 2.0],
        h_new={1e-6: [0.9, 1.8]},
        log_weights={1e-6: [0.0, 0.3]},
        score=[1.0, -1.0],
        wjlogp_sum=[10.0, 20.0],
        jH_sum=[-4.0, -6.0],
    )
    batch = columns(run, 1e-6, "ratio")
    assert batch.estimate(batch.values[0]) == pytest.approx((-0.05, 2.5e-6), rel=1e-12)


def test_hand_arithmetic_of_the_contributions() -> None:
    # Weights 1/4 and 3/4, sum w T = 11/4: 0.225 / 2.75 - 2/5 * 3/5 and 1.35 / 2.75 - 3/5 * 3/5.
    run = Run.from_arrays(
        token_counts=[2, 3],
        h_base=[1.0, 2.0],
        h_new={1e-6: [0.9, 1.8]},
        log_weights={1e-6: [0.0, np.log(3)]},
        gdotv=[-1.0, -2.0],
    )
    true_seq, linear_seq = per_sequence_contributions(run, 1e-6)
    assert true_seq == pytest.approx([0.225 / 2.75 - 0.24, 1.35 / 2.75 - 0.36], rel=1e-12)
    assert linear_seq == pytest.approx([-1e-6, -2e-6], rel=1e-12)


def test_contributions_sum_to_the_totals(large_runs: dict[str, Run]) -> None:
    for run in large_runs.values():
        for eta in run.etas:
            true_seq, linear_seq = per_sequence_contributions(run, eta)
            assert true_seq.sum() == pytest.approx(run.measurement(eta).delta_h_true, rel=1e-9)
            assert linear_seq.sum() == pytest.approx(eta * run.delta_h_per_lr, rel=1e-9)


def test_the_ratio_does_not_depend_on_the_scale_of_the_weights(large_runs: dict[str, Run]) -> None:
    batch = columns(large_runs["run_01"], 1.6e-6, "ratio")
    sums = batch.values.sum(axis=0)
    scaled = sums * [1, 1, 7, 7, 1, 1]  # w T and w h_new
    assert batch.estimate(scaled) == pytest.approx(batch.estimate(sums), rel=1e-12)


def test_influence_values_are_those_derived_by_hand(large_runs: dict[str, Run]) -> None:
    run = large_runs["run_02"]
    for m in run.measurements:
        assert m.h_base is not None
        assert run.gdotv is not None
        tokens, w_tokens, w_h_new = run.token_counts, m.weights * run.token_counts, m.weights * m.h_new
        size, total, eta = run.num_sequences, run.total_tokens, m.eta
        after, before = w_h_new.sum() / w_tokens.sum(), m.h_base.sum() / total
        linear, g = eta * run.delta_h_per_lr, run.gdotv * total
        own = (m.h_base - before * tokens) / total
        psi_true, psi_linear = influence_values(columns(run, eta, "ratio"))
        hand_true = size * ((w_h_new - after * w_tokens) / w_tokens.sum() - own)
        hand_linear = (
            size * (eta * g - linear * tokens) / total - size * own * eta * tokens_times_score(run).sum() / total
        )
        assert np.max(np.abs(psi_true - hand_true)) < 1e-9 * np.max(np.abs(hand_true))
        assert np.max(np.abs(psi_linear - hand_linear)) < 1e-9 * np.max(np.abs(hand_linear))


def test_influence_values_of_the_ratio_average_to_zero(large_runs: dict[str, Run]) -> None:
    # A ratio of sums does not change when every column is scaled alike (Euler), so x . grad f = 0 at the full sums.
    for psi in influence_values(columns(large_runs["run_01"], 3.2e-6, "ratio")):
        assert abs(psi.mean()) < 1e-10 * psi.std()


def test_the_standard_error_agrees_with_leaving_out_one_sequence_at_a_time(large_runs: dict[str, Run]) -> None:
    run = large_runs["run_03"]
    batch = columns(run, 1.6e-6, "ratio")
    without = batch.values.sum(axis=0) - batch.values
    left_out, _ = batch.estimate(without)
    size = run.num_sequences
    jackknife = np.sqrt((size - 1) / size * np.sum((left_out - left_out.mean()) ** 2))
    assert true_total_standard_error(run, 1.6e-6) == pytest.approx(jackknife, rel=0.01)


def test_no_standard_error_without_the_columns_for_it() -> None:
    run = random_run()
    bare = without_base_entropy(run)
    assert true_total_standard_error(bare, ETAS[0]) is None
    with pytest.raises(RunError, match=r"diagnostics.h_base is needed here and not recorded in this run"):
        columns(bare, ETAS[0], "ratio")


def test_a_totals_only_run_has_a_standard_error_of_its_true_total() -> None:
    error = true_total_standard_error(totals_only_run(), 1e-6)
    assert error is not None
    assert error > 0


def test_without_a_recorded_correction_the_linear_ratio_is_a_plain_mean() -> None:
    run = random_run(score=False)
    assert run.gdotv is not None
    batch = columns(run, ETAS[0], "ratio")
    chosen = [2, 5]
    _, linear = batch.estimate(batch.values[chosen].sum(axis=0))
    plain = ETAS[0] * run.gdotv[chosen].sum() * run.total_tokens / run.token_counts[chosen].sum()
    assert linear == pytest.approx(plain, rel=1e-12)


def test_what_a_run_lacks_is_named_with_the_run_and_the_field() -> None:
    with pytest.raises(RunError, match=r"run in memory: approx.per_sequence\[\].gdotv is needed here and not recorded"):
        per_sequence_contributions(totals_only_run(), 1e-6)


def test_unknown_etas_and_estimators_say_what_there_is() -> None:
    with pytest.raises(ValueError, match="no eta 5e-06 in this run; there are 1e-06, 2e-06"):
        estimate(random_run(), 5e-6)
    with pytest.raises(ValueError, match="estimator must be one of 'partial_sum', 'ratio', 'matched', got 'mean'"):
        estimate(random_run(), 1e-6, "mean")


def test_the_ratio_is_estimated_unless_another_estimator_is_named() -> None:
    assert columns(random_run(), ETAS[0]).estimator.name == "ratio"


def test_a_sequence_without_tokens_has_no_score() -> None:
    run = Run.from_arrays(
        token_counts=[2, 0, 3],
        h_base=[1.0, 0.0, 2.0],
        h_new={1e-6: [0.9, 0.0, 1.8]},
        log_weights={1e-6: [0.0, 0.0, 0.0]},
        score=[1.5, 0.0, -2.0],
        wjlogp_sum=[1.0, 0.0, 1.0],
        jH_sum=[1.0, 0.0, 1.0],
    )
    assert scores(run) == pytest.approx([1.5, 0.0, -2.0], rel=1e-12)
    assert scores(run)[1] == 0.0


@pytest.mark.parametrize(
    ("run", "field"),
    [
        (random_run(score=False), FIELDS_BEHIND["score"]),
        (without_base_entropy(random_run()), FIELDS_BEHIND["baseline_entropy"]),
    ],
)
def test_what_the_matched_estimator_misses_is_named_with_the_run(run: Run, field: str) -> None:
    with pytest.raises(RunError) as caught:
        columns(run, ETAS[0], "matched")
    assert (caught.value.file, caught.value.field) == ("run 0", field)
