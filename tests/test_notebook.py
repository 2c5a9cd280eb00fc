from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis_helpers.checks import RunWarning
from analysis_helpers.notebook import (
    RESULT_MIME,
    Answer,
    ParameterError,
    check_parameters,
    notebooks_folder,
    readable,
    resolve_data_root,
    show_result,
)
from tests.conftest import REPOSITORY

ROOT = {"data_root": str(REPOSITORY / "data_samples")}


@given(st.floats(1e-9, 1.0))
def test_an_eta_means_the_same_as_a_number_and_as_text(eta: float) -> None:
    as_number, as_text = (check_parameters({**ROOT, "eta": value}).eta for value in (eta, repr(eta)))
    assert as_number == as_text
    assert as_number == pytest.approx(eta, rel=1e-11)


@given(st.integers(1, 10**9))
def test_a_size_means_the_same_as_an_integer_a_whole_float_and_as_text(size: int) -> None:
    values = [size, float(size), str(size), f"{float(size)!r}"]
    assert {check_parameters({**ROOT, "subset_size": value}).subset_size for value in values} == {size}


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
    assert check_parameters({**ROOT, "etas": etas}).etas == meant


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"eta": -1}, "eta must be a positive step size, got -1"),
        ({"eta": "small"}, "eta must be a positive step size, got 'small'"),
        ({"eta": float("nan")}, "eta must be a positive step size, got nan"),
        ({"etas": []}, r"etas must be a list of step sizes, got \[\]"),
        ({"etas": None}, "etas must be a list of step sizes, got None"),
        ({"etas": [1e-6, 0]}, "etas must be a positive step size, got 0"),
        ({"etas": ""}, "etas must be a positive step size, got ''"),
        ({"subset_size": 256.5}, "subset_size must be a whole number of at least 1, got 256.5"),
        ({"subset_size": 0}, "subset_size must be a whole number of at least 1, got 0"),
        ({"num_samples": "many"}, "num_samples must be a whole number of at least 1, got 'many'"),
        ({"samples_per_eta": float("inf")}, "samples_per_eta must be a whole number of at least 1, got inf"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": True}, "seed must be a whole number of at least 0, got True"),
        ({"large_batch": "E_4096"}, r"large_batch must be a batch folder in .* \(there: E_2048, E_256\), got 'E_4096'"),
        ({"large_batch": 2048}, "large_batch must be a batch folder in .*, got 2048"),
        ({"data_root": "../nowhere"}, r"data_root must be a folder that exists, got '\.\./nowhere' \(working folder: "),
        ({"data_root": ""}, "data_root must be the path of a folder, got ''"),
        (
            {"subset_sise": 256},
            "subset_sise is not a parameter; there are data_root, large_batch, small_batch, eta, etas",
        ),
    ],
)
def test_a_bad_parameter_stops_with_one_sentence(given_values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}") as caught:
        check_parameters({**ROOT, **given_values})
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"ParameterError: {caught.value}"]


def test_a_data_root_is_needed_where_there_are_batches() -> None:
    with pytest.raises(ParameterError, match="data_root must be given"):
        check_parameters({"large_batch": "E_2048"})
    assert check_parameters({"seed": 3}).record == {"seed": 3}


def test_checked_parameters_remember_what_to_store() -> None:
    given_values = {**ROOT, "large_batch": "E_256", "eta": "2e-6", "subset_size": 1e2}
    assert check_parameters(given_values).record == {**ROOT, "large_batch": "E_256", "eta": 2e-6, "subset_size": 100}


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
    assert readable(table).to_dict("records") == [
        {"eta": "1.6e-06", "etas": "1e-06, 2e-06", "n": "", "x": "", "k": "7", "s": "run"}
    ]
    assert readable(pd.DataFrame({"x": [-0.0011, 4.7, 250.0]}))["x"].tolist() == ["-0.00110", "4.70", "250"]
    assert readable(pd.DataFrame({"x": [1 / 3]}), digits=5)["x"].iloc[0] == "0.33333"


def test_a_result_is_displayed_once_with_ten_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    parameters = check_parameters({**ROOT, "etas": [1e-6, 2e-6], "seed": 3})
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
        answer = Answer()
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
    Answer().say(["One.", "Two."])
    assert shown == ["*Run all cells: the answer is computed below.*", "top: - One.\n- Two.", "- One.\n- Two."]
