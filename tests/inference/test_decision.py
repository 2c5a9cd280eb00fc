import numpy as np
import pytest
from scipy import stats

from analysis_helpers.inference.decision import LIKELY, Goal, chances, within
from analysis_helpers.inference.random_effects import reach_of_means
from tests.building import pilot

GOAL = Goal(256, 0.25, 0.9)


def test_the_reach_of_means_is_where_the_probability_is_met() -> None:
    taus = np.array([0.0, 0.03, 0.1, 0.14, 0.2])
    reach = reach_of_means(taus, 0.25, 0.9)
    assert reach[0] == pytest.approx(0.25, abs=1e-6)
    for tau, mean in zip(taus[1:-1], reach[1:-1], strict=True):
        inside = stats.norm.cdf((0.25 - mean) / tau) - stats.norm.cdf((-0.25 - mean) / tau)
        assert inside == pytest.approx(0.9, abs=2e-3)
    assert reach[-1] == 0  # 1.645 tau is more than the tolerance: for no mean


def test_runs_that_agree_within_the_tolerance_give_a_yes_and_beyond_it_a_no() -> None:
    spread = {"spread": 1.0, "size": 1000.0}  # a standard error of 0.03
    assert within(pilot([0.02, 0.03, 0.01, 0.02], **spread), GOAL) == "yes"
    assert within(pilot([0.62, 0.53, 0.61, 0.52], **spread), GOAL) == "no"
    assert within(pilot([0.9, -0.9, 0.8, -0.8], **spread), GOAL) == "no"  # updates differ too much
    assert within(pilot([0.25, 0.22, 0.28], **spread), GOAL) == "cannot tell"
    assert within(pilot([0.0], **spread), GOAL) == "cannot tell"  # of one run never a yes
    assert within(pilot([0.6], **spread), GOAL) == "no"


def test_chances_are_probabilities_of_the_smallest_number_that_makes_an_answer_likely() -> None:
    outlook = chances(pilot([0.05, 0.02, 0.09], spread=1.0, size=400.0), GOAL)
    assert outlook is not None
    assert outlook.more >= 1
    assert LIKELY <= outlook.answer <= 1
    assert 0 <= outlook.no < outlook.yes <= 1
    far = chances(pilot([0.3, 0.5, 0.4], spread=1.0, size=200.0), GOAL)
    assert far is not None
    assert far.no > far.yes


def test_at_the_border_no_number_of_runs_is_likely_to_give_an_answer() -> None:
    # The mean is where the rule changes, and known to be there.
    border = pilot([0.25 + 1e-3 * k for k in range(-4, 5)], spread=1e-3, size=1.0)
    assert chances(border, GOAL) is None
    assert chances(pilot([0.0]), GOAL) is None  # one run does not show how updates differ


@pytest.mark.slow  # half a minute of quadratures
def test_chances_come_true_as_often_as_they_say() -> None:
    """Of 300 cases told about one half, a share between 0.35 and 0.75 comes true; by chance beyond with p < 1e-6."""
    rng, se = np.random.default_rng(2), 0.1
    stated: list[float] = []
    came_true: list[bool] = []
    while len(stated) < 300:
        mean, tau = rng.choice([0.0, 0.125, 0.225, 0.3]), rng.choice([0.0, 0.075, 0.2])
        values = rng.normal(mean, np.hypot(tau, se), 60)
        known = pilot(values[:4].tolist(), spread=se, size=1.0)
        if within(known, GOAL) != "cannot tell":
            continue
        outlook = chances(known, GOAL)
        if outlook is None or outlook.more > 50:
            continue
        stated.append(outlook.answer)
        later = pilot(values[: 4 + outlook.more].tolist(), spread=se, size=1.0)
        came_true.append(within(later, GOAL) != "cannot tell")
    assert 0.5 <= np.mean(stated) <= 0.7
    assert 0.35 <= np.mean(came_true) <= 0.75
