import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from analysis_helpers import Run, RunError
from analysis_helpers.runs.json import encode_run, parse_run
from tests.building import ETAS, estimate, random_run, totals_only_run
from tests.damaging import COLUMNS, FIELDS, FILE, GOOD, TREE, limits

MAY_HOLD_OTHER_THINGS = "approx.per_sequence_meta"
_WITH_A_SIGN = "eta index length token_counts.3 normalized_weights.3 H_base_mean"
MUST_NOT_BE_NEGATIVE = tuple(f".{name}" for name in _WITH_A_SIGN.split())
WRONG = {
    "text": "1.0",
    "true": True,
    "a list of text": ["x"],
    "an object of other things": {"x": 1},
    "an empty list": [],
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "a huge integer": 10**400,
}
FIRST, SECOND = (f"true.entries.{k}.diagnostics" for k in (0, 1))


def read(data: bytes) -> Run:
    with limits(len(data)):
        return parse_run(data, FILE)


def damaged(field: str, change: Any, *, remove: bool = False) -> bytes:
    tree = json.loads(json.dumps(TREE))
    *path, last = [int(part) if part.isdigit() else part for part in field.split(".")]
    node = tree
    for key in path:
        node = node[key]
    if remove:
        del node[last]
    else:
        node[last] = change
    return json.dumps(tree).encode()


def refusal(data: bytes) -> RunError:
    with pytest.raises(RunError) as caught:
        read(data)
    assert caught.value.file == FILE
    assert str(caught.value).startswith(f"{FILE}: {caught.value.field} ")
    return caught.value


def names(error: RunError, field: str) -> bool:
    """Return whether the error points at the field, or at what holds it or stands in it."""
    plain = [part for part in error.field.replace("[", ".").replace("]", "").split(".") if part and not part.isdigit()]
    wanted = [part for part in field.split(".") if not part.isdigit()]
    return plain[: len(wanted)] == wanted[: len(plain)]


def same_where_supported(run: Run, good: Run) -> bool:
    """Return whether every estimate that the run still supports is that of the undamaged one."""
    estimators = {"partial_sum": {"linear"}, "ratio": {"linear", "score", "baseline_entropy"}}
    possible = [name for name, needs in estimators.items() if needs <= set(run.supports)]
    return all(estimate(run, eta, name) == estimate(good, eta, name) for eta in run.etas for name in possible)


def test_what_is_written_loads_back_equal() -> None:
    for run in (GOOD, random_run(5, score=False), totals_only_run()):
        assert read(encode_run(run)) == run


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_or_costs_only_what_it_supports(field: str) -> None:
    data, loss = damaged(field, None, remove=True), FIELDS[field]
    if loss == "refused":
        error = refusal(data)
        assert names(error, field) or (error.rule.startswith("is not a run") and f"'{field}'" in error.rule)
        return
    run = read(data)
    assert same_where_supported(run, GOOD)
    lost = set(GOOD.supports) - set(run.supports)
    assert lost == {"nothing": set(), "fewer etas": set(), "linear": {"linear", "score"}}.get(loss, {loss})
    assert run.etas == (ETAS[:1] if loss == "fewer etas" else ETAS)


@pytest.mark.parametrize(
    ("field", "kind"), [(field, kind) for k, field in enumerate(FIELDS) for kind in list(WRONG)[k % 3 :: 3]]
)
def test_a_wrong_value_is_named_by_file_and_field(field: str, kind: str) -> None:
    if field == MAY_HOLD_OTHER_THINGS and kind == "an object of other things":
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


@pytest.mark.parametrize("name", COLUMNS)
def test_arrays_of_unequal_length_are_refused(name: str) -> None:
    for entry, length in ((0, 5), (1, 7)):
        field = f"true.entries.{entry}.diagnostics.{name}"
        assert names(refusal(damaged(field, [0.1] * length)), field) or name == "token_counts"


@pytest.mark.parametrize(
    ("field", "change", "named", "rule"),
    [
        ("approx.per_sequence.4.index", 2, "approx.per_sequence[].index", "must hold each of 0 to 5 once"),
        ("approx.per_sequence.4.length", 1000, "approx.per_sequence[].length", "token_counts[4]"),
        ("true.entries.1.eta", ETAS[0] * (1 + 1e-8), "true.entries[].eta", "must hold each eta once"),
        ("approx.per_sequence_meta.H_base_mean", 0, "approx.per_sequence_meta.H_base_mean", "must be positive"),
        (f"{SECOND}.token_counts", [1, 2, 3, 4, 5, 6], "true.entries[1].diagnostics.token_counts", "must be the same"),
        (f"{FIRST}.token_counts", [0] * 6, "true.entries[0].diagnostics.token_counts", "positive number"),
        (f"{FIRST}.token_counts", [1e308] * 6, "true.entries[0].diagnostics.token_counts", "positive number"),
        (f"{FIRST}.normalized_weights", [0] * 6, "true.entries[0].diagnostics.normalized_weights", "positive number"),
        (f"{FIRST}.normalized_weights", [1e308] * 6, "true.entries[0].diagnostics.normalized_weights", "positive"),
    ],
)
def test_what_contradicts_the_rest_of_the_file_is_refused(field: str, change: Any, named: str, rule: str) -> None:
    error = refusal(damaged(field, change))  # sums that overflow give no warning, which would be an error here
    assert error.field.removesuffix(" (times tokens)") == named
    assert rule in error.rule


def changed(change: Callable[[Any, Any], object]) -> bytes:
    """Return the file after a change of its linear terms and of what each step size records."""
    tree = json.loads(json.dumps(TREE))
    change(tree["approx"]["per_sequence"], [entry["diagnostics"] for entry in tree["true"]["entries"]])
    return json.dumps(tree).encode()


