import dataclasses
import inspect
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from analysis_helpers import Run, Runs, load_runs, reference_true_totals, synthetic_runs, trusted_eta, verdict
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference import run_health
from analysis_helpers.inference.decision import Goal
from analysis_helpers.inference.health import SamplerCause
from analysis_helpers.inference.prediction import pooled_err_rel
from analysis_helpers.inference.verdicts import Verdict, answered, enough, verdict_map, verdict_table
from analysis_helpers.inference.wording import WORDS, Doubt, Note, words
from analysis_helpers.synthetic.runs import wide_policy, with_log_weights
from tests.building import altered, in_prompts, known, pilot, random_run, totals_only_run, without_score
from tests.calibration.drawing import shifted

ETA = 1.6e-6
LARGE: Any = {"spread": 4.0, "size": 1000.0}


def goal(n: int = 256) -> Goal:
    return Goal(n, 0.5, 0.9)


def codes(notes: Sequence[Note]) -> list[str]:
    return [note.code for note in notes]


def first_doubts(found: Verdict) -> tuple[Doubt, Doubt]:
    """Return the first doubt about each question, neither of which has an answer."""
    assert [answer.answer for answer in found.answers.values()] == ["cannot tell"] * 2
    return found.linear.doubts[0], found.recorded.doubts[0]


def off_by(runs: Runs, errors: list[float]) -> dict[str, Run]:
    """Return the runs with err_rel moved."""
    total = reference_true_totals(runs)[ETA]
    return {n: shifted(run, error * total / ETA) for (n, run), error in zip(runs.items(), errors, strict=True)}


def bent(run: Run, factor: float) -> Run:
    """Return the run with its true change at every eta multiplied by a factor that grows with eta."""
    for m in run.measurements:
        h_new = m.h_new * (1 - factor * m.eta**2)
        true = float(m.weights @ h_new / (m.weights @ run.token_counts)) - m.base_entropy
        run = altered(run, m.eta, h_new=h_new, delta_h_true=true)
    return run


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([0.0, 0.1, -0.1, 0.05], "yes"),
        ([0.5, 0.4, 0.6, 0.55], "cannot tell"),  # the mean is at the tolerance
        ([2.0, 1.9, 2.1, 2.05], "no"),
        ([-2.0, -1.9, -2.1, -2.05], "no"),
        ([-9.0, 9.0, -8.0, 8.0], "no"),  # updates differ too much
        ([0.0], "cannot tell"),  # one run does not show how updates differ
        ([3.0], "no"),
    ],
)
def test_the_answer_follows_from_mean_and_spread_over_updates(values: list[float], answer: str) -> None:
    found = answered("ratio", pilot(values, **LARGE), goal())
    assert found.answer == answer
    assert math.isnan(found.low) == (len(values) == 1)
    assert ("updates_differ" in codes(found.notes)) == (min(values) == -9)
    doubted = answered("ratio", pilot(values, **LARGE), goal(), [Doubt("weak_reference")])
    assert (doubted.answer, doubted.required_n) == ("cannot tell", found.required_n)


def test_one_run_answers_for_its_own_update_and_knows_no_interval_of_a_size(large_runs: Runs) -> None:
    one = Runs({"run_01": large_runs["run_01"]})
    found = verdict(one, ETA, 256)
    sizes = found.table()["batch for ±0.25"].tolist()
    assert sizes == ["at most 64", f"{found.recorded.required_n:,}"]
    assert found.linear.required_n == 64
    for answer in found.answers.values():
        assert answer.notes[0].code == "this_update"
        assert (answer.required_low, answer.required_high) == (None, None)
        assert answer.required_n is not None
        assert answer.answer == "cannot tell"
        assert math.isnan(answer.low)
    assert codes(found.steps).count("other_updates") == 1
    far = verdict(off_by(one, [3.0]), ETA, 256).recorded
    assert (far.answer, far.notes[0].values["answer"]) == ("no", "no")


