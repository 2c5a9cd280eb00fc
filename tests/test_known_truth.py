from __future__ import annotations

import numpy as np
import pytest

from analysis_helpers.known_truth import estimate_calibration, interval_coverage, plan_hits, verdict_rates
from analysis_helpers.planning import Goal
from analysis_helpers.replicates import true_spread


def test_estimates_and_standard_errors_come_out_right() -> None:
    # 300 batches of 128: means within 4 Monte-Carlo errors, SDs within 18 % (4.4 standard errors), coverage of 95 %
    # intervals within 5 percentage points (4 standard errors): fails with probability about 2e-3 in all.
    table = estimate_calibration([128], count=300, seed=1)
    assert table["quantity"].tolist() == ["true", "linear", "matched", "err_rel", "partial_sum"]
    assert (table["bias_z"].abs() < 4).all()
    assert (table["sd"] / table["typical_se"]).to_numpy() == pytest.approx(1, abs=0.18)
    assert table["covered"].to_numpy() == pytest.approx(0.95, abs=0.05)


def test_tables_have_a_row_for_each_question_asked() -> None:
    coverage = interval_coverage([0.0, 1.0], num_large=2, large_size=64, fresh_size=16, count=4)
    assert coverage.groupby("tau")["level"].apply(list).tolist() == [[0.5, 0.8, 0.9, 0.95]] * 2
    plans = plan_hits([Goal(target_sd=0.5), Goal(tolerance=1e-9)], count=2)
    assert plans["true_n"].tolist() == [np.ceil(true_spread() ** 2 / 0.25), np.inf]
    assert plans["unreachable"].tolist() == [0.0, 1.0]
    rates = verdict_rates([0.0, 9.0], [50, 5000], large_size=64, count=4)
    assert rates["question"].tolist() == ["linear_trusted"] * 2 + ["enough"] * 2
    assert rates["setting"].tolist() == [0.0, 9.0, 50, 5000]
    assert rates["truth"].tolist() == ["yes", "no", "no", "yes"]
    assert (rates[["yes", "no", "cannot_tell"]].sum(axis=1) == 1).all()