def recorded(field: str, values: list[Any]) -> Callable[[Any, Any], object]:
    return lambda sequences, _: [s.update({field: value}) for s, value in zip(sequences, values, strict=True)]


def without(field: str, part: str = "") -> Callable[[Any, Any], object]:
    return lambda sequences, _: [(s[part] if part else s).pop(field) for s in sequences]


def test_weight_on_sequences_without_tokens_only_is_refused() -> None:
    only = {"token_counts": [0, 1, 1, 1, 1, 1], "normalized_weights": [1, 0, 0, 0, 0, 0]}
    error = refusal(changed(lambda _, steps: [step.update(only) for step in steps]))
    assert error.field == "true.entries[0].diagnostics.normalized_weights (times tokens)"


def test_sequences_are_put_in_order_and_without_the_denominator_correction_there_is_no_score() -> None:
    assert read(changed(lambda sequences, _: sequences.reverse())) == GOOD
    assert read(changed(without("index"))) == GOOD  # they stand in the order of the file
    assert set(GOOD.supports) - set(read(changed(without("denom_corr_unscaled", "extras"))).supports) == {"score"}
    assert read(damaged("true.entries.1.eta", 0.1 + 0.2)).etas == (ETAS[0], 0.3)


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("prompt_id", [1, "1", 2, "2", 3, "3"], "must hold whole numbers or texts, got both"),
        ("prompt_id", [7, None, 7, None, 7, 7], "must be recorded for all sequences or for none, got 4 of 6"),
        ("index", [None, None, 2, 3, 4, 5], "must be recorded for all sequences or for none, got 4 of 6"),
        ("index", [0, 1, 2, 3, 4, 1_234_567], "must hold each of 0 to 5 once, got no 5"),
        ("sum_logp", [1.0] * 6, "must not be positive (it is a log-probability), got 1.0 at position 0"),
        ("sampler_logp", [1.0] * 6, "must not be positive (it is a log-probability), got 1.0 at position 0"),
    ],
)
def test_what_is_recorded_of_sequences_is_of_one_kind_and_of_all_or_none(
    name: str, values: list[Any], rule: str
) -> None:
    assert str(refusal(changed(recorded(name, values)))) == f"{FILE}: approx.per_sequence[].{name} {rule}"


def test_token_counts_are_written_whole_and_the_correction_per_token_too() -> None:
    assert all(isinstance(count, int) for count in TREE["true"]["entries"][0]["diagnostics"]["token_counts"])
    for sequence in TREE["approx"]["per_sequence"]:
        extras, tokens = sequence["extras"], TREE["approx"]["per_sequence_meta"]["T_total"]
        assert extras["denom_corr_scaled"] == pytest.approx(extras["denom_corr_unscaled"] / tokens, rel=1e-12)


# Of half a megabyte, so that memory beyond a few times the file shows.
WHOLE = random_run(1_000)
TEXT = encode_run(WHOLE).decode()
BYTES = TEXT.encode()
TOTAL = f'"delta_h_per_lr": {WHOLE.delta_h_per_lr!r}'
DIGITS = "1" * 1_000_000


def with_total(number: str) -> bytes:
    """Return the file with another number in a field in use."""
    assert TEXT.count(TOTAL) == 1
    return TEXT.replace(TOTAL, f'"delta_h_per_lr": {number}').encode()


NOTES = {  # in a field that is not in use
    "NaN": "[NaN, -Infinity, 1.0]",
    "half a surrogate pair": r'"\ud83d and \\ud83d"',
    "a million digits": DIGITS,
    "a million decimals": f"0.{DIGITS}",
    "a million empty lists": "[" + "[]," * 1_000_000 + "[]]",
}
ACCEPTED = {
    "with the mark that some editors put before UTF-8": b"\xef\xbb\xbf" + BYTES,
    "with blanks around": b" \r\n\t" + BYTES.replace(b"\n", b"\r\n") + b"\n\n",
    "with anything in a field that is written and not read": TEXT.replace(
        '"T_total": ', '"T_total": [NaN, 1e400, {}], "unused": '
    ).encode(),
    **{f"with a note: {what}": f'{{"note": {value}, {TEXT[1:]}'.encode() for what, value in NOTES.items()},
}
NO_JSON = {
    "gzip": gzip.compress(BYTES),
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "nothing": b"",
    "twice": BYTES + BYTES,
    "not UTF-8": b"\xe9" + BYTES,
    "99 % of a file": BYTES[: int(0.99 * len(BYTES))],
}
REFUSED = {
    **{what: (data, "file must be complete JSON") for what, data in NO_JSON.items()},
    "null": (b"null", "file does not fit the format (Expected `object`"),
    "1e400": (with_total("1e400"), "approx.delta_h_per_lr must be finite"),
    "400 digits": (with_total("1" * 400), "approx.delta_h_per_lr"),
    "half a surrogate pair": (with_total(r'"\ud800"'), "file does not fit the format"),
    "text": (with_total(f'"{DIGITS}"'), "approx.delta_h_per_lr does not fit the format (Expected `float`"),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_does_no_harm_gives_the_undamaged_run(kind: str) -> None:
    assert read(ACCEPTED[kind]) == WHOLE


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_file_is_instead_is_said_in_few_words(kind: str) -> None:
    data, message = REFUSED[kind]
    found = str(refusal(data))
    assert found.startswith(f"{FILE}: {message}")
    assert len(found) < 300


@pytest.mark.parametrize("opening", [b"[", b'{"approx":', b'{"note":'])
def test_nesting_deep_enough_to_break_a_parser_is_refused(opening: bytes) -> None:
    assert refusal(opening * 100_000).field in ("file", "approx")
