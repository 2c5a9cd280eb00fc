"""The file format ``results.json``: bytes to a validated `Run`, and back.

Files are decoded into typed structs of the fields in use; other fields are ignored. A violation is a `RunError` that
names the file, the field (its path in the JSON), the rule and the value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._checks import (
    FloatArray,
    RunError,
    checked_array,
    checked_entropies,
    checked_eta,
    checked_logp,
    checked_number,
    checked_prompts,
    checked_tokens,
    checked_total,
)
from .run import Measurement, Run, ScoreTerms, ShardError, check_distinct_etas

# Fields stand in the order of the files, which decodes fastest. What is None is not written.


class Part(msgspec.Struct, omit_defaults=True):
    """An object of the file."""


class Diagnostics(Part, kw_only=True):
    """What was recorded at one step size; lists have one number per sequence."""

    base_entropy: float
    ess: float | None = None
    normalized_weights: list[float]
    log_weights: list[float] | None = None
    h_base: list[float] | None = None
    h_new: list[float]
    token_counts: list[float]


class Entry(Part):
    """One step size."""

    eta: float
    delta_h_true: float
    diagnostics: Diagnostics


class TrueChange(Part):
    """The true change."""

    entries: list[Entry]


class Extras(Part, gc=False):
    """The parts of a linear term."""

    wjlogp_sum: float | None = None
    jH_sum: float | None = None
    denom_corr_unscaled: float | None = None


class WrittenExtras(Extras, gc=False):
    """The same with what is written and not read."""

    denom_corr_scaled: float | None = None


class Sequence(Part, gc=False):
    """The linear term of one sequence."""

    index: int | None = None
    gdotv: float | None = None
    length: float | None = None
    sum_logp: float | None = None
    sampler_logp: float | None = None
    prompt_id: int | str | None = None
    extras: Extras | None = None
    vhvv: float | None = None


class Meta(Part):
    """What all linear terms have in common."""

    scale: float | None = None
    T_total: Any = None  # written and not read
    H_base_mean: float | None = None


class Variance(Part):
    """Standard errors as stored: of means over shards."""

    num_shards: int | None = None
    se_shard: float | None = None
    se_jackknife: float | None = None
    se_gdotv: float | None = None
    se_vHvv: float | None = None


class Quadratic(Part):
    """The curvature."""

    variance: Variance | None = None


class Approx(Part):
    """The linear change."""

    delta_h_per_lr: float
    variance: Variance | None = None
    per_sequence: list[Sequence] | None = None
    per_sequence_meta: Meta | None = None
    quadratic: Quadratic | None = None
    direction: str | None = None  # fingerprint of the update direction


class Results(Part, rename={"true_": "true"}):
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
    results = _decode(data, source)
    tokens, measurements = _measurements(results.true_.entries, source)
    approx, meta = results.approx, results.approx.per_sequence_meta or Meta()
    per_lr = checked_number(approx.delta_h_per_lr, "approx.delta_h_per_lr", source)
    scale = None if meta.scale is None else checked_number(meta.scale, "approx.per_sequence_meta.scale", source)
    stored = _shard_errors(approx, len(tokens), source)
    sequences = [] if approx.per_sequence is None else _in_order(approx.per_sequence, tokens, source)
    gdotv = _recorded([s.gdotv for s in sequences], "gdotv", source)
    vhvv = _recorded([s.vhvv for s in sequences], "vhvv", source)
    logp = _recorded([s.sum_logp for s in sequences], "sum_logp", source, checked_logp)
    sampler_logp = _recorded([s.sampler_logp for s in sequences], "sampler_logp", source, checked_logp)
    score = None if gdotv is None else _score_terms(sequences, meta, source)
    prompts = _prompts([s.prompt_id for s in sequences], source)
    recorded = (stored, logp, sampler_logp, prompts, approx.direction)
    return Run(tokens, measurements, per_lr, gdotv, score, vhvv, scale, source, *recorded)


def encode_run(run: Run) -> bytes:
    """Return the bytes of a results file that holds the run: indented JSON whose floats read back exactly."""
    entropy = run.score.h_base_mean if run.score else None
    curvature = _variance(run, _QUADRATIC)
    approx = Approx(
        run.delta_h_per_lr,
        variance=_variance(run, _LINEAR),
        per_sequence=_sequences(run),
        per_sequence_meta=Meta(run.scale, run.total_tokens, entropy),
        quadratic=Quadratic(curvature) if curvature else None,
        direction=run.direction,
    )
    true = TrueChange([_entry(m, run.token_counts) for m in run.measurements])
    text = msgspec.json.encode(Results(approx, true))
    del approx, true  # they take many times the memory of the run
    return msgspec.json.format(text, indent=1) + b"\n"


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
        why = error if data.strip() else "it is empty"
        raise RunError(source, "file", f"must be complete JSON ({why})") from None
    if isinstance(plain, dict) and not {"approx", "true"} <= plain.keys():
        keys = shorten(", ".join(map(repr, plain)), 120) or "none"
        raise RunError(source, "file", f"is not a run: it has the keys {keys}; a run has 'true' and 'approx'")
    try:
        return msgspec.convert(plain, Results)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the latter: half of a surrogate pair
        # As in: Expected `float`, got `str` - at `$.approx.delta_h_per_lr`
        problem, _, where = str(error).partition(" - at `$")
        field = where.strip(".`")
        if "missing" in problem:
            raise RunError(source, f"{field}.{problem.split('`')[1]}".lstrip("."), "is missing") from None
        raise RunError(source, field or "file", f"does not fit the format ({problem})") from None


def _measurements(entries: list[Entry], source: str) -> tuple[FloatArray, tuple[Measurement, ...]]:
    if not entries:
        raise RunError(source, "true.entries", "must hold at least one step size", "an empty list")
    field = "true.entries[{}].diagnostics.token_counts"
    counts = entries[0].diagnostics.token_counts
    tokens = checked_tokens(_floats(counts), field.format(0), source)
    for k, entry in enumerate(entries):
        if entry.diagnostics.token_counts != counts:
            raise RunError(source, field.format(k), f"must be the same as {field.format(0)}")
    measurements = [_measurement(entry, f"true.entries[{k}]", tokens, source) for k, entry in enumerate(entries)]
    check_distinct_etas([m.eta for m in measurements], "true.entries[].eta", source)
    return tokens, tuple(measurements)


def _measurement(entry: Entry, prefix: str, tokens: FloatArray, source: str) -> Measurement:
    found, where = entry.diagnostics, f"{prefix}.diagnostics"

    def column(name: str, lowest: float = -np.inf) -> FloatArray:
        values = _floats(getattr(found, name))
        return checked_array(values, f"{where}.{name}", source, length=len(tokens), lowest=lowest)

    def entropies(name: str) -> FloatArray:
        return checked_entropies(_floats(getattr(found, name)), f"{where}.{name}", source, tokens)

    weights = column("normalized_weights", lowest=0.0)
    checked_total(weights * tokens, f"{where}.normalized_weights (times tokens)", source)
    return Measurement(
        eta=checked_eta(entry.eta, f"{prefix}.eta", source),
        delta_h_true=checked_number(entry.delta_h_true, f"{prefix}.delta_h_true", source),
        base_entropy=checked_number(found.base_entropy, f"{where}.base_entropy", source),
        weights=weights,
        h_new=entropies("h_new"),
        h_base=None if found.h_base is None else entropies("h_base"),
        log_weights=None if found.log_weights is None else column("log_weights"),
        ess=None if found.ess is None else checked_number(found.ess, f"{where}.ess", source),
    )


def _in_order(sequences: list[Sequence], tokens: FloatArray, source: str) -> list[Sequence]:
    """Return the linear terms in the order of the token counts, by their index where they have one."""
    size, indices = len(tokens), [s.index for s in sequences]
    if len(sequences) != size:
        rule = f"must have one entry for each of the {size} sequences"
        raise RunError(source, "approx.per_sequence", rule, f"{len(sequences)} entries")
    if indices != list(range(size)) and indices.count(None) < size:
        sequences = sorted(sequences, key=lambda s: -1 if s.index is None else s.index)
        for place, s in enumerate(sequences):
            if s.index != place:
                rule = f"must hold each of 0 to {size - 1} once"
                raise RunError(source, "approx.per_sequence[].index", rule, f"{s.index} instead of {place}")
    lengths = [s.length for s in sequences]
    if lengths != tokens.tolist():
        for i, (length, count) in enumerate(zip(lengths, tokens.tolist(), strict=True)):
            if length not in (count, None):  # the linear terms belong to other sequences than the entropies
                rule = f"must be the token count of that sequence, {count:g}"
                raise RunError(source, f"approx.per_sequence[{i}].length", rule, length)
    return sequences


def _score_terms(sequences: list[Sequence], meta: Meta, source: str) -> ScoreTerms | None:
    none = Extras()
    extras = [s.extras or none for s in sequences]
    wjlogp_sum = _recorded([e.wjlogp_sum for e in extras], "extras.wjlogp_sum", source)
    jh_sum = _recorded([e.jH_sum for e in extras], "extras.jH_sum", source)
    denom_corr = _recorded([e.denom_corr_unscaled for e in extras], "extras.denom_corr_unscaled", source)
    if wjlogp_sum is None or jh_sum is None or denom_corr is None or meta.H_base_mean is None:
        return None
    mean = checked_number(meta.H_base_mean, "approx.per_sequence_meta.H_base_mean", source)
    if mean <= 0:
        raise RunError(source, "approx.per_sequence_meta.H_base_mean", "must be positive", mean)
    return ScoreTerms(wjlogp_sum, jh_sum, denom_corr, mean)


def _prompts(values: list[int | str | None], source: str) -> NDArray[Any] | None:
    name = "approx.per_sequence[].prompt_id"
    if values.count(None) == len(values):
        return None
    if len({type(value) for value in values}) > 1:
        raise RunError(source, name, "must be a whole number for all sequences, or a text for all, or none")
    return checked_prompts(values, name, source, length=len(values))  # type: ignore[arg-type]


def _recorded(
    values: list[float | None], name: str, source: str, checked: Callable[..., FloatArray] = checked_array
) -> FloatArray | None:
    """Return the column, or None if no sequence has it; refuse one that only some sequences have."""
    field = f"approx.per_sequence[].{name}"
    try:
        return checked(_floats(values), field, source, length=len(values)) if values else None
    except struct.error:  # a None: counting them in every list beforehand took a tenth of the loading time
        present = len(values) - values.count(None)
    if present == 0:
        return None
    raise RunError(source, field, "must be recorded for all sequences or for none", f"{present} of {len(values)}")


def _floats(values: list[float] | list[float | None]) -> FloatArray:
    """Return numbers as an array, in half the time of `numpy.array`; raise a `struct.error` where there is a None."""
    return np.frombuffer(struct.pack(f"{len(values)}d", *values))


def _shard_errors(approx: Approx, size: int, source: str) -> tuple[ShardError, ...]:
    quadratic = approx.quadratic.variance if approx.quadratic else None
    found = []
    for prefix, stored in ((_LINEAR, approx.variance), (_QUADRATIC, quadratic)):
        if stored is None or stored.num_shards is None:
            continue
        if not 1 <= stored.num_shards <= size:
            rule = f"must lie between 1 and the {size} sequences"
            raise RunError(source, f"{prefix}.num_shards", rule, stored.num_shards)
        for name in ("se_shard", "se_jackknife", "se_gdotv", "se_vHvv"):
            if (value := getattr(stored, name)) is not None:
                if not 0 <= value < np.inf:
                    raise RunError(source, f"{prefix}.{name}", "must be finite and not negative", value)
                found.append(ShardError(f"{prefix}.{name}", value, stored.num_shards))
    return tuple(found)


# --- writing ---------------------------------------------------------------------------------------------------------


def _entry(m: Measurement, tokens: FloatArray) -> Entry:
    diagnostics = Diagnostics(
        base_entropy=m.base_entropy,
        ess=m.ess,
        normalized_weights=m.weights.tolist(),
        log_weights=_listed(m.log_weights),
        h_base=_listed(m.h_base),
        h_new=m.h_new.tolist(),
        token_counts=_whole(tokens),
    )
    return Entry(m.eta, m.delta_h_true, diagnostics)


def _sequences(run: Run) -> list[Sequence] | None:
    recorded = [_listed(column) for column in (run.gdotv, run.logp, run.sampler_logp, run.prompt_ids, run.vhvv)]
    if not any(recorded):
        return None
    indices, nothing = range(run.num_sequences), [None] * run.num_sequences
    gdotv, logp, sampler_logp, prompts, vhvv = (column or nothing for column in recorded)
    lengths, extras = _whole(run.token_counts), _extras(run) or nothing
    columns = (indices, gdotv, lengths, logp, sampler_logp, prompts, extras, vhvv)
    return [Sequence(*row) for row in zip(*columns, strict=True)]


def _extras(run: Run) -> list[WrittenExtras] | None:
    if run.score is None:
        return None
    terms, scale = run.score, run.scale or 1.0 / run.total_tokens
    with np.errstate(over="ignore"):  # the scaled corrections are not read back
        scaled = terms.denom_corr_unscaled * scale
    columns = (terms.wjlogp_sum, terms.jH_sum, terms.denom_corr_unscaled, scaled)
    return [WrittenExtras(*row) for row in zip(*(values.tolist() for values in columns), strict=True)]


def _variance(run: Run, prefix: str) -> Variance | None:
    stored = [e for e in run.shard_errors if e.field.startswith(f"{prefix}.")]
    if not stored:
        return None
    return Variance(stored[0].num_shards, **{e.field.rpartition(".")[2]: e.value for e in stored})


def _listed(values: NDArray[Any] | None) -> list[Any] | None:
    return None if values is None else values.tolist()


def _whole(tokens: FloatArray) -> list[float]:
    """Return token counts as whole numbers, as real files have them."""
    return [int(count) for count in tokens.tolist()]
