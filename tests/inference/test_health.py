from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import Run, RunError, inventory, run_health, synthetic_runs, write_run
from analysis_helpers._checks import RunWarning
from analysis_helpers.estimators import scores
from analysis_helpers.inference.health import (
    CHECKS,
    contribution_table,
    contribution_tails,
    health_of_batches,
    health_overview,
    run_totals,
)
from analysis_helpers.runs.json import encode_run
from analysis_helpers.synthetic.validation import batch_of, short_policy
from tests.building import ETAS, random_run, totals_only_run
from tests.calibration.calibration import with_log_weights


def flagged(runs: dict[str, Run]) -> set[str]:
    table = run_health(runs)
    return set(table[table["flag"]]["check"])


def test_every_check_is_a_row_with_a_value_a_limit_and_a_meaning(large_runs: dict[str, Run]) -> None:
    table = run_health(large_runs)
    assert list(table.columns) == ["run", "eta", "check", "value", "limit", "flag", "meaning"]
    assert set(table["check"]) == set(CHECKS)
    # Per run: integrity, score_z and one stored error; per run and eta: five checks.
    assert len(table) == 4 * (3 + 2 * 5)
    assert table["value"].notna().all()
    assert not table["flag"].any()
    assert (table["meaning"].str.len() > 20).all()


def test_values_are_those_of_their_definitions(large_runs: dict[str, Run]) -> None:
    run = large_runs["run_01"]
    table = run_health({"run_01": run})
    at = table[np.isclose(table["eta"], 1.6e-6)].set_index("check")["value"]
    measured = run.measurement(1.6e-6)
    assert at["largest_weight_share"] == pytest.approx(measured.weights.max() / measured.weights.sum())
    assert at["ess_share"] == pytest.approx(1 / (measured.weights**2).sum() / 2048)
    noise = np.asarray(measured.log_weights) - 1.6e-6 * scores(run)
    assert at["noise_share"] == pytest.approx(np.var(noise) / np.var(np.asarray(measured.log_weights)))
    of_run = table[table["eta"].isna()].set_index("check")["value"]
    j = scores(run)
    assert of_run["score_z"] == pytest.approx(j.mean() / (j.std(ddof=1) / np.sqrt(2048)))
    assert of_run["integrity"] == 0


def test_numerical_noise_in_log_weights_is_a_step_below_the_precision_floor(large_runs: dict[str, Run]) -> None:
    run = large_runs["run_01"]
    noise = np.random.default_rng(0).normal(0, 0.03, run.num_sequences)
    assert "noise_share" in flagged({"run_01": with_log_weights(run, noise)})


def test_sampling_off_policy_moves_the_score() -> None:
    runs = synthetic_runs(2, 2048, seed=5, sampling_temperature=0.95)
    assert flagged(runs) == {"score_z"}


def test_one_sequence_with_half_the_weight_is_seen_in_the_weights(small_runs: dict[str, Run]) -> None:
    run = small_runs["run_01"]
    change = np.zeros(run.num_sequences)
    change[7] = np.log(run.num_sequences)
    found = flagged({"run_01": with_log_weights(run, change)})
    assert {"ess_share", "largest_weight_share", "pareto_k"} <= found


def test_altered_totals_are_seen_and_named(small_runs: dict[str, Run]) -> None:
    run = dataclasses.replace(small_runs["run_01"], delta_h_per_lr=small_runs["run_01"].delta_h_per_lr * 1.01)
    table = run_health({"run_01": run})
    [row] = table[table["flag"]].to_dict("records")
    assert row["check"] == "integrity"
    assert "delta_h_per_lr is " in row["meaning"]


