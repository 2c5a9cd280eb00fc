from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference.decomposition import PARTS, pool_decomposition
from tests.building import ETAS, random_run, totals_only_run


def off_policy(temperature: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    runs = ah.synthetic_runs(20, 1024, [1.6e-6], seed=9, sampling_temperature=temperature)
    raw, adjusted = (ah.decompose_err_rel(runs, 1.6e-6, score_adjusted=flag) for flag in (False, True))
    return raw, adjusted


def mean_and_error(values: Any) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def test_runs_are_pooled_by_inverse_variance() -> None:
    table = pd.DataFrame({"run": ["run_01", "run_02"], "eta": 1e-6, "err_rel": [1.0, 4.0], "se": [1.0, 2.0]})
    for part in PARTS:
        table[part], table[f"{part}_se"] = [0.0, 5.0], [1.0, 1.0]
    table["score_z"] = [3.0, 1.0]
    [row] = pool_decomposition(table).to_dict("records")
    assert (row["run"], row["eta"]) == ("pooled", 1e-6)
    # Two runs: tau^2 = (Q - 1) / (sum of w - sum of w^2 / sum of w), each w an inverse variance.
    for name, values, w in (("err_rel", (1.0, 4.0), (1.0, 0.25)), (PARTS[0], (0.0, 5.0), (1.0, 1.0))):
        q = np.diff(values)[0] ** 2 * np.prod(w) / sum(w)
        tau2 = (q - 1) / (sum(w) - np.dot(w, w) / sum(w))
        w = 1 / (1 / np.array(w) + tau2)
        assert row[name] == pytest.approx(w @ values / w.sum(), rel=1e-6)
    assert row["score_z"] == pytest.approx(4 / np.sqrt(2))


def test_runs_without_a_score_are_left_out_of_the_table_with_a_warning() -> None:
    with pytest.warns(RunWarning, match="skipped run_02"):
        table = ah.decomposition_table({"run_01": random_run(), "run_02": totals_only_run()}, [ETAS[0]])
    assert set(table["run"]) == {"run_01", "pooled"}
    with pytest.warns(RunWarning, match="skipped run_02"):
        assert ah.decomposition_table({"run_02": totals_only_run()}, [1e-6]).empty


def test_scores_of_sequences_from_the_policy_are_standard_normal() -> None:
    # 60 runs: the mean of z is within 4 / sqrt(60), its SD within 4 / sqrt(120) of 1; each fails with probability
    # 6e-5.
    z = ah.decompose_err_rel(ah.synthetic_runs(60, 128, [1.6e-6], seed=8), 1.6e-6)["score_z"]
    assert abs(z.mean()) < 4 / np.sqrt(60)
    assert abs(z.std() - 1) < 4 / np.sqrt(120)


def test_on_policy_the_adjustment_changes_nothing_but_noise() -> None:
    # Both means are zero within 4 standard errors (6e-5 each); the exact change and derivative differ by 0.03 % here.
    raw, adjusted = off_policy(1.0)
    for table in (raw, adjusted):
        mean, error = mean_and_error(table["err_rel"])
        assert abs(mean) < 4 * error
    assert (adjusted["se"] < raw["se"]).all()  # a control variate takes out what it explains
    assert adjusted["score_z"].equals(raw["score_z"])


def test_slightly_off_policy_the_bias_appears_and_the_adjustment_removes_it() -> None:
    # Scores as far off as on real runs or twice that. Four standard errors: 6e-5 each.
    raw, adjusted = off_policy(0.98)
    mean, error = mean_and_error(raw["linear_minus_matched"])
    assert mean > 4 * error
    left, error = mean_and_error(adjusted["linear_minus_matched"])
    assert abs(left) < 4 * error + 0.02
