from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import StepPatch

from analysis_helpers import (
    Run,
    RunError,
    err_rel_standard_error,
    required_batch_size,
    simulate_err_rel_across_runs,
    verdict,
)
from analysis_helpers.estimators import ESTIMATORS, EstimatorName
from analysis_helpers.plots.style import COLOURS
from analysis_helpers.report.explorer import (
    FALLBACK,
    Choice,
    Exploration,
    Explorer,
)

START = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=100)


@pytest.fixture
def exploration(sample_root: Path) -> Exploration:
    return Exploration(sample_root, seed=42)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_draws_are_those_of_the_comparison(
    exploration: Exploration, large_runs: dict[str, Run], estimator: EstimatorName
) -> None:
    choice = replace(START, estimator=estimator)
    references = None if estimator == "partial_sum" else {1.6e-6: verdict(large_runs, 1.6e-6, 1).numbers["reference"]}
    plain = simulate_err_rel_across_runs(
        large_runs, [1.6e-6], 256, num_samples=choice.num_samples, seed=42, estimator=estimator, references=references
    )
    assert exploration.draws(choice)["err_rel"].to_numpy() == pytest.approx(plain["err_rel"].to_numpy(), rel=1e-9)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_the_closed_form_has_the_moments_of_many_draws(exploration: Exploration, estimator: EstimatorName) -> None:
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


def test_subsets_are_drawn_once_a_choice(exploration: Exploration) -> None:
    drawn = exploration.draws(START)
    assert exploration.draws(replace(START, tolerance=0.5, small_batch="E_2048")) is drawn
    assert exploration.has_drawn(START)
    assert not exploration.has_drawn(replace(START, num_samples=101))


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
    table = found.table(exploration.draws(choice)).set_index("what")
    assert table.loc["n for ±0.25 with probability 90%, around its expectation", "closed_form"] == "3,201"
    assert table.loc["n for ±0.25 with probability 90%, around zero", "closed_form"] == "no size is enough"
    assert table["unit"].tolist() == ["true change"] * 3 + ["sequences"] * 2
    assert found.table()["drawn"].isna().all()


def test_the_result_for_collection_is_one_row(exploration: Exploration) -> None:
    [row] = exploration.closed_form(START).result().to_dict("records")
    assert (row["eta"], row["subset_size"], row["estimator"]) == (1.6e-6, 256, "ratio")
    assert (row["precise_from"], row["required_n"]) == (3201, None)
    assert (row["enough"], row["linear_trusted"]) == ("no", "cannot tell")


def test_an_eta_that_no_large_run_has_is_named_with_those_there_are(exploration: Exploration) -> None:
    with pytest.raises(ValueError, match=r"has eta 5e-06; they have 1.6e-06, 3.2e-06"):
        exploration.closed_form(replace(START, eta=5e-6))


CHOICE = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=100)


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_subsets_join_on_the_scale_that_the_closed_form_has_set(
    exploration: Exploration, estimator: EstimatorName
) -> None:
    choice = replace(CHOICE, estimator=estimator)
    found, draws = exploration.closed_form(choice), exploration.draws(choice)
    [before], [after] = (found).plot().axes, found.plot(draws).axes
    assert before.get_xlim() == after.get_xlim()
    assert not [p for p in before.patches if isinstance(p, StepPatch)]
    [bars] = [p for p in after.patches if isinstance(p, StepPatch)]
    assert bars.get_facecolor()[:3] == to_rgba(COLOURS[estimator])[:3]
    assert bars.get_data()[0].sum() == 400  # the furthest subsets stand in the outermost bins


def test_the_curve_holds_as_many_subsets_as_are_asked_for(exploration: Exploration) -> None:
    [ax] = (exploration.closed_form(CHOICE)).plot().axes
    [curve] = [line for line in ax.lines if line.get_label() == "subsets, closed form"]
    x, y = np.asarray(curve.get_xydata()).T
    bin_width = (x[-1] - x[0]) / 60
    assert y.sum() * (x[1] - x[0]) / bin_width == pytest.approx(400, rel=1e-3)


