from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from typing import Any

import pytest

from analysis_helpers import RunError
from analysis_helpers.results_json import encode_run
from tests.building import random_run
from tests.damaging import FIELDS, FILE, GOOD, TREE, damaged, names, read, refusal

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


def value_of(field: str) -> Any:
    value: Any = TREE
    for part in field.split("."):
        value = value[int(part) if part.isdigit() else part]
    return value


def zipped(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("results.json", data)
    return archive.getvalue()


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
TOO_LARGE = "must be below 1.8e308 in size"
REFUSED = {
    "gzip": (gzip.compress(BYTES), "it looks like gzip: unpack it first"),
    "bzip2": (bz2.compress(BYTES), "it looks like bzip2: unpack it first"),
    "xz": (lzma.compress(BYTES), "it looks like xz: unpack it first"),
    "zip": (zipped(BYTES), "it looks like zip: unpack it first"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it looks like a Git LFS pointer"),
    "UTF-16 with its mark": (TEXT.encode("utf-16"), "it looks like UTF-16: save it as UTF-8"),
    "UTF-16, little end first": (TEXT.encode("utf-16-le"), "it looks like UTF-16"),
    "UTF-16, big end first": (TEXT.encode("utf-16-be"), "it looks like UTF-16"),
    "UTF-32": (TEXT.encode("utf-32"), "it looks like UTF-32"),
    "zero bytes": (bytes(len(BYTES)), "it looks like zero bytes"),
    "nothing": (b"", "file must be complete JSON, got an empty file"),
    "blanks": (b" \n" * 1000, "file must be complete JSON, got an empty file"),
    "a mark and nothing": (b"\xef\xbb\xbf", "file must be complete JSON, got an empty file"),
    "twice": (BYTES + BYTES, "file must be complete JSON, got trailing characters at line "),
    "HTML": (b"<html>", "file must be complete JSON, got invalid character at line 1, column 1"),
    "not UTF-8": (b"\xe9" + BYTES, "file must be UTF-8 text, got byte 0xe9 at line 1, column 1"),
    "a text without an end": (BYTES.replace(b'"true":', b'"true'), "file must be complete JSON"),
    "a broken escape": (with_note(r'"\uNaN,"'), "file must be complete JSON, got invalid character in unicode escape"),
    "a number with a word": (with_note("1NaN"), "file must be complete JSON"),
    "a word with a number": (with_note("Infinity1"), "file must be complete JSON"),
    "a list without an end": (BYTES.replace(b"]", b"", 1), "approx.per_sequence[1000] must be an object"),
    "1e400": (with_total("1e400"), f"approx.delta_h_per_lr {TOO_LARGE}, got 1e400"),
    "-1e400": (with_total("-1e400"), f"approx.delta_h_per_lr {TOO_LARGE}, got -1e400"),
    "400 digits": (with_total("1" * 400), f"approx.delta_h_per_lr {TOO_LARGE}, got {'1' * 37}..."),
    "a million digits": (with_total(DIGITS), f"approx.delta_h_per_lr {TOO_LARGE}, got {'1' * 37}..."),
    "NaN": (with_total("NaN"), "approx.delta_h_per_lr must be finite, got NaN"),
    "-Infinity": (with_total("-Infinity"), "approx.delta_h_per_lr must be finite, got -Infinity"),
    "text beside a name that is not UTF-8": (
        b'{"approx": {"\xff": 1, "delta_h_per_lr": "1.0"}}',
        "approx.delta_h_per_lr must be a number, got something else",
    ),
    "text": (with_total(f'"{DIGITS}"'), f'approx.delta_h_per_lr must be a number, got "{"1" * 36}...'),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_does_no_harm_gives_the_undamaged_run(kind: str) -> None:
    assert read(ACCEPTED[kind]) == WHOLE


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_file_is_instead_is_said(kind: str) -> None:
    data, message = REFUSED[kind]
    assert str(refusal(data)).startswith((f"{FILE}: {message}", f"{FILE}: file must be JSON in UTF-8; {message}"))


@pytest.mark.parametrize("field", [field for field in FIELDS if not isinstance(value_of(field), dict | list)])
def test_a_number_too_large_for_double_precision_is_named_with_its_value(field: str) -> None:
    error = refusal(damaged(field, "here").replace(b'"here"', b"1e400"))
    assert names(error, field)
    assert error.value == "1e400"


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_the_place(share: float) -> None:
    data = BYTES[: int(share * len(BYTES))]
    line, column = data.count(b"\n") + 1, len(data) - data.rfind(b"\n")
    error = refusal(data)
    assert (error.rule, error.value) == (
        "must be complete JSON",
        f"the end of the file at line {line}, column {column}",
    )


def test_the_place_of_a_fault_is_that_in_the_file_as_it_stands() -> None:
    error = refusal(b'\xef\xbb\xbf{"a": [NaN, NaN],\n "b": [NaN, Infinity, -Infinity, x]}')
    assert error.value == "invalid character at line 2, column 34"


@pytest.mark.parametrize("opening", [b"[", b'{"approx":', b'{"note":'])
def test_nesting_deep_enough_to_break_a_parser_is_refused(opening: bytes) -> None:
    assert refusal(opening * 100_000).field in ("file", "approx")


@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"results"'])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    assert refusal(data).rule == "must be an object"


# --- a key that stands twice -----------------------------------------------------------------------------------------


KEYS = [field for field in FIELDS if not field[-1].isdigit()]


def doubled(field: str, *, same: bool = False, first: bool = False) -> bytes:
    """Return the small file with a key given twice: its value, and the same again or another (if ``first``, before)."""
    value = value_of(field)
    other = value if same else another(value)
    key = json.dumps(field.rpartition(".")[2])
    twice = ", ".join(f"{key}: {json.dumps(v)}" for v in ((other, value) if first else (value, other)))
    text = damaged(field, "here").decode()
    assert text.count(f'{key}: "here"') == 1
    return text.replace(f'{key}: "here"', twice).encode()


def another(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: another(v) for key, v in value.items()}
    return [another(v) for v in value] if isinstance(value, list) else 2 * value + 1


@pytest.mark.parametrize("field", KEYS)
def test_a_key_given_twice_with_one_value_does_no_harm(field: str) -> None:
    assert read(doubled(field, same=True)) == GOOD


@pytest.mark.parametrize("field", [key for key in KEYS if key != "approx.per_sequence.2.vhvv"])
def test_a_key_given_twice_with_different_values_is_refused_and_named(field: str) -> None:
    error = refusal(doubled(field))
    # Of two different lists of step sizes, the one that counts may not go with the linear terms.
    assert names(error, field) or error.field == field.rpartition(".")[2] or "true.entries".startswith(field)


def test_a_key_given_twice_is_seen_where_sequences_hold_lists() -> None:
    data = doubled("approx.per_sequence.2.gdotv").replace(b'"index": ', b'"ids": [1, 2], "index": ')
    assert refusal(data).field == "gdotv"


def test_the_values_of_a_key_given_twice_are_said() -> None:
    error = refusal(json.dumps(TREE).replace('"eta": 1e-06', '"eta": 1e-06, "eta": 3e-06').encode())
    assert str(error) == f"{FILE}: eta must not be given twice in one object with different values, got 1e-06 and 3e-06"


@pytest.mark.parametrize("field", KEYS)
def test_where_that_is_not_seen_the_last_value_counts(field: str) -> None:
    try:
        run = read(doubled(field, first=True))
    except RunError:
        assert not field.startswith("approx.per_sequence.2.")  # outside of the list of sequences it is seen
    else:
        assert run == GOOD


def test_a_key_given_twice_in_an_unused_field_does_no_harm() -> None:
    text = json.dumps(TREE)
    assert read(f'{{"note": {{"a": 1, "a": 2}}, {text[1:]}'.encode()) == GOOD
