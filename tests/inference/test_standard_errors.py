from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis_helpers as ah
from analysis_helpers import Runs, inference
from analysis_helpers._checks import RunWarning
from analysis_helpers.err_rel import explain_partial_sum
from analysis_helpers.inference.standard_errors import moments_over_runs, sizes_around
from tests.building import ETAS, altered, estimate, known, random_run
from tests.calibration.drawing import batch_of

RUNS = {"run_01": random_run(seed=1), "run_02": random_run(seed=2)}


@pytest.mark.parametrize("n", [16, 64, 256])
def test_the_closed_form_is_the_spread_of_draws(large_runs: Runs, n: int) -> None:
    # The SD of 20,000 draws is known to 0.5 %, so 2 % is four standard errors: four of them fail with probability 3e-4.
    references = ah.reference_true_totals(large_runs)
    how: Any = {"num_samples": 20_000, "seed": n, "estimator": "ratio", "references": references}
    draws = ah.simulate_err_rel_across_runs(large_runs, [1.6e-6], n, **how)
    found = draws.groupby("run")["err_rel"].std()
    for name, run in large_runs.items():
        closed = ah.err_rel_standard_error(run, 1.6e-6, n, reference=references[1.6e-6], population="run")
        assert closed / found[name] == pytest.approx(1, abs=0.03 if n < 32 else 0.02)


def test_subsets_of_several_runs_spread_within_and_between_runs() -> None:
    mean, sd = moments_over_runs(pd.DataFrame({"mean": [1.0, 3.0], "sd": [1.0, 2.0]}))
    assert mean == 2.0
    assert sd == pytest.approx(np.sqrt((1 + 4) / 2 + 1))  # mean of variances + variance of means


def test_fixed_terms_without_noise_spread_over_subsets_and_fresh_batches_as_in_closed_form() -> None:
    # The exact derivative of each sequence: first order nearly vanishes, and gives a quarter of the spread. SDs of
    # 20,000 subsets and of 1,000 fresh batches are known to 1 and 5 % (the kurtosis is about 9): three standard errors.
    made = ah.synthetic_runs(1, 64_000, [1.6e-6], seed=3)["run_01"]
    [m], j = made.measurements, known(made.score)
    exact = known(made.jH_sum) + known(m.h_base) * j - m.base_entropy * made.token_counts * j

    def first(size: int, start: int = 0) -> ah.Run:
        part = slice(start, start + size)
        return ah.Run.from_arrays(
            token_counts=made.token_counts[part],
            h_base=known(m.h_base)[part],
            h_new={m.eta: m.h_new[part]},
            log_weights={m.eta: known(m.log_weights)[part]},
            gdotv=exact[part] / made.token_counts[part].sum(),
        )

    large = first(4096)
    how: dict[str, Any] = {"reference": m.delta_h_true, "estimator": "ratio"}
    drawn = ah.simulate_err_rel(large, m.eta, 64, num_samples=20_000, sampler="disjoint", **how).std()
    assert ah.err_rel_standard_error(large, m.eta, 64, population="run", **how) == pytest.approx(drawn, rel=0.03)
    fresh = np.std([np.subtract(*estimate(first(64, 64 * k), m.eta)) / m.delta_h_true for k in range(1000)])
    assert ah.err_rel_standard_error(large, m.eta, 64, **how) == pytest.approx(fresh, rel=0.15)


@pytest.mark.parametrize("n", [100, 1024, 1500])
def test_disjoint_subsets_have_the_spread_of_the_closed_form(large_runs: Runs, n: int) -> None:
    # Groups are correlated by -1 / (K - 1), so the SD of 8,000 is known to 0.8 % times sqrt(K / (K - 1)), 1.1 % at K =
    # 2; 5 % fails with probability 1e-5 each.
    run = large_runs["run_02"]
    for estimator in ("ratio", "matched", "partial_sum"):
        how: Any = {"estimator": estimator, "reference": -1e-3}
        draws = ah.simulate_err_rel(run, 1.6e-6, n, num_samples=8_000, seed=n, sampler="disjoint", **how)
        closed = ah.err_rel_standard_error(run, 1.6e-6, n, population="run", **how)
        assert closed / draws.std(ddof=1) == pytest.approx(1, abs=0.05)


def test_subsets_and_fresh_batches_differ_by_the_finite_population_correction() -> None:
    run = random_run()
    fresh, subset = (ah.err_rel_standard_error(run, ETAS[0], 8, population=p) for p in ("policy", "run"))
    # A subset's is that of the gradient, a fresh batch's that of leaving out one sequence.
    assert subset == pytest.approx(fresh * np.sqrt(1 - 8 / 12), rel=0.1)
    assert ah.err_rel_standard_error(run, ETAS[0], population="run") == 0.0
    assert ah.err_rel_standard_error(run, ETAS[0]) == pytest.approx(fresh * np.sqrt(8 / 12), rel=1e-12)
    assert ah.err_rel_standard_error(run, ETAS[0], 32) == pytest.approx(fresh / 2, rel=1e-12)  # larger than the run


def test_the_reference_is_divided_by_whatever_its_sign() -> None:
    run = random_run()
    one, other, zero = (ah.err_rel_standard_error(run, ETAS[0], reference=r) for r in (-2.0, 4.0, 0.0))
    assert one == pytest.approx(2 * other, rel=1e-12)
    assert np.isnan(zero)
    assert (
        inference.subset_moments({"run": run}, [ETAS[0]], 4, references={ETAS[0]: 0.0})[["mean", "sd"]]
        .isna()
        .all(axis=None)
    )


