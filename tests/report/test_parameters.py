from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis_helpers._checks import RunWarning
from analysis_helpers.report.display import RESULT_MIME, AnswerInBrief, readable, show_result
from analysis_helpers.report.parameters import ParameterError, notebooks_folder, read_parameters, resolve_data_root
from tests.conftest import REPOSITORY

ROOT = {"data_root": str(REPOSITORY / "data_samples")}


@given(st.floats(1e-9, 1.0))
def test_an_eta_means_the_same_as_a_number_and_as_text(eta: float) -> None:
    as_number, as_text = (read_parameters({**ROOT, "eta": value}).eta for value in (eta, repr(eta)))
    assert as_number == as_text
    assert as_number == pytest.approx(eta, rel=1e-11)


@given(st.integers(1, 10**9))
def test_a_size_means_the_same_as_an_integer_a_whole_float_and_as_text(size: int) -> None:
    values = [size, float(size), str(size), f"{float(size)!r}"]
    assert {read_parameters({**ROOT, "subset_size": value}).subset_size for value in values} == {size}


@pytest.mark.parametrize(
    ("etas", "meant"),
    [
        ([1.6e-6, "3.2e-6"], (1.6e-6, 3.2e-6)),
        ((2e-6,), (2e-6,)),
        ("[1.6e-6, 3.2e-6]", (1.6e-6, 3.2e-6)),
        ("2e-6", (2e-6,)),
        (2e-6, (2e-6,)),
    ],
)
def test_etas_may_come_as_a_list_as_text_or_as_one_number(etas: object, meant: tuple[float, ...]) -> None:
    assert read_parameters({**ROOT, "etas": etas}).etas == meant


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"eta": -1}, "eta must be a positive step size, got -1"),
        ({"eta": "small"}, "eta must be a positive step size, got 'small'"),
        ({"eta": float("nan")}, "eta must be a positive step size, got nan"),
        ({"etas": []}, r"etas must be a list of positive step sizes, got \[\]"),
        ({"etas": None}, "etas must be a list of positive step sizes, got None"),
        ({"etas": [1e-6, 0]}, r"etas must be a list of positive step sizes, got \[1e-06, 0\]"),
        ({"etas": ""}, "etas must be a list of positive step sizes, got ''"),
        ({"subset_size": 256.5}, "subset_size must be a whole number of at least 1, got 256.5"),
        ({"subset_size": 0}, "subset_size must be a whole number of at least 1, got 0"),
        ({"num_samples": "many"}, "num_samples must be a whole number of at least 1, got 'many'"),
        ({"samples_per_eta": float("inf")}, "samples_per_eta must be a whole number of at least 1, got inf"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": True}, "seed must be a whole number of at least 0, got True"),
        ({"large_batch": "E_4096"}, r"large_batch must be a batch folder in .* \(there: E_2048, E_256\), got 'E_4096'"),
        ({"large_batch": 2048}, "large_batch must be the name of a folder, got 2048"),
        ({"data_root": "../nowhere"}, r"data_root must be a folder that exists, got '\.\./nowhere' \(working folder: "),
        ({"data_root": ""}, "data_root must be the name of a folder, got ''"),
    ],
)
def test_a_bad_parameter_stops_with_one_sentence(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}") as caught:
        read_parameters({**ROOT, **given_values})
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"ParameterError: {caught.value}"]


def test_parameters_remember_what_to_store() -> None:
    assert read_parameters({"seed": 0, "other": 3}).recorded() == {"seed": 0}
    given_values = {**ROOT, "large_batch": "E_256", "eta": "2e-6", "subset_size": 1e2}
    assert read_parameters(given_values).recorded() == {**ROOT, "large_batch": "E_256", "eta": 2e-6, "subset_size": 100}


def test_a_relative_data_root_is_looked_for_here_then_beside_the_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_data_root("../data_samples").resolve() == (REPOSITORY / "data_samples").resolve()
    (tmp_path / "data_samples").mkdir()
    assert resolve_data_root("data_samples") == Path("data_samples")


def test_the_notebooks_are_those_beside_the_package() -> None:
    assert notebooks_folder() == REPOSITORY / "notebooks"


def test_readable_tables_hold_short_text() -> None:
    table = pd.DataFrame(
        {
            "eta": [1.6e-6],
            "etas": [(1e-6, 2e-6)],
            "n": pd.array([None], dtype="Int64"),
            "x": [np.nan],
            "k": [7],
            "s": ["run"],
        }
    )
    assert readable(table).table.to_dict("records") == [
        {"eta": "1.6e-06", "etas": "1e-06, 2e-06", "n": "", "x": "", "k": "7", "s": "run"}
    ]
    assert readable(pd.DataFrame({"x": [-0.0011, 4.7, 250.0]})).table["x"].tolist() == ["-0.00110", "4.70", "250"]
    assert readable(pd.DataFrame({"x": [1 / 3]}), digits=5).table["x"].iloc[0] == "0.33333"


def test_a_result_is_displayed_once_with_ten_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    parameters = read_parameters({**ROOT, "etas": [1e-6, 2e-6], "seed": 3})
    rows = pd.DataFrame(
        {"estimator": ["ratio"], "sd": [1 / 3], "nothing": [np.nan], "values": [[2 / 3, 1.0]], "n": [7]}
    )
    show_result("05_test", parameters, rows)
    [data] = shown
    payload = data[RESULT_MIME]
    assert payload["notebook"] == "05_test"
    assert payload["parameters"] == {**ROOT, "etas": [1e-6, 2e-6], "seed": 3}
    assert payload["rows"] == [
        {"estimator": "ratio", "sd": 0.3333333333, "nothing": None, "values": [0.6666666667, 1.0], "n": 7}
    ]
    assert data["text/plain"] == "result for collection: 1 row"


def test_warnings_about_runs_are_told_with_the_answer_each_once_and_others_are_shown_as_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("IPython.display.display", lambda markdown, display_id=False: shown.append(markdown.data))
    others: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *rest: others.append(str(message)))
        answer = AnswerInBrief()
        with answer.noting():
            for _ in range(2):
                warnings.warn("skipped run_03: it has no eta 1e-06", RunWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)
        answer.say(["One."])
    assert shown[-1] == "- One.\n- **Note:** skipped run_03: it has no eta 1e-06."
    assert others == ["something else"]


def test_an_answer_is_shown_where_it_is_said_and_where_its_place_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Place:
        def update(self, markdown: Any) -> None:
            shown.append(f"top: {markdown.data}")

    def display(markdown: Any, display_id: bool = False) -> Place | None:
        shown.append(markdown.data)
        return Place() if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    AnswerInBrief().say(["One.", "Two."])
    assert shown == ["*Run all cells: the answer is computed below.*", "top: - One.\n- Two.", "- One.\n- Two."]
