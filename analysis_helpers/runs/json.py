"""The file format ``results.json``: bytes to a validated `Run`, and back.

Files are decoded into typed structs of the fields in use; other fields are ignored. The structs follow from the columns
that `Run` and `Measurement` declare. A violation is a `RunError` that names the file, the field (its path in the JSON),
the rule and the value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from textwrap import shorten
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._checks import (
    FieldError,
    FloatArray,
    checked_eta,
    checked_number,
    checked_prompts,
    checked_tokens,
    fields_of,
)
from .run import MEASURED_COLUMNS, SCORE_PARTS, SEQUENCE_COLUMNS, Column, Measurement, Run, check_distinct_etas

_IN_EXTRAS = "extras."


def _fields_of(columns: Iterable[Column], kind: Any) -> list[tuple[str, Any] | tuple[str, Any, Any]]:
    """Return the fields of a struct: the last part of each path, required or None where it is not recorded."""
    named = [(column.path.removeprefix(_IN_EXTRAS), kind(column), column.required) for column in columns]
    return [(name, type_) if required else (name, type_ | None, None) for name, type_, required in named]


def _number(column: Column) -> Any:
    return int | str if column.check is checked_prompts else float


# Fields stand in the order of the files, which decodes fastest.
_EXTRAS = [column for column in SEQUENCE_COLUMNS if column.path.startswith(_IN_EXTRAS)]
_PLAIN = [column for column in SEQUENCE_COLUMNS if column not in _EXTRAS]
Extras = msgspec.defstruct("Extras", _fields_of(_EXTRAS, _number), gc=False)
"""The parts of a linear term."""

_PLACE = [("index", int | None, None), _fields_of(_PLAIN, _number)[0], ("length", float | None, None)]
Sequence = msgspec.defstruct(
    "Sequence", [*_PLACE, *_fields_of(_PLAIN, _number)[1:], ("extras", Extras | None, None)], gc=False
)
"""What is recorded of one sequence."""

Diagnostics = msgspec.defstruct(
    "Diagnostics",
    [
        ("base_entropy", float),
        ("ess", float | None, None),
        *_fields_of(MEASURED_COLUMNS, lambda _: list[float]),
        ("token_counts", list[float]),
    ],
    kw_only=True,
)
"""What was recorded at one step size; lists have one number per sequence."""


class Entry(msgspec.Struct):
    """One step size."""

    eta: float
    delta_h_true: float
    diagnostics: Diagnostics  # type: ignore[valid-type]


class TrueChange(msgspec.Struct):
    """The true change."""

    entries: list[Entry]


class Meta(msgspec.Struct):
    """What all linear terms have in common."""

    scale: float | None = None
    H_base_mean: float | None = None


class Approx(msgspec.Struct):
    """The linear change."""

    delta_h_per_lr: float
    per_sequence: list[Sequence] | None = None  # type: ignore[valid-type]
    per_sequence_meta: Meta | None = None
    direction: str | None = None  # fingerprint of the update direction


class Results(msgspec.Struct, rename={"true_": "true"}):
    """The whole file."""

    approx: Approx
    true_: TrueChange


_DECODER = msgspec.json.Decoder(Results)


@np.errstate(over="ignore", invalid="ignore")  # an overflowing sum is refused, or is one of `Run.problems`
def parse_run(data: bytes, source: str) -> Run:
    """Return the run in the bytes of a results file; ``source`` is its name in messages.

    Raises
    ------
    RunError
        If the bytes are not JSON, or a field in use breaks a rule.
    """
    with fields_of(source):
        results = _decode(data)
        approx, meta = results.approx, results.approx.per_sequence_meta or Meta()
        tokens, measurements = _measurements(results.true_.entries)
        arrays = _arrays(approx.per_sequence, tokens) if approx.per_sequence is not None else {}
        mean = None
        if "gdotv" in arrays and arrays.keys() >= {*SCORE_PARTS} and meta.H_base_mean is not None:
            mean = checked_number(meta.H_base_mean, "approx.per_sequence_meta.H_base_mean")
            if mean <= 0:
                raise FieldError("approx.per_sequence_meta.H_base_mean", "must be positive", mean)
        else:  # parts of a linear term say nothing alone
            arrays = {name: values for name, values in arrays.items() if name not in SCORE_PARTS}
        return Run(
            token_counts=tokens,
            measurements=measurements,
            delta_h_per_lr=checked_number(approx.delta_h_per_lr, "approx.delta_h_per_lr"),
            h_base_mean=mean,
            scale=None if meta.scale is None else checked_number(meta.scale, "approx.per_sequence_meta.scale"),
            direction=approx.direction,
            source=source,
            **arrays,
        )


def encode_run(run: Run) -> bytes:
    """Return the bytes of a results file that holds the run: indented JSON whose floats read back exactly."""
    # The objects take many times the memory of the run: without a name they are freed before the text is indented.
    text = msgspec.json.encode(_as_objects(run), enc_hook=np.ndarray.tolist)
    return msgspec.json.format(text, indent=1) + b"\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def _decode(data: bytes) -> Results:
    """Return the fields in use. Python's JSON reader takes what msgspec refuses, such as NaN in a field not in use."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = error if data.strip() else "it is empty"
        raise FieldError("file", f"must be complete JSON ({why})") from None
    if isinstance(plain, dict) and not {"approx", "true"} <= plain.keys():
        keys = shorten(", ".join(map(repr, plain)), 120) or "none"
        raise FieldError("file", f"is not a run: it has the keys {keys}; a run has 'true' and 'approx'")
    try:
        return msgspec.convert(plain, Results)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        # As in: Expected `float`, got `str` - at `$.approx.delta_h_per_lr`
        problem, _, where = str(error).partition(" - at `$")
        field = where.strip(".`")
        if "missing" in problem:
            raise FieldError(f"{field}.{problem.split('`')[1]}".lstrip("."), "is missing") from None
        raise FieldError(field or "file", f"does not fit the format ({problem})") from None


