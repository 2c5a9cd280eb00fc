from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from analysis_helpers.runs.json import encode_run
from tests.building import ETAS, random_run, totals_only_run
from tests.damaging import (
    FIELDS,
    FILE,
    GOOD,
    MAY_HOLD_OTHER_THINGS,
    MUST_NOT_BE_NEGATIVE,
    TREE,
    WRONG,
    damaged,
    names,
    read,
    refusal,
    same_where_supported,
)


def test_what_is_written_loads_back_equal() -> None:
    for run in (GOOD, random_run(5, score=False), totals_only_run()):
        assert read(encode_run(run)) == run


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_or_costs_only_what_it_supports(field: str) -> None:
    data, loss = damaged(field, None, remove=True), FIELDS[field]
    if loss == "refused":
        assert names(refusal(data), field)
        return
    run = read(data)
    assert same_where_supported(run, GOOD)
    lost = set(GOOD.supports) - set(run.supports)
    assert lost == {"nothing": set(), "fewer etas": set(), "linear": {"linear", "score", "curvature"}}.get(loss, {loss})
    assert run.etas == (ETAS[:1] if loss == "fewer etas" else ETAS)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_is_named_by_file_and_field(field: str, kind: str) -> None:
    if field in MAY_HOLD_OTHER_THINGS and kind == "an object of other things":
        assert read(damaged(field, WRONG[kind])) != GOOD  # its own fields are not recorded
        return
    error = refusal(damaged(field, WRONG[kind]))
    assert names(error, field)
    assert error.rule


@pytest.mark.parametrize("field", FIELDS)
def test_null_means_not_recorded_where_that_is_allowed_and_is_refused_elsewhere(field: str) -> None:
    data = damaged(field, None)
    loss = FIELDS[field]
    if loss in ("refused", "fewer etas"):
        assert names(refusal(data), field)
    else:
        assert same_where_supported(read(data), GOOD)


@pytest.mark.parametrize("field", [f for f in FIELDS if f.endswith(MUST_NOT_BE_NEGATIVE)])
def test_a_negative_value_is_refused_where_the_sign_matters(field: str) -> None:
    assert names(refusal(damaged(field, -1)), field)


@pytest.mark.parametrize("name", ["normalized_weights", "h_new", "token_counts", "h_base", "log_weights"])
@pytest.mark.parametrize("length", [0, 5, 7])
def test_arrays_of_unequal_length_are_refused(name: str, length: int) -> None:
    for entry in (0, 1):
        field = f"true.entries.{entry}.diagnostics.{name}"
        assert names(refusal(damaged(field, [0.1] * length)), field) or name == "token_counts"


@pytest.mark.parametrize("name", ["token_counts", "normalized_weights"])
def test_zero_tokens_or_weight_in_all_are_refused(name: str) -> None:
    error = refusal(damaged(f"true.entries.0.diagnostics.{name}", [0] * 6))
    assert name in error.field
    assert "positive number" in error.rule


def test_unknown_fields_are_ignored() -> None:
    assert read(json.dumps({**TREE, "control_variates": None, "B_U": 64}).encode()) == GOOD


def test_sequences_out_of_order_are_put_in_order() -> None:
    tree = json.loads(json.dumps(TREE))
    tree["approx"]["per_sequence"].reverse()
    assert read(json.dumps(tree).encode()) == GOOD


def test_indices_that_are_no_permutation_are_refused() -> None:
    error = refusal(damaged("approx.per_sequence.4.index", 2))
    assert str(error) == f"{FILE}: approx.per_sequence[].index must hold each of 0 to 5 once, got 2 instead of 3"


def test_linear_terms_of_other_sequences_are_refused() -> None:
    error = refusal(damaged("approx.per_sequence.4.length", 1000))
    assert error.field == "approx.per_sequence[4].length"
    assert "token count" in error.rule


