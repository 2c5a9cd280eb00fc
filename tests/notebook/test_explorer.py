import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch

import analysis_helpers as ah
import analysis_helpers.notebook.explorer as explorer_module
from analysis_helpers import Runs
from analysis_helpers.estimators import EstimatorName
from analysis_helpers.notebook.display import readable
from analysis_helpers.notebook.explorer import FALLBACK, Exploration, Explorer, explore
from analysis_helpers.notebook.parameters import Parameters
from analysis_helpers.plots.style import COLOURS

Shown = tuple[Explorer, list[Exploration]]
each_estimator = pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched", "adjusted"])


@pytest.fixture
def start(sample_root: Path) -> Parameters:
    return Parameters(
        data_root=str(sample_root),
        large_batch="E_2048",
        small_batch="E_256",
        eta=1.6e-6,
        subset_size=256,
        estimator="ratio",
        num_samples=100,
        tolerance=0.25,
        probability=0.9,
        seed=42,
    )


def explored(start: Parameters, **changes: Any) -> Exploration:
    return explore(msgspec.structs.replace(start, **changes))


@each_estimator
def test_draws_are_those_of_the_comparison_with_the_moments_of_the_closed_form(
    start: Parameters, large_runs: Runs, estimator: EstimatorName
) -> None:
    found = explored(start, estimator=estimator, num_samples=2000)
    references = None if estimator == "partial_sum" else {1.6e-6: ah.reference_true_totals(large_runs)[1.6e-6]}
    plain = ah.simulate_err_rel_across_runs(
        large_runs, [1.6e-6], 256, num_samples=2000, seed=42, estimator=estimator, references=references
    )
    drawn = found.comparison.synthetic["err_rel"]
    assert drawn.to_numpy() == pytest.approx(plain["err_rel"].to_numpy(), rel=1e-9)
    # 8,000 draws: the mean is known to SD / 89, the SD to 1 / 126 of itself; five of each.
    assert drawn.mean() == pytest.approx(found.mean, abs=5 * found.sd / 89)
    assert drawn.std() == pytest.approx(found.sd, rel=5 / 126)


def test_it_says_what_the_functions_behind_it_say(start: Parameters, large_runs: Runs, small_runs: Runs) -> None:
    found = explored(start, tolerance=0.5, probability=0.8)
    assert found.verdict == ah.verdict(large_runs, 1.6e-6, 256, tolerance=0.5, probability=0.8, small_runs=small_runs)
    assert found.required_n == ah.required_batch_size(large_runs, 1.6e-6, tolerance=0.5, probability=0.8)
    reference = ah.reference_true_totals(large_runs)[1.6e-6]
    errors = [ah.err_rel_standard_error(run, 1.6e-6, 256, reference=reference) for run in large_runs.values()]
    assert found.fresh_error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)
    [row] = found.result().to_dict("records")
    assert (row["eta"], row["subset_size"], row["estimator"]) == (1.6e-6, 256, "ratio")
    assert {name: row[name] for name in found.verdict.answers} == {
        k: a.answer for k, a in found.verdict.answers.items()
    }


def test_actual_runs_are_not_needed(start: Parameters) -> None:
    assert not explored(start).comparison.actual.empty
    for same in ("", "E_2048"):
        found = explored(start, small_batch=same)
        assert found.comparison.actual.empty


def test_the_table_shows_sizes_as_numbers_or_that_there_is_none(start: Parameters) -> None:
    tight, loose = (explored(start, tolerance=tolerance) for tolerance in (0.25, 0.75))
    assert tight.required_n is None
    assert "no size is enough" in tight.table()["closed_form"].tolist()
    assert f"{loose.required_n:,}" in loose.table()["closed_form"].tolist()


@each_estimator
def test_the_figure_holds_every_draw_and_all_of_its_title(start: Parameters, estimator: EstimatorName) -> None:
    figure = explored(start, estimator=estimator).plot()
    [ax] = figure.axes
    [bars] = [p for p in ax.patches if isinstance(p, StepPatch)]
    assert bars.get_facecolor()[:3] == to_rgba(COLOURS[estimator])[:3]
    assert bars.get_data()[0].sum() == 400  # the furthest subsets stand in the outermost bins
    assert ("not comparable with actual runs" in ax.get_title()) == (estimator == "partial_sum")
    figure.draw_without_rendering()
    title, whole = ax.title.get_window_extent(), figure.bbox
    assert title.x0 >= 0
    assert title.x1 <= whole.x1
    assert title.y1 <= whole.y1


def test_all_sequences_at_once_have_no_curve(start: Parameters) -> None:
    [ax] = explored(start, subset_size=2048).plot().axes
    assert not [line for line in ax.lines if len(np.asarray(line.get_xdata())) > 2]


