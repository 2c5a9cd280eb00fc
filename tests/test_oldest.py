from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.oldest import oldest_versions


def test_the_oldest_versions_are_the_lower_bounds_of_what_is_needed_at_run_time(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\ndependencies = ["numpy>=1.26", "msgspec>=0.18.6"]\n'
        '[project.optional-dependencies]\ncluster = ["distributed>=2024.1"]\ndev = ["pytest"]\n'
    )
    assert oldest_versions(pyproject) == {"numpy": "1.26", "msgspec": "0.18.6", "distributed": "2024.1"}


@pytest.mark.parametrize("bound", ["numpy", "numpy>=1.26,<3", "numpy==1.26", "numpy>=1.26; python_version < '3.13'"])
def test_a_dependency_without_one_lower_bound_is_refused(tmp_path: Path, bound: str) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(f'[project]\ndependencies = ["{bound}"]\n[project.optional-dependencies]\ncluster = []\n')
    with pytest.raises(ValueError, match="must be a name and one lower bound"):
        oldest_versions(pyproject)


def test_everything_that_the_package_needs_has_a_lower_bound() -> None:
    assert {"numpy", "pandas", "scipy"} <= set(oldest_versions(REPOSITORY / "pyproject.toml"))


def test_the_workflow_runs_them_and_may_only_read() -> None:
    workflow = (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert "make test-oldest" in workflow
    assert workflow.count("permissions:") == 1
    assert "permissions:\n  contents: read\n\njobs:" in workflow
