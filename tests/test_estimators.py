from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from analysis_helpers import Run, RunError, per_sequence_contributions
from analysis_helpers.estimators import (
    columns,
    estimate,
    scores,
    true_total_standard_error,
)
from analysis_helpers.runs.run import FIELDS_BEHIND
from tests.building import (
    ETAS,
    Runs,
    altered,
    known,
    plain_estimate,
    random_run,
    totals_only_run,
    two_sequences,
)

PARTS = {"gdotv": None, "score": [1.0, -1.0], "wjlogp_sum": [10.0, 20.0], "jH_sum": [-4.0, -6.0]}
WITHOUT_BASE_ENTROPY = altered(random_run(), h_base=None)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(
    ("estimator", "score"),
    [("partial_sum", True), ("partial_sum", False), ("ratio", True), ("ratio", False), ("matched", True)],
)
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


def test_the_ratio_on_one_sequence_by_hand() -> None:
    # The first sequence alone: R_S = 0.9 / 2, H_S = 1 / 2. T j = 2, H_N = 3 / 5, g = 10 - 4 - 0.6 * 2 = 4.8; linear =
    # eta / 2 * (4.8 - (0.5 - 0.6) * 2) = eta / 2 * 5 = eta / 2 * (10 - 4 - 0.5 * 2): its own entropy in place of H_N.
    batch = columns(two_sequences(**PARTS), 1e-6, "ratio")
    assert batch.estimate(batch.values[0]) == pytest.approx((-0.05, 2.5e-6), rel=1e-12)


def test_contributions_by_hand() -> None:
    # Weights 1/4 and 3/4, sum w T = 11/4: 0.225 / 2.75 - 2/5 * 3/5 and 1.35 / 2.75 - 3/5 * 3/5.
    true_seq, linear_seq = per_sequence_contributions(two_sequences(), 1e-6)
    assert true_seq == pytest.approx([0.225 / 2.75 - 0.24, 1.35 / 2.75 - 0.36], rel=1e-12)
    assert linear_seq == pytest.approx([-1e-6, -2e-6], rel=1e-12)


def test_the_ratio_does_not_depend_on_the_scale_of_the_weights() -> None:
    batch = columns(random_run(), ETAS[0], "ratio")
    scaled = batch.sums * [1, 1, 7, 7, 1, 1]  # w T and w h_new
    assert batch.estimate(scaled) == pytest.approx(batch.estimate(batch.sums), rel=1e-12)


def test_the_standard_error_agrees_with_leaving_out_one_sequence_at_a_time(large_runs: Runs) -> None:
    run = large_runs["run_03"]
    batch = columns(run, 1.6e-6, "ratio")
    left_out, _ = batch.estimate(batch.sums - batch.values)
    jackknife = np.sqrt(2047 / 2048 * np.sum((left_out - left_out.mean()) ** 2))
    assert true_total_standard_error(run, 1.6e-6) == pytest.approx(jackknife, rel=0.01)


def test_the_true_total_has_a_standard_error_where_base_entropies_are_recorded() -> None:
    assert known(true_total_standard_error(totals_only_run(), 1e-6)) > 0
    assert true_total_standard_error(WITHOUT_BASE_ENTROPY, ETAS[0]) is None
    one = two_sequences(token_counts=[2], h_base=[1], h_new={1e-6: [1]}, log_weights={1e-6: [0]}, gdotv=[1])
    assert true_total_standard_error(one, 1e-6) is None


def test_without_a_recorded_correction_the_linear_ratio_is_a_plain_mean() -> None:
    run = random_run(score=False)
    batch, chosen = columns(run, ETAS[0], "ratio"), [2, 5]
    _, linear = batch.estimate(batch.values[chosen].sum(axis=0))
    plain = ETAS[0] * known(run.gdotv)[chosen].sum() * run.total_tokens / run.token_counts[chosen].sum()
    assert linear == pytest.approx(plain, rel=1e-12)


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
    ("run", "estimator", "lacks"),
    [
        (dataclasses.replace(totals_only_run(), source="run 0"), "partial_sum", "linear"),
        (random_run(score=False), "matched", "score"),
        (WITHOUT_BASE_ENTROPY, "matched", "baseline_entropy"),
        (WITHOUT_BASE_ENTROPY, "ratio", "baseline_entropy"),
    ],
)
def test_what_a_run_lacks_is_named_with_the_run_and_the_field(run: Run, estimator: str, lacks: str) -> None:
    with pytest.raises(RunError) as caught:
        columns(run, run.etas[0], estimator)
    assert (caught.value.file, caught.value.field) == ("run 0", FIELDS_BEHIND[lacks])
    assert caught.value.rule.startswith("is needed")
