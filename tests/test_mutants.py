import tomllib

from tests.conftest import REPOSITORY
from tests.mutants.__main__ import counts, statuses

RESULTS = """
    analysis_helpers.runs.run.x__measure__mutmut_1: killed
    analysis_helpers.runs.run.x__measure__mutmut_2: survived
    analysis_helpers.runs.run.xǁRunǁhas_eta__mutmut_1: timeout
    analysis_helpers.inference.standard_errors.x_sizes_around__mutmut_3: no tests
"""


def test_what_is_killed_or_does_not_end_is_noticed_and_what_no_test_reaches_is_not() -> None:
    found = statuses(RESULTS)
    assert list(found.values()) == ["killed", "survived", "timeout", "no tests"]
    assert counts(found) == {"runs.run": (2, 3), "inference.standard_errors": (0, 1), "all": (2, 4)}


def test_what_is_mutated_and_what_is_run_exists() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    tests = [name for name in settings["pytest_add_cli_args_test_selection"] if name.startswith("tests/")]
    assert len(tests) > 3
    assert [name for name in (*settings["only_mutate"], *tests) if not (REPOSITORY / name).is_file()] == []
