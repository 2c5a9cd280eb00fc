from __future__ import annotations

import math

import numpy as np
import pytest

from analysis_helpers.answers import linearity, precision
from analysis_helpers.prediction import Pilot


def pilot(values: list[float], *, spread: float = 4.0, size: float = 1000.0, kurtosis: float = 3.0) -> Pilot:
    count = len(values)
    return Pilot(
        1e-6,
        -1e-3,
        np.full(count, size),
        np.array(values),
        np.full(count, spread),
        np.full(count, kurtosis),
        0.0,
    )


def test_a_margin_well_inside_the_tolerance_is_enough_well_outside_is_not_and_near_it_one_cannot_tell() -> None:
    # S = 4 is known to about 1.1 %; the margin is 1.645 * 4 / sqrt(n), 0.5 at n = 173.
    known = pilot([0.0] * 4)
    assert [precision(known, n, 0.5, 0.9).answer for n in (150, 173, 200)] == ["no", "cannot tell", "yes"]


def test_a_spread_hardly_known_widens_what_one_cannot_tell() -> None:
    hardly = pilot([0.0, 0.1], size=20, kurtosis=12)
    assert {precision(hardly, n, 0.5, 0.9).answer for n in (120, 173, 250)} == {"cannot tell"}


def test_the_numbers_behind_enough_are_the_margin_and_the_size_required() -> None:
    found = precision(pilot([0.0] * 4), 100, 0.5, 0.9)
    assert found.numbers["margin"] == pytest.approx(1.6449 * 0.4, rel=1e-4)
    assert found.numbers["required_n"] == math.ceil((1.6449 * 4 / 0.5) ** 2)
    assert found.numbers["required_low"] < found.numbers["required_n"] < found.numbers["required_high"]
    assert "within ±0.66 of its expectation" in found.reasons[0]
    assert "from about 174 sequences on" in found.reasons[1]


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ([0.0, 0.1, -0.1, 0.05], "yes"),
        ([0.5, 0.4, 0.6, 0.55], "cannot tell"),  # the interval straddles the tolerance
        ([2.0, 1.9, 2.1, 2.05], "no"),
        ([-2.0, -1.9, -2.1, -2.05], "no"),
        ([-9.0, 9.0, -8.0, 8.0], "no"),  # updates differ too much
    ],
)
def test_the_linear_approximation_is_trusted_where_the_next_error_keeps_to_the_tolerance(
    values: list[float], answer: str
) -> None:
    found = linearity(pilot(values), 0.5, 0.9)
    assert found.answer == answer
    assert ("within the tolerance" in " ".join(found.reasons)) == (answer == "yes") or answer != "yes"


def test_one_run_never_gives_a_yes_but_may_give_a_no() -> None:
    assert linearity(pilot([0.0]), 0.5, 0.9).answer == "cannot tell"
    assert linearity(pilot([3.0]), 0.5, 0.9).answer == "no"
    assert "One run does not show how updates differ." in linearity(pilot([0.0]), 0.5, 0.9).reasons


def test_a_mean_of_either_sign_beyond_the_tolerance_is_a_reason_with_its_interval() -> None:
    up, down = (linearity(pilot([v, v + 0.1]), 0.5, 0.9) for v in (3.0, -3.0))
    assert "beyond the tolerance: +" in up.reasons[-1]
    assert "beyond the tolerance: -" in down.reasons[-1]