def test_a_stored_error_of_the_mean_of_shards_is_multiplied_by_their_number(small_runs: dict[str, Run]) -> None:
    run = small_runs["run_01"]
    [stored] = run.shard_errors
    assert run_health({"run_01": run}).set_index("check").loc["stored_error", "value"] == pytest.approx(1, abs=0.3)
    # As if the stored value were that of the total already: 32 times too small for what it is multiplied by.
    wrong = dataclasses.replace(run, shard_errors=(dataclasses.replace(stored, value=stored.value * 32),))
    assert flagged({"run_01": wrong}) == {"stored_error"}


def test_a_stored_error_of_curvature_is_held_against_the_curvature_terms() -> None:
    run = random_run(64, curvature=True)
    assert run.vhvv is not None
    sums = run.vhvv.reshape(16, 4).sum(axis=1)
    right = dataclasses.replace(
        random_run(64),
        vhvv=run.vhvv,
        shard_errors=(
            dataclasses.replace(
                synthetic_runs(1, 16)["run_01"].shard_errors[0],
                field="approx.quadratic.variance.se_vHvv",
                value=float(sums.std(ddof=1) / 4),
                num_shards=16,
            ),
        ),
    )
    [row] = [r for r in run_health({"run_01": right}).to_dict("records") if r["check"] == "stored_error"]
    assert row["value"] == pytest.approx(1, abs=0.5)
    assert not row["flag"]


def test_without_the_score_noise_is_told_from_a_step_of_twice_the_size() -> None:
    # Log weights linear in eta plus the noise of three evaluations of log pi, each of SD s: log w(2 eta) - 2 log w(eta)
    # has the variance (1 + 4 + 1) s^2, that of the noise of log w times 3.
    rng, size, s = np.random.default_rng(0), 20_000, 0.1
    slope, old, one, two = rng.normal(size=size), *rng.normal(0, s, (3, size))
    plain = random_run(size, score=False)
    base = plain.measurements[0].h_base
    assert base is not None
    run = Run.from_arrays(
        token_counts=plain.token_counts,
        h_base=base,
        h_new={m.eta: m.h_new for m in plain.measurements},
        log_weights={ETAS[0]: 0.2 * slope + one - old, ETAS[1]: 0.4 * slope + two - old},
        gdotv=plain.gdotv,
    )
    table = run_health({"run_01": run})
    found = table[table["check"] == "noise_share"].set_index("eta")["value"]
    assert found[ETAS[0]] == pytest.approx(2 * s**2 / (0.04 + 2 * s**2), rel=0.05)
    assert np.isnan(found[ETAS[1]])


def test_what_a_run_does_not_record_is_listed_as_missing_and_not_flagged() -> None:
    table = run_health({"run_01": totals_only_run()})
    missing = table[table["value"].isna()]
    assert set(missing["check"]) == {"score_z", "noise_share", "step_error", "pareto_k"}
    assert not missing["flag"].any()
    assert missing["meaning"].str.contains("Not recorded|Fewer than 100 sequences").all()


def test_in_a_small_batch_a_share_of_a_tenth_is_nothing_unusual() -> None:
    table = run_health({"run_01": random_run(12)})
    shares = table[table["check"] == "largest_weight_share"]
    assert (shares["value"] > 0.05).all()
    assert not shares["flag"].any()


def test_weights_that_are_all_the_same_have_no_tail() -> None:
    run = random_run(128)
    even = with_log_weights(run, -np.asarray(run.measurements[0].log_weights))
    table = run_health({"run_01": even})
    row = table[(table["check"] == "pareto_k") & (table["eta"] == ETAS[0])].iloc[0]
    assert np.isnan(row["value"])
    assert "no tail to fit" in row["meaning"]