def test_two_entries_at_one_eta_are_refused() -> None:
    error = refusal(damaged("true.entries.1.eta", ETAS[0] * (1 + 1e-8)))
    assert (error.field, error.rule) == ("true.entries[].eta", "must hold each eta once")


def test_token_counts_that_differ_between_etas_are_refused() -> None:
    tokens = list(TREE["true"]["entries"][1]["diagnostics"]["token_counts"])
    tokens[0] += 1
    assert "must be the same as" in refusal(damaged("true.entries.1.diagnostics.token_counts", tokens)).rule


def test_etas_are_canonical() -> None:
    run = read(damaged("true.entries.1.eta", 0.1 + 0.2))
    assert run.etas == (ETAS[0], 0.3)


def test_a_file_from_before_the_denominator_correction_has_linear_terms_but_no_score() -> None:
    tree = json.loads(json.dumps(TREE))
    for sequence in tree["approx"]["per_sequence"]:
        del sequence["extras"]["denom_corr_unscaled"]
    run = read(json.dumps(tree).encode())
    assert "linear" in run.supports
    assert "score" not in run.supports


def test_whole_token_counts_are_written_as_such() -> None:
    counts = TREE["true"]["entries"][0]["diagnostics"]["token_counts"]
    assert all(isinstance(count, int) for count in counts)


def test_written_parts_of_the_linear_term_add_up() -> None:
    for sequence in TREE["approx"]["per_sequence"]:
        extras, scale = sequence["extras"], TREE["approx"]["per_sequence_meta"]["scale"]
        parts = extras["wjlogp_sum"] + extras["jH_sum"] + extras["denom_corr_unscaled"]
        assert np.isclose(sequence["gdotv"] / scale, parts, rtol=1e-9)
        assert np.isclose(extras["denom_corr_scaled"], extras["denom_corr_unscaled"] * scale, rtol=1e-12)


def test_weight_on_sequences_without_tokens_only_is_refused() -> None:
    tree = json.loads(json.dumps(TREE))
    for entry in tree["true"]["entries"]:
        entry["diagnostics"] |= {"token_counts": [0, 1, 1, 1, 1, 1], "normalized_weights": [1, 0, 0, 0, 0, 0]}
    error = refusal(json.dumps(tree).encode())
    assert error.field == "true.entries[0].diagnostics.normalized_weights (times tokens)"


@pytest.mark.parametrize("name", ["token_counts", "normalized_weights"])
def test_tokens_or_weights_whose_sum_overflows_are_refused_without_a_warning(name: str) -> None:
    error = refusal(damaged(f"true.entries.0.diagnostics.{name}", [1e308] * 6))
    assert error.field.startswith(f"true.entries[0].diagnostics.{name}")
    assert (error.rule, error.value) == ("must sum to a positive number", np.inf)


@pytest.mark.parametrize("field", ["gdotv", "extras.wjlogp_sum"])
def test_linear_terms_whose_sum_overflows_are_read_as_they_stand_without_a_warning(field: str) -> None:
    run = read(damaged(f"approx.per_sequence.2.{field}", 1.7e308))
    assert run.gdotv is not None
    assert run.score is not None
    assert (run.gdotv if field == "gdotv" else run.score.wjlogp_sum)[2] == 1.7e308


def test_a_run_of_a_huge_scale_is_written_and_loads_back_equal_without_a_warning() -> None:
    run = read(damaged("approx.per_sequence_meta.scale", 1e308))
    assert read(encode_run(run)) == run


def test_a_correction_by_an_entropy_of_zero_is_refused() -> None:
    assert "must be positive" in refusal(damaged("approx.per_sequence_meta.H_base_mean", 0)).rule


def test_a_field_that_is_written_and_not_read_may_hold_anything() -> None:
    assert read(damaged("approx.per_sequence_meta.T_total", "many")) == GOOD


