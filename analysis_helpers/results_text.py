"""The text of a results file: bytes to typed structs, or what is wrong with it as JSON.

JSON is read as Python's `json` writes it: NaN, Infinity and halves of surrogate pairs may stand in fields that are not
in use. Only fields in use are built, so that reading takes memory for those alone, whatever else a file holds.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable

import msgspec

from . import results_schema
from .checks import RunError
from .results_schema import Results

Content = bytes | mmap.mmap
_Pairs = list[tuple[str, object]]

_DECODER = msgspec.json.Decoder(Results)
_UTF_8_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8 text; it is harmless
_LOOKS_LIKE = {
    b"\x1f\x8b": "gzip: unpack it first",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zXZ\x00": "xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first",
    b"PK\x03\x04": "zip: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself (git lfs pull)",
    b"\xff\xfe\x00\x00": "UTF-32: save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32: save it as UTF-8",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"{\x00": "UTF-16 or UTF-32: save it as UTF-8",
    b"\x00{": "UTF-16: save it as UTF-8",
    b"\x00": "zero bytes: was it ever written to the end?",
}
# Numbers that stand for what JSON has no word for: they overflow, so they are refused where a field is in use. Blanks
# keep them from joining what stands beside them into something that is JSON.
_STAND_INS = {b"-Infinity": b" -9e90003 ", b"Infinity": b" 9e90002 ", b"NaN": b" 9e90001 "}
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_IN_USE = {
    field
    for struct in vars(results_schema).values()
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct)
    for field in struct.__struct_encode_fields__
}
_OF_A_SEQUENCE = [
    re.compile(f'"{field}"'.encode())
    for struct in (results_schema.Sequence, results_schema.Extras)
    for field in struct.__struct_encode_fields__
]
_PLAIN_TYPES = {
    "float": "a number",
    "float | null": "a number",
    "int | null": "a whole number",
    "array": "a list",
    "array | null": "a list",
    "object": "an object",
    "object | null": "an object",
}


def decode(data: Content, source: str) -> Results:
    """Return the fields in use, or raise a `RunError` that names the file, the field, the rule and the value."""
    check_opening(data[:64], source)
    text = memoryview(data)[len(_UTF_8_MARK) if data[: len(_UTF_8_MARK)] == _UTF_8_MARK else 0 :]
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError):
        plain = _in_plain_json(text)  # it may be in Python's dialect
    try:
        return _DECODER.decode(plain)
    except msgspec.ValidationError as error:
        raise _shape_error(error, plain, source) from None
    except msgspec.DecodeError as error:
        raise _syntax_error(error, plain, bytes(text), source) from None
    except RecursionError:
        raise RunError(source, "file", "must not be nested so deeply that no parser can read it") from None


def check_opening(start: bytes, source: str) -> None:
    """Raise a `RunError` if the first bytes of a file show that it is something else than JSON."""
    for opening, what in _LOOKS_LIKE.items():
        if start.startswith(opening):
            raise RunError(source, "file", f"must be JSON in UTF-8; it looks like {what}")


def check_repeated_keys(data: Content, source: str, *, doubtful_sequences: int = 0) -> None:
    """Raise a `RunError` if an object gives a field in use twice with different values: which one was meant?

    Looking into every object takes many times as long as reading. So innermost lists are passed over, and with them the
    objects that stand for sequences; among these, where they are doubtful, a key is looked for that stands too often.
    """
    doubtful = doubtful_sequences > 0 and _a_key_too_many(data, doubtful_sequences)
    if doubtful or _repeated_keys(_without_innermost_lists(data), len):
        for key, values in _repeated_keys(bytes(data), lambda pairs: hash(str(pairs))):
            if key in _IN_USE and any(value != values[0] for value in values):
                plain = all(isinstance(value, float | str | None) for value in values)
                got = " and ".join(f"{value!s:.40}" for value in values) if plain else None
                raise RunError(source, key, "must not be given twice in one object with different values", got)


def _a_key_too_many(data: Content, sequences: int) -> bool:
    start = data.find(b"[", data.find(b'"per_sequence"'))
    end = data.find(b"]", start)
    if data.find(b"[", start + 1, end) >= 0:  # lists within: where this one ends takes reading it
        end = len(data)
    return any(sum(1 for _ in key.finditer(data, start, end)) > sequences for key in _OF_A_SEQUENCE)


def _without_innermost_lists(data: Content, most: int = 1000) -> bytes:
    """Return the text with innermost lists emptied, or nothing where there are too many for that to be quick."""
    parts, position = [], 0
    while (start := data.find(b"[", position)) >= 0:
        end = data.find(b"]", start)
        inner = data.find(b"[", start + 1, end)
        parts.append(data[position : inner if inner >= 0 else start + 1])
        position = inner if inner >= 0 else end
        if len(parts) > most:
            return b""
    return b"".join(parts) + data[position:]


def _repeated_keys(text: bytes, stand_in: Callable[[_Pairs], int]) -> list[tuple[str, list[object]]]:
    """Return each key that stands in an object more than once, with its values; none where Python cannot read it.

    An object is not kept: a number stands in for it where values are compared.
    """
    found: list[tuple[str, list[object]]] = []

    def look(pairs: _Pairs) -> int:
        if len(dict(pairs)) < len(pairs):
            values: dict[str, list[object]] = {}
            for key, value in pairs:
                values.setdefault(key, []).append(value)
            found.extend((key, given) for key, given in values.items() if len(given) > 1)
        return stand_in(pairs)

    try:
        json.loads(str(text, "utf-8-sig", "replace"), object_pairs_hook=look, parse_int=float)
    except (ValueError, RecursionError):
        return []
    return found


def _in_plain_json(text: memoryview) -> bytes:
    # Within a string this changes words, which does no harm: no string is in use. One step at a time, for the memory.
    plain = bytes(text)
    for word, number in _STAND_INS.items():
        plain = plain.replace(word, number)
    return _HALF_PAIR.sub(rb"\\ufffd", plain) if _HALF_PAIR.search(plain) else plain


def _syntax_error(error: msgspec.DecodeError, plain: bytes, text: bytes, source: str) -> RunError:
    """Turn msgspec's "JSON is malformed: invalid number (byte 12)" into a rule and a place in the text."""
    if not text.strip():
        return RunError(source, "file", "must be complete JSON", "an empty file")
    found = re.fullmatch(r"(?:JSON is malformed: )?(.*) \(byte (\d+)\)", str(error))
    what, position = (found[1], int(found[2])) if found else ("the end of the file", len(plain))
    position -= sum((len(number) - len(word)) * plain.count(number, 0, position) for word, number in _STAND_INS.items())
    line, column = text.count(b"\n", 0, position) + 1, position - text.rfind(b"\n", 0, position)
    byte = text[position : position + 1]
    rule, what = ("must be UTF-8 text", f"byte {byte[0]:#04x}") if byte > b"\x7f" else ("must be complete JSON", what)
    return RunError(source, "file", rule, f"{what} at line {line}, column {column}")


