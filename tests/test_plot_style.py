from __future__ import annotations

from analysis_helpers.estimators import ESTIMATORS
from analysis_helpers.plot_style import COLOURS, ESTIMATOR_LABELS


def test_every_estimator_has_a_colour_and_a_label_of_its_own() -> None:
    assert set(ESTIMATORS) <= set(COLOURS)
    assert set(ESTIMATORS) == set(ESTIMATOR_LABELS)
    assert len(set(COLOURS.values())) == len(COLOURS)