def _measurements(entries: list[Any]) -> tuple[FloatArray, tuple[Measurement, ...]]:
    if not entries:
        raise FieldError("true.entries", "must hold at least one step size", "an empty list")
    field = "true.entries[{}].diagnostics.token_counts"
    counts = entries[0].diagnostics.token_counts
    tokens = checked_tokens(_floats(counts), field.format(0))
    for k, entry in enumerate(entries):
        if entry.diagnostics.token_counts != counts:
            raise FieldError(field.format(k), f"must be the same as {field.format(0)}")
    measurements = [_measurement(entry, f"true.entries[{k}]", tokens) for k, entry in enumerate(entries)]
    check_distinct_etas([m.eta for m in measurements], "true.entries[].eta")
    return tokens, tuple(measurements)


def _measurement(entry: Any, prefix: str, tokens: FloatArray) -> Measurement:
    recorded, where = entry.diagnostics, f"{prefix}.diagnostics"
    arrays: dict[str, Any] = {
        column.name: column.check(_floats(values), f"{where}.{column.path}", tokens)
        for column in MEASURED_COLUMNS
        if (values := getattr(recorded, column.path)) is not None
    }
    return Measurement(
        eta=checked_eta(entry.eta, f"{prefix}.eta"),
        delta_h_true=checked_number(entry.delta_h_true, f"{prefix}.delta_h_true"),
        base_entropy=checked_number(recorded.base_entropy, f"{where}.base_entropy"),
        ess=None if recorded.ess is None else checked_number(recorded.ess, f"{where}.ess"),
        **arrays,
    )


def _in_order(sequences: list[Any], tokens: FloatArray) -> list[Any]:
    """Return the linear terms in the order of the token counts, by their index where they have one."""
    size = len(tokens)
    if len(sequences) != size:
        rule = f"must have one entry for each of the {size} sequences"
        raise FieldError("approx.per_sequence", rule, f"{len(sequences)} entries")
    indices, wanted = [s.index for s in sequences], range(size)
    if indices != list(wanted) and _all_or_none(indices, "index"):
        by_index = dict(zip(indices, sequences, strict=True))
        if missing := sorted(set(wanted) - by_index.keys()):
            raise FieldError(_field("index"), f"must hold each of 0 to {size - 1} once", f"no {missing[0]}")
        sequences = [by_index[k] for k in wanted]
    lengths, counts = [s.length for s in sequences], tokens.tolist()
    if lengths != counts:
        for place, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            if length not in (count, None):  # the linear terms belong to other sequences than the entropies
                rule = f"must be the token count of that sequence, token_counts[{place}] = {count!r}"
                raise FieldError(_field("length"), rule, length)
    return sequences


