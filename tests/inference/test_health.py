from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers._checks import RunWarning
from analysis_helpers.estimators import scores
from analysis_helpers.inference.health import CHECKS
from analysis_helpers.runs import ShardError
from analysis_helpers.synthetic.validation import batch_of, short_policy
from tests.building import ETAS, Runs, known, random_run, totals_only_run
from tests.calibration.calibration import with_log_weights


def flagged(run: ah.Run) -> set[str]:
    table = ah.run_health({"run_01": run})
    return set(table[table["flag"]]["check"])


def found(run: ah.Run, check: str, eta: float | None = None) -> Any:
    """Return the row of a check, at one eta or of the run."""
    table = ah.run_health({"run_01": run})
    at = table["eta"].isna() if eta is None else np.isclose(table["eta"], eta)
    [row] = table[(table["check"] == check) & at].itertuples()
    return row


def with_weights(log_weights: Any) -> ah.Run:
    plain = random_run(len(next(iter(log_weights.values()))), score=False)
    h_new = {m.eta: m.h_new for m in plain.measurements if m.eta in log_weights}
    h_base = known(plain.measurements[0].h_base)
    return ah.Run.from_arrays(
        token_counts=plain.token_counts, h_base=h_base, h_new=h_new, log_weights=log_weights, gdotv=plain.gdotv
    )


def test_every_check_is_a_row_with_a_value_a_limit_and_a_meaning(large_runs: Runs) -> None:
    table = ah.run_health(large_runs)
    assert list(table.columns) == ["run", "eta", "check", "value", "limit", "flag", "meaning"]
    assert set(table["check"]) == set(CHECKS)
    assert set(table["run"]) == set(large_runs)
    assert table[["value", "limit"]].notna().all(axis=None)
    assert not table["flag"].any()
    assert (table["meaning"].str.len() > 20).all()


def test_values_are_those_of_their_definitions(large_runs: Runs) -> None:
    run = large_runs["run_01"]
    measured, j = run.measurement(1.6e-6), scores(run)
    noise = known(measured.log_weights) - 1.6e-6 * j
    expected = {
        "largest_weight_share": measured.weights.max() / measured.weights.sum(),
        "ess_share": 1 / (measured.weights**2).sum() / 2048,
        "noise_share": np.var(noise) / np.var(known(measured.log_weights)),
    }
    for check, value in expected.items():
        assert found(run, check, 1.6e-6).value == pytest.approx(value)
    assert found(run, "score_z").value == pytest.approx(j.mean() / (j.std(ddof=1) / np.sqrt(2048)))
    assert found(run, "integrity").value == 0


def test_numerical_noise_in_log_weights_is_a_step_below_the_precision_floor(large_runs: Runs) -> None:
    run = large_runs["run_01"]
    noise = np.random.default_rng(0).normal(0, 0.03, run.num_sequences)
    assert "noise_share" in flagged(with_log_weights(run, noise))


def test_without_the_score_noise_is_told_from_a_step_of_twice_the_size() -> None:
    # Log weights linear in eta plus the noise of three evaluations of log pi, each of SD s: log w(2 eta) - 2 log w(eta)
    # has the variance (1 + 4 + 1) s^2, that of the noise of log w times 3.
    rng, s = np.random.default_rng(0), 0.1
    slope, old, one, two = rng.normal(size=20_000), *rng.normal(0, s, (3, 20_000))
    run = with_weights({ETAS[0]: 0.2 * slope + one - old, ETAS[1]: 0.4 * slope + two - old})
    assert found(run, "noise_share", ETAS[0]).value == pytest.approx(2 * s**2 / (0.04 + 2 * s**2), rel=0.05)
    assert np.isnan(found(run, "noise_share", ETAS[1]).value)


def test_sampling_off_policy_moves_the_score() -> None:
    [run] = ah.synthetic_runs(1, 2048, seed=5, sampling_temperature=0.95).values()
    assert flagged(run) == {"score_z"}


def test_one_sequence_with_half_the_weight_is_seen_in_the_weights(small_runs: Runs) -> None:
    change = np.zeros(256)
    change[7] = np.log(256)
    assert {"ess_share", "largest_weight_share", "pareto_k"} <= flagged(with_log_weights(small_runs["run_01"], change))


def test_in_a_small_batch_a_share_of_a_tenth_is_nothing_unusual() -> None:
    share = found(random_run(12), "largest_weight_share", ETAS[0])
    assert share.value > 0.05
    assert not share.flag


def test_altered_totals_are_seen_and_named(small_runs: Runs) -> None:
    run = dataclasses.replace(small_runs["run_01"], delta_h_per_lr=small_runs["run_01"].delta_h_per_lr * 1.01)
    assert flagged(run) == {"integrity"}
    assert "delta_h_per_lr is " in found(run, "integrity").meaning


def test_a_stored_error_of_the_mean_of_shards_is_multiplied_by_their_number(small_runs: Runs) -> None:
    run = small_runs["run_01"]
    [stored] = run.shard_errors
    assert found(run, "stored_error").value == pytest.approx(1, abs=0.3)
    # As if the stored value were that of the total already: 32 times too small for what it is multiplied by.
    wrong = dataclasses.replace(run, shard_errors=(dataclasses.replace(stored, value=stored.value * 32),))
    assert flagged(wrong) == {"stored_error"}


