import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, Runs, load_runs, reference_true_totals, synthetic_runs, trusted_eta, verdict
from analysis_helpers._checks import RunWarning
from analysis_helpers.inference.verdicts import Case, true_change, true_change_p_value, verdict_map, verdict_table
from analysis_helpers.synthetic.runs import with_log_weights
from tests.building import altered, in_prompts, known, pilot, random_run, totals_only_run
from tests.calibration.drawing import shifted

ETA = 1.6e-6


SOUND = synthetic_runs(1, 128)
LARGE: Any = {"spread": 4.0, "size": 1000.0}


def asked(n: int = 256) -> Case:
    """Return a question about sound runs with the tolerance 0.5 and the probability 0.9."""
    return Case(SOUND, {}, ETA, n, 0.5, 0.9)


def off_by(runs: Runs, errors: list[float]) -> Runs:
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
    found = asked().answered("ratio", pilot(values, **LARGE), [], [])
    assert found.answer == answer
    assert math.isnan(found.low) == (len(values) == 1)
    doubted = asked().answered("ratio", pilot(values, **LARGE), ["doubt"], [])
    assert (doubted.answer, doubted.required_n) == ("cannot tell", found.required_n)


def test_more_runs_that_agree_settle_a_question_but_not_at_the_border() -> None:
    assert re.match(r'\d+ more runs? .* x: "yes"', asked().more_runs("x", pilot([0.2, 0.1, 0.3], **LARGE)))
    assert re.match(r'\d+ more runs? .* x: "no"', asked().more_runs("x", pilot([0.8, 0.4, 0.9], **LARGE)))
    assert "would not settle x" in asked().more_runs("x", pilot([0.5, 0.5, 0.5], **LARGE))


def test_a_margin_inside_the_tolerance_is_enough_and_near_it_cannot_be_told() -> None:
    # S = 4 is known to about 1.1 %; the margin is 1.645 * 4 / sqrt(n), 0.5 at n = 173.
    enough = [asked(n).answered("ratio", pilot([0.0] * 4, **LARGE), [], []).enough for n in (150, 173, 200)]
    assert enough == ["no", "cannot tell", "yes"]
    found = asked(100).answered("ratio", pilot([0.0] * 4, **LARGE), [], [])
    assert found.margin == pytest.approx(1.6449 * 0.4, rel=1e-4)
    assert known(found.required_low) < known(found.required_n) == 174 < known(found.required_high)
    hardly = pilot([0.0, 0.1], spread=4, size=20, kurtosis=12)
    assert {asked(n).answered("ratio", hardly, [], []).enough for n in (120, 173, 250)} == {"cannot tell"}


def test_the_sample_data_get_the_answers_that_are_true_of_them(large_runs: Runs, small_runs: Runs) -> None:
    # Their step is linear to 1 %, and recorded terms are unbiased; S of the ratio is about 8.6.
    found = verdict(large_runs, ETA, 256, tolerance=0.5, small_runs=small_runs)
    assert (found.linear.answer, found.linear.enough) == ("yes", "yes")
    assert (found.recorded.answer, found.recorded.enough) == ("cannot tell", "no")
    assert found.recorded.margin == pytest.approx(0.88, abs=0.02)
    wide = verdict(large_runs, ETA, 256, tolerance=1.0).recorded
    assert (wide.answer, wide.enough) == ("yes", "yes")
    asked_with = ((256, None), (256, small_runs), (4096, None))  # what is not established depends on what is there
    assert len({verdict(large_runs, ETA, n, small_runs=small).not_established for n, small in asked_with}) == 3


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
    found = verdict({**large_runs, "run_02": off}, ETA, 10**6, tolerance=5)
    assert [answer.answer for answer in found.answers.values()] == ["cannot tell"] * 2
    assert "integrity 1 in run_02" in found.linear.reasons[0]