def _arrays(sequences: list[Any], tokens: FloatArray) -> dict[str, Any]:
    """Return the columns that the sequences record, by name; refuse one that only some sequences have."""
    ordered = _in_order(sequences, tokens)
    none: Any = Extras()
    extras = [each.extras or none for each in ordered]
    arrays = {}
    for column in SEQUENCE_COLUMNS:
        name = column.path.removeprefix(_IN_EXTRAS)
        values = [getattr(each, name) for each in (extras if column in _EXTRAS else ordered)]
        converted: Any = values
        if column.check is not checked_prompts:
            with suppress(struct.error):  # a None: counting them beforehand would take a tenth of the loading time
                converted = _floats(values)
        if converted is values and not _all_or_none(values, column.path):
            continue
        arrays[column.name] = column.check(converted, _field(column.path), tokens)
    return arrays


def _all_or_none(values: list[Any], name: str) -> bool:
    """Return whether the sequences have that field; refuse one that only some have."""
    present = len(values) - values.count(None)
    if 0 < present < len(values):
        rule = "must be recorded for all sequences or for none"
        raise FieldError(_field(name), rule, f"{present} of {len(values)}")
    return present > 0


def _field(name: str) -> str:
    return f"approx.per_sequence[].{name}"


def _floats(values: list[float]) -> FloatArray:
    """Return numbers as an array, in half the time of `numpy.array`."""
    return np.frombuffer(struct.pack(f"{len(values)}d", *values))


# --- writing ---------------------------------------------------------------------------------------------------------


def _as_objects(run: Run) -> dict[str, Any]:
    """Return what is written of a run: objects as dicts, with arrays for lists of numbers."""
    tokens = run.token_counts.astype(np.int64)  # counts are whole, as in real files
    extras: dict[str, Any] = _recorded_arrays(run, _EXTRAS)
    if run.denom_corr_unscaled is not None:
        extras["denom_corr_scaled"] = run.denom_corr_unscaled * (1.0 / run.total_tokens)
    columns = {"index": np.arange(run.n), "gdotv": run.gdotv, "length": tokens, **_recorded_arrays(run, _PLAIN)}
    recorded = _without_none({**columns, "extras": _rows(extras) if extras else None})
    meta = {"scale": run.scale, "T_total": run.total_tokens, "H_base_mean": run.h_base_mean}
    approx = {
        "delta_h_per_lr": run.delta_h_per_lr,
        "per_sequence": _rows(recorded) if len(recorded) > 2 else None,
        "per_sequence_meta": _without_none(meta),
        "direction": run.direction,
    }
    return {"approx": _without_none(approx), "true": {"entries": [_entry(m, tokens) for m in run.measurements]}}


def _entry(m: Measurement, tokens: NDArray[np.int64]) -> dict[str, Any]:
    first = {"base_entropy": m.base_entropy, "ess": m.ess}
    diagnostics = {**first, **_recorded_arrays(m, MEASURED_COLUMNS), "token_counts": tokens}
    return {"eta": m.eta, "delta_h_true": m.delta_h_true, "diagnostics": _without_none(diagnostics)}


def _recorded_arrays(holder: Run | Measurement, columns: Iterable[Column]) -> dict[str, NDArray[Any]]:
    """Return the last part of the path of each column -> its array, for those that are recorded."""
    arrays = {column.path.removeprefix(_IN_EXTRAS): getattr(holder, column.name) for column in columns}
    return {name: array for name, array in arrays.items() if array is not None}


def _rows(columns: Mapping[str, Any]) -> list[msgspec.Struct]:
    """Return an object for each sequence."""
    lists = {name: np.asarray(values).tolist() for name, values in columns.items()}
    row = msgspec.defstruct("Row", lists, gc=False)
    return list(map(row, *lists.values()))


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