# Of half a megabyte, so that memory beyond a few times the file shows.
WHOLE = random_run(1_000, curvature=True)
TEXT = encode_run(WHOLE).decode()
BYTES = TEXT.encode()
TOTAL = f'"delta_h_per_lr": {WHOLE.delta_h_per_lr!r}'


def with_total(number: str) -> bytes:
    """Return the file with another number in a field in use."""
    assert TEXT.count(TOTAL) == 1
    return TEXT.replace(TOTAL, f'"delta_h_per_lr": {number}').encode()


def with_note(value: str) -> bytes:
    """Return the file with a value in a field that is not in use."""
    return f'{{"note": {value}, {TEXT[1:]}'.encode()


DIGITS = "1" * 1_000_000
ACCEPTED = {
    "with the mark that some editors put before UTF-8": b"\xef\xbb\xbf" + BYTES,
    "on one line": json.dumps(json.loads(TEXT)).encode(),
    "with blanks around": b" \r\n\t" + BYTES.replace(b"\n", b"\r\n") + b"\n\n",
    **{
        f"with a note: {what}": with_note(value)
        for what, value in {
            "NaN": "NaN",
            "-Infinity": "[-Infinity, 1.0]",
            "words about NaN": '"NaN, Infinity: [NaN]"',
            "half a surrogate pair": r'"\ud83d and \\ud83d"',
            "1e400": "1e400",
            "a million digits": DIGITS,
            "a million decimals": f"0.{DIGITS}",
            "a million empty lists": "[" + "[]," * 1_000_000 + "[]]",
            "a million empty objects": "[" + "{}," * 1_000_000 + "{}]",
            "a megabyte of text": f'"{DIGITS}"',
            "brackets in text": '"a [ b ] ] c [["',
        }.items()
    },
    "with anything in a field that is written and not read": TEXT.replace(
        '"T_total": ', '"T_total": [NaN, 1e400, {}], "unused": '
    ).encode(),
}
REFUSED = {
    "gzip": (gzip.compress(BYTES), "file must be complete JSON"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "file must be complete JSON"),
    "nothing": (b"", "file must be complete JSON, got an empty file"),
    "blanks": (b" \n" * 1000, "file must be complete JSON, got an empty file"),
    "twice": (BYTES + BYTES, "file must be complete JSON, got Extra data: line "),
    "HTML": (b"<html>", "file must be complete JSON, got Expecting value: line 1 column 1 (char 0)"),
    "not UTF-8": (b"\xe9" + BYTES, "file must be complete JSON, got 'utf-8' codec can't decode byte 0xe9"),
    "a text without an end": (BYTES.replace(b'"true":', b'"true'), "file must be complete JSON"),
    "a list without an end": (BYTES.replace(b"]", b"", 1), "file must be complete JSON"),
    "1e400": (with_total("1e400"), "approx.delta_h_per_lr must be finite, got inf"),
    "400 digits": (with_total("1" * 400), "approx.delta_h_per_lr does not fit the format (Number out of range)"),
    "NaN": (with_total("NaN"), "approx.delta_h_per_lr must be finite, got nan"),
    "text": (with_total(f'"{DIGITS}"'), "approx.delta_h_per_lr does not fit the format (Expected `float`, got `str`)"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_does_no_harm_gives_the_undamaged_run(kind: str) -> None:
    assert read(ACCEPTED[kind]) == WHOLE


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_file_is_instead_is_said(kind: str) -> None:
    data, message = REFUSED[kind]
    assert str(refusal(data)).startswith(f"{FILE}: {message}")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float) -> None:
    assert refusal(BYTES[: int(share * len(BYTES))]).rule == "must be complete JSON"


@pytest.mark.parametrize("opening", [b"[", b'{"approx":', b'{"note":'])
def test_nesting_deep_enough_to_break_a_parser_is_refused(opening: bytes) -> None:
    assert refusal(opening * 100_000).field in ("file", "approx")


@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"results"'])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    assert refusal(data).rule.startswith("does not fit the format (Expected `object`, got `")
