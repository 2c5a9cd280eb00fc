import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import analysis_helpers as ah
import analysis_helpers.notebook.explorer as explorer_module
from analysis_helpers import Runs, inference
from analysis_helpers.estimators import EstimatorName
from analysis_helpers.notebook.explorer import FALLBACK, Exploration, Explorer, explore
from analysis_helpers.notebook.parameters import Parameters, read_parameters

Shown = tuple[Explorer, list[Exploration]]


@pytest.fixture
def start(sample_root: Path) -> Parameters:
    chosen = {"data_root": str(sample_root), "large_batch": "E_2048", "small_batch": "E_256", "eta": 1.6e-6}
    chosen |= {"subset_size": 256, "estimator": "ratio", "num_samples": 100, "seed": 42}
    return read_parameters({**chosen, "tolerance": 0.25, "probability": 0.9})


def explored(start: Parameters, **changes: Any) -> Exploration:
    return explore(msgspec.structs.replace(start, **changes))


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched", "adjusted"])
def test_draws_are_those_of_the_comparison_with_the_moments_of_the_closed_form(
    start: Parameters, large_runs: Runs, estimator: EstimatorName
) -> None:
    exploration = explored(start, estimator=estimator, num_samples=2000)
    references = None if estimator == "partial_sum" else {1.6e-6: ah.reference_true_totals(large_runs)[1.6e-6]}
    plain = ah.simulate_err_rel_across_runs(
        large_runs, [1.6e-6], 256, num_samples=2000, seed=42, estimator=estimator, references=references
    )
    drawn = exploration.comparison.synthetic["err_rel"]
    assert drawn.to_numpy() == pytest.approx(plain["err_rel"].to_numpy(), rel=1e-9)
    # 8,000 draws: the mean is known to SD / 89, the SD to 1 / 126 of itself; five of each.
    assert drawn.mean() == pytest.approx(exploration.mean, abs=5 * exploration.sd / 89)
    assert drawn.std() == pytest.approx(exploration.sd, rel=5 / 126)


@pytest.mark.parametrize("tolerance", [0.25, 0.75])
def test_results_are_those_of_the_functions_behind_it(
    start: Parameters, large_runs: Runs, small_runs: Runs, tolerance: float
) -> None:
    limits: Any = {"tolerance": tolerance, "probability": 0.8}
    verdict = ah.verdict(large_runs, 1.6e-6, 256, **limits, small_runs=small_runs)
    exploration = explored(start, **limits)
    assert exploration.verdict.answers == verdict.answers
    reference = ah.reference_true_totals(large_runs)[1.6e-6]
    errors = [ah.err_rel_standard_error(run, 1.6e-6, 256, reference=reference) for run in large_runs.values()]
    expected: dict[str, Any] = {"eta": 1.6e-6, "subset_size": 256, "estimator": "ratio"}
    expected |= {"mean": exploration.mean, "sd": exploration.sd}
    expected |= {"fresh_error": pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)}
    expected |= {"required_n": verdict.recorded.required_n}
    expected |= {"linear": verdict.linear.answer, "recorded": verdict.recorded.answer}
    assert exploration.result().to_dict("records") == [expected]


def test_precision_and_size_are_those_of_the_estimator_chosen(start: Parameters, large_runs: Runs) -> None:
    table = inference.estimator_table(large_runs, 1.6e-6, 256).set_index("estimator")
    for estimator in ("matched", "adjusted"):
        found = explored(start, estimator=estimator)
        assert (found.fresh_error, found.required_n) == tuple(table.loc[estimator, ["se", "sequences"]])
    partial_sum = explored(start, estimator="partial_sum")  # which has no value on a fresh batch
    assert np.isnan(partial_sum.fresh_error)
    assert partial_sum.required_n is None


@pytest.mark.parametrize("changes", [{}, {"estimator": "partial_sum", "small_batch": "", "subset_size": 64}])
def test_the_code_makes_the_figure(start: Parameters, changes: dict[str, Any]) -> None:
    exploration = explored(start, **changes)
    names: dict[str, Any] = {}
    exec(exploration.code(), names)
    assert names["comparison"].synthetic.equals(exploration.comparison.synthetic)
    assert names["comparison"].actual.equals(exploration.comparison.actual)
    assert names["moments"].equals(exploration.moments)


@pytest.mark.parametrize(("size", "curves"), [(256, 1), (2048, 0)])  # subsets of all sequences do not vary
def test_the_figure_shows_draws_tolerance_and_closed_form(start: Parameters, size: int, curves: int) -> None:
    [ax] = explored(start, subset_size=size).plot().axes
    assert len([line for line in ax.lines if len(np.asarray(line.get_xdata())) > 2]) == curves
    assert "tolerance ±0.25" in [patch.get_label() for patch in ax.patches]


