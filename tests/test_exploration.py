from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis_helpers import (
    Run,
    RunError,
    err_rel_standard_error,
    required_batch_size,
    simulate_err_rel_across_runs,
    verdict,
)
from analysis_helpers import exploration as module
from analysis_helpers.drawn_subsets import DrawnSubsets
from analysis_helpers.exploration import (
    Choice,
    Exploration,
    describe_exploration,
    exploration_result,
    exploration_table,
)

START = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=100)


@pytest.fixture
def exploration(sample_root: Path) -> Exploration:
    return Exploration(sample_root, seed=42)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_draws_are_those_of_the_comparison(
    exploration: Exploration, large_runs: dict[str, Run], estimator: str
) -> None:
    choice = replace(START, estimator=estimator)
    references = None if estimator == "partial_sum" else {1.6e-6: verdict(large_runs, 1.6e-6, 1).numbers["reference"]}
    plain = simulate_err_rel_across_runs(
        large_runs, [1.6e-6], 256, num_samples=100, seed=42, estimator=estimator, references=references
    )
    assert exploration.draws(choice)["err_rel"].to_numpy() == pytest.approx(plain["err_rel"].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_the_closed_form_has_the_moments_of_many_draws(exploration: Exploration, estimator: str) -> None:
    choice = replace(START, estimator=estimator, num_samples=2000)
    found, draws = exploration.closed_form(choice), exploration.draws(choice)["err_rel"]
    # 8,000 draws: the mean is known to SD / 89, the SD to 1 / 126 of itself; five of each.
    assert draws.mean() == pytest.approx(found.mean, abs=5 * found.sd / 89)
    assert draws.std() == pytest.approx(found.sd, rel=5 / 126)


def test_the_closed_form_says_what_the_functions_behind_it_say(
    exploration: Exploration, large_runs: dict[str, Run], small_runs: dict[str, Run]
) -> None:
    found = exploration.closed_form(replace(START, tolerance=0.5))
    direct = verdict(large_runs, 1.6e-6, 256, tolerance=0.5, small_runs=small_runs)
    assert found.verdict == direct
    assert found.precise_from == direct.numbers["required_n"]
    assert found.required_n == required_batch_size(large_runs, 1.6e-6, tolerance=0.5)
    reference = direct.numbers["reference"]
    errors = [err_rel_standard_error(run, 1.6e-6, 256, reference=reference) for run in large_runs.values()]
    assert found.fresh_error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)


def test_subsets_are_drawn_only_where_folder_or_size_are_new_or_more_are_asked_for(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def counted(runs: dict[str, Run], size: int, count: int, *, seed: int) -> DrawnSubsets:
        drawn.append((len(next(iter(runs.values())).token_counts), size, count))
        return DrawnSubsets(runs, size, count, seed=seed)

    monkeypatch.setattr(module, "DrawnSubsets", counted)
    for choice in (
        START,
        replace(START, eta=3.2e-6),
        replace(START, estimator="partial_sum"),
        replace(START, estimator="matched", tolerance=1.0, probability=0.5),
        replace(START, small_batch="E_2048"),
        replace(START, num_samples=50),
    ):
        assert len(exploration.draws(choice)) == 4 * choice.num_samples
    assert drawn == [(2048, 256, 100)]
    exploration.draws(replace(START, num_samples=101))
    exploration.draws(replace(START, subset_size=64))
    exploration.draws(replace(START, large_batch="E_256", subset_size=64))
    assert drawn[1:] == [(2048, 256, 101), (2048, 64, 100), (256, 64, 100)]


def test_a_choice_moves_to_what_another_folder_has(exploration: Exploration) -> None:
    moved = exploration.nearest(replace(START, large_batch="E_256", eta=2.5e-6, subset_size=1024))
    assert (moved.eta, moved.subset_size, moved.estimator) == (3.2e-6, 192, "ratio")
    assert exploration.sizes("E_256") == [16, 24, 32, 48, 64, 96, 128, 192]


def test_an_eta_that_no_actual_run_has_leaves_the_actual_runs_out(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: replace(run, measurements=run.measurements[:1]) for name, run in exploration.runs("E_256").items()}
    monkeypatch.setitem(exploration._runs, "E_256", runs)
    found = exploration.closed_form(replace(START, eta=3.2e-6))
    assert found.actual.empty
    assert "none were given" in found.verdict.not_seen[-1]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no runs"):
        Exploration(tmp_path)


def test_the_table_tells_sizes_as_numbers_or_that_there_is_none(exploration: Exploration) -> None:
    choice = replace(START, tolerance=0.25)
    found = exploration.closed_form(choice)
    table = exploration_table(found, exploration.draws(choice)).set_index("what")
    assert table.loc["n for ±0.25 with probability 90%, around its expectation", "closed_form"] == "3,201"
    assert table.loc["n for ±0.25 with probability 90%, around zero", "closed_form"] == "no size is enough"
    assert table["unit"].tolist() == ["true change"] * 3 + ["sequences"] * 2
    assert exploration_table(found)["drawn"].isna().all()
    assert "and of zero at no size" in describe_exploration(found)[1]


def test_the_result_for_collection_is_one_row(exploration: Exploration) -> None:
    [row] = exploration_result(exploration.closed_form(START)).to_dict("records")
    assert (row["eta"], row["subset_size"], row["estimator"]) == (1.6e-6, 256, "ratio")
    assert (row["precise_from"], row["required_n"]) == (3201, None)
    assert (row["enough"], row["linear_trusted"]) == ("no", "cannot tell")


def test_an_eta_that_no_large_run_has_is_named_with_those_there_are(exploration: Exploration) -> None:
    with pytest.raises(ValueError, match=r"has eta 5e-06; they have 1.6e-06, 3.2e-06"):
        exploration.closed_form(replace(START, eta=5e-6))