def test_more_runs_come_with_the_chances_of_each_answer(large_runs: Runs) -> None:
    steps = {note.code: note for note in verdict(large_runs, ETA, 256, tolerance=0.4).steps}
    chance = steps["more_runs"].values
    assert chance["question"] == "recorded"
    assert 0.5 <= chance["yes"] + chance["no"] <= 1


def test_where_a_parabola_does_not_hold_matched_answers_or_nothing_does(small_runs: Runs) -> None:
    largest = max(small_runs.etas)

    def kinked(run: Run) -> Run:
        m = run.measurement(largest)
        h_new = 0.99 * m.h_new
        true = float(m.weights @ h_new / (m.weights @ run.token_counts)) - m.base_entropy
        return altered(run, largest, h_new=h_new, delta_h_true=true)

    runs = {name: kinked(run) for name, run in small_runs.items()}
    found = verdict(runs, ETA, 256).linear
    [note] = [note for note in found.notes if note.code == "parabola_up_to"]
    assert note.values["up_to"] < largest
    assert found.answer == "yes"
    beyond = verdict(runs, largest, 256).linear
    assert beyond.estimator == "matched"
    bare = {name: without_score(run) for name, run in runs.items()}
    assert codes(verdict(bare, largest, 256).linear.doubts) == ["no_parabola"]
    # Left out by its user, the step size is no matter.
    left = verdict(runs, ETA, 256, etas=[eta for eta in small_runs.etas if eta != largest]).linear
    assert "parabola_up_to" not in codes(left.notes)


def test_precise_estimates_that_agree_to_a_hundredth_of_the_tolerance_are_answered() -> None:
    # Nearly straight, and known to 1e-4: the two estimates differ by many standard errors and by nothing that matters.
    runs = synthetic_runs(3, 600, [2e-6, 4e-6, 8e-6, 16e-6], seed=1, baseline="centred")
    table = verdict_map(runs, n=256)
    assert table["linear"].tolist() == ["yes"] * 4
    assert trusted_eta(runs) == 16e-6


def test_a_margin_inside_the_tolerance_is_enough_and_near_it_cannot_be_told() -> None:
    # S = 4 is known to about 1.1 %; the margin is 1.645 * 4 / sqrt(n), 0.5 at n = 173.
    found = {n: answered("ratio", pilot([0.0] * 4, **LARGE), goal(n)) for n in (100, 150, 173, 200)}
    assert [answer.enough for answer in found.values()] == ["no", "no", "cannot tell", "yes"]
    assert found[100].margin == pytest.approx(1.6449 * 0.4, rel=1e-4)
    assert known(found[100].required_low) < known(found[100].required_n) == 174 < known(found[100].required_high)
    hardly = pilot([0.0, 0.1], spread=4, size=20, kurtosis=12)
    assert {enough(hardly, goal(n)) for n in (120, 173, 250)} == {"cannot tell"}


def test_the_sample_data_get_the_answers_that_are_true_of_them(large_runs: Runs, small_runs: Runs) -> None:
    # Their step is linear to 1 %, and recorded terms are unbiased; S of the ratio is about 8.6.
    found = verdict(large_runs, ETA, 256, tolerance=0.5, small_runs=small_runs)
    assert (found.linear.answer, found.linear.enough) == ("yes", "yes")
    assert (found.recorded.answer, found.recorded.enough) == ("cannot tell", "no")
    assert found.recorded.margin == pytest.approx(0.88, abs=0.02)
    wide = verdict(large_runs, ETA, 256, tolerance=1.0).recorded
    assert (wide.answer, wide.enough) == ("yes", "yes")
    assert codes(found.unknown) == ["tau", "other_etas", "true_change_closer", "independence", "small_misfit"]
    without = codes(verdict(large_runs, ETA, 4096).unknown)  # what is not established depends on what is there
    assert without[-2:] == ["batch_of_n", "no_actual_runs"]