@pytest.fixture
def shown(start: Parameters, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Return controls, and the list of the answers that they have asked for."""
    seen: list[Exploration] = []

    def asked(given: Parameters, large: Runs) -> Exploration:
        seen.append(explore(given, large))
        return seen[-1]

    monkeypatch.setattr(explorer_module, "explore", asked)
    return Explorer(start), seen


def test_controls_begin_where_they_are_told(shown: Shown, start: Parameters) -> None:
    explorer, seen = shown
    assert {name: control.value for name, control in explorer.controls.items()} == {
        name: getattr(start, name) for name in explorer.controls
    }
    [found] = seen
    assert found.verdict == explored(start).verdict
    assert all(word in explorer.answer.value for word in found.verdict.table()["answer"])
    assert bytes(explorer.figure.value).startswith(b"\x89PNG")
    assert "SD of err_rel over subsets of 256" in explorer.table.value


def test_every_control_shows_its_choice_once(shown: Shown, start: Parameters) -> None:
    explorer, seen = shown
    chosen: dict[str, Any] = {"large_batch": "E_256", "small_batch": "E_2048", "eta": 3.2e-6}
    chosen |= {"estimator": "partial_sum", "subset_size": 65, "num_samples": 200, "tolerance": 1.0, "probability": 0.5}
    assert set(chosen) == set(explorer.controls) - {"data_root"}
    for count, (control, value) in enumerate(chosen.items(), start=1):
        explorer.controls[control].value = value
        found = explored(start, **dict(list(chosen.items())[:count]))
        assert len(seen) == 1 + count
        assert seen[-1].verdict == found.verdict
        assert explorer.table.value == readable(found.table()).to_html()


def test_another_folder_offers_what_it_has(shown: Shown, tmp_path: Path, sample_root: Path) -> None:
    explorer, seen = shown
    explorer.controls["large_batch"].value = "E_256"
    assert explorer.controls["subset_size"].max == 256
    (tmp_path / "mine").symlink_to(sample_root / "E_256")
    explorer.controls["data_root"].value = str(tmp_path)
    assert (explorer.controls["large_batch"].value, explorer.controls["small_batch"].value) == ("mine", "")
    assert seen[-1].verdict.n == 32  # an eighth
    assert len(seen) == 3


def test_a_folder_may_be_typed_as_in_a_shell(shown: Shown, start: Parameters, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, seen = shown
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(Path(start.data_root).parent))
    explorer.controls["data_root"].value = f"~/{Path(start.data_root).name}/"
    explorer.controls["subset_size"].value = 64
    assert [found.verdict.n for found in seen] == [256, 256, 64]
    assert explored(start, subset_size=64).verdict == seen[-1].verdict


def test_what_goes_wrong_is_shown_in_place_of_an_answer_and_does_not_last(
    shown: Shown, tmp_path: Path, start: Parameters
) -> None:
    explorer, _ = shown
    right = explorer.answer.value
    (tmp_path / "E_<bad>" / "run_01").mkdir(parents=True)
    (tmp_path / "E_<bad>" / "run_01" / "results.json").write_text("{")
    for folder, words in (
        (str(tmp_path), "must be complete JSON"),
        (str(tmp_path / "E_<bad>" / "run_01"), "must be a folder of batch folders with runs"),
        (str(tmp_path / "none"), "must be a folder that exists"),
    ):
        explorer.controls["data_root"].value = folder
        assert words in explorer.answer.value
        assert "<bad>" not in explorer.answer.value
        assert explorer.figure not in explorer.children
    explorer.controls["data_root"].value = start.data_root
    assert explorer.answer.value == right
    assert explorer.figure in explorer.children


def test_a_run_that_is_left_out_is_named_with_every_choice(
    start: Parameters, tmp_path: Path, sample_root: Path
) -> None:
    (tmp_path / "E_2048").mkdir()
    for run in (sample_root / "E_2048").iterdir():
        (tmp_path / "E_2048" / run.name).symlink_to(run)
    (tmp_path / "E_2048" / "run_05").mkdir()
    (tmp_path / "E_2048" / "run_05" / "results.json").write_text("{")
    for size in (64, 128, 64):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explored(start, data_root=str(tmp_path), small_batch="", subset_size=size)
        assert [str(w.message)[:14] for w in caught] == ["skipped run_05"]
    shown = Explorer(msgspec.structs.replace(start, data_root=str(tmp_path), small_batch=""))
    assert shown.answer.value.count("<b>Note:</b> skipped run_05") == 1


def test_without_a_kernel_a_sentence_takes_the_place_of_the_controls(shown: Shown) -> None:
    bundle = shown[0]._repr_mimebundle_()
    assert bundle["text/html"] == FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle
