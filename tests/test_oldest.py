from pathlib import Path

import pytest

from tests.building import refused
from tests.conftest import REPOSITORY
from tests.oldest import oldest_versions


@pytest.mark.parametrize("bound", ["numpy", "numpy>=1.26,<3", "numpy==1.26", "numpy>=1.26; python_version < '3.13'"])
def test_the_oldest_versions_are_the_one_lower_bound_of_what_is_needed_at_run_time(tmp_path: Path, bound: str) -> None:
    pyproject = tmp_path / "pyproject.toml"
    text = '[project]\ndependencies = ["{}"]\n[project.optional-dependencies]\ncluster = ["b>=2"]\ndev = ["pytest"]\n'
    pyproject.write_text(text.format("msgspec>=0.18.6"))
    assert oldest_versions(pyproject) == {"msgspec": "0.18.6", "b": "2"}
    pyproject.write_text(text.format(bound))
    with refused(f"{pyproject}: ", repr(bound)):
        oldest_versions(pyproject)
    assert {"numpy", "pandas", "scipy"} <= set(oldest_versions(REPOSITORY / "pyproject.toml"))


def test_the_workflow_runs_them_and_may_only_read() -> None:
    workflow = (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert "make test-oldest" in workflow
    assert workflow.count("permissions:") == 1
    assert "permissions:\n  contents: read\n\njobs:" in workflow