def test_bias_and_spread_of_recorded_terms_are_a_no_for_these_only(large_runs: Runs) -> None:
    for errors in ([3.0] * 4, [-9.0, 8.0, 9.0, -8.0]):
        found = verdict(off_by(large_runs, errors), ETA, 256)
        assert (found.linear.answer, found.recorded.answer) == ("yes", "no")


def test_a_nonlinear_step_is_a_no_at_large_etas_only(small_runs: Runs) -> None:
    curved = {
        name: bent(run, -1e8) for name, run in small_runs.items()
    }  # half of the change at 12.8e-6, hardly any at 0.8e-6
    assert verdict(curved, 12.8e-6, 256, tolerance=0.1).linear.answer == "no"
    assert verdict(curved, 0.8e-6, 256, tolerance=0.1).linear.answer == "yes"
    assert trusted_eta(curved, tolerance=0.25) in (1.6e-6, 3.2e-6)
    assert trusted_eta(small_runs, tolerance=0.1) == 12.8e-6


def test_runs_that_do_not_add_up_give_no_answer(large_runs: Runs) -> None:
    off = dataclasses.replace(large_runs["run_02"], delta_h_per_lr=1.0)
    for doubt in first_doubts(verdict({**large_runs, "run_02": off}, ETA, 10**6, tolerance=5)):
        assert (doubt.code, doubt.runs) == ("unsound", ("run_02",))
        assert (doubt.values["check"], doubt.values["high"]) == ("integrity", 1)


def test_actual_runs_that_contradict_their_prediction_or_do_not_add_up_give_no_answer_on_recorded(
    large_runs: Runs, small_runs: Runs
) -> None:
    off = {**small_runs, "run_02": dataclasses.replace(small_runs["run_02"], delta_h_per_lr=1.0)}
    for small, code in ((off_by(small_runs, [3.5] * 4), "actual_runs_contradict"), (off, "actual_run_unsound")):
        found = verdict(large_runs, ETA, 10**6, tolerance=2, small_runs=small)
        assert (found.linear.answer, found.recorded.answer) == ("yes", "cannot tell")
        assert codes(found.recorded.doubts) == [code]


def test_a_reference_near_zero_gives_no_answer_on_recorded() -> None:
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        [doubt] = verdict(synthetic_runs(2, 12, seed=2), ETA, 10**6, tolerance=100).recorded.doubts
    assert doubt.code == "weak_reference"
    assert doubt.values["relative"] > 1 / 3


def test_linear_terms_without_the_correction_get_no_answer_but_linearity_does() -> None:
    runs = {name: without_score(run) for name, run in synthetic_runs(3, 200).items()}
    found = verdict(runs, ETA, 50, tolerance=2.0)
    assert (found.recorded.answer, codes(found.recorded.doubts)) == ("cannot tell", ["correction_unknown"])
    assert (found.linear.answer, found.linear.estimator) == ("yes", "trend")
    assert "record_score" in codes(found.steps)
    [doubt] = verdict({**synthetic_runs(3, 200), "run_02": runs["run_02"]}, ETA, 50).recorded.doubts
    assert (doubt.code, doubt.runs) == ("correction_missing", ("run_02",))


def test_one_eta_without_a_score_says_what_to_record() -> None:
    found = verdict({"run_01": totals_only_run()}, 1e-6, 2)
    assert (found.linear.required_n, found.recorded.required_n) == (None, None)
    assert [doubt.code for doubt in first_doubts(found)] == ["nothing_recorded", "linear_terms_missing"]
    assert codes(found.steps) == ["larger_etas", "record_score"]


def test_off_policy_sequences_are_a_reason_and_the_adjusted_value_stands_beside() -> None:
    runs = synthetic_runs(3, 1024, sampling_temperature=0.95, record_logp=True)
    found = verdict(runs, ETA, 256)
    notes = {note.code: note for note in found.recorded.notes}
    assert notes["off_policy"].runs == tuple(runs)
    assert (notes["off_policy"].values["cause"], notes["off_policy"].values["vocabulary"]) == ("either", 12)
    assert abs(notes["score_adjusted"].values["mean"]) < abs(notes["err_rel"].values["mean"])
    assert "fix_sampler" in codes(found.steps)


