"""The file format ``results.json``: bytes to a validated `Run`, and back.

Files are decoded into typed structs of the fields in use; other fields are ignored. Writing fills the same structs,
which follow from the columns that `Run` and `Measurement` declare. A violation is a `RunError` that names the file, the
field (its path in the JSON), the rule and the value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import repeat
from operator import attrgetter
from textwrap import shorten
from typing import Annotated, Any

import msgspec
import numpy as np

from .._checks import FieldError, FloatArray, checked_eta, checked_number, checked_prompts, checked_tokens, fields_of
from .run import MEASURED_COLUMNS, SCORE_PARTS, SEQUENCE_COLUMNS, Column, Measurement, Run, check_distinct_etas


def _key(column: Column) -> str:
    """Return the last part of a column's path."""
    return column.path.rpartition(".")[2]


def _fields_of(columns: Iterable[Column], kind: Any) -> list[tuple[str, Any] | tuple[str, Any, Any]]:
    """Return the fields of a struct, required or None if not recorded."""
    return [(_key(c), kind(c)) if c.required else (_key(c), kind(c) | None, None) for c in columns]


def _number(column: Column) -> Any:
    return int | str if column.check is checked_prompts else float


# Fields are in the order of the files, which decodes fastest.
_EXTRAS = [column for column in SEQUENCE_COLUMNS if column.path.startswith("extras.")]
_PLAIN = [column for column in SEQUENCE_COLUMNS if column not in _EXTRAS]
_ROW: dict[str, Any] = {"gc": False, "omit_defaults": True}
Extras = msgspec.defstruct("Extras", _fields_of(_EXTRAS, _number), **_ROW)
"""The parts of a linear term."""

_Written = msgspec.defstruct("_Written", [("denom_corr_scaled", float | None, None)], bases=(Extras,), **_ROW)

_PLACE = [("index", int | None, None), _fields_of(_PLAIN, _number)[0], ("length", float | None, None)]
Sequence = msgspec.defstruct(
    "Sequence", [*_PLACE, *_fields_of(_PLAIN, _number)[1:], ("extras", Extras | None, None)], **_ROW
)
"""What is recorded of one sequence."""

_LISTS = _fields_of(MEASURED_COLUMNS, lambda _: list[float])
Diagnostics = msgspec.defstruct(
    "Diagnostics",
    [("base_entropy", float), ("ess", float | None, None), *_LISTS, ("token_counts", list[float])],
    kw_only=True,
    omit_defaults=True,
)
"""What was recorded at one step size; lists have one number per sequence."""


class Entry(msgspec.Struct):
    """One step size."""

    eta: float
    delta_h_true: float
    diagnostics: Diagnostics  # type: ignore[valid-type]


class TrueChange(msgspec.Struct):
    """The true change."""

    entries: Annotated[list[Entry], msgspec.Meta(min_length=1)]


class Meta(msgspec.Struct, omit_defaults=True):
    """Data common to all linear terms."""

    scale: float | None = None
    T_total: Any = None  # written, and not read
    H_base_mean: float | None = None


class Approx(msgspec.Struct, omit_defaults=True):
    """The linear change."""

    delta_h_per_lr: float
    per_sequence: list[Sequence] | None = None  # type: ignore[valid-type]
    per_sequence_meta: Meta | None = None
    direction: str | None = None  # fingerprint of the update direction
    vocabulary: Annotated[int, msgspec.Meta(ge=1)] | None = None
    method: str | None = None


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
        mean = meta.H_base_mean
        if mean is None or not arrays.keys() >= {"gdotv", *SCORE_PARTS}:  # parts of a linear term are useless alone
            mean, arrays = None, {name: values for name, values in arrays.items() if name not in SCORE_PARTS}
        elif not 0 < mean < np.inf:
            raise FieldError("approx.per_sequence_meta.H_base_mean", "must be positive and finite", mean)
        return Run(
            token_counts=tokens,
            measurements=measurements,
            delta_h_per_lr=checked_number(approx.delta_h_per_lr, "approx.delta_h_per_lr"),
            h_base_mean=mean,
            scale=None if meta.scale is None else checked_number(meta.scale, "approx.per_sequence_meta.scale"),
            direction=approx.direction,
            vocabulary=approx.vocabulary,
            method=approx.method,
            source=source,
            **arrays,
        )


