from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from analysis_helpers import RunError
from analysis_helpers._checks import (
    FieldError,
    checked_array,
    checked_count,
    checked_eta,
    fields_of,
    same_eta,
)
from tests.building import refused

etas = st.floats(1e-12, 1.0)


@given(etas)
def test_step_sizes_are_told_apart_at_a_relative_1e_6_and_have_one_canonical_value(eta: float) -> None:
    canonical = checked_eta(eta, "eta")
    assert checked_eta(canonical, "eta") == canonical
    assert same_eta(eta, canonical)
    assert same_eta(eta, eta * (1 + 9e-7))
    assert not same_eta(eta, eta * (1 + 1.2e-6))


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_size_must_be_positive_and_finite(eta: float) -> None:
    with refused("true.entries[0].eta must be a positive step size", eta, error=FieldError):
        checked_eta(eta, "true.entries[0].eta")


@pytest.mark.parametrize(
    ("values", "rule", "value"),
    [
        ([], "must hold one", "(0,)"),
        ([[1.0]], "must hold one", "(1, 1)"),
        ([1.0, 2.0], "must have one value for each of the 3 sequences", "2"),
        ([1.0, 2.0, -3.0], "must not be negative", "-3.0 at position 2"),
        (["a", "b", "c"], "must hold numbers", ""),
        ([10**400, 1, 1], "must hold numbers", ""),
    ],
)
def test_a_bad_array_is_named_by_field_rule_and_value_and_where_it_is_from_a_file_by_that(
    values: Any, rule: str, value: str
) -> None:
    with refused(f"h_new {rule}", value, error=FieldError):
        checked_array(values, "h_new", length=3, lowest=0.0)
    with refused(f"file: h_new {rule}", value, error=RunError), fields_of("file"):
        checked_array(values, "h_new", length=3, lowest=0.0)


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, "2", None, True])
def test_counts_must_be_whole_numbers_of_at_least_1(value: object) -> None:
    assert checked_count(np.int64(7), "sample_size") == 7
    with refused("sample_size must be a whole number of at least 1", repr(value)):
        checked_count(value, "sample_size")
