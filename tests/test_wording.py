from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis_helpers import (
    Run,
    collect_err_rel_across_runs,
    compare_err_rel_distributions,
    reference_true_totals,
    run_health,
    verdict,
)
from analysis_helpers.inference import err_rel_standard_error
from analysis_helpers.planning import Plan
from analysis_helpers.run_tables import run_totals
from analysis_helpers.wording import (
    describe_budget,
    describe_comparison,
    describe_decomposition,
    describe_distribution,
    describe_health,
    describe_inventory,
    describe_plans,
    describe_totals,
    describe_verdict,
    describe_verdict_map,
)
from tests.building import random_run, totals_only_run


def inventory_table(problem: str = "", same_as: str = "") -> pd.DataFrame:
    return pd.DataFrame({"batch": ["E_2", "E_9"], "run": "run_01", "problem": ["", problem], "same_as": ["", same_as]})


def test_a_clean_inventory_says_so_and_a_problem_is_named() -> None:
    assert describe_inventory(inventory_table())[0] == "2 results files: 1 in E_2, 1 in E_9."
    assert "All of them load" in describe_inventory(inventory_table())[1]
    sentences = describe_inventory(inventory_table("file must be complete JSON", "E_2/run_01"))
    assert sentences[1:] == [
        "Problem in E_9/run_01: file must be complete JSON.",
        "E_9/run_01 has the same content as E_2/run_01.",
    ]


def test_totals_are_told_by_eta_and_batch() -> None:
    # delta_h_per_lr = -5 at eta 1e-6 is -0.005e-3.
    [sentence] = describe_totals(run_totals({"E_2": {"run_01": totals_only_run()}}))
    assert sentence.startswith("At eta 1e-06, over 1 run of E_2, entropy changes by -")
    assert "-0.005 (linear), in 10⁻³ nats per token (mean" in sentence


def test_the_comparison_follows_its_numbers(large_runs: dict[str, Run], small_runs: dict[str, Run]) -> None:
    for size in (256, 128):
        partial_sum, ratio = (
            compare_err_rel_distributions(
                large_runs, small_runs, 3.2e-6, sample_size=size, num_samples=50, estimator=estimator
            )
            for estimator in ("partial_sum", "ratio")
        )
        sentences = describe_comparison(partial_sum, ratio, large_runs, small_runs)
        errors = [
            err_rel_standard_error(run, 3.2e-6, size, reference=ratio.reference_total) for run in large_runs.values()
        ]
        assert sentences[0].startswith("At eta 3.2e-06, one fresh batch tells")
        assert f"±{np.sqrt(np.mean(np.square(errors))):.0%} of the true change with {size} sequences" in sentences[0]
        assert "with 2048 sequences (standard error)" in sentences[0]
        synthetic = ratio.synthetic["err_rel"]
        near = (abs(ratio.actual["err_rel"] - synthetic.mean()) <= 2 * synthetic.std()).sum()
        assert (f"{near} lie within 2 SD of that mean" in sentences[1]) == (size == 256)
        assert ("have 256 sequences, not 128: expect another spread" in sentences[1]) == (size == 128)
        assert f"has an SD of {partial_sum.synthetic['err_rel'].std():.2f}" in sentences[2]


def summary(sds: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"eta": [1.6e-6, 3.2e-6], "mean_err_rel": [0.1, 0.2], "std_err_rel": sds})


def test_a_mean_is_told_with_its_standard_error_and_whether_chance_explains_it(large_runs: dict[str, Run]) -> None:
    sentences = describe_distribution(summary([1.0, 0.5]), summary([0.5, 0.5]), large_runs, 64)
    references = reference_true_totals(large_runs)
    for sentence, (eta, reference) in zip(sentences, references.items(), strict=False):
        mean = collect_err_rel_across_runs(large_runs, eta, reference)["err_rel"].mean()
        errors = [err_rel_standard_error(run, eta, reference=reference) for run in large_runs.values()]
        se = np.sqrt(np.sum(np.square(errors))) / 4
        assert sentence == (
            f"On the full runs at eta {eta:g}, err_rel is {mean:+.2f} ± {se:.2f} "
            "(plain mean over 4 runs ± standard error from sampling): "
            f"chance {'may' if abs(mean) < 2 * se else 'seldom' if abs(mean) < 3 * se else 'hardly'} "
            f"{'explain' if abs(mean) < 2 * se else 'explains'} it."
        )


