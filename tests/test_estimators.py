import dataclasses

import numpy as np
import pytest

from analysis_helpers import Run, RunError, decompose_err_rel, per_sequence_contributions, run_health
from analysis_helpers.estimators import (
    columns,
    equal_but_for_rounding,
    if_recorded,
    mean_log_probability_excess,
    mean_score,
    true_total,
)
from analysis_helpers.runs.run import FIELDS_BEHIND
from tests.building import (
    ETAS,
    altered,
    estimate,
    in_prompts,
    known,
    plain_estimate,
    random_run,
    totals_only_run,
    two_sequences,
)

PARTS = {"gdotv": None, "score": [1.0, -1.0], "wjlogp_sum": [10.0, 20.0], "jH_sum": [-4.0, -6.0]}
WITHOUT_BASE_ENTROPY = altered(random_run(), h_base=None)


@pytest.mark.parametrize(
    ("values", "equal"),
    [([0.0, 0.0], True), ([1e3, 1e3 + 0.009], True), ([1e3, 1e3 + 0.011], False), ([1e-3, 1.1e-3], False)],
)
def test_values_are_equal_but_for_rounding_where_they_differ_by_a_hundred_thousandth(
    values: list[float], equal: bool
) -> None:
    assert equal_but_for_rounding(np.array(values)) == equal
    assert equal_but_for_rounding(-np.array(values)) == equal


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
    batch = columns(two_sequences(**PARTS), 1e-6)  # which is estimated unless another estimator is named
    assert batch.estimate(batch.values[0]) == pytest.approx((-0.05, 2.5e-6), rel=1e-12)


@pytest.mark.parametrize("estimator", ["ratio", "matched", "adjusted"])
def test_standard_errors_are_those_of_leaving_out_one_row(estimator: str) -> None:
    for run in (random_run(9), in_prompts(random_run(12), 3)):
        batch = columns(run, ETAS[0], estimator)
        rows = len(batch.values)
        left = [batch.estimate(np.delete(batch.values, i, axis=0).sum(axis=0)) for i in range(rows)]
        for each, values in zip(batch.estimates, np.transpose(left), strict=True):
            jackknife = np.sqrt((rows - 1) / rows * np.sum((values - values.mean()) ** 2))
            assert each.se == pytest.approx(jackknife, rel=1e-9)
            assert each.value == batch.linearised[0].value or each.value == batch.linearised[1].value
            assert len(each.psi) == rows


def test_where_a_batch_without_a_row_has_no_tokens_the_gradient_stands_in() -> None:
    run = two_sequences(token_counts=[5, 0], h_base=[2, 0], h_new={1e-6: [1, 0]}, gdotv=[1, 0])
    true, linear = columns(run, 1e-6).estimates
    assert np.isfinite([*true.psi, *linear.psi]).all()