def test_the_title_tells_spread_and_verdict(exploration: Exploration) -> None:
    [ax] = (exploration.closed_form(CHOICE)).plot().axes
    assert ax.get_title() == (
        "Ratio, eta 1.6e-06, subsets of 256: -0.098 ± 0.53 (mean ± SD)\n"
        "Is a batch of 256 enough? No. May the linear approximation be trusted? Cannot tell."
    )
    [ax] = (exploration.closed_form(replace(CHOICE, estimator="partial_sum"))).plot().axes
    assert "not comparable with actual runs" in ax.get_title()


def test_actual_runs_of_another_size_are_paler_and_tell_their_size(exploration: Exploration) -> None:
    for size, label, alpha in ((256, "actual run_01: +0.23", 1.0), (64, "actual run_01 (n = 256): +0.23", 0.5)):
        [ax] = (exploration.closed_form(replace(CHOICE, subset_size=size))).plot().axes
        [line] = [line for line in ax.lines if line.get_label() == label]
        assert line.get_alpha() == alpha


@pytest.mark.parametrize("estimator", ["partial_sum", "ratio", "matched"])
def test_nothing_is_cut_off(exploration: Exploration, estimator: EstimatorName) -> None:
    figure = (exploration.closed_form(replace(CHOICE, eta=3.2e-6, estimator=estimator))).plot()
    figure.draw_without_rendering()
    title, whole = figure.axes[0].title.get_window_extent(), figure.bbox
    assert title.x0 >= 0
    assert title.x1 <= whole.x1
    assert title.y1 <= whole.y1


def test_a_tolerance_far_off_does_not_press_all_else_into_a_line(exploration: Exploration) -> None:
    found = exploration.closed_form(replace(CHOICE, estimator="matched", tolerance=1.0))
    low, high = (found).plot().axes[0].get_xlim()
    assert high - low < 30 * found.sd


def test_all_sequences_at_once_have_no_curve(exploration: Exploration) -> None:
    [ax] = (exploration.closed_form(replace(CHOICE, subset_size=2048))).plot().axes
    assert "subsets, closed form" not in [line.get_label() for line in ax.lines]
    low, high = ax.get_xlim()
    assert all(low < float(np.asarray(line.get_xdata())[0]) < high for line in ax.lines)


START = Choice("E_2048", "E_256", 1.6e-6, 256, num_samples=50)


@pytest.fixture
def explorer(sample_root: Path) -> Explorer:
    return Explorer(Exploration(sample_root), START)


def shown(explorer: Explorer) -> str:
    return str(explorer._answers.value + explorer._numbers.value + explorer._reasons.value)


def test_it_begins_where_it_is_told_with_figure_table_and_verdict(explorer: Explorer) -> None:
    assert {name: control.value for name, control in explorer.controls.items()} == {
        "large_batch": "E_2048",
        "small_batch": "E_256",
        "eta": 1.6e-6,
        "estimator": "ratio",
        "subset_size": 256,
        "num_samples": 50,
        "tolerance": 0.25,
    }
    assert "Is a batch of 256 enough? <b>no</b>" in shown(explorer)
    assert "SD of err_rel over subsets of 256" in shown(explorer)
    assert bytes(explorer._figure.value).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("eta", 3.2e-6),
        ("subset_size", 64),
        ("estimator", "partial_sum"),
        ("num_samples", 200),
        ("tolerance", 1.0),
        ("large_batch", "E_256"),
        ("small_batch", "E_2048"),
    ],
)
def test_every_control_changes_what_is_shown(explorer: Explorer, control: str, value: object) -> None:
    before, figure = shown(explorer), explorer._figure.value
    explorer.controls[control].value = value
    assert getattr(explorer.choice, control) == value
    assert shown(explorer) != before
    assert explorer._figure.value != figure