def test_moments_over_subsets_are_the_full_value_and_the_closed_form() -> None:
    [row] = inference.subset_moments({"run_01": random_run()}, [ETAS[1]], 5, references={ETAS[1]: -0.5}).to_dict(
        "records"
    )
    true, linear = estimate(random_run(), ETAS[1])
    sd = ah.err_rel_standard_error(random_run(), ETAS[1], 5, reference=-0.5, population="run")
    assert row == {"run": "run_01", "eta": ETAS[1], "mean": (linear - true) / -0.5, "sd": sd}
    for_runs: Any = ({"run_01": random_run()}, [ETAS[0]], 5)
    [row] = inference.subset_moments(*for_runs, estimator="partial_sum").to_dict("records")
    [exact] = explain_partial_sum(*for_runs).to_dict("records")
    assert (row["mean"], row["sd"]) == pytest.approx((exact["partial_sum_mean"], exact["partial_sum_sd"]), rel=1e-9)


def test_errors_over_a_weak_reference_are_warned_about_by_the_name_of_the_run() -> None:
    weak = altered(random_run(seed=4), delta_h_true=1e-9)
    with pytest.warns(RunWarning, match="of weak at eta 1e-06, 1e-09, is within 3 standard errors"):
        inference.subset_moments({"weak": weak}, [ETAS[0]], 4)
    with pytest.warns(RunWarning, match="of run 4 at eta 1e-06, 1e-09, is within 3 standard errors"):
        ah.err_rel_standard_error(weak, ETAS[0])


def test_the_spread_falls_with_the_root_of_n_and_to_nothing_at_the_whole_run(large_runs: Runs) -> None:
    table = inference.spread_by_size(large_runs, 1.6e-6, [64, 256, 1024, 2048, 4096], num_samples=2000).set_index("n")
    assert table["fresh"][64] == pytest.approx(2 * table["fresh"][256], rel=1e-12)
    assert table["subset"][1024] == pytest.approx(table["fresh"][1024] * np.sqrt(0.5), rel=1e-3)
    assert (table["drawn"] / table["subset"]).dropna().to_numpy() == pytest.approx(1, abs=0.04)
    assert table.loc[[2048, 4096], ["subset", "drawn"]].isna().all(axis=None)


@pytest.mark.parametrize("given", [{}, {"num_samples": 30, "seed": 5}])
def test_spreads_are_root_mean_squares_over_runs_drawn_ones_of_disjoint_subsets(given: dict[str, int]) -> None:
    [row] = inference.spread_by_size(RUNS, ETAS[0], [4], **given).to_dict("records")
    reference = ah.reference_true_totals(RUNS)[ETAS[0]]
    how: dict[str, Any] = {"num_samples": 1000, "seed": 0, **given}
    how |= {"estimator": "ratio", "sampler": "disjoint", "reference": reference}
    drawn = [ah.simulate_err_rel(run, ETAS[0], 4, **how).std(ddof=1) for run in RUNS.values()]
    fresh = [ah.err_rel_standard_error(run, ETAS[0], 4, reference=reference) for run in RUNS.values()]
    for name, errors in (("drawn", drawn), ("fresh", fresh)):
        assert row[name] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)


def test_a_spread_by_size_skips_runs_without_the_eta_with_a_warning(large_runs: Runs, small_runs: Runs) -> None:
    mixed = {**small_runs, "run_05": large_runs["run_01"]}
    with pytest.warns(RunWarning, match="skipped run_05: no eta 8e-07"):
        assert inference.spread_by_size(mixed, 8e-7, [16]).equals(inference.spread_by_size(small_runs, 8e-7, [16]))


def test_subsets_without_tokens_are_left_out_of_the_spread_of_draws() -> None:
    tokens = np.arange(9) % 3
    changes: dict[str, Any] = {
        "h_new": {ETAS[0]: 0.4 * tokens},
        "gdotv": -1e4 * tokens,
        "log_weights": {ETAS[0]: 0 * tokens},
    }
    run = ah.Run.from_arrays(token_counts=tokens, h_base=0.5 * tokens**1.5, **changes)
    with pytest.warns(RunWarning, match="subsets hold no tokens"):
        [drawn] = inference.spread_by_size({"run_01": run}, ETAS[0], [2])["drawn"]
    with pytest.warns(RunWarning, match="subsets hold no tokens"):
        draws = ah.simulate_err_rel(run, ETAS[0], 2, estimator="ratio", sampler="disjoint")
    assert 0 < np.isnan(draws).sum() < len(draws)
    assert drawn == pytest.approx(np.nanstd(draws, ddof=1), rel=1e-12)


def test_sizes_around_are_powers_of_two_from_sixteen_to_twice_the_largest() -> None:
    assert sizes_around(64, 64) == [16, 32, 64, 128]
    assert sizes_around(100, 127) == [16, 32, 64, 100, 128]
    assert sizes_around(5, 7) == [5]
    tables = inference.spread_by_size(RUNS, ETAS[0], n=5), inference.spread_by_size(RUNS, ETAS[0])
    assert [table["n"].tolist() for table in tables] == [[5, 16], [16, 256]]


@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 128, 256])
def test_intervals_of_the_adjusted_estimate_hold_88_to_92_percent(n: int) -> None:
    # 1,000 batches: the share is known to 0.95 points.
    made = ah.synthetic_runs(1, 1000 * n, etas=[1.6e-6], seed=5)["run_01"]
    reference, linear = estimate(made, 1.6e-6, "adjusted")
    inside = []
    for k in range(1000):
        batch = batch_of(made, n * k, n)
        true, found = estimate(batch, 1.6e-6, "adjusted")
        error = ah.err_rel_standard_error(batch, 1.6e-6, reference=reference, estimator="adjusted")
        inside.append(abs((found - true - linear + reference) / reference) <= stats.t.ppf(0.95, n - 1) * error)
    assert 0.88 <= np.mean(inside) <= 0.92