def test_a_clear_mean_is_called_clear() -> None:
    run = random_run(400)  # linear half of true: err_rel about -0.5, with a standard error of a few hundredths
    table = pd.DataFrame({"eta": [1e-6], "mean_err_rel": [0.1], "std_err_rel": [1.0]})
    assert "chance hardly explains it" in describe_distribution(table, table, {"run_01": run}, 64)[0]


@pytest.mark.parametrize(("sds", "explained"), [([1.0, 0.5], True), ([1.0, 0.95], False), ([1.0, 1e-3], False)])
def test_a_fall_of_the_spread_is_explained_only_where_it_follows_eta(
    large_runs: dict[str, Run], sds: list[float], explained: bool
) -> None:
    sentences = describe_distribution(summary(sds), summary([0.5, 0.5]), large_runs, 64)
    values = "err_rel is +0.10 ± 0.50 at eta 1.6e-06, +0.20 ± 0.50 at eta 3.2e-06"
    assert sentences[2] == f"Ratio, subsets of 64: {values} (mean ± standard deviation)."
    assert f"the SD of the partial sum falls {sds[0] / sds[1]:.2f} times, that of the ratio 1.00 times." in sentences[4]
    assert ("does not come from the step" in sentences[4]) == explained


def test_one_eta_has_no_fall_to_tell(large_runs: dict[str, Run]) -> None:
    sentences = describe_distribution(summary([1.0, 0.5])[:1], summary([0.5, 0.5])[:1], large_runs, 64)
    assert len(sentences) == 4
    assert sentences[-1] == "Whether the spread depends on the step size, one eta cannot tell."


def parts(first: list[float], second: list[float], z: float = 0.0) -> pd.DataFrame:
    """Return a table of parts at two etas, every standard error 0.1, the adjusted first part 0.01."""
    rows = []
    for eta, one, two in zip([1e-6, 2e-6], first, second, strict=True):
        for run in ("run_01", "pooled"):
            rows += [(run, eta, 0.01 if adjusted else one, 0.1, two, 0.1, z, adjusted) for adjusted in (False, True)]
    names = ["linear_minus_matched", "linear_minus_matched_se", "matched_minus_true", "matched_minus_true_se"]
    return pd.DataFrame(rows, columns=["run", "eta", *names, "score_z", "score_adjusted"])


@pytest.mark.parametrize(("value", "word"), [(0.29, "no clear bias"), (0.31, "biased"), (-0.31, "biased")])
def test_linear_terms_are_called_biased_beyond_three_standard_errors(value: float, word: str) -> None:
    sentences = describe_decomposition(parts([value, value], [0.0, 0.0]))
    assert (
        f"off the exact derivative by {value:+.2f} ± 0.10 of the true change ({word}); score-adjusted, by +0.010"
        in (sentences[0])
    )
    assert sentences[1].startswith("At eta 2e-06")


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ([0.1, 0.4], "it grows with eta and is clear: the step is nonlinear there"),
        ([-0.1, -0.4], "it grows with eta and is clear: the step is nonlinear there"),
        ([0.1, 0.2], "that is no clear sign of a nonlinear step"),
        ([0.5, 0.4], "it does not grow with eta, so it is no sign of a nonlinear step"),
    ],
)
def test_a_step_is_called_nonlinear_only_where_the_part_grows_with_eta(second: list[float], verdict: str) -> None:
    assert describe_decomposition(parts([0.0, 0.0], second))[-1].endswith(f": {verdict}.")


def test_runs_whose_score_is_off_are_named() -> None:
    assert "from zero in run_01 (+3.1): this points to" in describe_decomposition(parts([0, 0], [0, 0], z=3.1))[2]
    assert "In no run is the mean score" in describe_decomposition(parts([0, 0], [0, 0], z=-2.9))[2]


