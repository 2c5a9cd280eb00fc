"""How much memory loading takes, seen from outside: each measurement has a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from analysis_helpers.runs.folders import _MOST_PARSED
from tests.building import random_run, write_like_a_real_file
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits and tells the memory of a process"),
]

# The limit is on private memory that no file stands behind, beyond what the imported package has.
LOAD_WITHIN = """
import resource, sys
from analysis_helpers import load_runs
has = next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (has + int(sys.argv[2]), resource.RLIM_INFINITY))
[run] = load_runs([sys.argv[1]]).values()
print(run.n)
"""
PEAK_OF = """
import sys
from analysis_helpers import inventory, load_runs
kept = (inventory if sys.argv[1] == "inventory" else lambda root: load_runs(root + "/E_1024"))(sys.argv[2])
print(next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def output(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    return done.stdout if done.returncode == 0 else done.stderr


def test_a_large_run_loads_within_two_and_a_half_times_the_bytes_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "E_65536" / "run_01" / "results.json"
    size = write_like_a_real_file(path, random_run(65_536))
    assert output(LOAD_WITHIN, path, int(2.5 * size)) == "65536\n"
    assert "MemoryError" in output(LOAD_WITHIN, path, int(0.5 * size))  # so the limit above is one


@pytest.mark.parametrize("what", ["inventory", "load"])
def test_many_runs_take_memory_for_what_is_kept_of_them(tmp_path: Path, what: str) -> None:
    run, peaks = random_run(1024), []
    write_like_a_real_file(tmp_path / "run" / "results.json", run)
    for count in (20, 200):
        for k in range(count):
            place = tmp_path / str(count) / "E_1024" / f"run_{k:03d}"
            place.mkdir(parents=True)
            (place / "results.json").hardlink_to(tmp_path / "run" / "results.json")
        peaks.append(int(output(PEAK_OF, what, tmp_path / str(count))))
    arrays = 2 + 3 + 4 * len(run.measurements)  # counts and linear terms, their parts, columns
    kept = (180 if what == "load" else _MOST_PARSED - 20) * arrays * 8 * run.n  # an inventory keeps parsed files only
    assert peaks[1] - peaks[0] <= 1.25 * kept + 4e6  # what two or three runs take while they are read
    assert peaks[1] - peaks[0] >= 0.9 * kept