def test_weights_that_are_the_same_but_for_their_last_digits_have_a_light_tail_and_give_no_warning() -> None:
    plain, log_weights = random_run(200, score=False), np.zeros(200)
    log_weights[:30] = 1 + np.arange(30) % 4 * 2.0**-52  # as rounded values are that went through a sum
    log_weights[:6] = 1.5
    run = Run.from_arrays(
        token_counts=plain.token_counts,
        h_new={ETAS[0]: plain.measurements[0].h_new},
        h_base=np.asarray(plain.measurements[0].h_base),
        log_weights={ETAS[0]: log_weights},
        gdotv=plain.gdotv,
    )
    table = run_health({"run_01": run})
    row = table[(table["check"] == "pareto_k") & (table["eta"] == ETAS[0])].iloc[0]
    assert abs(row["value"]) < row["limit"]  # warnings are errors here


def test_the_overview_shows_the_worst_value_and_names_what_is_flagged(small_runs: dict[str, Run]) -> None:
    off = dataclasses.replace(small_runs["run_02"], delta_h_per_lr=1.0)
    table = run_health({"run_01": small_runs["run_01"], "run_02": off})
    overview = health_overview(table).set_index("check")
    assert overview.loc["integrity", "flagged"] == "run_02"
    assert overview.loc["integrity", "worst"] == 1
    ess = table[table["check"] == "ess_share"]["value"]
    assert overview.loc["ess_share", "worst"] == ess.min()
    assert (overview.drop("integrity")["flagged"] == "").all()


def test_runs_of_several_batches_are_named_by_both(large_runs: dict[str, Run], small_runs: dict[str, Run]) -> None:
    altered = {**small_runs, "run_02": dataclasses.replace(small_runs["run_02"], delta_h_per_lr=1.0)}
    table = health_of_batches({"E_2048": large_runs, "E_256": altered})
    assert table["run"].nunique() == 8
    assert health_overview(table).set_index("check").loc["integrity", "flagged"] == "E_256/run_02"


def test_no_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs given"):
        run_health({})


@pytest.mark.slow
def test_healthy_runs_raise_flags_at_the_stated_rate_only() -> None:
    # 2,000 healthy batches of 128 from one policy: the score is beyond 3 in 0.27 % if normal (5.4 +- 2.3 batches), the
    # tail of so few weights beyond its limit in about as many; 20 would be 6 standard errors.
    made = synthetic_runs(1, 2000 * 128, etas=[1.6e-6], policy=short_policy())["run_01"]
    tables = [run_health({"run_01": batch_of(made, 128 * k, 128)}) for k in range(2000)]
    rates = pd.concat(tables).groupby("check")["flag"].sum()
    assert rates["score_z"] < 20
    assert rates["pareto_k"] < 20
    # A stored error of 16 shards is beyond 4 SDs of its logarithm in about 0.04 %: 0.8 batches, more than 7 in 1e-6.
    assert rates["stored_error"] <= 7
    assert rates.drop(["score_z", "pareto_k", "stored_error"]).sum() == 0


def test_the_inventory_lists_every_file_with_what_it_supports(sample_root: Path) -> None:
    table = inventory(sample_root)
    assert list(table.columns) == ["batch", "run", "sequences", "etas", "supports", "same_as", "problem"]
    assert list(zip(table["batch"], table["run"], strict=True)) == [
        (f"E_{size}", f"run_0{k}") for size in (2048, 256) for k in (1, 2, 3, 4)
    ]
    assert table["sequences"].tolist() == [2048] * 4 + [256] * 4
    assert (table["problem"] == "").all()
    assert (table["same_as"] == "").all()
    assert table["etas"].iloc[0] == (1.6e-6, 3.2e-6)
    assert table["supports"].iloc[0] == "linear, score, baseline_entropy"


