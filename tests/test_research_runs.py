"""The published numbers, on the real runs, where RESEARCH_RUNS says where they are; `test_pinned.py` holds more."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis_helpers as ah
from analysis_helpers import Runs
from analysis_helpers.inference.decomposition import pool_decomposition
from analysis_helpers.inference.health import support_of
from analysis_helpers.inference.origin import same_states_error
from analysis_helpers.inference.prediction import agreement_with_prediction, pooled_err_rel
from analysis_helpers.runs.json import encode_run, parse_run
from tests.building import known

ETAS = [1.6e-6, 3.2e-6]
# Published at 1.6e-6: err_rel of the actual small runs; of the large runs, and its standard errors; the second part,
# and its standard errors; value and standard error of the second part pooled, the first pooled, and adjusted for the
# score the first, and the whole.
OF_SMALL = [-0.301225, 0.518306, -0.226701, 0.692298]
OF_LARGE = [0.481, 0.299, -0.046, 0.333, 0.155, 0.145, 0.218, 0.208]
SECOND = [-0.102, -0.094, -0.118, -0.029, 0.063, 0.061, 0.070, 0.061]
POOLED = [-0.0858, 0.0319, 0.352, 0.106, 0.043, 0.093, -0.043, 0.090]


@pytest.fixture(scope="module")
def large(research_root: Path) -> Runs:
    return ah.load_runs(research_root / "E_2048")


@pytest.fixture(scope="module")
def small(research_root: Path) -> Runs:
    return ah.load_runs(research_root / "E_256")


def test_all_files_load_add_up_and_survive_a_round_trip(research_root: Path, large: Runs) -> None:
    table = ah.inventory(research_root)
    assert len(table) == 8
    assert (table[["problem", "same_as"]] == "").all(axis=None)
    assert table["supports"].str.startswith("baseline_entropy, linear, score, logp").all()
    assert [len(etas) for etas in table["etas"]] == [2] * 4 + [5] * 4
    assert all(parse_run(encode_run(run), "copy") == run for run in large.values())


def test_references_and_the_published_distribution_of_the_partial_sum(large: Runs) -> None:
    assert list(ah.reference_true_totals(large).values()) == pytest.approx([-1.225013e-03, -2.309663e-03], rel=5e-7)
    draws = ah.sample_err_rel_across_runs(large, ETAS, subset_size=256, samples_per_eta=500, seed=42)
    columns = ["mean_err_rel", "std_err_rel", "min_err_rel", "max_err_rel"]
    first, second = ah.summarize_err_rel_distribution(draws)[columns].to_numpy()
    published = [0.06771040938745025, 1.2146092660791616, -5.26392053961792, 4.113773569475203]
    assert first == pytest.approx(published, rel=1e-11)
    # The last is published as 2.9721559, a digit short; plain loops give 2.97215569 too.
    assert second == pytest.approx([0.0273857855, 0.6748511983, -2.7764594366, 2.97215569], rel=1e-8)
    assert ah.explain_partial_sum(large, ETAS, 256)["base_entropy_share"].between(0.929, 0.99).all()


def test_errors_their_parts_and_standard_errors(large: Runs, small: Runs) -> None:
    eta = ETAS[0]
    reference = ah.reference_true_totals(large)[eta]
    for estimator in ("partial_sum", "ratio"):
        actual = ah.collect_err_rel_across_runs(small, eta, reference, estimator=estimator)
        assert actual["err_rel"].to_numpy() == pytest.approx(OF_SMALL, abs=6e-7)
    raw = ah.decompose_err_rel(large, eta)
    assert [*raw["err_rel"], *raw["se"]] == pytest.approx(OF_LARGE, abs=6e-4)
    assert [*raw["matched_minus_true"], *raw["matched_minus_true_se"]] == pytest.approx(SECOND, abs=6e-4)
    assert raw["score_z"].to_numpy() == pytest.approx([3.1, 3.6, 1.3, 3.0], abs=0.06)
    row, without_score = (pool_decomposition(large, eta, score_adjusted=flag).iloc[0] for flag in (False, True))
    first = ("linear_minus_matched", "linear_minus_matched_se")
    found = [*(row[name] for name in ("matched_minus_true", "matched_minus_true_se", *first))]
    found += [without_score[name] for name in (*first, "err_rel", "se")]
    assert found == pytest.approx(POOLED, abs=6e-4)
    given: Any = {"reference": reference, "population": "run"}
    errors = [ah.err_rel_standard_error(run, eta, 256, **given) for run in large.values()]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(0.487, abs=6e-4)


def test_the_small_runs_fall_and_scatter_as_predicted(large: Runs, small: Runs) -> None:
    assert ah.check_prediction(large, small, 1.6e-6)["pit"].to_numpy() == pytest.approx(
        [0.17, 0.66, 0.20, 0.76], abs=0.006
    )
    found = known(agreement_with_prediction(pooled_err_rel(large, 1.6e-6), large, small))
    assert (found.p_spread, found.p_mean) == pytest.approx((0.65, 0.76), abs=0.01)


def test_health_shows_score_and_precision_floor(large: Runs) -> None:
    table = ah.run_health(large)
    flagged = table[table["flag"]]
    assert set(flagged["check"]) == {"score_z", "log_probability_excess_z", "noise_share"}
    assert flagged.loc[flagged["check"] == "noise_share", ["run", "eta"]].to_numpy().tolist() == [["run_02", 1.6e-6]]
    assert sorted(flagged.loc[flagged["check"] == "score_z", "run"]) == ["run_01", "run_02"]


def test_the_sampler_kept_about_fifty_tokens(large: Runs, small: Runs) -> None:
    supports = [support_of(Runs({name: run})) for runs in (large, small) for name, run in runs.items()]
    assert supports == pytest.approx([23.8, 25.6, 50.9, 43.5, 27.7, 26.1, 15.9, 17.1], abs=0.06)
    found = ah.verdict(large, ETAS[0], 256)
    [note] = [note for note in found.recorded.notes if note.code == "off_policy"]
    assert (note.values["cause"], round(note.values["support"])) == ("truncated", 36)


def test_the_change_on_the_same_states_and_the_error_of_the_derivative_there(large: Runs, small: Runs) -> None:
    tables = [ah.change_by_origin(runs, [ETAS[0]]).query("part == 'same states'") for runs in (large, small)]
    same = pd.concat([table.iloc[:-1] for table in tables])
    published = [-0.9031, -0.8826, -0.7959, -0.6709, -0.6988, -0.5730, -0.7611, -0.7659]
    assert 1e3 * same["true"].to_numpy() == pytest.approx(published, abs=6e-5)
    errors = [0.0092, 0.0083, 0.0081, 0.0072, 0.0186, 0.0171, 0.0237, 0.0214]
    assert 1e3 * same["true_se"].to_numpy() == pytest.approx(errors, abs=2e-4)  # published with the gradient's
    off = (same["error"] / same["true"]).to_numpy()[:4]
    assert off == pytest.approx([-0.0222, -0.0275, -0.0139, -0.0350], abs=6e-5)
    pooled = ah.change_by_origin(large, [ETAS[0]]).tail(3).set_index("part")[["true", "true_se"]]
    assert 1e3 * pooled.loc["same states"].to_numpy() == pytest.approx([-0.81, 0.05], abs=0.006)
    assert 1e3 * pooled["true"].to_numpy() == pytest.approx([-0.81, -0.41, -1.23], abs=0.006)
    told = known(same_states_error(large, ETAS[0])).errors
    stated = [number for each in told.values() for number in (each.mean, each.se)]
    assert stated == pytest.approx([-0.025, 0.004, -0.018, 0.001], abs=6e-4)
