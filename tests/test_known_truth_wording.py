from __future__ import annotations

import numpy as np
import pandas as pd

from analysis_helpers.calibration import Calibration
from analysis_helpers.known_truth_wording import (
    describe_calibration,
    describe_coverage,
    describe_plan_hits,
    describe_stored,
    describe_verdict_rates,
)


def test_what_came_out_on_known_truth_is_told_with_its_numbers() -> None:
    calibration = pd.DataFrame(
        {"bias_z": [1.0, -2.0], "sd": [1.0, 1.0], "typical_se": [0.8, 1.25], "covered": [0.9, 0.96]}
    )
    text = describe_calibration(calibration)
    assert "within 2.0 Monte-Carlo errors" in text
    assert "standard errors are 0.80 to 1.25 times the actual spread" in text
    coverage = pd.DataFrame({"tau": [0.0, 0.0], "level": [0.5, 0.9], "covered": [0.51, 0.88], "error": [0.02, 0.01]})
    [sentence] = describe_coverage(coverage)
    assert "tau = 0, predictive intervals of 50%, 90% hold the next run in 51%, 88% of cases" in sentence
    assert sentence.endswith("(± up to 2.0%).")
    plans = pd.DataFrame(
        {
            "target_sd": [0.25, np.nan],
            "tolerance": [np.nan, 0.8],
            "true_n": [232.0, 60.0],
            "median_n": [230.0, 70.0],
            "unreachable": [0.0, 0.1],
            "covered": [0.88, 0.9],
            "reached": [0.251, 0.93],
        }
    )
    of_error, of_tolerance = describe_plan_hits(plans)
    assert "take 230 sequences (median; truly 232); 88% of their intervals hold the true size" in of_error
    assert "10% of them say that no size is enough" in of_tolerance
    rates = pd.DataFrame(
        {
            "question": ["enough"] * 2 + ["linear_trusted"],
            "truth": ["yes", "no", "no"],
            "yes": [0.9, 0.02, 0.1],
            "no": [0.03, 0.9, 0.5],
        }
    )
    first, second = describe_verdict_rates(rates)
    assert '"yes" is false in at most 2% and "no" is false in at most 3% of cases' in first
    assert '"yes" is false in at most 10% of cases' in second
    assert '"no"' not in second


def test_a_stored_calibration_is_told_with_its_numbers_and_its_worst_cases() -> None:
    healthy, ill = "healthy, 128 sequences", "sampled at temperature 0.95"
    tables = {
        "coverage": pd.DataFrame({"tau": 0.0, "n": [64, 64], "level": [0.5, 0.9], "covered": [0.523, 0.92]}),
        "uniformity": pd.DataFrame({"tau": [0.0], "distance": [0.0123]}),
        "estimates": pd.DataFrame(
            {"n": [64, 64], "quantity": ["true", "err_rel"], "bias": [0.5, -0.0064], "bias_error": [0.1, 0.005]}
        ),
        "plans": pd.DataFrame({"target_sd": [0.25, np.nan], "tolerance": [np.nan, 0.8], "covered": [0.91, 0.5]}),
        "flags": pd.DataFrame(
            {
                "condition": [healthy, healthy, ill, ill],
                "check": ["pareto_k", "score_z", "pareto_k", "score_z"],
                "wanted": [False, False, False, True],
                "flagged": [0.004, 0.003, 0.0, 0.7],
            }
        ),
        "verdicts": pd.DataFrame(
            {"question": ["enough"], "truth": ["no"], "yes": [0.02], "no": [0.9], "cases": [1250]}
        ),
        "contradictions": pd.DataFrame({"tau": [0.0], "contradicted": [0.013]}),
    }
    intervals, estimates, alarms, verdicts, small = describe_stored(Calibration("1", 0, 10_000, tables, {}))
    assert "Over 10,000 batches, drawn once and stored, intervals of 50%, 90% hold the next run" in intervals
    assert "in 52.3%, 92% (tau = 0, runs of 64) of cases; percentiles are uniform to within 1.2%." in intervals
    assert "off by -0.006 ± 0.005 on batches of 64, in units of the true change" in estimates
    assert "91% of 90% intervals of plans" in estimates
    assert "at most 0.4% of healthy runs (pareto_k; healthy, 128 sequences)" in alarms
    assert "at least 70% of the unhealthy runs that it should see (score_z; sampled at temperature 0.95)" in alarms
    assert verdicts.startswith("Over 1,250 pilots in each setting: Is the batch enough? In the settings tried")
    assert small.endswith("(p below 0.01) in 1.3% (tau = 0) of cases.")
