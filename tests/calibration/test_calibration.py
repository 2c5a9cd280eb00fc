"""The stored calibration is what the code gives, and says that intervals, estimates, flags and verdicts are right."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from analysis_helpers.inference.health import CHECKS
from analysis_helpers.synthetic import answer_overview, flag_overview, read_calibration
from analysis_helpers.synthetic.calibration import CALIBRATION_FILE
from tests.calibration import calibration
from tests.calibration.records import LEVELS
from tests.conftest import REPOSITORY

STORED = read_calibration()
CONTENT = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
SAMPLING = ("score_z", "log_probability_excess_z")


@pytest.mark.slow  # a chunk takes a minute; pinned numbers of the same records notice most changes
def test_the_first_chunk_made_anew_is_the_one_stored_to_the_last_digit() -> None:
    assert calibration.stored(calibration.calibrate(1, seed=CONTENT["seed"])) == CONTENT["first_chunk"]


@pytest.mark.slow  # two processes that each import everything
def test_neither_the_number_of_processes_nor_what_else_is_drawn_changes_anything() -> None:
    few = ("contradictions", "samplers")
    shared, alone = (calibration.calibrate(2, workers=count, records=few) for count in (2, 1))
    assert calibration.stored(shared) == calibration.stored(alone)
    first = calibration.stored(calibration.calibrate(1, seed=CONTENT["seed"], records=few))
    assert first == {name: CONTENT["first_chunk"][name] for name in few}


def test_it_rests_on_ten_thousand_batches() -> None:
    assert (
        (CONTENT["seed"], CONTENT["batches"])
        == (calibration.SEED, calibration.CHUNKS * calibration.PER_CHUNK)
        == (0, 10_000)
    )
    assert (STORED["estimates"]["batches"] == CONTENT["batches"]).all()
    assert (STORED["pit"].groupby("tau")["count"].sum() == CONTENT["batches"]).all()
    assert set(STORED["coverage"]["level"]) == set(LEVELS)
    for name, table in STORED.items():
        first = CONTENT["first_chunk"][name]
        assert table.columns.tolist() == first["columns"]
        assert len(table) >= len(first["rows"]) > 0  # a truth that is rare may be missing from one chunk


# The bounds below are what the documents say, plus four Monte-Carlo errors: a calibration with another seed would break
# one of them in less than 1 % of cases.


def test_intervals_never_cover_less_than_they_say_and_more_by_a_few_points_as_tau_is_known_poorly() -> None:
    table = STORED["coverage"]
    above = table["covered"] - table["level"]
    binomial = np.sqrt(table["level"] * (1 - table["level"]) / table["cases"]).tolist()
    assert table["error"].tolist() == pytest.approx(binomial, rel=1e-3)
    small = table["n"] == 64
    assert (above >= 0.0).all()
    assert (above <= 0.03 + 4 * table["error"])[small].all()
    assert (above <= 0.09 + 4 * table["error"])[~small].all()


def test_percentiles_are_uniform_but_for_tails_that_hold_too_few() -> None:
    # Predictions are a little too wide, never too narrow: with eight runs tau is known poorly, and that is allowed for.
    pit = STORED["pit"]
    shares, error = pit["count"] / 10_000, 4 * math.sqrt(0.05 * 0.95 / 10_000)
    tails = (pit["low"] == 0) | (pit["high"] == 1)
    assert shares[tails].between(0.03, 0.05 + error).all()
    assert shares[~tails].between(0.042 - error, 0.055 + error).all()


def test_intervals_over_updates_hold_what_they_say() -> None:
    table = STORED["updates"]
    error = 4 * np.sqrt(0.9 * 0.1 / table["cases"])
    assert (table["mean"] >= 0.88 - error).all()
    assert (table["next"] >= 0.86 - error / 2).all()  # a share of updates, not one of them
    far = table["tau"] >= 1  # differences between updates are at least the SE of a run
    assert (table["next"][far] <= 0.96 + error[far] / 2).all()
    shared = table["world"].str.contains("shared prompts")
    assert (table["mean"] <= 0.98 + 4 * np.sqrt(0.02 / table["cases"]))[shared].all()


def test_intervals_of_single_runs_hold_what_they_say() -> None:
    # Of short sequences 64 are few tokens. The curvature is that at eta 0, which a parabola over all etas gives only
    # where terms beyond eta^2 are small: in the world of steps that differ.
    table = STORED["singles"]
    short, curvature = table["world"] == "short sequences", table["quantity"] == "curvature"
    error = 4 * np.sqrt(0.9 * 0.1 / table["cases"])
    assert (table["covered"] >= 0.87 - error)[~short & (~curvature | (table["world"] == "steps that differ"))].all()
    assert (table["covered"] >= 0.82 - error)[short & ~curvature].all()


def test_err_rel_is_unbiased_and_the_bias_of_a_ratio_falls_with_the_size() -> None:
    table = STORED["estimates"]
    unbiased = table["quantity"].isin(["linear", "err_rel", "partial_sum"])
    assert (table["bias_z"].abs() < 4)[unbiased].all()
    small, large = (table[~unbiased & (table["n"] == n)].reset_index() for n in (64, 256))
    assert small["quantity"].tolist() == large["quantity"].tolist() == ["true", "matched"]
    assert small["bias"].between(0, 0.02).all()  # ratios of sums: about 0.6 / n of the true change
    error = np.hypot(large["bias_error"], small["bias_error"] / 4)
    assert ((large["bias"] - small["bias"] / 4).abs() < 4 * error).all()
    assert table["sd_over_se"].to_numpy() == pytest.approx(1, abs=0.03)
    assert table["covered"].between(0.92, 0.96).all()


def test_plans_reach_what_they_are_for() -> None:
    of_error, of_tolerance = STORED["plans"].to_dict("records")
    assert min(of_error["covered"], of_tolerance["covered"]) >= 0.9
    assert of_error["reached"] == pytest.approx(0.25, rel=0.02)
    assert of_tolerance["reached"] >= 0.9
    assert of_tolerance["unreachable"] <= 0.05


def test_healthy_runs_are_hardly_ever_flagged_and_faulty_ones_are() -> None:
    table = STORED["flags"]
    healthy = table[table["condition"].str.startswith("healthy")]
    expected = np.select([healthy["check"].isin(SAMPLING), healthy["check"] == "pareto_k"], [0.0027, 0.003], 0.0005)
    many_alike = (healthy["check"] == "pareto_k") & healthy["condition"].str.contains("2048")  # see `run_health`
    expected = np.where(many_alike, 0.015, expected)
    assert (healthy["flagged"] <= expected + 4 * np.sqrt(expected / healthy["runs"])).all()
    faulty = table[table["wanted"]]
    assert (faulty.loc[~faulty["check"].isin(SAMPLING), "flagged"] > 0.9).all()
    # Sequences here are of few tokens: the longer they are, the better both checks see a temperature.
    hotter = faulty[faulty["condition"].str.contains("0.95")].set_index("check")["flagged"]
    assert hotter["score_z"] > 0.6
    assert hotter["log_probability_excess_z"] > 0.95
    assert (faulty["flagged"] > 0.05).all()


def test_runs_of_no_world_are_called_unsound_or_off_policy() -> None:
    table = STORED["soundness"]
    error = 4 * np.sqrt(0.01 / table["runs"])
    assert (table["unsound"] <= 0.01 + error).all()
    assert (table["off_policy"] <= 0.01 + error).all()


def test_entropies_a_little_too_large_are_noticed() -> None:
    table = STORED["flags"].query("wanted and condition.str.contains('higher after the step, 256')")
    assert (table["flagged"] >= [1.0, 0.9]).all()


def test_false_answers_are_rare() -> None:
    table = STORED["answers"]
    error = 4 * np.sqrt(0.12 * 0.88 / table["cases"])
    assert (table["yes"] <= 0.12 + error)[table["truth"] == "no"].all()
    assert (table["no"] <= 0.12 + error)[table["truth"] == "yes"].all()
    assert (table["yes"][table["runs"] == 1] == 0).all()
    assert table[["yes", "no", "cannot_tell"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-3)
    enough = STORED["enough"]
    assert enough.loc[enough["truth"] == "no", "yes"].max() < 0.02
    assert enough.loc[enough["truth"] == "yes", "no"].max() < 0.02
    equal, different = STORED["contradictions"]["contradicted"]
    assert max(equal, different) <= 0.01 + 4 * math.sqrt(0.01 / 1250)


def test_the_readme_states_the_power_of_a_yes_and_the_rates_of_false_answers() -> None:
    four = answer_overview(STORED["answers"]).query("runs == 4").set_index("question")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    power = [round(100 * four["true_yes"][question]) for question in ("linear", "recorded")]
    false = [math.ceil(100 * four[name].max()) for name in ("false_yes", "false_no")]
    stated = r'in (\d+) % \(question 1\) and (\d+) % \(question 2\) of cases; false ones: "yes" (\d+) %, "no" (\d+) %'
    assert re.findall(stated, readme) == [tuple(map(str, power + false))]


def test_chances_of_an_answer_come_true_about_as_often_as_they_say() -> None:
    table = STORED["chances"]
    likely = table[table["low"] == 0.3]
    assert set(likely["runs"]) == {2, 3, 4, 8}
    assert likely["cases"].sum() > 5000
    assert 0.25 <= np.average(likely["answered"], weights=likely["cases"]) <= 0.65


def test_no_number_was_changed_by_hand() -> None:
    content = {name: value for name, value in CONTENT.items() if name != "digest"}
    assert calibration.digest(content) == CONTENT["digest"]


def test_bias_is_in_units_of_the_true_change() -> None:
    columns = {"exact": [-2.0] * 2 + [0.5] * 2, "value": [-1.0, -2.0, 1.0, 2.0], "se": [1.0, 0.1, 1.0, 1.0]}
    table = calibration.bias_table(pd.DataFrame({"n": 4, "quantity": ["true"] * 2 + ["err_rel"] * 2, **columns}))
    # Means -1.5 and 1.5; SD over batches 0.707, so Monte-Carlo error 0.5, in units of 2 and of 1.
    assert table["bias"].tolist() == pytest.approx([0.25, 1.0])
    assert table["bias_error"].tolist() == pytest.approx([0.25, 0.5])
    assert table["bias_z"].tolist() == pytest.approx([1.0, 2.0])
    assert table["covered"].tolist() == [1.0, 1.0]
    assert table["batches"].tolist() == [2, 2]


def test_a_truncating_sampler_is_told_from_another_temperature_and_biases_the_linear_change_alone() -> None:
    table = STORED["samplers"].set_index(["sampler", "n"])
    assert (table["runs"] == 2 * calibration.CHUNKS).all()
    on_policy, large = table.loc["all tokens"], table.xs(2048, level="n")
    assert (on_policy["flagged"] <= 0.01 + 4 * np.sqrt(0.01 / on_policy["runs"])).all()
    assert (large["flagged"].drop("all tokens") == 1).all()  # found in every run of 2048
    cut = ["top_k 50", "top_k 20", "top_p 0.995"]
    assert (table["truncated"].loc[cut] == table["flagged"].loc[cut]).all()  # and always for its true cause
    assert (table["truncated"].loc["temperature 0.97"] <= [0.1, 0]).all()  # one run of 256 gives a rough figure
    assert table["support_high"].loc[cut].max() < 1000 / 15 < table["support_low"].drop(cut, level="sampler").min()
    # True and matched changes are hardly affected, the linear change is clearly too large.
    assert large.loc[cut, ["true", "matched"]].to_numpy() == pytest.approx(1, abs=0.03)
    assert (large["linear"] > 1 + 2 * large["linear_error"]).drop("all tokens").all()
    assert abs(large["linear"]["all tokens"] - 1) < 4 * large["linear_error"]["all tokens"]


def test_every_check_has_a_fault_that_should_raise_it() -> None:
    wanted = {check for condition in calibration.FAULTY.values() for check in condition.wanted}
    assert wanted == set(CHECKS) - {"support"}  # which raises no flag: the table of samplers is about it
    assert not [name for name, condition in calibration.HEALTHY.items() if condition.wanted]


def test_strong_faults_are_seen_and_healthy_runs_are_not_flagged() -> None:
    # Of 4 runs of 512 a healthy one is flagged by chance in 0.3 % by the score: fails with probability about 1 %.
    strong = {name: made for name, made in calibration.FAULTY.items() if made.temperature == 1}
    table = calibration.flag_table(
        calibration.flag_records({**strong, "healthy": calibration.HEALTHY["healthy, 512 sequences"]}, count=4, seed=1)
    )
    assert (table[table["wanted"]]["flagged"] >= 0.75).all()
    assert (table[table["condition"] == "healthy"]["flagged"] == 0).all()
    assert table["runs"].isin([4, 8, 12, 20]).all()  # of five etas, a row each


def test_the_overview_sets_false_alarms_beside_what_is_seen() -> None:
    healthy = "healthy, 128 sequences"
    rows = [(healthy, "a", False, 0.1), (healthy, "b", False, 0.2), ("ill", "a", True, 0.9), ("ill", "b", False, 0.5)]
    overview = flag_overview(pd.DataFrame(rows, columns=["condition", "check", "wanted", "flagged"]))
    assert overview[["check", healthy]].to_numpy().tolist() == [["a", 0.1], ["b", 0.2]]
    assert overview["seen"].fillna(-1).tolist() == [0.9, -1]