def test_the_closed_form_stands_there_before_anything_is_drawn(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def draws(self: Exploration, choice: Choice) -> pd.DataFrame:
        seen.append((explorer._status.value, shown(explorer), explorer._figure.value))
        return original(self, choice)

    original = Exploration.draws
    monkeypatch.setattr(Exploration, "draws", draws)
    figure = explorer._figure.value
    explorer.controls["subset_size"].value = 64
    [(status, text, early)] = seen
    assert status == "Drawing 50 subsets of 64 from each large run …"
    assert "SD of err_rel over subsets of 64" in text
    assert "Is a batch of 64 enough" in text
    assert early not in (figure, explorer._figure.value)
    assert explorer._status.value == ""


def test_another_folder_offers_what_it_has(explorer: Explorer) -> None:
    explorer.controls["large_batch"].value = "E_256"
    assert explorer.controls["subset_size"].value == 192
    assert max(value for _, value in explorer.controls["subset_size"].options) == 192


def test_warnings_about_runs_stand_below_the_verdict(explorer: Explorer) -> None:
    explorer.controls["small_batch"].value = "E_2048"
    assert "<b>Note:</b> run_01 is the same run as run_01, from which it is predicted." in shown(explorer)


def test_what_goes_wrong_is_told_in_place_of_an_answer_and_does_not_last(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Exploration, choice: Choice) -> None:
        raise ValueError("no run has <this> eta")

    with monkeypatch.context() as patched:
        patched.setattr(Exploration, "closed_form", fail)
        explorer.controls["eta"].value = 3.2e-6
    assert shown(explorer) == "<b>No answer:</b> no run has &lt;this&gt; eta"
    assert explorer._figure.value == b""
    explorer.controls["eta"].value = 1.6e-6
    assert "Is a batch of 256 enough? <b>no</b>" in shown(explorer)


def test_a_folder_with_no_usable_run_is_told(tmp_path: Path, sample_root: Path) -> None:
    (tmp_path / "E_2048").symlink_to(sample_root / "E_2048")
    (tmp_path / "E_bad" / "run_01").mkdir(parents=True)
    (tmp_path / "E_bad" / "run_01" / "results.json").write_text("{")
    explorer = Explorer(Exploration(tmp_path), replace(START, small_batch="E_2048"))
    explorer.controls["large_batch"].value = "E_bad"
    assert "must be complete JSON" in shown(explorer)
    explorer.controls["large_batch"].value = "E_2048"
    assert "Is a batch of 256 enough?" in shown(explorer)


def test_without_a_kernel_a_sentence_stands_in(explorer: Explorer) -> None:
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/html"] == FALLBACK
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.parametrize(("estimator", "said"), [("ratio", False), ("matched", True), ("partial_sum", True)])
def test_answers_are_by_the_ratio_and_say_so_where_another_estimator_is_shown(
    explorer: Explorer, estimator: EstimatorName, said: bool
) -> None:
    explorer.controls["estimator"].value = estimator
    assert ("By the ratio: " in explorer._answers.value) == said
    assert explorer._numbers.value.count(", by the ratio") == (3 if said else 0)
    assert "3,201" in explorer._numbers.value  # as in the reasons of the verdict
    assert "about 3,201 sequences on" in explorer._reasons.value


def test_a_run_that_is_left_out_is_told_however_often_controls_move(tmp_path: Path, sample_root: Path) -> None:
    for folder in ("E_2048", "E_256"):
        (tmp_path / folder).mkdir()
        for run in (sample_root / folder).iterdir():
            (tmp_path / folder / run.name).symlink_to(run)
    (tmp_path / "E_2048" / "run_05").mkdir()
    (tmp_path / "E_2048" / "run_05" / "results.json").write_text("{")
    explorer = Explorer(Exploration(tmp_path), START)
    for size in (64, 128, 64):
        explorer.controls["subset_size"].value = size
        assert shown(explorer).count("<b>Note:</b> skipped run_05") == 1


def test_an_estimator_that_no_figure_knows_is_not_on_offer(sample_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = ESTIMATORS
    monkeypatch.setitem(known, "other", ESTIMATORS["ratio"])
    offered = Explorer(Exploration(sample_root), START).controls["estimator"].options
    assert [name for _, name in offered] == ["partial_sum", "ratio", "matched"]
