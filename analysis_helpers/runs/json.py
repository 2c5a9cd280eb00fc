"""The file format ``results.json``: bytes to a validated `Run`, and back.

Files are decoded into typed structs of the fields in use; other fields are ignored. A violation is a `RunError` that
names the file, the field (its path in the JSON), the rule and the value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from functools import partial
from textwrap import shorten
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._checks import (
    FieldError,
    FloatArray,
    checked_array,
    checked_entropies,
    checked_eta,
    checked_logp,
    checked_number,
    checked_prompts,
    checked_tokens,
    checked_total,
    fields_of,
)
from .run import Measurement, Run, ScoreTerms, ShardError, check_distinct_etas

# Fields stand in the order of the files, which decodes fastest.


class Diagnostics(msgspec.Struct, kw_only=True):
    """What was recorded at one step size; lists have one number per sequence."""

    base_entropy: float
    ess: float | None = None
    normalized_weights: list[float]
    log_weights: list[float] | None = None
    h_base: list[float] | None = None
    h_new: list[float]
    token_counts: list[float]


class Entry(msgspec.Struct):
    """One step size."""

    eta: float
    delta_h_true: float
    diagnostics: Diagnostics


class TrueChange(msgspec.Struct):
    """The true change."""

    entries: list[Entry]


class Extras(msgspec.Struct, gc=False):
    """The parts of a linear term."""

    wjlogp_sum: float | None = None
    jH_sum: float | None = None
    denom_corr_unscaled: float | None = None


class Sequence(msgspec.Struct, gc=False):
    """The linear term of one sequence."""

    index: int | None = None
    gdotv: float | None = None
    length: float | None = None
    sum_logp: float | None = None
    sampler_logp: float | None = None
    prompt_id: int | str | None = None
    extras: Extras | None = None
    vhvv: float | None = None


class Meta(msgspec.Struct):
    """What all linear terms have in common."""

    scale: float | None = None
    H_base_mean: float | None = None


class Variance(msgspec.Struct):
    """Standard errors as stored: of means over shards."""

    num_shards: int | None = None
    se_shard: float | None = None
    se_jackknife: float | None = None
    se_gdotv: float | None = None
    se_vHvv: float | None = None


class Quadratic(msgspec.Struct):
    """The curvature."""

    variance: Variance | None = None


class Approx(msgspec.Struct):
    """The linear change."""

    delta_h_per_lr: float
    variance: Variance | None = None
    per_sequence: list[Sequence] | None = None
    per_sequence_meta: Meta | None = None
    quadratic: Quadratic | None = None
    direction: str | None = None  # fingerprint of the update direction


class Results(msgspec.Struct, rename={"true_": "true"}):
    """The whole file."""

    approx: Approx
    true_: TrueChange


_DECODER = msgspec.json.Decoder(Results)
_LINEAR, _QUADRATIC = "approx.variance", "approx.quadratic.variance"


@np.errstate(over="ignore", invalid="ignore")  # an overflowing sum is refused, or found by integrity_problems
def parse_run(data: bytes, source: str) -> Run:
    """Return the run in the bytes of a results file; ``source`` is its name in messages.

    Raises
    ------
    RunError
        If the bytes are not JSON, or a field in use breaks a rule.
    """
    with fields_of(source):
        results = _decode(data)
        tokens, measurements = _measurements(results.true_.entries)
        approx, meta = results.approx, results.approx.per_sequence_meta or Meta()
        per_lr = checked_number(approx.delta_h_per_lr, "approx.delta_h_per_lr")
        scale = None if meta.scale is None else checked_number(meta.scale, "approx.per_sequence_meta.scale")
        stored = _shard_errors(approx, len(tokens))
        sequences = [] if approx.per_sequence is None else _in_order(approx.per_sequence, tokens)
        gdotv = _recorded([s.gdotv for s in sequences], "gdotv")
        return Run(
            token_counts=tokens,
            measurements=measurements,
            delta_h_per_lr=per_lr,
            gdotv=gdotv,
            score=None if gdotv is None else _score_terms(sequences, meta),
            vhvv=_recorded([s.vhvv for s in sequences], "vhvv"),
            scale=scale,
            source=source,
            shard_errors=stored,
            logp=_recorded([s.sum_logp for s in sequences], "sum_logp", checked_logp),
            sampler_logp=_recorded([s.sampler_logp for s in sequences], "sampler_logp", checked_logp),
            prompt_ids=_prompts([s.prompt_id for s in sequences]),
            direction=approx.direction,
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


def _measurements(entries: list[Entry]) -> tuple[FloatArray, tuple[Measurement, ...]]:
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


def _measurement(entry: Entry, prefix: str, tokens: FloatArray) -> Measurement:
    found, where = entry.diagnostics, f"{prefix}.diagnostics"

    def column(name: str, checked: Callable[..., FloatArray]) -> Any:
        values = getattr(found, name)
        return None if values is None else checked(_floats(values), f"{where}.{name}")

    array, entropies = partial(checked_array, length=len(tokens)), partial(checked_entropies, tokens=tokens)
    weights = column("normalized_weights", partial(array, lowest=0.0))
    checked_total(weights * tokens, f"{where}.normalized_weights (times tokens)")
    return Measurement(
        eta=checked_eta(entry.eta, f"{prefix}.eta"),
        delta_h_true=checked_number(entry.delta_h_true, f"{prefix}.delta_h_true"),
        base_entropy=checked_number(found.base_entropy, f"{where}.base_entropy"),
        weights=weights,
        h_new=column("h_new", entropies),
        h_base=column("h_base", entropies),
        log_weights=column("log_weights", array),
        ess=None if found.ess is None else checked_number(found.ess, f"{where}.ess"),
    )


def _in_order(sequences: list[Sequence], tokens: FloatArray) -> list[Sequence]:
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


def _score_terms(sequences: list[Sequence], meta: Meta) -> ScoreTerms | None:
    none = Extras()
    extras = [s.extras or none for s in sequences]
    wjlogp_sum = _recorded([e.wjlogp_sum for e in extras], "extras.wjlogp_sum")
    jh_sum = _recorded([e.jH_sum for e in extras], "extras.jH_sum")
    denom_corr = _recorded([e.denom_corr_unscaled for e in extras], "extras.denom_corr_unscaled")
    if wjlogp_sum is None or jh_sum is None or denom_corr is None or meta.H_base_mean is None:
        return None
    mean = checked_number(meta.H_base_mean, "approx.per_sequence_meta.H_base_mean")
    if mean <= 0:
        raise FieldError("approx.per_sequence_meta.H_base_mean", "must be positive", mean)
    return ScoreTerms(wjlogp_sum, jh_sum, denom_corr, mean)


def _recorded(
    values: list[float | None], name: str, checked: Callable[..., FloatArray] = checked_array
) -> FloatArray | None:
    """Return the column, or None if no sequence has it; refuse one that only some sequences have."""
    try:
        return checked(_floats(values), _field(name), length=len(values)) if values else None
    except struct.error:  # a None: counting them in every list beforehand took a tenth of the loading time
        _all_or_none(values, name)
        return None


def _prompts(values: list[Any]) -> NDArray[Any] | None:
    recorded = _all_or_none(values, "prompt_id")
    return checked_prompts(values, _field("prompt_id"), length=len(values)) if recorded else None


def _all_or_none(values: list[Any], name: str) -> bool:
    """Return whether the sequences have that field; refuse one that only some have."""
    present = len(values) - values.count(None)
    if 0 < present < len(values):
        rule = "must be recorded for all sequences or for none"
        raise FieldError(_field(name), rule, f"{present} of {len(values)}")
    return present > 0


def _field(name: str) -> str:
    return f"approx.per_sequence[].{name}"


def _floats(values: list[float] | list[float | None]) -> FloatArray:
    """Return numbers as an array, in half the time of `numpy.array`; raise a `struct.error` where there is a None."""
    return np.frombuffer(struct.pack(f"{len(values)}d", *values))


def _shard_errors(approx: Approx, size: int) -> tuple[ShardError, ...]:
    quadratic = approx.quadratic.variance if approx.quadratic else None
    found = []
    for prefix, stored in ((_LINEAR, approx.variance), (_QUADRATIC, quadratic)):
        if stored is None or stored.num_shards is None:
            continue
        if not 1 <= stored.num_shards <= size:
            rule = f"must lie between 1 and the {size} sequences"
            raise FieldError(f"{prefix}.num_shards", rule, stored.num_shards)
        for name in ("se_shard", "se_jackknife", "se_gdotv", "se_vHvv"):
            if (value := getattr(stored, name)) is not None:
                if not 0 <= value < np.inf:
                    raise FieldError(f"{prefix}.{name}", "must be finite and not negative", value)
                found.append(ShardError(f"{prefix}.{name}", value, stored.num_shards))
    return tuple(found)


# --- writing ---------------------------------------------------------------------------------------------------------


def _as_objects(run: Run) -> dict[str, Any]:
    """Return what is written of a run: objects as dicts, with arrays for lists of numbers."""
    tokens, terms, extras = run.token_counts.astype(np.int64), run.score, None  # counts are whole, as in real files
    if terms is not None:
        parts = {
            "wjlogp_sum": terms.wjlogp_sum,
            "jH_sum": terms.jH_sum,
            "denom_corr_unscaled": terms.denom_corr_unscaled,
        }
        extras = _rows(parts | {"denom_corr_scaled": terms.denom_corr_unscaled * (1.0 / run.total_tokens)})
    columns = {"index": np.arange(len(tokens)), "gdotv": run.gdotv, "length": tokens, "sum_logp": run.logp}
    columns |= {"sampler_logp": run.sampler_logp, "prompt_id": run.prompt_ids}
    errors: dict[str, dict[str, Any]] = {_LINEAR: {}, _QUADRATIC: {}}
    for error in run.shard_errors:
        place, _, name = error.field.rpartition(".")
        errors[place] |= {"num_shards": error.num_shards, name: error.value}
    meta = {"scale": run.scale, "T_total": run.total_tokens, "H_base_mean": terms and terms.h_base_mean}
    approx = {
        "delta_h_per_lr": run.delta_h_per_lr,
        "variance": _recorded_in(errors[_LINEAR]),
        "per_sequence": _rows({**columns, "extras": extras, "vhvv": run.vhvv}),
        "per_sequence_meta": _recorded_in(meta),
        "quadratic": _recorded_in({"variance": _recorded_in(errors[_QUADRATIC])}),
        "direction": run.direction,
    }
    return {"approx": _recorded_in(approx), "true": {"entries": [_entry(m, tokens) for m in run.measurements]}}


def _entry(m: Measurement, tokens: NDArray[np.int64]) -> dict[str, Any]:
    diagnostics = {
        "base_entropy": m.base_entropy,
        "ess": m.ess,
        "normalized_weights": m.weights,
        "log_weights": m.log_weights,
        "h_base": m.h_base,
        "h_new": m.h_new,
        "token_counts": tokens,
    }
    return {"eta": m.eta, "delta_h_true": m.delta_h_true, "diagnostics": _recorded_in(diagnostics)}


def _rows(columns: Mapping[str, NDArray[Any] | list[Any] | None]) -> list[msgspec.Struct] | None:
    """Return an object for each sequence, of the columns that are recorded; None if these are but index and length."""
    recorded = {name: np.asarray(values).tolist() for name, values in columns.items() if values is not None}
    row = msgspec.defstruct("Row", recorded, gc=False)
    return list(map(row, *recorded.values())) if len(recorded) > 2 else None


def _recorded_in(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields that are recorded, or None where there are none."""
    return {name: value for name, value in fields.items() if value is not None} or None