def test_actual_runs_that_contradict_their_prediction_or_do_not_add_up_give_no_answer_on_recorded(
    large_runs: Runs, small_runs: Runs
) -> None:
    off = {**small_runs, "run_02": dataclasses.replace(small_runs["run_02"], delta_h_per_lr=1.0)}
    for small in (off_by(small_runs, [3.5] * 4), off):
        found = verdict(large_runs, ETA, 10**6, tolerance=2, small_runs=small)
        assert (found.linear.answer, found.recorded.answer) == ("yes", "cannot tell")


def test_a_reference_near_zero_gives_no_answer_on_recorded() -> None:
    runs = synthetic_runs(2, 256)
    flat = {name: altered(run, delta_h_true=lambda total: total / 100) for name, run in runs.items()}
    with pytest.warns(RunWarning, match="within 3 standard errors"):
        found = verdict(flat, ETA, 10**6, tolerance=100)
    assert found.recorded.answer == "cannot tell"


def test_linear_terms_without_the_correction_get_no_answer_but_linearity_does() -> None:
    runs = {name: dataclasses.replace(run, score=None) for name, run in synthetic_runs(3, 200).items()}
    found = verdict(runs, ETA, 50, tolerance=2.0)
    assert found.recorded.answer == "cannot tell"
    assert "denominator correction" in found.recorded.reasons[0]
    assert found.linear.estimator == "trend"


def test_one_eta_without_a_score_says_what_to_record() -> None:
    found = verdict({"run_01": totals_only_run()}, 1e-6, 2)
    assert (found.linear.answer, found.linear.required_n) == ("cannot tell", None)
    assert "score" in found.linear.reasons[0]
    assert found.recorded.answer == "cannot tell"


def test_off_policy_sequences_are_a_reason_and_the_adjusted_value_stands_beside() -> None:
    runs = synthetic_runs(3, 1024, sampling_temperature=0.95, record_logp=True)
    found = verdict(runs, ETA, 256)
    assert any("off-policy" in reason for reason in found.recorded.reasons)
    assert any("score-adjusted" in reason for reason in found.recorded.reasons)
    assert any("sampler" in step for step in found.next_steps)


def test_runs_that_share_their_prompts_are_not_pooled() -> None:
    runs = {f"run_{k}": in_prompts(random_run(200, seed=k), 8) for k in range(3)}
    found = verdict(runs, 1e-6, 50, tolerance=5.0)
    assert [answer.answer for answer in found.answers.values()] == ["cannot tell"] * 2
    assert found.recorded.required_n is not None  # answers on a single run stand
    [advice] = found.next_steps
    assert "other prompts" in advice
    apart = {
        name: dataclasses.replace(run, prompt_ids=np.asarray(run.prompt_ids) + 1000 * k)
        for k, (name, run) in enumerate(runs.items())
    }
    assert verdict(apart, 1e-6, 50, tolerance=5.0).recorded.answer == "yes"


@pytest.mark.parametrize("factor", [-1.0, 0.01])
def test_log_weights_of_the_wrong_sign_or_averaged_per_token_give_no_answer(large_runs: Runs, factor: float) -> None:
    runs = {
        name: with_log_weights(run, {m.eta: (factor - 1) * np.asarray(m.log_weights) for m in run.measurements})
        for name, run in large_runs.items()
    }
    found = verdict(runs, ETA, 256)
    assert [answer.answer for answer in found.answers.values()] == ["cannot tell"] * 2
    assert "log_weight_slope" in found.linear.reasons[0]
    assert len(found.next_steps) == 1
    assert [answer.required_n for answer in found.answers.values()] == [None] * 2
    assert all(math.isnan(answer.mean) for answer in found.answers.values())
    assert "±" not in found.explanation  # nor in words


def test_all_runs_of_one_fault_are_named_also_those_just_inside_the_limit(large_runs: Runs) -> None:
    factors = dict(zip(large_runs, (-0.48, -0.49, -0.51, -0.52), strict=True))  # off a slope of 1
    runs = {
        name: with_log_weights(run, {m.eta: factors[name] * np.asarray(m.log_weights) for m in run.measurements})
        for name, run in large_runs.items()
    }
    assert f"in {', '.join(runs)}" in verdict(runs, ETA, 256).linear.reasons[0]