def test_estimates_on_runs_that_share_prompts_covary_by_what_they_share() -> None:
    one, other = (in_prompts(random_run(12, seed), 3) for seed in (1, 2))
    a, b = (columns(run, ETAS[0]).error for run in (one, other))
    centred = [(each.psi - each.psi.mean()) / 4 for each in (a, b)]
    assert a.covariance(b) == pytest.approx(float(centred[0] @ centred[1]), rel=1e-12)
    elsewhere = dataclasses.replace(other, prompt_ids=np.arange(12) // 3 + 2)  # of four prompts, two in common
    c = columns(elsewhere, ETAS[0]).error
    assert a.covariance(c) == pytest.approx(float(centred[0][2:] @ centred[1][:2]), rel=1e-12)
    assert a.covariance(columns(random_run(12, 2), ETAS[0]).error) == 0


def test_contributions_by_hand() -> None:
    # Weights 1/4 and 3/4, sum w T = 11/4: 0.225 / 2.75 - 2/5 * 3/5 and 1.35 / 2.75 - 3/5 * 3/5.
    true_seq, linear_seq = per_sequence_contributions(two_sequences(), 1e-6)
    assert true_seq == pytest.approx([0.225 / 2.75 - 0.24, 1.35 / 2.75 - 0.36], rel=1e-12)
    assert linear_seq == pytest.approx([-1e-6, -2e-6], rel=1e-12)


def test_adjusted_is_the_ratio_without_what_goes_along_with_the_mean_score() -> None:
    run, chosen = random_run(), [3, 1, 7]
    ratio, adjusted = (columns(run, ETAS[1], name) for name in ("ratio", "adjusted"))
    psi, j = ratio.error.psi, known(run.score)
    slope = np.cov(psi, j)[0, 1] / np.var(j, ddof=1)
    true, linear = ratio.estimate(ratio.values[chosen].sum(axis=0))
    found = adjusted.estimate(adjusted.values[chosen].sum(axis=0))
    assert found == pytest.approx((true, linear - slope * j[chosen].mean()), rel=1e-9)


@pytest.mark.parametrize("rounding", [0.0, 1e-15, 1e-6])  # a score is divided by token counts; columns may be rounded
def test_scores_that_are_equal_but_for_rounding_adjust_nothing(rounding: float) -> None:
    parts = {name: [1.0, 2.0, 2.5] for name in ("wjlogp_sum", "jH_sum", "h_base")}
    measured = {"h_new": {1e-6: [0.9, 1.8, 2.3]}, "log_weights": {1e-6: [0.0, 0.1, 0.2]}}
    score = 0.1 * (1 + rounding * np.arange(3))
    run = two_sequences(token_counts=[2, 3, 4], gdotv=None, score=score, **parts, **measured)
    ratio, adjusted = (columns(run, 1e-6, name).error for name in ("ratio", "adjusted"))
    assert adjusted.value == ratio.value
    assert adjusted.se == pytest.approx(ratio.se, rel=1e-12)
    assert mean_score(run).z == np.inf
    raw, left = (decompose_err_rel({"run": run}, 1e-6, reference=1.0, score_adjusted=flag) for flag in (False, True))
    assert left.equals(raw)
    slopes = run_health({"run": run}).query("check == 'log_weight_slope'")
    assert slopes["value"].isna().all()


def test_the_log_probability_excess_is_log_probability_plus_entropy_over_its_standard_error() -> None:
    run = two_sequences(logp=[-3.0, -1.0])  # mean -1/2, SD 3 / sqrt 2, standard error 3/2
    found = mean_log_probability_excess(run)
    assert (found.value, found.z) == pytest.approx((-0.5, -1 / 3), rel=1e-12)
    assert mean_log_probability_excess(two_sequences(logp=[-2.0, -3.0])).z == -np.inf  # the same on every sequence
    assert np.isnan(mean_log_probability_excess(two_sequences(logp=[-1.0, -2.0])).z)  # 0 on every sequence
    assert np.isnan(if_recorded(lambda: mean_log_probability_excess(two_sequences()).z))


def test_the_true_total_is_the_stored_one_and_has_a_standard_error_where_base_entropies_are_recorded() -> None:
    assert true_total(totals_only_run(), 1e-6).se > 0
    for run, eta in ((totals_only_run(), 1e-6), (WITHOUT_BASE_ENTROPY, ETAS[0])):
        assert true_total(run, eta).value == run.measurement(eta).delta_h_true
    assert np.isnan(true_total(WITHOUT_BASE_ENTROPY, ETAS[0]).se)
    one = two_sequences(token_counts=[2], h_base=[1], h_new={1e-6: [1]}, log_weights={1e-6: [0]}, gdotv=[1])
    assert np.isnan(true_total(one, 1e-6).se)


def test_a_sequence_without_tokens_has_no_score() -> None:
    arrays = {"token_counts": [2, 0], "h_base": [1.0, 0.0], "h_new": {1e-6: [0.9, 0.0]}, **PARTS, "score": [1.5, 0.0]}
    assert known(two_sequences(**arrays).score) == pytest.approx([1.5, 0.0], rel=1e-12)


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
