"""Files damaged at random: refused with a reason, or read as what stands in them; `make fuzz` takes ten minutes."""

import json
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

from analysis_helpers import Run, RunError
from analysis_helpers.runs.json import encode_run, parse_run
from tests.damaging import FIELDS, FILE, GOOD, TREE, limits

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))

UNUSED = {"total": 5214.6, "steps": [1, 2.5, -3e9], "note": 'a [b] {"c": 1}, NaN, \ud83d\ude00', "more": {"eta": None}}
WITH_UNUSED = {
    "timing": UNUSED,
    **TREE,
    "approx": {**TREE["approx"], "per_sequence": [{**s, "audit": UNUSED} for s in TREE["approx"]["per_sequence"]]},
}
STARTS = [json.dumps(TREE).encode(), json.dumps(WITH_UNUSED).encode(), encode_run(GOOD)]
COLUMNS = ("normalized_weights", "h_new", "h_base", "log_weights")
ODD_NUMBERS = ["0", "-0.0", "-1", "1e400", "-1e400", "1e308", "-1.7e308", "5e-324", "1e-400", "NaN", "Infinity"]
ODD_NUMBERS += ["-Infinity", "1" + "0" * 400, "0." + "1" * 400, "3.5", "99999999999999999999", "01", "1.", "+1", "0x1"]
OTHER_TYPES = ["null", "true", '"1.0"', "[]", "{}", "[1]", '{"eta": 1}', r'"\ud800"', "[[[[]]]]"]
KEYS = sorted({part for field in FIELDS for part in field.split(".") if not part.isdigit()} | {"", "note", "Eta"})


def spliced(put: Callable[[bytes, st.DrawFn], bytes]) -> Callable[[bytes, st.DrawFn], bytes]:
    """Return a change that puts something in place of a few bytes."""

    def change(data: bytes, draw: st.DrawFn) -> bytes:
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(start + draw(st.integers(1, 60)), len(data))
        return data[:start] + put(data[start:end], draw) + data[end:]

    return change


def replace(pattern: bytes, others: list[str]) -> Callable[[bytes, st.DrawFn], bytes]:
    """Return a change that puts another text in place of the first group of a match."""

    def change(data: bytes, draw: st.DrawFn) -> bytes:
        found = list(re.finditer(pattern, data))
        if not found:
            return data
        start, end = found[draw(st.sampled_from(range(len(found))))].span(1)
        return data[:start] + draw(st.sampled_from(others)).encode() + data[end:]

    return change


def twice(data: bytes, draw: st.DrawFn) -> bytes:
    """Give a key again, with the value of another key."""
    found = list(re.finditer(rb'"\w+": (-?\d[\d.eE+-]*|\[[^\[\]]*\])', data))
    if not found:
        return data
    one, other = (found[draw(st.sampled_from(range(len(found))))] for _ in range(2))
    again = one[0].partition(b":")[0] + b": " + other[1]
    return data[: one.end()] + b", " + again + data[one.end() :]


NUMBER = replace(rb"[ \[](-?\d[\d.eE+-]*)", ODD_NUMBERS)
OTHER_TYPE = replace(rb'": (-?\d[\d.eE+-]*|\[[^\[\]]*\]|\{[^{}]*\})', OTHER_TYPES)
FLIP = spliced(lambda part, draw: bytes([draw(st.integers(0, 255))]) + part[1:])
CUT, DOUBLE = spliced(lambda *_: b""), spliced(lambda part, _: 2 * part)
CHANGES = [FLIP, CUT, DOUBLE, NUMBER, OTHER_TYPE, replace(rb'"(\w*)":', KEYS), twice]
CHANGES += [lambda data, draw: data[: draw(st.integers(0, max(len(data) - 1, 0)))]]  # ends early


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = draw(st.sampled_from(STARTS))
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3)):
        data = change(data, draw)
    return bytes(data)


def numbers(tree: Any) -> dict[str, Any]:
    """Return the numbers in use of a file that Python's json reads, missing ones as None."""
    approx, entries = tree["approx"], tree["true"]["entries"]
    sequences = approx.get("per_sequence")
    if sequences and sequences[0].get("index") is not None:
        sequences = sorted(sequences, key=lambda s: s["index"])
    found = {"per_lr": approx["delta_h_per_lr"], "tokens": entries[0]["diagnostics"]["token_counts"]}
    found["gdotv"] = sequences and [s["gdotv"] for s in sequences]
    for k, (entry, columns) in enumerate((entry, entry["diagnostics"]) for entry in entries):
        found |= {f"true{k}": entry["delta_h_true"], f"base{k}": columns["base_entropy"]}
        found |= {f"{name}{k}": columns.get(name) for name in COLUMNS}
    return found


def test_a_file_damaged_at_random_is_refused_or_read_as_it_stands() -> None:
    seen: list[type] = []

    @settings(
        max_examples=500 if SECONDS else 100,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(damaged_files())
    def check(data: bytes) -> None:
        found: Run | RunError
        try:
            with limits(len(data)):
                found = parse_run(data, FILE)
                assert isinstance(found.problems, tuple)
        except RunError as error:
            found = error
        seen.append(type(found))
        if isinstance(found, RunError):
            assert str(found).startswith(f"{FILE}: {found.field} {found.rule}")
            return
        read = numbers(json.loads(encode_run(found), parse_int=float))
        assert read == numbers(json.loads(str(data, "utf-8-sig", "replace"), parse_int=float))
        assert all(math.isfinite(x) for values in read.values() for x in np.ravel(values or 0.0))
        assert parse_run(encode_run(found), FILE) == found

    end = time.monotonic() + SECONDS
    check()
    while time.monotonic() < end:
        check()
    assert set(seen) == {Run, RunError}
    print(f"{len(seen):,} files, {seen.count(Run):,} of them read")