def test_without_a_score_the_error_cannot_be_split() -> None:
    [sentence] = describe_decomposition(pd.DataFrame(columns=["run", "eta"]))
    assert sentence.startswith("No run records the score")


def test_a_verdict_is_two_questions_with_answers_and_what_was_not_seen(large_runs: dict[str, Run]) -> None:
    found = verdict(large_runs, 1.6e-6, 256)
    enough, linear, not_seen = describe_verdict(found)
    assert enough.startswith("**Is a batch of 256 enough at eta 1.6e-06? No.** With probability 90%")
    assert linear.startswith("**May the linear approximation be trusted there? Cannot tell.** Over 4 large runs")
    assert not_seen == f"**Not seen:** {' '.join(found.not_seen)}"


def test_a_verdict_without_an_answer_gives_the_doubt_as_its_reason(large_runs: dict[str, Run]) -> None:
    altered = dataclasses.replace(large_runs["run_01"], delta_h_per_lr=1.0)
    enough, linear, _ = describe_verdict(verdict({**large_runs, "run_01": altered}, 1.6e-6, 256))
    doubt = "Cannot tell.** No answer: integrity in run_01 must be mended first, or the run left out."
    assert enough.endswith(doubt)
    assert linear.endswith(doubt)


def test_plans_say_their_size_and_where_none_is_enough() -> None:
    plans = {
        1e-6: Plan(100, 80, 130, 0.9),
        2e-6: Plan(None, 900, None, 0.9),
        4e-6: Plan(None, None, None, 0.9),
    }
    texts = describe_plans(plans, 0.5, 0.9)
    assert texts[0].startswith("With probability 90% a fresh run's err_rel lies within ±0.5 of zero, the error of the ")
    assert "at eta 1e-06 from 100 sequences on (other runs like these might have said: 80 to 130)" in texts[0]
    assert "at eta 2e-06 at no batch size (other runs like these might have said: 900 to no size at all)" in texts[1]
    assert (
        "at eta 4e-06 at no batch size (other runs like these might have said: that no size is enough, too)" in texts[2]
    )


def test_health_is_one_sentence_or_one_for_each_flag(large_runs: dict[str, Run]) -> None:
    [clean] = describe_health(run_health(large_runs))
    assert clean.startswith("No check of health raises a flag")
    altered = dataclasses.replace(large_runs["run_01"], delta_h_per_lr=1.0)
    [flagged] = describe_health(run_health({"run_01": altered}))
    assert flagged.startswith("Health: integrity is flagged in run_01.")


def test_the_map_is_told_by_eta() -> None:
    table = pd.DataFrame(
        {
            "eta": [1e-6] * 3 + [2e-6] * 3,
            "n": [64, 256, 1024] * 2,
            "linear_trusted": ["yes"] * 3 + ["cannot tell"] * 3,
            "required_n": [752.0] * 3 + [2000.0] * 3,
            "required_low": [448.0] * 6,
            "required_high": [12630.0] * 6,
        }
    )
    one, other = describe_verdict_map(table, 0.5)
    assert "to within ±0.5 from about 752 sequences on (448 to 12,630)" in one
    assert one.endswith("trusted there, to within ±0.5? Yes.")
    assert "about 2,000 sequences" in other
    assert other.endswith("Cannot tell.")


def test_a_budget_is_told_as_one_run_and_as_many() -> None:
    spread = {"se_low": [0.1, 0.1], "se_high": [0.9, 0.4]}
    table = pd.DataFrame({"runs": [1, 8], "sequences_each": [2048, 256], "se": [0.3, 0.2], **spread})
    [sentence] = describe_budget(table, 2048, 1e-6)
    assert sentence.startswith("At eta 1e-06, 2,048 sequences tell the mean error over updates to ±0.30 (0.10 to 0.90")
    assert "as 1 run of 2,048, and to ±0.20 (0.10 to 0.40, as tau may be) as 8 runs of 256." in sentence
