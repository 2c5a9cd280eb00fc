import numpy as np
import pytest

import analysis_helpers as ah
from analysis_helpers import inference
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference.decomposition import PARTS, pool_decomposition
from tests.building import ETAS, random_run, totals_only_run


def test_parts_are_pooled_by_random_effects_with_one_variance_a_sequence() -> None:
    runs = {"run_01": random_run(40, 1), "run_02": random_run(160, 2)}
    table = ah.decompose_err_rel(runs, ETAS[0])
    [row] = pool_decomposition(ah.Runs(runs), ETAS[0]).to_dict("records")
    assert (row["run"], row["eta"]) == ("pooled", ETAS[0])
    # S^2 = mean of N SE^2; two runs: tau^2 = (Q - 1) / (sum of w - sum of w^2 / sum of w), each w an inverse variance.
    for name, se in (("err_rel", "se"), *((part, f"{part}_se") for part in PARTS)):
        sizes, values = np.array([40, 160]), table[name].to_numpy()
        variances = np.mean(sizes * table[se] ** 2) / sizes
        w = 1 / variances
        q = np.diff(values)[0] ** 2 * np.prod(w) / sum(w)
        tau2 = max((q - 1) / (sum(w) - np.dot(w, w) / sum(w)), 0)
        w = 1 / (variances + tau2)
        assert row[name] == pytest.approx(w @ values / w.sum(), rel=1e-6)
    assert row["score_z"] == pytest.approx(table["score_z"].sum() / np.sqrt(2))


def test_runs_without_a_score_are_left_out_of_the_table_with_a_warning() -> None:
    with pytest.warns(RunWarning, match="skipped run_02"):
        table = inference.decomposition_table({"run_01": random_run(), "run_02": totals_only_run()}, [ETAS[0]])
    assert set(table["run"]) == {"run_01", "pooled"}
    with pytest.warns(RunWarning, match="skipped run_02"):
        assert inference.decomposition_table({"run_02": totals_only_run()}, [1e-6]).empty


@pytest.mark.parametrize("temperature", [1.0, 0.98])
def test_slightly_off_policy_a_bias_appears_and_the_adjustment_for_the_score_removes_it(temperature: float) -> None:
    # Scores as far off as on real runs or twice that. Four standard errors: 6e-5 each. The exact change and derivative
    # differ by 0.03 % here.
    runs = ah.synthetic_runs(20, 1024, [1.6e-6], seed=9, sampling_temperature=temperature)
    raw, adjusted = (ah.decompose_err_rel(runs, 1.6e-6, score_adjusted=flag) for flag in (False, True))
    bias, left = (table["linear_minus_matched"] for table in (raw, adjusted))
    assert (bias.mean() > 4 * bias.std() / np.sqrt(20)) == (temperature < 1)
    assert abs(left.mean()) < 4 * left.std() / np.sqrt(20) + 0.02
    assert (adjusted["se"] < raw["se"]).all()  # a control variate takes out what it explains
    assert adjusted["score_z"].equals(raw["score_z"])