def test_linear_terms_in_another_unit_are_pointed_at(large_runs: Runs) -> None:
    scaled = {
        name: dataclasses.replace(
            run, gdotv=1e3 * known(run.gdotv), delta_h_per_lr=1e3 * run.delta_h_per_lr, score=None
        )
        for name, run in large_runs.items()
    }
    assert any("no answer: the linear change is" in reason for reason in verdict(scaled, ETA, 256).recorded.reasons)
    assert not any("another unit" in reason for reason in verdict(large_runs, ETA, 256).recorded.reasons)


@pytest.mark.parametrize("names", [["run_01"], ["run_01", "run_02", "run_03", "run_04"]])
def test_a_step_that_changed_nothing_is_named_and_gives_no_answer(small_runs: Runs, names: list[str]) -> None:
    even = np.full(256, 1 / 256)
    found = {name: known(run.measurements[0].h_base) for name, run in small_runs.items() if name in names}
    still: Any = {"weights": even, "log_weights": np.zeros(256), "delta_h_true": 0.0, "ess": 256.0}
    runs = {name: altered(small_runs[name], h_new=base, **still) for name, base in found.items()}
    answers = verdict({**small_runs, **runs}, ETA, 64).answers.values()
    assert [answer.answer for answer in answers] == ["cannot tell"] * 2
    assert all(f"nothing in {', '.join(names)}:" in answer.reasons[0] for answer in answers)


def test_a_flag_at_another_eta_does_not_count(large_runs: Runs) -> None:
    run = large_runs["run_01"]
    change = np.zeros(run.n)
    change[0] = 10.0
    runs = {**large_runs, "run_01": with_log_weights(run, {ETA: 0 * change, 3.2e-6: change})}
    assert verdict(runs, 3.2e-6, 256).recorded.answer == "cannot tell"
    assert not [r for r in verdict(runs, ETA, 256).reasons if "pareto_k" in r]


def test_the_true_change_varies_between_updates_by_random_effects(large_runs: Runs, small_runs: Runs) -> None:
    found = known(true_change(large_runs, ETA))
    totals = [run.measurement(ETA).delta_h_true for run in large_runs.values()]
    assert 0 < abs(found.mean / np.mean(totals) - 1) < 0.02  # not the reference, a plain mean, so called otherwise:
    assert f"by random effects: {found.mean * 1e3:+.3f}" in verdict(large_runs, ETA, 256).reasons[0]
    assert true_change_p_value(large_runs, large_runs, ETA) == pytest.approx(1.0)
    assert 0.01 < true_change_p_value(large_runs, small_runs, ETA) < 1


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


def test_the_published_runs_get_two_answers_each_with_its_batch_size(research_root: Path) -> None:
    large, small = load_runs(research_root / "E_2048"), load_runs(research_root / "E_256")
    expected = {ETA: ("trend", 235, 3006), 3.2e-6: ("matched", 99, 3098)}
    for eta, (estimator, linear_n, recorded_n) in expected.items():
        found = verdict(large, eta, 256, small_runs=small)
        assert (found.linear.answer, found.linear.estimator) == ("yes", estimator)
        assert found.linear.required_n == pytest.approx(linear_n, abs=1)
        assert found.recorded.answer == "cannot tell"
        assert found.recorded.required_n == pytest.approx(recorded_n, abs=1)
        assert any("off-policy" in reason for reason in found.recorded.reasons)
    change = known(true_change(large, ETA))
    assert change.tau == pytest.approx(0.216e-3, abs=5e-7)
    assert change.se / abs(change.mean) == pytest.approx(0.105, abs=5e-4)
    assert true_change_p_value(large, small, ETA) == pytest.approx(0.068, abs=6e-4)
