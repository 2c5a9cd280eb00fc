from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis_helpers.estimators import columns, true_total
from analysis_helpers.synthetic import answer_overview
from analysis_helpers.synthetic.policy import entropy_change
from tests.calibration.answers import TOLERANCE, answer_table, chance_records, chance_table
from tests.calibration.worlds import (
    ASKED,
    ETAS,
    LEAST_ESS_SHARE,
    MOST_CUBIC,
    WORLDS,
    Population,
    chosen,
    population,
    updates,
)

SHORT, SHARED = WORLDS["short sequences"], WORLDS["16 shared prompts, correlation 0.5"]


def test_exact_changes_are_those_of_a_very_large_batch() -> None:
    one = Population(SHORT, np.array([7]))
    [run], _ = one.draw(1, np.random.default_rng(1), n=40_000)
    changes = [true_total(run, eta) for eta in ETAS]
    exact = updates(SHORT).changes[7]
    assert max(abs(change.value - value) / change.se for change, value in zip(changes, exact, strict=True)) < 4.5
    assert changes[-1].se < 0.02 * abs(exact[-1])
    error = columns(run, ASKED, "matched").error
    assert abs(error.value / one.change - one.errors("matched")[0]) < 4.5 * error.se / abs(one.change)
    assert one.errors("matched")[0] * one.change == pytest.approx(one.errors("trend")[0] * one.straight)


def test_with_shared_prompts_the_mean_over_replicates_is_the_exact_change() -> None:
    one, rng = Population(SHARED, np.array([3])), np.random.default_rng(2)
    values = [true_total(one.draw(1, rng)[0][0], ASKED).value for _ in range(400)]
    assert abs(np.mean(values) - one.change) < 4.5 * np.std(values) / 20  # 400 replicates
    runs, _ = one.draw(2, rng)
    ids = [run.prompt_ids.tolist() for run in runs if run.prompt_ids is not None]
    assert ids[0] == ids[1] == np.repeat(np.arange(16), 16).tolist()


@pytest.mark.parametrize(("name", "correlation"), [(name, float(name[-3:])) for name in WORLDS if "16" in name])
def test_influence_within_a_prompt_is_as_correlated_as_the_world_says(name: str, correlation: float) -> None:
    many = replace(WORLDS[name], prompts=100, pool=4)
    found = []
    for run in population(many).draw(8, np.random.default_rng(3), n=1600)[0]:
        influence = true_total(replace(run, prompt_ids=None), ASKED).psi.reshape(100, 16)
        within = influence.var(axis=1, ddof=1).mean()
        between = influence.mean(axis=1).var(ddof=1) - within / 16
        found.append(between / (between + within))
    assert np.mean(found) == pytest.approx(correlation, abs=0.1)


def test_curvatures_are_half_the_second_derivative() -> None:
    known, step = updates(SHORT), ETAS[0] / 10
    both = sum(entropy_change(known.policy, known.directions[0], sign * step) for sign in (1, -1))
    assert known.curvatures[0] == pytest.approx(both / 2 / step**2, rel=1e-3)


@pytest.mark.parametrize("tau", [0.75, 2.0])
def test_chosen_updates_have_the_mean_and_the_spread_that_are_asked(tau: float) -> None:
    asked = chosen(1.1 * TOLERANCE, tau)
    assert asked.errors("trend").mean() == pytest.approx(1.1 * TOLERANCE, rel=0.05)
    assert asked.relative_tau("trend") == pytest.approx(tau, rel=0.4)
    assert len(set(asked.members.tolist())) == len(asked.members)


def test_a_world_differs_in_curvature_and_in_standard_error_and_keeps_an_effective_sample() -> None:
    known, errors = updates(SHORT), population(SHORT).errors("trend")
    assert errors.max() > 0.25  # of the straight line
    least, most = np.quantile(known.spreads[0], [0.05, 0.95])
    assert most > 2 * least
    assert known.ess_shares.min() >= LEAST_ESS_SHARE
    cubic = known.changes[:, -1] - known.curvatures * ETAS[-1] ** 2 - population(SHORT).straight * ETAS[-1] / ASKED
    assert 0.02 < np.median(np.abs(cubic / known.changes[:, -1])) < MOST_CUBIC


def test_the_same_seed_draws_the_same_runs() -> None:
    (one, which), (other, again) = (population(SHORT).draw(3, np.random.default_rng(4)) for _ in range(2))
    assert one == other
    assert which.tolist() == again.tolist()
    assert one[0] != one[1]


def test_rates_are_shares_of_each_setting_and_the_overview_takes_the_worst() -> None:
    setting = {"question": "linear", "world": "w", "runs": 2, "tau": 0.0}
    answers = [
        (1.1, "no", "yes"),
        (1.1, "no", "no"),
        (2.0, "no", "no"),
        (0.5, "yes", "yes"),
        (0.5, "yes", "cannot tell"),
    ]
    rows = [{**setting, "mean": mean, "truth": truth, "answer": answer} for mean, truth, answer in answers]
    table = answer_table(pd.DataFrame(rows))
    assert table[["cases", "yes", "no", "cannot_tell"]].to_numpy().tolist() == [
        [2, 0.5, 0.5, 0],
        [1, 0, 1, 0],
        [2, 0.5, 0, 0.5],
    ]
    assert answer_overview(table).empty  # so few cases say nothing
    [overview] = answer_overview(table.assign(cases=50 * table["cases"])).to_dict("records")
    assert overview == {
        "question": "linear",
        "runs": 2,
        "false_yes": 0.5,
        "false_no": 0,
        "true_yes": 0.5,
        "true_no": 0.75,
    }


def test_chances_are_set_beside_what_came_true() -> None:
    setting = {"runs": 2, "tau": 0.0, "mean": 0.5}
    table = chance_table(pd.DataFrame({**setting, "chance": [0.5, 0.55, 0.7], "answered": [True, False, True]}))
    assert table[["low", "high", "cases", "answered"]].to_numpy().tolist() == [[0.3, 0.6, 2, 0.5], [0.6, 1.0, 1, 1.0]]
    records = chance_records(count=2, seed=0)
    assert records["chance"].between(0.5, 1).all()
    assert records["answered"].isin([True, False]).all()
