from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch

import analysis_helpers as ah
from analysis_helpers.plots.style import COLOURS
from analysis_helpers.report.explorer import FALLBACK, Choice, Exploration, Explorer
from tests.building import Runs, refused

START = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=50)
every_estimator = pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])


@pytest.fixture(scope="module")
def exploration(sample_root: Path) -> Exploration:
    return Exploration(sample_root, seed=42)


@pytest.fixture
def explorer(exploration: Exploration) -> Explorer:
    return Explorer(exploration, START)


def shown(explorer: Explorer) -> str:
    return str(explorer._answers.value + explorer._numbers.value + explorer._reasons.value)


def panel(exploration: Exploration, choice: Choice, draws: pd.DataFrame | None = None) -> Any:
    [ax] = exploration.closed_form(choice).plot(draws).axes
    return ax


@every_estimator
def test_draws_are_those_of_the_comparison_with_the_moments_of_the_closed_form(
    exploration: Exploration, large_runs: Runs, estimator: str
) -> None:
    choice = replace(START, estimator=estimator, num_samples=2000)
    assert not exploration.has_drawn(choice)
    drawn, found = exploration.draws(choice), exploration.closed_form(choice)
    references = None if estimator == "partial_sum" else {1.6e-6: found.verdict.numbers["reference"]}
    plain = ah.simulate_err_rel_across_runs(
        large_runs, [1.6e-6], 256, num_samples=2000, seed=42, estimator=estimator, references=references
    )
    assert drawn["err_rel"].to_numpy() == pytest.approx(plain["err_rel"].to_numpy(), rel=1e-9)
    # 8,000 draws: the mean is known to SD / 89, the SD to 1 / 126 of itself; five of each.
    assert drawn["err_rel"].mean() == pytest.approx(found.mean, abs=5 * found.sd / 89)
    assert drawn["err_rel"].std() == pytest.approx(found.sd, rel=5 / 126)
    assert exploration.draws(replace(choice, tolerance=0.5, small_batch="E_2048")) is drawn


def test_the_closed_form_is_that_of_the_functions_behind_it(
    exploration: Exploration, large_runs: Runs, small_runs: Runs
) -> None:
    found = exploration.closed_form(replace(START, tolerance=0.5))
    direct = ah.verdict(large_runs, 1.6e-6, 256, tolerance=0.5, small_runs=small_runs)
    assert found.verdict == direct
    assert found.precise_from == direct.numbers["required_n"]
    assert found.required_n == ah.required_batch_size(large_runs, 1.6e-6, tolerance=0.5)
    reference = direct.numbers["reference"]
    errors = [ah.err_rel_standard_error(run, 1.6e-6, 256, reference=reference) for run in large_runs.values()]
    assert found.fresh_error == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-12)
    [row] = found.result().to_dict("records")
    assert [row[name] for name in ("eta", "subset_size", "estimator")] == [1.6e-6, 256, "ratio"]
    assert [row["precise_from"], row["required_n"]] == [found.precise_from, found.required_n]
    assert [row["enough"], row["linear_trusted"]] == [direct.enough, direct.linear_trusted]
    numbers = found.table(exploration.draws(START))["closed_form"].tolist()
    assert numbers == [found.mean, found.sd, found.fresh_error, f"{found.precise_from:,}", f"{found.required_n:,}"]


def test_a_choice_moves_to_what_another_folder_has(exploration: Exploration) -> None:
    moved = exploration.nearest(replace(START, large_batch="E_256", eta=2.5e-6, subset_size=1024))
    assert (moved.eta, moved.subset_size, moved.estimator) == (3.2e-6, 192, "ratio")
    assert exploration.sizes("E_256") == [16, 24, 32, 48, 64, 96, 128, 192]


def test_an_eta_that_no_actual_run_has_leaves_them_out(
    exploration: Exploration, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: replace(run, measurements=run.measurements[:1]) for name, run in exploration.runs("E_256").items()}
    monkeypatch.setitem(exploration._runs, "E_256", runs)
    assert exploration.closed_form(replace(START, eta=3.2e-6)).actual.empty


def test_what_is_not_there_is_refused(tmp_path: Path, exploration: Exploration) -> None:
    with refused(f"{tmp_path}: folder holds no runs", error=ah.RunError):
        Exploration(tmp_path)
    with refused("none of run_01, run_02, run_03, run_04 has eta 5e-06", "1.6e-06, 3.2e-06"):
        exploration.closed_form(replace(START, eta=5e-6))