@pytest.mark.parametrize(
    ("options", "causes"),
    [({"sampling_top_k": 50}, {"truncated"}), ({"sampling_temperature": 0.95}, {"not truncated", "either"})],
)
def test_the_cause_of_off_policy_sequences_is_read_from_the_tokens_that_were_drawn(
    options: dict[str, Any], causes: set[str]
) -> None:
    runs = synthetic_runs(2, 2048, [ETA], policy=wide_policy(), record_logp=True, **options)
    found = verdict(runs, ETA, 256)
    [note] = [note for note in found.recorded.notes if note.code == "off_policy"]
    [step] = [step for step in found.steps if step.code == "fix_sampler"]
    assert note.values["cause"] == step.values["cause"]
    assert note.values["cause"] in causes
    assert note.values["vocabulary"] == 1000
    table = run_health(runs).query("check == 'support'")  # of all runs together, and never a flag of its own
    assert table["value"].tolist() == pytest.approx([note.values["support"]] * 2)
    assert not table["flag"].any()


def test_the_cause_is_that_of_the_flagged_runs_alone() -> None:
    policy = wide_policy()
    made = synthetic_runs(3, 2048, [ETA], policy=policy, record_logp=True)
    cut = synthetic_runs(1, 2048, [ETA], seed=9, policy=policy, record_logp=True, sampling_top_k=50)["run_01"]
    [note] = [n for n in verdict({**made, "cut": cut}, ETA, 256).recorded.notes if n.code == "off_policy"]
    assert (note.runs, note.values["cause"]) == (("cut",), "truncated")


def test_a_change_that_is_not_clear_of_zero_gives_neither_answer() -> None:
    # Two updates of opposite signs: nonlinearity in units of their mean says nothing.
    up, down = random_run(200, seed=1), random_run(200, seed=2)
    mirrored = {eta: 2 * known(up.measurements[0].h_base) - up.measurement(eta).h_new for eta in up.etas}
    for m in up.measurements:
        h_new = mirrored[m.eta]
        true = float(m.weights @ h_new / (m.weights @ up.token_counts)) - m.base_entropy
        up = altered(up, m.eta, h_new=h_new, delta_h_true=true)
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        found = verdict({"up": up, "down": down}, up.etas[0], 64, tolerance=5.0)
    for doubt in first_doubts(found):
        assert doubt.code == "weak_reference"
    assert codes(found.steps)[0] == "clear_change"


def test_a_step_size_that_is_left_out_is_not_answered_for() -> None:
    runs = synthetic_runs(3, 256, [1e-6, 2e-6, 4e-6])
    assert verdict(runs, n=64, etas=[2e-6, 4e-6]).eta == 2e-6
    assert verdict(runs, 1e-6, 64, etas=[2e-6, 4e-6]).eta == 1e-6


def test_runs_whose_sequences_are_all_alike_have_a_verdict() -> None:
    alike = [2.0] * 8
    run = Run.from_arrays(
        token_counts=[4] * 8,
        h_base=alike,
        h_new={1e-6: [1.8] * 8, 2e-6: [1.6] * 8},
        log_weights={1e-6: [0.0] * 8, 2e-6: [0.0] * 8},
        gdotv=[-1e5 / 16] * 8,
    )
    found = verdict({"run": run}, 1e-6, 64)
    assert found.linear.mean == pytest.approx(0, abs=1e-9)
    assert found.linear.required_n == 64
    assert verdict({"run": run, "other": random_run(8, score=False)}, 1e-6, 64).linear.answer == "cannot tell"


@pytest.mark.parametrize("code", get_args(SamplerCause))
def test_every_cause_has_words(code: str) -> None:
    told = {"checks": "score_z", "cause": code, "support": 36.0, "vocabulary": None}
    sentences = [words(Note(of, ("run_01",), told)) for of in ("off_policy", "fix_sampler")]
    assert all(sentences)
    assert not set("{}") & set("".join(sentences))


