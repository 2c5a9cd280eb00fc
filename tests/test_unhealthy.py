from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis_helpers.health_checks import CHECKS
from analysis_helpers.unhealthy import HEALTHY, UNHEALTHY, flag_overview, flag_records, flag_table, with_log_weights
from tests.building import random_run, totals_only_run


def test_every_check_has_a_condition_that_should_raise_it() -> None:
    assert {check for condition in UNHEALTHY.values() for check in condition.wanted} == set(CHECKS)
    assert not [name for name, condition in HEALTHY.items() if condition.wanted]


def test_strong_ailments_are_seen_and_healthy_runs_are_not_flagged() -> None:
    # Of 4 runs of 512 a healthy one is flagged by chance in 0.3 % by the score: fails with probability about 1 %.
    strong = {name: made for name, made in UNHEALTHY.items() if "score_z" not in made.wanted}
    table = flag_table(flag_records({**strong, "healthy": HEALTHY["healthy, 512 sequences"]}, count=4, seed=1))
    assert (table[table["wanted"]]["flagged"] >= 0.75).all()
    assert (table[table["condition"] == "healthy"]["flagged"] == 0).all()
    assert (table["runs"] == 4).all()


def test_changed_log_weights_change_the_true_change_and_no_linear_term() -> None:
    run = random_run()
    change = np.linspace(0.0, 0.5, run.num_sequences)
    moved = with_log_weights(run, change)
    assert np.asarray(moved.measurements[0].log_weights) == pytest.approx(
        np.asarray(run.measurements[0].log_weights) + change
    )
    assert moved.delta_h_per_lr == pytest.approx(run.delta_h_per_lr, rel=1e-12)
    assert moved.measurements[0].delta_h_true != run.measurements[0].delta_h_true


def test_a_run_without_the_score_cannot_serve() -> None:
    with pytest.raises(ValueError, match="run must record the score"):
        with_log_weights(totals_only_run(), np.zeros(2))


def test_the_overview_sets_false_alarms_beside_what_is_seen() -> None:
    healthy = "healthy, 128 sequences"
    rows = [(healthy, "a", False, 0.1), (healthy, "b", False, 0.2), ("ill", "a", True, 0.9), ("ill", "b", False, 0.5)]
    overview = flag_overview(pd.DataFrame(rows, columns=["condition", "check", "wanted", "flagged"]))
    assert overview[["check", healthy]].to_numpy().tolist() == [["a", 0.1], ["b", 0.2]]
    assert overview["unhealthy"].fillna("none").tolist() == ["ill", "none"]
    assert overview["seen"].fillna(-1).tolist() == [0.9, -1]
