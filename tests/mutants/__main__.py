"""Change the code of four modules in every way that mutmut knows, and count what no test notices: `make mutants`.

Takes a quarter of an hour or so. The last lines are what each module comes to; the exit status is 1 where fewer than 95
in a hundred are noticed. Which modules and which tests is said in `pyproject.toml`.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

LEAST_KILLED = 0.95

_NOTICED = {"killed", "timeout", "segfault"}  # a change that hangs or crashes tests is not overlooked
_LINE = re.compile(r"^\s*(?P<mutant>[^\s:]+): (?P<status>[a-z ]+)$", re.MULTILINE)
_CHANGED = re.compile(r"^[-+](?![-+]).*$", re.MULTILINE)


def statuses(results: str) -> dict[str, str]:
    """Return mutant -> how it ended, from what mutmut prints as its results."""
    return {found["mutant"]: found["status"] for found in _LINE.finditer(results)}


def counts(found: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Return module -> mutants noticed, and all, with a last entry for all modules together."""
    everything = Counter(_module(mutant) for mutant in found)
    noticed = Counter(_module(mutant) for mutant, status in found.items() if status in _NOTICED)
    each = {module: (noticed[module], count) for module, count in everything.items()}
    return {**each, "all": (noticed.total(), everything.total())}


def _module(mutant: str) -> str:
    """Return ``runs.run`` of ``analysis_helpers.runs.run.x_function__mutmut_1``."""
    return mutant.rpartition(".")[0].partition(".")[2]


def main() -> int:
    """Run mutmut afresh, print survivors and counts, and return the exit status."""
    shutil.rmtree("mutants", ignore_errors=True)  # results of other tests are worth nothing
    # One thread each, as several mutants run at once; and the same tests wherever real runs lie.
    environment = {name: value for name, value in os.environ.items() if name != "RESEARCH_RUNS"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "mutmut", "run"], env=environment, check=True)
    found = statuses(_mutmut("results", "--all", "true"))
    survivors = [mutant for mutant, status in found.items() if status not in _NOTICED]
    for mutant in survivors:
        changed = "\n".join(_CHANGED.findall(_mutmut("show", mutant)))
        print(f"{mutant}: {found[mutant]}\n{changed}\n")
    for module, (noticed, count) in counts(found).items():
        print(f"{module:26} {noticed:5} of {count:5} noticed, {noticed / count:.1%}")
    noticed, count = counts(found)["all"]
    return 0 if noticed >= LEAST_KILLED * count else 1


def _mutmut(*command: str) -> str:
    return subprocess.run([sys.executable, "-m", "mutmut", *command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent.parent)
    sys.exit(main())
