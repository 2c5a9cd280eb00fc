import tomllib

from tests.conftest import REPOSITORY


def test_what_is_mutated_and_what_is_run_exists() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    tests = [name for name in settings["pytest_add_cli_args_test_selection"] if name.startswith("tests/")]
    assert len(tests) > 3
    assert [name for name in (*settings["only_mutate"], *tests) if not (REPOSITORY / name).is_file()] == []