def encode_run(run: Run) -> bytes:
    """Return the bytes of a results file that holds the run: indented JSON whose floats read back exactly."""
    # The objects take many times the memory of the run: without a name they are freed before the text is indented.
    text = msgspec.json.encode(_results(run), enc_hook=np.ndarray.tolist)
    return msgspec.json.format(text, indent=1) + b"\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def _decode(data: bytes) -> Results:
    """Return the fields in use. Python's JSON reader accepts what msgspec refuses, such as NaN in an unused field."""
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
        raise FieldError(where.strip(".`") or "file", f"does not fit the format ({problem})") from None


def _measurements(entries: list[Any]) -> tuple[FloatArray, tuple[Measurement, ...]]:
    counts, first = entries[0].diagnostics.token_counts, "true.entries[0].diagnostics.token_counts"
    tokens = checked_tokens(_floats(counts), first)
    measurements = []
    for k, entry in enumerate(entries):
        recorded, where = entry.diagnostics, f"true.entries[{k}].diagnostics"
        if recorded.token_counts != counts:
            raise FieldError(f"{where}.token_counts", f"must be the same as {first}")
        arrays: dict[str, Any] = {
            column.name: column.check(_floats(values), f"{where}.{column.path}", tokens)
            for column in MEASURED_COLUMNS
            if (values := getattr(recorded, column.path)) is not None
        }
        measurement = Measurement(
            eta=checked_eta(entry.eta, f"true.entries[{k}].eta"),
            delta_h_true=checked_number(entry.delta_h_true, f"true.entries[{k}].delta_h_true"),
            base_entropy=checked_number(recorded.base_entropy, f"{where}.base_entropy"),
            ess=None if recorded.ess is None else checked_number(recorded.ess, f"{where}.ess"),
            **arrays,
        )
        measurements.append(measurement)
    check_distinct_etas([m.eta for m in measurements], "true.entries[].eta")
    return tokens, tuple(measurements)


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
            if length not in (count, None):  # the linear terms and the entropies belong to different sequences
                rule = f"must be the token count of that sequence, token_counts[{place}] = {count!r}"
                raise FieldError(_field("length"), rule, length)
    return sequences


def _arrays(sequences: list[Any], tokens: FloatArray) -> dict[str, Any]:
    """Return the columns that the sequences record, by name; raise if only some sequences have one."""
    ordered = _in_order(sequences, tokens)
    none: Any = Extras()
    extras = [each.extras or none for each in ordered]
    arrays = {}
    for column in SEQUENCE_COLUMNS:
        rows = extras if column in _EXTRAS else ordered
        values: Any = list(map(attrgetter(_key(column)), rows))
        if column.check is not checked_prompts:
            with suppress(struct.error):  # a None: counting them beforehand would take a tenth of the loading time
                values = _floats(values)
        if isinstance(values, np.ndarray) or _all_or_none(values, column.path):
            arrays[column.name] = column.check(values, _field(column.path), tokens)
    return arrays


def _all_or_none(values: list[Any], name: str) -> bool:
    """Return whether the sequences have that field; raise if only some have it."""
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


def _results(run: Run) -> Results:
    """Return the content to write for a run, with arrays for lists of numbers."""
    tokens = run.token_counts.astype(np.int64)  # counts are whole, as in real files
    extras = {_key(column): getattr(run, column.name) for column in _EXTRAS}
    if run.denom_corr_unscaled is not None:
        extras["denom_corr_scaled"] = run.denom_corr_unscaled * (1.0 / run.total_tokens)
    columns = {_key(column): getattr(run, column.name) for column in _PLAIN} | {"extras": _rows(_Written, extras)}
    place = {"index": np.arange(run.n), "length": tokens}
    meta = Meta(run.scale, run.total_tokens, run.h_base_mean)
    rows = _rows(Sequence, columns, place)
    approx = Approx(run.delta_h_per_lr, rows, meta, run.direction, run.vocabulary, run.method)
    entries = []
    for m in run.measurements:
        arrays = {column.path: getattr(m, column.name) for column in MEASURED_COLUMNS}
        diagnostics = Diagnostics(base_entropy=m.base_entropy, ess=m.ess, **arrays, token_counts=tokens)
        entries.append(Entry(m.eta, m.delta_h_true, diagnostics))
    return Results(approx, TrueChange(entries))


def _rows(row: Any, columns: Mapping[str, Any], place: Mapping[str, Any] | None = None) -> list[Any] | None:
    """Return a struct for each sequence; None where no column is recorded."""
    lists = {name: np.asarray(values).tolist() for name, values in columns.items() if values is not None}
    if not lists:
        return None
    lists |= {name: values.tolist() for name, values in (place or {}).items()}
    return list(map(row, *(lists.get(name, repeat(None)) for name in row.__struct_fields__)))