@every_estimator
def test_subsets_join_on_the_scale_that_the_closed_form_has_set(exploration: Exploration, estimator: str) -> None:
    choice = replace(START, estimator=estimator)
    before, after = panel(exploration, choice), panel(exploration, choice, exploration.draws(choice))
    assert before.get_xlim() == after.get_xlim()
    assert not [p for p in before.patches if isinstance(p, StepPatch)]
    [bars] = [p for p in after.patches if isinstance(p, StepPatch)]
    assert bars.get_facecolor()[:3] == to_rgba(COLOURS[estimator])[:3]
    assert bars.get_data()[0].sum() == 200  # the furthest subsets stand in the outermost bins
    title = after.title.get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= after.figure.bbox.x1


def test_the_curve_holds_as_many_subsets_as_are_asked_for_and_none_of_all_sequences(exploration: Exploration) -> None:
    [curve] = [line for line in panel(exploration, START).lines if len(line.get_xdata()) > 2]
    x, y = np.asarray(curve.get_xydata()).T
    bin_width = (x[-1] - x[0]) / 60
    assert y.sum() * (x[1] - x[0]) / bin_width == pytest.approx(200, rel=1e-3)
    whole = panel(exploration, replace(START, subset_size=2048))
    assert not [line for line in whole.lines if len(line.get_xdata()) > 2]
    low, high = whole.get_xlim()
    assert all(low < float(np.asarray(line.get_xdata())[0]) < high for line in whole.lines)


def test_controls_begin_where_they_are_told_and_each_changes_what_is_shown(explorer: Explorer) -> None:
    assert {name: control.value for name, control in explorer.controls.items()} == {
        name: getattr(START, name) for name in explorer.controls
    }
    changes: dict[str, object] = {
        "eta": 3.2e-6,
        "subset_size": 64,
        "estimator": "partial_sum",
        "num_samples": 200,
        "tolerance": 1.0,
        "small_batch": "E_2048",
        "large_batch": "E_256",
    }
    assert set(changes) == set(explorer.controls)
    for control, value in changes.items():
        before, figure = shown(explorer), explorer._figure.value
        explorer.controls[control].value = value
        assert getattr(explorer.choice, control) == value
        assert shown(explorer) != before
        assert explorer._figure.value != figure
    assert bytes(explorer._figure.value).startswith(b"\x89PNG")
    explorer.controls["subset_size"].value = 192
    assert max(value for _, value in explorer.controls["subset_size"].options) == 192  # what the folder has


def test_the_closed_form_stands_there_before_anything_is_drawn(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def draws(self: Exploration, choice: Choice) -> pd.DataFrame:
        seen.append((explorer._status.value, shown(explorer), explorer._figure.value))
        return original(self, choice)

    original = Exploration.draws
    monkeypatch.setattr(Exploration, "draws", draws)
    before = explorer._figure.value
    explorer.controls["subset_size"].value = 48
    [(status, text, early)] = seen
    assert "50 subsets of 48" in status
    assert "a batch of 48" in text
    assert early not in (before, explorer._figure.value)
    assert explorer._status.value == ""


def test_runs_that_are_left_out_are_told(tmp_path: Path, sample_root: Path) -> None:
    for name in ("E_2048", "E_256"):
        (tmp_path / name).mkdir()
        for run in (sample_root / name).iterdir():
            (tmp_path / name / run.name).symlink_to(run)
    for name in ("E_256", "E_bad"):
        (tmp_path / name / "run_05").mkdir(parents=True)
        (tmp_path / name / "run_05" / "results.json").write_text("{")
    explorer = Explorer(Exploration(tmp_path), replace(START, large_batch="E_256", subset_size=64))
    for size in (48, 64):  # however often controls move
        explorer.controls["subset_size"].value = size
        assert shown(explorer).count("<b>Note:</b> skipped run_05") == 1
    explorer.controls["large_batch"].value = "E_bad"
    assert "must be complete JSON" in explorer._answers.value


def test_what_goes_wrong_is_told_and_does_not_last(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Exploration, choice: Choice) -> None:
        raise ValueError("no run has <this> eta")

    before = shown(explorer)
    with monkeypatch.context() as patched:
        patched.setattr(Exploration, "closed_form", fail)
        explorer.controls["eta"].value = 3.2e-6
    assert "no run has &lt;this&gt; eta" in shown(explorer)
    assert explorer._figure.value == b""
    explorer.controls["eta"].value = 1.6e-6
    assert shown(explorer) == before


def test_without_a_kernel_a_sentence_stands_in(explorer: Explorer) -> None:
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle


@every_estimator
def test_answers_are_by_the_ratio_and_say_so_where_another_estimator_is_shown(
    exploration: Exploration, estimator: str
) -> None:
    explorer = Explorer(exploration, replace(START, estimator=estimator))
    assert ("By the ratio: " in explorer._answers.value) == (estimator != "ratio")
    assert explorer._numbers.value.count(", by the ratio") == (0 if estimator == "ratio" else 3)
    assert "3,201" in explorer._numbers.value  # as in the reasons of the verdict
    assert "3,201" in explorer._reasons.value