def test_bad_files_and_copies_are_listed_and_nothing_is_raised(tmp_path: Path) -> None:
    for k in (1, 2):
        write_run(tmp_path / "E_12" / f"run_0{k}" / "results.json", random_run(seed=k))
    shutil.copytree(tmp_path / "E_12" / "run_01", tmp_path / "E_9" / "run_01")
    shutil.copytree(tmp_path / "E_12" / "run_01", tmp_path / "E_9" / "run_02")
    (tmp_path / "E_12" / "run_02" / "results.json").write_bytes(encode_run(random_run())[:-20])
    (tmp_path / "E_12" / "run_03" / "results.json").mkdir(parents=True)
    table = inventory(tmp_path)
    assert table["same_as"].tolist() == ["", "", "", "E_12/run_01", "E_12/run_01"]
    assert table["problem"].iloc[0] == ""
    assert table["problem"].iloc[1].startswith("file must be complete JSON, got ")
    assert table["problem"].iloc[2] == "file must be a regular file"
    assert table["sequences"].isna().tolist() == [False, True, True, False, False]


def test_a_missing_data_root_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"nowhere: folder does not exist; .* there is other/"):
        inventory(tmp_path / "nowhere")


def test_files_of_one_length_are_not_the_same_for_that(tmp_path: Path) -> None:
    for k, byte in ((1, b"1"), (2, b"2")):
        path = tmp_path / "E_1" / f"run_0{k}" / "results.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(byte)
    assert inventory(tmp_path)["same_as"].tolist() == ["", ""]


def write_batch(folder: Path, runs: list[Run]) -> None:
    for k, run in enumerate(runs, start=1):
        write_run(folder / f"run_{k:02d}" / "results.json", run)


def test_totals_are_listed_by_eta_batch_and_run() -> None:
    run = random_run()
    table = run_totals({"E_12": {"run_01": run, "run_02": random_run(seed=2)}, "E_2": {"run_01": totals_only_run()}})
    assert list(table.columns) == [
        "batch",
        "run",
        "eta",
        "sequences",
        "true",
        "linear",
        "true_se",
        "linear_se",
        "ess_share",
    ]
    assert table["eta"].tolist() == [1e-6, 1e-6, 1e-6, 2e-6, 2e-6]
    first = table.iloc[0]
    assert (first["true"], first["linear"]) == (run.measurements[0].delta_h_true, 1e-6 * run.delta_h_per_lr)
    ess = run.measurements[0].ess
    assert ess is not None
    assert first["ess_share"] == pytest.approx(ess / 12, rel=1e-12)


def test_contributions_have_a_row_a_sequence(large_runs: dict[str, Run]) -> None:
    table = contribution_table(large_runs, 1.6e-6)
    assert len(table) == 4 * 2048
    totals = table.groupby("run")["true"].sum()
    for name, run in large_runs.items():
        assert totals[name] == pytest.approx(run.measurement(1.6e-6).delta_h_true, rel=1e-9)


def test_tails_measure_the_largest_and_the_top_hundredth() -> None:
    values = np.array([0.0] * 198 + [10.0, -10.0])
    table = contribution_tails(pd.DataFrame({"run": "run_01", "true": values, "linear": np.arange(200.0)}))
    true, linear = table.to_dict("records")
    assert true["top_1pct_share"] == 1.0
    assert true["sd"] == pytest.approx(np.sqrt(200 / 199))
    assert true["largest"] == pytest.approx(10 / np.sqrt(200 / 199))
    assert linear["kind"] == "linear"
    assert linear["top_1pct_share"] == pytest.approx(2 * 99.5**2 / np.sum((np.arange(200) - 99.5) ** 2))


def test_contributions_at_an_unknown_eta_say_which_there_are() -> None:
    with pytest.raises(ValueError, match="none of run_01 has eta 5e-06; they have 1e-06, 2e-06"):
        contribution_table({"run_01": random_run()}, 5e-6)


def test_a_totals_only_run_has_no_contributions_and_is_named() -> None:
    with pytest.warns(RunWarning, match="skipped run_02: it has no per-sequence terms, only totals"):
        table = contribution_table({"run_01": random_run(), "run_02": totals_only_run()}, 1e-6)
    assert set(table["run"]) == {"run_01"}
    with pytest.warns(RunWarning, match="only totals"):
        assert contribution_table({"run_02": totals_only_run()}, 1e-6).empty