@pytest.fixture
def shown(start: Parameters, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Return controls, and the list of the results that they have asked for."""
    results: list[Exploration] = []

    def recorded(parameters: Parameters, large: Runs) -> Exploration:
        results.append(explore(parameters, large))
        return results[-1]

    monkeypatch.setattr(explorer_module, "explore", recorded)
    return Explorer(start), results


def test_controls_start_at_the_parameters(shown: Shown, start: Parameters) -> None:
    explorer, [exploration] = shown
    values = {name: control.value for name, control in explorer.controls.items()}
    assert values.pop("beside") == 0  # no other eta
    assert values == {name: getattr(start, name) for name in values}
    assert not exploration.comparison.actual.empty
    assert exploration.verdict == explored(start).verdict
    assert all(word in explorer.answer.value for word in exploration.verdict.table()["answer"])
    assert bytes(explorer.figures[0].value).startswith(b"\x89PNG")
    assert [figure.layout.display for figure in explorer.figures] == [None, "none"]
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_every_control_shows_its_choice_once(shown: Shown, start: Parameters) -> None:
    explorer, results = shown
    chosen: dict[str, Any] = {"small_batch": "", "large_batch": "E_256", "eta": 3.2e-6}
    chosen |= {"estimator": "partial_sum", "subset_size": 65, "num_samples": 200, "tolerance": 1.0, "probability": 0.5}
    chosen |= {"seed": 7}
    assert set(chosen) == set(explorer.controls) - {"beside"}
    for count, (control, value) in enumerate(chosen.items(), start=1):
        explorer.controls[control].value = value
        expected = explored(start, **dict(list(chosen.items())[:count]))
        assert len(results) == 1 + count
        assert results[-1].verdict == expected.verdict
        assert results[-1].result().equals(expected.result())
        assert results[-1].comparison.actual.empty  # without a small batch
    assert explorer.controls["subset_size"].max == 256


def test_two_etas_stand_side_by_side_on_one_scale(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, results = shown
    drawn: list[Any] = []

    def kept(figure: Any) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(explorer_module, "png", kept)
    explorer.controls["beside"].value = 3.2e-6
    assert [each.parameters.eta for each in results[-2:]] == [1.6e-6, 3.2e-6]
    assert [figure.layout.display for figure in explorer.figures] == [None, None]
    assert drawn[0].axes[0].get_xlim() == drawn[1].axes[0].get_xlim()
    assert explorer.answer.value.count("Is the step linear?") == 2
    explorer.controls["beside"].value = 1.6e-6  # the same again
    assert explorer.figures[1].layout.display == "none"


def test_a_subset_as_large_as_the_run_is_said_and_not_drawn(shown: Shown) -> None:
    explorer, _ = shown
    explorer.controls["subset_size"].value = 2048
    assert "all 2,048 sequences" in explorer.answer.value
    assert [figure.layout.display for figure in explorer.figures] == ["none", "none"]
    explorer.controls["subset_size"].value = 64
    assert explorer.figures[0].layout.display is None


def test_while_it_computes_neither_old_results_nor_new_ones_are_seen(
    start: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, seen = Explorer(start), list[tuple[str, bool]]()

    def watched(parameters: Parameters, large: Runs) -> Exploration:
        seen.append((explorer.results.layout.visibility, bool(explorer.busy.value)))
        return explore(parameters, large)

    monkeypatch.setattr(explorer_module, "explore", watched)
    explorer.controls["seed"].value = 5
    assert seen == [("hidden", True)]
    assert (explorer.results.layout.visibility, explorer.busy.value) == ("visible", "")


def test_errors_replace_results_and_warnings_stand_below(start: Parameters, tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / "E_2048").mkdir()
    for run in (sample_root / "E_2048").iterdir():
        (tmp_path / "E_2048" / run.name).symlink_to(run)
    for name in ("E_2048/run_05", "E_<bad>/run_01"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text("{")
    mine = {"data_root": str(tmp_path), "small_batch": ""}
    for size in (64, 128, 64):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explored(start, **mine, subset_size=size)
        assert [str(w.message)[:14] for w in caught] == ["skipped run_05"]
    explorer = Explorer(msgspec.structs.replace(start, **mine))
    usual = explorer.answer.value
    assert usual.count("<b>Note:</b> skipped run_05") == 1
    explorer.controls["large_batch"].value = "E_<bad>"
    assert "must be complete JSON" in explorer.answer.value
    assert "<bad>" not in explorer.answer.value
    assert explorer.figures[0].layout.display == "none"
    explorer.controls["large_batch"].value = "E_2048"
    assert explorer.answer.value == usual
    assert explorer.figures[0].layout.display is None
