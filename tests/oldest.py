"""Print the oldest versions that the package says it supports, as constraints for pip: `python -m tests.oldest`."""

import re
import sys
import tomllib
from pathlib import Path

_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)")


def oldest_versions(pyproject: Path) -> dict[str, str]:
    """Return name -> lower bound of everything that the package needs at run time, its extra "cluster" included."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found = {}
    for dependency in project["dependencies"] + project["optional-dependencies"]["cluster"]:
        bound = _BOUND.fullmatch(dependency)
        if bound is None:
            raise ValueError(f"{pyproject}: {dependency!r} must be a name and one lower bound, as in 'numpy>=1.26'")
        found[bound["name"]] = bound["version"]
    return found


if __name__ == "__main__":
    versions = oldest_versions(Path(__file__).parent.parent / "pyproject.toml")
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in versions.items())
