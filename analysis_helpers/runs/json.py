"""The format of `results.json`: bytes to a `Run`, validated, and back.

A file is decoded into typed structs of the fields in use; other fields are ignored. Every violation is a `RunError`
with the file, the field (its path in the JSON), the rule and the value.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._checks import FloatArray, RunError, checked_array, checked_eta, checked_prompts, checked_total
from .run import Measurement, Run, ScoreTerms, ShardError, check_distinct_etas


class Diagnostics(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What was recorded at one step size; lists have one number a sequence."""

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


class Extras(msgspec.Struct, omit_defaults=True, gc=False):
    """The parts of a linear term."""

    wjlogp_sum: float | None = None
    jH_sum: float | None = None
    denom_corr_unscaled: float | None = None


class WrittenExtras(Extras, omit_defaults=True, gc=False):
    """The same with a part that is written and not read."""

    denom_corr_scaled: float | None = None  # not read: it is the unscaled one times scale


class Sequence(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The linear term of one sequence."""

    index: int | None = None
    gdotv: float | None = None
    length: float | None = None
    sum_logp: float | None = None
    sampler_logp: float | None = None
    prompt_id: int | str | None = None
    extras: Extras | None = None
    vhvv: float | None = None


class Meta(msgspec.Struct, omit_defaults=True):
    """What all linear terms have in common."""

    scale: float | None = None
    T_total: Any = None  # written, not read
    H_base_mean: float | None = None


class Variance(msgspec.Struct, omit_defaults=True):
    """Standard errors as stored: of means over shards."""

    num_shards: int | None = None
    se_shard: float | None = None
    se_jackknife: float | None = None
    se_gdotv: float | None = None
    se_vHvv: float | None = None


class Quadratic(msgspec.Struct, omit_defaults=True):
    """The curvature."""

    variance: Variance | None = None


class Approx(msgspec.Struct, omit_defaults=True):
    """The linear change."""

    delta_h_per_lr: float
    variance: Variance | None = None
    per_sequence: list[Sequence] | None = None
    per_sequence_meta: Meta | None = None
    quadratic: Quadratic | None = None


class Results(msgspec.Struct, rename={"true_": "true"}):
    """The whole file."""

    approx: Approx
    true_: TrueChange


_DECODER = msgspec.json.Decoder(Results)
_PLAIN_TYPES = {"float": "a number", "int": "a whole number", "array": "a list", "object": "an object"}

_SHARD_ERRORS = ("se_shard", "se_jackknife", "se_gdotv", "se_vHvv")
_SCORE_FIELDS = ("wjlogp_sum", "jH_sum", "denom_corr_unscaled")


def parse_run(data: bytes, source: str) -> Run:
    """Return the run that the bytes of a results file describe; ``source`` is its name in messages.

    Raises
    ------
    RunError
        If the bytes are not JSON, or a field in use breaks a rule.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # sums of huge numbers: refused, or they do not add up
        return _run(_decode(data, source), source)


def encode_run(run: Run) -> bytes:
    """Return the bytes of the results file that describes the run: indented JSON, floats that read back exactly."""
    return msgspec.json.format(_compact(run), indent=1) + b"\n"


# --- reading ---------------------------------------------------------------------------------------------------------


def _decode(data: bytes, source: str) -> Results:
    """Return the fields in use. Python's JSON reader takes what msgspec refuses, such as NaN in a field not in use."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunError(
            source, "file", "must be complete JSON", str(error) if data.strip() else "an empty file"
        ) from None
    try:
        return msgspec.convert(plain, Results)
    except msgspec.ValidationError as error:
        raise _shape_error(error, plain, source) from None
    except UnicodeEncodeError as error:  # half of a surrogate pair, where a number belongs
        raise RunError(source, "file", "must be UTF-8 text", str(error)) from None


def _shape_error(error: msgspec.ValidationError, plain: Any, source: str) -> RunError:
    """Turn msgspec's "Expected `float`, got `str` - at `$.a.b[0]`" into file, field, rule and value."""
    rule, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(.+)`", rule)
    if missing:
        return RunError(source, f"{path}.{missing[1]}".lstrip("."), "is missing")
    wanted = re.match(r"Expected `(\w+)", rule)
    described = f"must be {_PLAIN_TYPES.get(wanted[1], wanted[1])}" if wanted else f"is refused ({rule.lower()})"
    for key, index in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", path):
        plain = plain[key] if key else plain[int(index)]
    text = json.dumps(plain)
    return RunError(source, path or "file", described, text if len(text) <= 40 else f"{text[:37]}...")


def _run(results: Results, source: str) -> Run:
    tokens, measurements = _true_change(results.true_.entries, source)
    approx, size = results.approx, len(tokens)
    meta = approx.per_sequence_meta or Meta()
    per_lr = _finite(approx.delta_h_per_lr, "approx.delta_h_per_lr", source)
    scale = None if meta.scale is None else _finite(meta.scale, "approx.per_sequence_meta.scale", source)
    stored = _shard_errors(approx, size, source)
    if approx.per_sequence is None:
        return Run(tokens, measurements, per_lr, scale=scale, source=source, shard_errors=stored)
    sequences = _in_order(approx.per_sequence, size, source)
    _check_lengths(sequences, tokens, source)
    field = "approx.per_sequence[].{}"
    gdotv = _recorded([s.gdotv for s in sequences], field.format("gdotv"), source)
    vhvv = _recorded([s.vhvv for s in sequences], field.format("vhvv"), source)
    logp = _recorded([s.sum_logp for s in sequences], field.format("sum_logp"), source)
    sampler_logp = _recorded([s.sampler_logp for s in sequences], field.format("sampler_logp"), source)
    score = None if gdotv is None else _score_terms(sequences, meta, source)
    return Run(
        tokens,
        measurements,
        per_lr,
        gdotv,
        score,
        vhvv,
        scale,
        source,
        stored,
        logp,
        sampler_logp,
        _prompts([s.prompt_id for s in sequences], field.format("prompt_id"), source),
    )


def _true_change(entries: list[Entry], source: str) -> tuple[FloatArray, tuple[Measurement, ...]]:
    if not entries:
        raise RunError(source, "true.entries", "must hold at least one step size", "an empty list")
    field = "true.entries[{}].diagnostics.token_counts"
    tokens = checked_array(entries[0].diagnostics.token_counts, field.format(0), source, nonnegative=True)
    checked_total(tokens, field.format(0), source)
    for k, entry in enumerate(entries):
        if k and not np.array_equal(entry.diagnostics.token_counts, tokens):
            raise RunError(source, field.format(k), f"must be the same as {field.format(0)}")
    measurements = [_measurement(entry, f"true.entries[{k}]", tokens, source) for k, entry in enumerate(entries)]
    check_distinct_etas(measurements, "true.entries[].eta", source)
    return tokens, tuple(measurements)


def _measurement(entry: Entry, prefix: str, tokens: FloatArray, source: str) -> Measurement:
    found, size, where = entry.diagnostics, len(tokens), f"{prefix}.diagnostics"

    def column(name: str, nonnegative: bool = False) -> FloatArray:
        return checked_array(getattr(found, name), f"{where}.{name}", source, length=size, nonnegative=nonnegative)

    weights, h_new = column("normalized_weights", nonnegative=True), column("h_new")
    checked_total(weights * tokens, f"{where}.normalized_weights (times tokens)", source)
    return Measurement(
        eta=checked_eta(entry.eta, f"{prefix}.eta", source),
        delta_h_true=_finite(entry.delta_h_true, f"{prefix}.delta_h_true", source),
        base_entropy=_finite(found.base_entropy, f"{where}.base_entropy", source),
        weights=weights,
        h_new=h_new,
        h_base=None if found.h_base is None else column("h_base"),
        log_weights=None if found.log_weights is None else column("log_weights"),
        ess=None if found.ess is None else _finite(found.ess, f"{where}.ess", source),
    )


def _in_order(sequences: list[Sequence], size: int, source: str) -> list[Sequence]:
    if len(sequences) != size:
        rule = f"must have one entry for each of the {size} sequences"
        raise RunError(source, "approx.per_sequence", rule, f"{len(sequences)} entries")
    indices = [s.index for s in sequences]
    if indices == list(range(size)) or indices.count(None) == size:
        return sequences
    seen: set[int] = set()
    for position, index in enumerate(indices):
        if index is None or not 0 <= index < size or index in seen:
            rule = f"must hold each of 0 to {size - 1} once"
            raise RunError(source, "approx.per_sequence[].index", rule, f"{index} at position {position}")
        seen.add(index)
    return sorted(sequences, key=lambda s: s.index or 0)


def _check_lengths(sequences: list[Sequence], tokens: FloatArray, source: str) -> None:
    # A different length shows that the linear terms belong to other sequences than the entropies.
    counts = tokens.tolist()
    lengths = [count if s.length is None else s.length for s, count in zip(sequences, counts, strict=True)]
    if lengths != counts:
        i = next(i for i, (length, count) in enumerate(zip(lengths, counts, strict=True)) if length != count)
        rule = f"must be the token count of that sequence, {counts[i]:g}"
        raise RunError(source, f"approx.per_sequence[{i}].length", rule, lengths[i])


def _score_terms(sequences: list[Sequence], meta: Meta, source: str) -> ScoreTerms | None:
    none = Extras()
    extras = [s.extras or none for s in sequences]
    lists = (
        [e.wjlogp_sum for e in extras],
        [e.jH_sum for e in extras],
        [e.denom_corr_unscaled for e in extras],
    )
    columns = {
        name: _recorded(values, f"approx.per_sequence[].extras.{name}", source)
        for name, values in zip(_SCORE_FIELDS, lists, strict=True)
    }
    wjlogp_sum, jh_sum, denom_corr = (columns[n] for n in _SCORE_FIELDS)
    if wjlogp_sum is None or jh_sum is None or denom_corr is None or meta.H_base_mean is None:
        return None
    field = "approx.per_sequence_meta.H_base_mean"
    mean = _finite(meta.H_base_mean, field, source)
    if mean <= 0:
        raise RunError(source, field, "must be positive", mean)
    return ScoreTerms(wjlogp_sum, jh_sum, denom_corr, mean)


def _prompts(values: list[int | str | None], name: str, source: str) -> NDArray[Any] | None:
    if values.count(None) == len(values):
        return None
    if None in values or len({type(value) for value in values}) > 1:
        raise RunError(source, name, "must be a whole number for all sequences, or a text for all, or none")
    return checked_prompts(values, name, source, length=len(values))  # type: ignore[arg-type]


def _recorded(values: list[float | None], name: str, source: str) -> FloatArray | None:
    """Return the column, or None where no sequence has it; refuse one that only some sequences have."""
    missing = values.count(None)
    if missing == len(values):
        return None
    if missing:
        rule = "must be recorded for all sequences or for none"
        raise RunError(source, name, rule, f"{len(values) - missing} of {len(values)}")
    return checked_array(np.array(values, dtype=np.float64), name, source)  # no None left


def _shard_errors(approx: Approx, size: int, source: str) -> tuple[ShardError, ...]:
    quadratic = approx.quadratic.variance if approx.quadratic else None
    found = []
    for prefix, stored in (("approx.variance", approx.variance), ("approx.quadratic.variance", quadratic)):
        if stored is None or stored.num_shards is None:
            continue
        if not 1 <= stored.num_shards <= size:
            rule = f"must lie between 1 and the {size} sequences"
            raise RunError(source, f"{prefix}.num_shards", rule, stored.num_shards)
        values = {f"{prefix}.{name}": getattr(stored, name) for name in _SHARD_ERRORS}
        for where, value in values.items():
            if value is not None and not 0 <= value < np.inf:
                raise RunError(source, where, "must be finite and not negative", value)
        found += [ShardError(where, value, stored.num_shards) for where, value in values.items() if value is not None]
    return tuple(found)


def _finite(value: float, name: str, source: str) -> float:
    if not np.isfinite(value):
        raise RunError(source, name, "must be finite", value)
    return float(value)


# --- writing ---------------------------------------------------------------------------------------------------------


def _compact(run: Run) -> bytes:
    # Its structs take many times the memory of the run: they go before the text is laid out.
    entries = [_entry(run.token_counts, m) for m in run.measurements]
    meta = Meta(run.scale, run.total_tokens, run.score.h_base_mean if run.score else None)
    linear, curvature = (_variance(run, prefix) for prefix in ("approx.variance", "approx.quadratic.variance"))
    quadratic = Quadratic(curvature) if curvature else None
    approx = Approx(run.delta_h_per_lr, linear, _sequences(run), meta, quadratic)
    return msgspec.json.encode(Results(approx, TrueChange(entries)))


def _entry(tokens: FloatArray, m: Measurement) -> Entry:
    def column(values: FloatArray | None) -> list[float] | None:
        return None if values is None else values.tolist()

    diagnostics = Diagnostics(
        base_entropy=m.base_entropy,
        ess=m.ess,
        normalized_weights=m.weights.tolist(),
        log_weights=column(m.log_weights),
        h_base=column(m.h_base),
        h_new=m.h_new.tolist(),
        token_counts=_whole(tokens),
    )
    return Entry(m.eta, m.delta_h_true, diagnostics)


def _sequences(run: Run) -> list[Sequence] | None:
    columns = (run.gdotv, run.logp, run.sampler_logp, run.prompt_ids, run.vhvv)
    if all(column is None for column in columns):
        return None
    size, lengths = run.num_sequences, _whole(run.token_counts)
    extras: list[Extras | None] = [None] * size
    if run.score is not None:
        terms, scale = run.score, run.scale or 1.0 / run.total_tokens
        corrections = terms.denom_corr_unscaled
        with np.errstate(over="ignore"):  # the scaled ones are not read back
            scaled = corrections * scale
        parts = (terms.wjlogp_sum, terms.jH_sum, corrections, scaled)
        extras = [WrittenExtras(*row) for row in zip(*(part.tolist() for part in parts), strict=True)]
    lists = ([None] * size if column is None else column.tolist() for column in columns)
    rows = zip(range(size), lengths, extras, *lists, strict=True)
    return [
        Sequence(index=i, gdotv=g, length=t, sum_logp=logp, sampler_logp=sampler, prompt_id=prompt, extras=e, vhvv=v)
        for i, t, e, g, logp, sampler, prompt, v in rows
    ]


def _variance(run: Run, prefix: str) -> Variance | None:
    stored = [e for e in run.shard_errors if e.field.startswith(f"{prefix}.")]
    if not stored:
        return None
    return Variance(stored[0].num_shards, **{e.field.rpartition(".")[2]: e.value for e in stored})


def _whole(tokens: FloatArray) -> list[float]:
    """Write token counts as whole numbers where they are, as real files do."""
    return [int(t) if t.is_integer() else t for t in tokens.tolist()]