def _shape_error(error: msgspec.ValidationError, plain: bytes, source: str) -> RunError:
    """Turn msgspec's "Expected `float`, got `str` - at `$.a.b[0]`" into file, field, rule and value."""
    rule, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    missing = re.fullmatch(r"Object missing required field `(.+)`", rule)
    if missing:
        return RunError(source, f"{path}.{missing[1]}".lstrip("."), "is missing")
    value = _value_at(path, plain)
    wanted = re.match(r"Expected `([^`]*)`", rule)
    described = f"must be {_PLAIN_TYPES.get(wanted[1], wanted[1])}" if wanted else f"is refused ({rule.lower()})"
    if "out of range" in rule:
        described = "must be finite" if value.lstrip("-") in ("NaN", "Infinity") else "must be below 1.8e308 in size"
    return RunError(source, path or "file", described, value)


def _value_at(path: str, plain: bytes) -> str:
    """Return the start of the value at a path such as ``true.entries[0].eta``, as it stands in the file."""
    node = msgspec.Raw(plain)
    try:
        for key, index in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", path):
            if key:
                node = msgspec.json.decode(node, type=dict[str, msgspec.Raw])[key]
            else:
                node = msgspec.json.decode(node, type=list[msgspec.Raw])[int(index)]
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, RecursionError):
        return "something else"
    start = bytes(memoryview(node)[:200])
    for word, number in _STAND_INS.items():
        start = start.replace(number.strip(), word)
    text = " ".join(start.decode("utf-8", "replace").split())
    return text if len(text) <= 40 else f"{text[:37]}..."