def test_responses_to_a_single_prompt_are_independent_given_it() -> None:
    runs = {f"run_{k}": random_run(200, seed=k) for k in range(3)}
    plain = verdict(runs, 1e-6, 64, tolerance=5.0)
    single = verdict({name: in_prompts(run, run.n) for name, run in runs.items()}, 1e-6, 64, tolerance=5.0)
    assert (single.linear.mean, single.recorded.se) == (plain.linear.mean, plain.recorded.se)
    assert single.recorded.required_n == plain.recorded.required_n
    assert {note.code for note in single.unknown} - {note.code for note in plain.unknown} == {"one_prompt"}
    assert {note.code for note in plain.unknown} - {note.code for note in single.unknown} == {"independence"}


def test_what_runs_share_through_their_prompts_is_said_and_added_to_the_error_of_the_mean_once() -> None:
    runs = {f"run_{k}": in_prompts(random_run(200, seed=k), 8) for k in range(3)}
    found = verdict(runs, 1e-6, 64, tolerance=5.0)
    assert found.recorded.answer == "yes"
    assert {note.values.get("prompts") for note in found.unknown if note.code == "few_prompts"} == {25}
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.3, 25)  # of a prompt, in every run

    def with_common(run: Run) -> Run:
        m = run.measurements[0]
        h_new = m.h_new * (1 + 0.3 * common[np.arange(200) // 8])
        true = float(m.weights @ h_new / (m.weights @ run.token_counts)) - m.base_entropy
        return altered(run, 1e-6, h_new=h_new, delta_h_true=true)

    shared = pooled_err_rel({name: with_common(run) for name, run in runs.items()}, 1e-6)
    assert shared.shared_share > 0.3
    assert shared.pooled.se > 1.4 * math.sqrt(float(np.mean(shared.variances)) / 3)
    unknown = verdict({name: with_common(run) for name, run in runs.items()}, 1e-6, 64, tolerance=5.0).unknown
    assert "shared_prompts" in codes(unknown)


@pytest.mark.parametrize("factor", [-1.0, 0.01])
def test_log_weights_of_the_wrong_sign_or_averaged_per_token_give_no_answer(large_runs: Runs, factor: float) -> None:
    runs = {
        name: with_log_weights(run, {m.eta: (factor - 1) * np.asarray(m.log_weights) for m in run.measurements})
        for name, run in large_runs.items()
    }
    found = verdict(runs, ETA, 256)
    for doubt in first_doubts(found):
        assert (doubt.code, doubt.values["check"], doubt.runs) == ("unsound", "log_weight_slope", tuple(runs))
        assert doubt.values["low"] == pytest.approx(factor - 1, abs=0.1)
    assert (codes(found.steps), found.notes, found.unknown) == (["fix_runs"], (), ())
    for answer in found.answers.values():  # no number that could be taken for an estimate
        assert (answer.required_n, answer.notes) == (None, ())
        assert math.isnan(answer.mean)


def test_all_runs_of_one_fault_are_named_also_those_just_inside_the_limit(large_runs: Runs) -> None:
    factors = dict(zip(large_runs, (-0.48, -0.49, -0.51, -0.52), strict=True))  # off a slope of 1
    runs = {
        name: with_log_weights(run, {m.eta: factors[name] * np.asarray(m.log_weights) for m in run.measurements})
        for name, run in large_runs.items()
    }
    assert verdict(runs, ETA, 256).linear.doubts[0].runs == tuple(runs)


def test_linear_terms_in_another_unit_are_pointed_at(large_runs: Runs) -> None:
    scaled = {
        name: dataclasses.replace(
            without_score(run), gdotv=1e3 * known(run.gdotv), delta_h_per_lr=1e3 * run.delta_h_per_lr
        )
        for name, run in large_runs.items()
    }
    doubts = verdict(scaled, ETA, 256).recorded.doubts
    assert codes(doubts) == ["another_unit", "correction_unknown"]
    assert 500 < doubts[0].values["times"] < 1500


@pytest.mark.parametrize("names", [["run_01"], ["run_01", "run_02", "run_03", "run_04"]])
def test_a_step_that_changed_nothing_is_named_and_gives_no_answer(small_runs: Runs, names: list[str]) -> None:
    even = np.full(256, 1 / 256)
    found = {name: known(run.measurements[0].h_base) for name, run in small_runs.items() if name in names}
    still: Any = {"weights": even, "log_weights": np.zeros(256), "delta_h_true": 0.0, "ess": 256.0}
    runs = {name: altered(small_runs[name], h_new=base, **still) for name, base in found.items()}
    for doubt in first_doubts(verdict({**small_runs, **runs}, ETA, 64)):
        assert (doubt.code, doubt.runs) == ("skipped_step", tuple(names))


def test_a_flag_at_another_eta_does_not_count(large_runs: Runs) -> None:
    run = large_runs["run_01"]
    change = np.concatenate([np.linspace(0, 10, 20), np.zeros(run.n - 20)])
    runs = {**large_runs, "run_01": with_log_weights(run, {ETA: 0 * change, 3.2e-6: change})}
    assert verdict(runs, ETA, 256).recorded.doubts == ()
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        assert codes(verdict(runs, 3.2e-6, 256).recorded.doubts) == ["unsound"] * 3


def test_the_true_change_varies_between_updates_by_random_effects(large_runs: Runs, small_runs: Runs) -> None:
    totals = [run.measurement(ETA).delta_h_true for run in large_runs.values()]
    [note] = verdict(large_runs, ETA, 256, small_runs=small_runs).notes
    assert note.values["mean"] == pytest.approx(np.mean(totals))  # equal sizes have equal weights
    assert note.values["tau"] > 0
    assert 0.01 < note.values["p"] < 1
    mirrored = {name: dataclasses.replace(run, source="copy", scale=None) for name, run in large_runs.items()}
    [same] = verdict(large_runs, ETA, 256, small_runs=mirrored).notes
    assert same.values["p"] == pytest.approx(1.0)


def test_small_runs_without_the_eta_are_skipped_with_a_warning(large_runs: Runs, small_runs: Runs) -> None:
    with pytest.warns(RunWarning, match="skipped run_01, run_02, run_03, run_04: no eta 1.28e-05"):
        with_them = verdict(small_runs, 12.8e-6, 256, small_runs=large_runs)
    without = verdict(small_runs, 12.8e-6, 256)
    assert (with_them.linear, with_them.recorded) == (without.linear, without.recorded)


def test_large_runs_without_the_eta_and_copies_are_skipped_with_a_warning_one_over_all_etas(
    large_runs: Runs, small_runs: Runs
) -> None:
    mixed = {**large_runs, "run_05": small_runs["run_01"]}
    with pytest.warns(RunWarning, match="skipped run_01, run_02, run_03, run_04: no eta 8e-07"):
        assert verdict(mixed, 8e-7, 256).linear == verdict({"run_05": mixed["run_05"]}, 8e-7, 256).linear
    with pytest.warns(RunWarning, match="skipped run_01, run_02, run_03, run_04: no eta 8e-07, 6.4e-06, 1.28e-05"):
        assert len(verdict_map(mixed)) == 5
    with pytest.warns(RunWarning, match="skipped copy: same content as run_01"):
        verdict({**large_runs, "copy": large_runs["run_01"]}, ETA, 256)


def test_the_map_holds_the_verdict_of_each_eta(large_runs: Runs) -> None:
    table = verdict_map(large_runs, n=4096, tolerance=0.5)
    assert table["eta"].tolist() == [1.6e-6, 3.2e-6]
    assert [verdict(large_runs, eta, 4096)._repr_html_().count("<tr") for eta in table["eta"]] == [3, 3]
    assert table.equals(verdict_table([verdict(large_runs, eta, 4096, tolerance=0.5) for eta in table["eta"]]))


def test_the_map_goes_on_with_the_small_runs_where_they_reach_further(large_runs: Runs, small_runs: Runs) -> None:
    table = verdict_map(large_runs, small_runs=small_runs)
    assert table["eta"].tolist() == [1.6e-6, 3.2e-6, 6.4e-6, 1.28e-5]
    assert table.iloc[2:].reset_index(drop=True).equals(verdict_map(small_runs, [6.4e-6, 1.28e-5]))
    assert verdict_map(large_runs, [1.6e-6], small_runs=small_runs)["eta"].tolist() == [1.6e-6]


def test_the_published_runs_get_two_answers_each_with_its_batch_size(research_root: Path) -> None:
    large, small = load_runs(research_root / "E_2048"), load_runs(research_root / "E_256")
    expected = {ETA: ("trend", 237, 3007), 3.2e-6: ("matched", 99, 3098)}
    for eta, (estimator, linear_n, recorded_n) in expected.items():
        found = verdict(large, eta, 256, small_runs=small)
        assert (found.linear.answer, found.linear.estimator) == ("yes", estimator)
        assert found.linear.required_n == pytest.approx(linear_n, abs=1)
        assert found.recorded.answer == "cannot tell"
        assert found.recorded.required_n == pytest.approx(recorded_n, abs=1)
        assert "off_policy" in codes(found.recorded.notes)
        [note] = [note for note in found.notes if note.code == "true_change"]
        if eta == ETA:
            # With the runs' own standard errors, published: 0.216e-3 and 0.105.
            assert note.values["tau"] == pytest.approx(0.2172e-3, abs=1e-7)
            assert note.values["se"] / abs(note.values["mean"]) == pytest.approx(0.1059, abs=5e-4)
            assert note.values["p"] == pytest.approx(0.068, abs=6e-4)


def test_eta_and_n_are_chosen_as_by_the_command(large_runs: Runs, small_runs: Runs) -> None:
    both = verdict(large_runs, small_runs=small_runs)
    assert both == verdict(large_runs, ETA, 256, small_runs=small_runs)
    alone = verdict(small_runs)
    assert (alone.eta, alone.n) == (8e-7, 32)


def test_a_record_is_json_with_codes_and_numbers_and_null_for_what_is_not_known(large_runs: Runs) -> None:
    record = verdict({"run_01": large_runs["run_01"]}, ETA, 64).record()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert record["linear"]["low"] is None
    assert [note["code"] for note in record["recorded"]["notes"]][:2] == ["this_update", "err_rel"]


NUMBERS = "mean se tau small_mean small_se p tau_low relative z times margin low high p_spread p_mean smallest_p"
VALUES: dict[str, Any] = dict.fromkeys(f"{NUMBERS} tolerance probability".split(), 0.125)
VALUES |= dict.fromkeys(("n", "count", "matched_n", "ratio_n"), 64) | {"answer": "no", "question": "linear"}
VALUES |= {"limit": 0.1, "yes": 0.5, "no": 0.25, "up_to": 1e-6, "difference": 0.5, "share": 0.5, "prompts": 25}
VALUES |= {"cause": "truncated", "support": 36.0, "vocabulary": None, "source": "derivative"}
VALUES |= {"errors": {1e-6: {"mean": -0.02, "se": 0.01}}, "derivative": {"mean": -0.03, "se": 0.01}}
VALUES |= {
    "method": "trend",
    "tau_high": {"trend": 0.5},
    "check": "integrity",
    "detail": "",
    "etas": [1e-6],
    "checks": "score_z",
}


@pytest.mark.parametrize("code", WORDS)
def test_every_code_has_words_that_hold_its_runs_and_numbers(code: str) -> None:
    sentence = words(Note(code, ("run_01", "run_02"), VALUES))
    assert sentence
    assert not set("{}\n") & set(sentence)


def test_every_code_that_is_decided_on_has_words() -> None:
    source = Path(inspect.getfile(verdict)).read_text()
    made = set(re.findall(r'(?:Note|Doubt)\(\s*"(\w+)"', source))
    assert len(made) > 30
    assert made <= set(WORDS)