def test_a_stored_error_of_curvature_is_held_against_the_curvature_terms() -> None:
    run = random_run(64, curvature=True)
    sums = known(run.vhvv).reshape(16, 4).sum(axis=1)
    stored = ShardError("approx.quadratic.variance.se_vHvv", float(sums.std(ddof=1) / 4), 16)
    checked = found(dataclasses.replace(run, shard_errors=(stored,)), "stored_error")
    assert checked.value == pytest.approx(1, abs=0.5)
    assert not checked.flag


def test_what_a_run_does_not_record_is_missing_and_not_flagged() -> None:
    table = ah.run_health({"run_01": totals_only_run()})
    missing = table[table["value"].isna()]
    assert set(missing["check"]) == {"score_z", "noise_share", "step_error", "pareto_k"}
    assert not missing["flag"].any()


def test_weights_that_are_all_or_nearly_the_same_have_no_tail_and_give_no_warning() -> None:
    run = random_run(128)
    even = found(with_log_weights(run, -known(run.measurements[0].log_weights)), "pareto_k", ETAS[0])
    assert np.isnan(even.value)
    log_weights = np.zeros(200)
    log_weights[:30] = 1 + np.arange(30) % 4 * 2.0**-52  # as rounded values are that went through a sum
    log_weights[:6] = 1.5
    nearly = found(with_weights({ETAS[0]: log_weights}), "pareto_k", ETAS[0])  # warnings are errors here
    assert abs(nearly.value) < nearly.limit


@pytest.mark.slow  # 2,000 batches; the stored calibration says the same of 5,000
def test_healthy_runs_raise_flags_at_the_stated_rate_only() -> None:
    # 2,000 healthy batches of 128 from one policy: the score is beyond 3 in 0.27 % if normal (5.4 +- 2.3 batches), the
    # tail of so few weights beyond its limit in about as many; 20 would be 6 standard errors.
    made = ah.synthetic_runs(1, 2000 * 128, etas=[1.6e-6], policy=short_policy())["run_01"]
    tables = [ah.run_health({"run_01": batch_of(made, 128 * k, 128)}) for k in range(2000)]
    rates = pd.concat(tables).groupby("check")["flag"].sum()
    assert rates["score_z"] < 20
    assert rates["pareto_k"] < 20
    # A stored error of 16 shards is beyond 4 SDs of its logarithm in about 0.04 %: 0.8 batches, more than 7 in 1e-6.
    assert rates["stored_error"] <= 7
    assert rates.drop(["score_z", "pareto_k", "stored_error"]).sum() == 0


def test_the_overview_shows_the_worst_and_names_what_is_flagged(large_runs: Runs, small_runs: Runs) -> None:
    off = dataclasses.replace(small_runs["run_02"], delta_h_per_lr=1.0)
    table = ah.health_of_batches({"E_2048": large_runs, "E_256": {**small_runs, "run_02": off}})
    assert table["run"].nunique() == 8
    overview = ah.health_overview(table).set_index("check")
    assert list(overview.loc["integrity", ["worst", "flagged"]]) == [1, "E_256/run_02"]
    assert overview.loc["ess_share", "worst"] == table[table["check"] == "ess_share"]["value"].min()
    assert (overview.drop("integrity")["flagged"] == "").all()


def test_totals_are_listed_by_eta_batch_and_run() -> None:
    run = random_run()
    table = ah.run_totals({"E_12": {"run_01": run, "run_02": random_run(seed=2)}, "E_2": {"run_01": totals_only_run()}})
    numbers = ["sequences", "true", "linear", "true_se", "linear_se", "ess_share"]
    assert list(table.columns) == ["batch", "run", "eta", *numbers]
    assert table["eta"].tolist() == [1e-6, 1e-6, 1e-6, 2e-6, 2e-6]
    first = table.iloc[0]
    assert (first["true"], first["linear"]) == (run.measurements[0].delta_h_true, 1e-6 * run.delta_h_per_lr)
    assert first["ess_share"] == pytest.approx(known(run.measurements[0].ess) / 12, rel=1e-12)


def test_contributions_have_a_row_a_sequence(large_runs: Runs) -> None:
    table = ah.contribution_table(large_runs, 1.6e-6)
    assert len(table) == 4 * 2048
    totals = table.groupby("run")["true"].sum()
    for name, run in large_runs.items():
        assert totals[name] == pytest.approx(run.measurement(1.6e-6).delta_h_true, rel=1e-9)
    with pytest.warns(RunWarning, match="skipped run_02"):
        table = ah.contribution_table({"run_01": random_run(), "run_02": totals_only_run()}, 1e-6)
    assert set(table["run"]) == {"run_01"}
    with pytest.warns(RunWarning, match="skipped run_02"):
        assert ah.contribution_table({"run_02": totals_only_run()}, 1e-6).empty


def test_tails_measure_the_largest_and_the_top_hundredth() -> None:
    values = np.array([0.0] * 198 + [10.0, -10.0])
    table = ah.contribution_tails(pd.DataFrame({"run": "run_01", "true": values, "linear": np.arange(200.0)}))
    true, linear = table.to_dict("records")
    assert true["top_1pct_share"] == 1.0
    assert true["sd"] == pytest.approx(np.sqrt(200 / 199))
    assert true["largest"] == pytest.approx(10 / np.sqrt(200 / 199))
    assert linear["kind"] == "linear"
    assert linear["top_1pct_share"] == pytest.approx(2 * 99.5**2 / np.sum((np.arange(200) - 99.5) ** 2))
