from pathlib import Path

from tests.building import refused
from tests.conftest import REPOSITORY
from tests.oldest import oldest_versions


def test_the_oldest_versions_are_the_one_lower_bound_of_what_is_needed_at_run_time(tmp_path: Path) -> None:
    assert {"numpy", "pandas", "scipy", "distributed"} <= set(oldest_versions(REPOSITORY / "pyproject.toml"))
    pyproject = tmp_path / "pyproject.toml"
    for bound in ("numpy", "numpy>=1.26,<3", "numpy==1.26"):
        pyproject.write_text(f'[project]\ndependencies = ["{bound}"]\noptional-dependencies = {{cluster = []}}\n')
        with refused(f"{pyproject}: ", repr(bound)):
            oldest_versions(pyproject)


def test_the_workflow_runs_them_and_may_only_read() -> None:
    workflow = (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert "make test-oldest" in workflow
    assert workflow.count("permissions:") == 1
    assert "permissions:\n  contents: read\n\njobs:" in workflow
