from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from analysis_helpers import Run, RunError
from analysis_helpers.estimators import estimate
from analysis_helpers.results_json import encode_run, parse_run
from analysis_helpers.runs import ShardError
from tests.building import ETAS, random_run, totals_only_run

GOOD = dataclasses.replace(
    random_run(6, curvature=True),
    shard_errors=(
        ShardError("approx.variance.se_shard", 0.5, 3),
        ShardError("approx.quadratic.variance.se_vHvv", 0.25, 2),
    ),
)
TREE: dict[str, Any] = json.loads(encode_run(GOOD))
FILE = "E_6/run_01/results.json"

# Every field in use, with what a run loses where it is missing: all ("refused"), nothing, or one of the supports.
FIELDS = {
    "approx": "refused",
    "approx.delta_h_per_lr": "refused",
    "approx.per_sequence": "linear",
    "approx.per_sequence.2": "refused",
    "approx.per_sequence.2.gdotv": "refused",
    "approx.per_sequence.2.index": "refused",
    "approx.per_sequence.2.length": "nothing",
    "approx.per_sequence.2.vhvv": "refused",
    "approx.per_sequence.2.extras": "refused",
    "approx.per_sequence.2.extras.wjlogp_sum": "refused",
    "approx.per_sequence.2.extras.jH_sum": "refused",
    "approx.per_sequence.2.extras.denom_corr_unscaled": "refused",
    "approx.variance": "nothing",
    "approx.variance.num_shards": "nothing",
    "approx.variance.se_shard": "nothing",
    "approx.quadratic": "nothing",
    "approx.quadratic.variance": "nothing",
    "approx.quadratic.variance.se_vHvv": "nothing",
    "approx.per_sequence_meta": "score",
    "approx.per_sequence_meta.scale": "nothing",
    "approx.per_sequence_meta.H_base_mean": "score",
    "true": "refused",
    "true.entries": "refused",
    "true.entries.1": "fewer etas",
    "true.entries.1.eta": "refused",
    "true.entries.1.delta_h_true": "refused",
    "true.entries.1.diagnostics": "refused",
    "true.entries.1.diagnostics.base_entropy": "refused",
    "true.entries.1.diagnostics.ess": "nothing",
    "true.entries.1.diagnostics.normalized_weights": "refused",
    "true.entries.1.diagnostics.normalized_weights.3": "refused",
    "true.entries.1.diagnostics.log_weights": "nothing",
    "true.entries.1.diagnostics.log_weights.3": "refused",
    "true.entries.1.diagnostics.h_base": "baseline_entropy",
    "true.entries.1.diagnostics.h_base.3": "refused",
    "true.entries.1.diagnostics.h_new": "refused",
    "true.entries.1.diagnostics.h_new.3": "refused",
    "true.entries.1.diagnostics.token_counts": "refused",
    "true.entries.1.diagnostics.token_counts.3": "refused",
}
MAY_HOLD_OTHER_THINGS = (
    "approx.per_sequence_meta",
    "approx.variance",
    "approx.quadratic",
    "approx.quadratic.variance",
)
MUST_NOT_BE_NEGATIVE = (
    "num_shards",
    "se_shard",
    "se_vHvv",
    "token_counts.3",
    "normalized_weights.3",
    ".eta",
    "H_base_mean",
    ".index",
    ".length",
)
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
        parse_run(data, FILE)
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
        assert parse_run(encode_run(run), "copy") == run


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_or_costs_only_what_it_supports(field: str) -> None:
    data, loss = damaged(field, None, remove=True), FIELDS[field]
    if loss == "refused":
        assert names(refusal(data), field)
        return
    run = parse_run(data, FILE)
    assert same_where_supported(run, GOOD)
    lost = set(GOOD.supports) - set(run.supports)
    assert lost == {"nothing": set(), "fewer etas": set(), "linear": {"linear", "score", "curvature"}}.get(loss, {loss})
    assert run.etas == (ETAS[:1] if loss == "fewer etas" else ETAS)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_value_is_named_by_file_and_field(field: str, kind: str) -> None:
    if field in MAY_HOLD_OTHER_THINGS and kind == "an object of other things":
        assert parse_run(damaged(field, WRONG[kind]), FILE) != GOOD  # its own fields are not recorded
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
        assert same_where_supported(parse_run(data, FILE), GOOD)


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


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_the_place(share: float) -> None:
    data = encode_run(GOOD)
    error = refusal(data[: int(share * len(data))])
    assert error.rule == "must be complete JSON"
    assert "line" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_refused(encoding: str) -> None:
    assert refusal(encode_run(GOOD).decode().encode(encoding)).field == "file"


def test_a_byte_that_is_not_utf_8_is_refused_with_its_place() -> None:
    error = refusal(b"\xe9" + encode_run(GOOD))
    assert (error.rule, error.value) == ("must be UTF-8 text", "byte 0xe9 at position 0")


@pytest.mark.parametrize("opening", [b"[", b'{"approx":'])
def test_nesting_deep_enough_to_break_a_parser_is_refused(opening: bytes) -> None:
    assert refusal(opening * 100_000).field in ("file", "approx")


@pytest.mark.parametrize("data", [b"null", b"[]", b"3", b'"results"'])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    assert refusal(data).rule == "must be an object"


def test_nan_and_infinity_in_fields_not_in_use_do_no_harm() -> None:
    tree = json.loads(json.dumps(TREE))
    tree["timing"] = {"total": float("nan")}
    tree["approx"]["per_sequence"][0]["sum_logp"] = float("-inf")
    data = json.dumps(tree).encode()
    assert b"NaN" in data
    assert parse_run(data, FILE) == GOOD


def test_unknown_fields_are_ignored() -> None:
    assert parse_run(json.dumps({**TREE, "control_variates": None, "B_U": 64}).encode(), FILE) == GOOD


def test_sequences_out_of_order_are_put_in_order() -> None:
    tree = json.loads(json.dumps(TREE))
    tree["approx"]["per_sequence"].reverse()
    assert parse_run(json.dumps(tree).encode(), FILE) == GOOD


def test_indices_that_are_no_permutation_are_refused() -> None:
    error = refusal(damaged("approx.per_sequence.4.index", 2))
    assert str(error) == f"{FILE}: approx.per_sequence[].index must hold each of 0 to 5 once, got 2 at position 4"


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
    run = parse_run(damaged("true.entries.1.eta", 0.1 + 0.2), FILE)
    assert run.etas == (ETAS[0], 0.3)


def test_a_file_from_before_the_denominator_correction_has_linear_terms_but_no_score() -> None:
    tree = json.loads(json.dumps(TREE))
    for sequence in tree["approx"]["per_sequence"]:
        del sequence["extras"]["denom_corr_unscaled"]
    run = parse_run(json.dumps(tree).encode(), FILE)
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


def test_a_correction_by_an_entropy_of_zero_is_refused() -> None:
    assert "must be positive" in refusal(damaged("approx.per_sequence_meta.H_base_mean", 0)).rule


def test_a_field_that_is_written_and_not_read_may_hold_anything() -> None:
    assert parse_run(damaged("approx.per_sequence_meta.T_total", "many"), FILE) == GOOD
