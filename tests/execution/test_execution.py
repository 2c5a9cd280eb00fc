import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from analysis_helpers.execution import RunOptions, run_notebooks
from analysis_helpers.execution.engine import Execution, Job, run_jobs
from analysis_helpers.execution.kernels import ForkedKernel
from analysis_helpers.execution.sweep import Values
from tests.building import refused
from tests.sweeping import command, printed, start, wait_until, write_notebook

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


def executed(source: Path, out: Path, **options: Any) -> Execution:
    """Run one notebook with its own parameters."""
    out.mkdir(exist_ok=True)
    [execution] = run_jobs([Job(source, {}, source.stem)], out, RunOptions(**options))
    return execution


@pytest.mark.parametrize(
    ("cell", "status", "reason"),
    [
        (
            "from analysis_helpers import _checks\nraise _checks.NotRecordedError('runs', 'j', 'no')",
            "skipped",
            "runs: ",
        ),
        ("raise ValueError('NotRecordedError: no')", "failed", "ValueError: NotRecordedError: no"),
        ("import os\nos._exit(1)", "failed", "DeadKernelError"),
    ],
)
def test_a_notebook_that_stops_keeps_what_ran_and_says_why(tmp_path: Path, cell: str, status: str, reason: str) -> None:
    execution = executed(write_notebook(tmp_path / "a.ipynb", "print('before')", cell), tmp_path / "out")
    assert execution.status == status
    assert execution.reason.startswith(reason)
    assert printed(execution.path) == "before\n"


# Leaves something behind in every place that a process has, and prints what was there.
LEAVES = """%matplotlib inline
import builtins, json, os, random, signal, threading
import numpy as np
import matplotlib.pyplot as plt
import analysis_helpers, pandas
seen = [hasattr(builtins, "left"), "LEFT" in os.environ, plt.rcParams["lines.linewidth"], hasattr(pandas, "left")]
seen += [analysis_helpers.load_runs is None, os.path.basename(os.getcwd()), len(plt.get_fignums())]
builtins.left = pandas.left = True
os.environ["LEFT"] = "1"
analysis_helpers.load_runs = None
plt.rcParams["lines.linewidth"] = 9
plt.figure()
os.chdir("/")
handlers = [signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGCHLD) == 0]
numbers = [random.random(), np.random.random()]
print(json.dumps([seen, os.environ["GIVEN"], numbers, os.getpid(), os.getsid(0), *handlers]))"""


@pytest.mark.parametrize("cold", [False, True])
def test_nothing_of_a_kernel_reaches_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    source = write_notebook(tmp_path / "there" / "leaving.ipynb", LEAVES)
    drawn: list[float] = []
    for given in ("1", "2"):
        monkeypatch.setenv("GIVEN", given)
        execution = executed(source, tmp_path / given, cold=cold)
        assert execution.status == "done", execution.reason
        seen, environment, numbers, pid, session, *handlers = json.loads(printed(execution.path))
        assert seen == [False, False, 1.5, False, False, "there", 0]
        assert environment == given
        assert session == pid != os.getpid()
        assert handlers == [True, True]
        drawn += numbers
    assert len(set(drawn)) == 4


def test_results_are_the_same_warm_and_cold(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "notebooks" / "tiny.ipynb")
    values: Values = {"eta": [1e-6, 2e-6], "subset_size": [4]}
    for name, cold in (("warm", False), ("cold", True)):
        run_notebooks("sweep", [notebook], values, tmp_path / name, RunOptions(cold=cold))
    assert (tmp_path / "warm" / "results.csv").read_bytes() == (tmp_path / "cold" / "results.csv").read_bytes()


@pytest.mark.parametrize("cold", [False, True])
def test_a_kernel_always_runs_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    described = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(described))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = write_notebook(tmp_path / "tiny.ipynb", "import sys\nprint(sys.executable)")
    assert printed(executed(source, tmp_path / "out", cold=cold).path) == f"{sys.executable}\n"


def test_kernels_are_forks_of_one_process_of_one_thread(tmp_path: Path) -> None:
    cell = "import os, psutil\nparent = psutil.Process().parent()\nprint(parent.pid, parent.num_threads())"
    source = write_notebook(tmp_path / "tiny.ipynb", cell)
    first, second = (printed(executed(source, tmp_path / name).path).split() for name in ("a", "b"))
    assert first == second == [first[0], "1"]
    assert int(first[0]) != os.getpid()
    os.kill(int(first[0]), signal.SIGKILL)
    assert executed(source, tmp_path / "c").status == "failed"
    parent, _ = printed(executed(source, tmp_path / "d").path).split()  # the next starts it again
    assert parent not in (first[0], str(os.getpid()))


def test_a_kernelspec_can_name_the_provisioner_of_forks() -> None:
    [entry] = entry_points(group="jupyter_client.kernel_provisioners", name="analysis-helpers-forks")
    assert entry.load() is ForkedKernel


@pytest.mark.parametrize("cold", [False, True])
def test_a_notebook_that_takes_too_long_is_ended_with_what_it_did(tmp_path: Path, cold: bool) -> None:
    deaf = "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint(os.getpid(), flush=True)"
    source = write_notebook(tmp_path / "slow.ipynb", deaf, "time.sleep(60)")
    execution = executed(source, tmp_path / "out", cold=cold, timeout=5.0)
    assert execution.status == "failed"
    assert "5 s (--timeout)" in execution.reason
    with pytest.raises(ProcessLookupError):
        os.kill(int(printed(execution.path)), 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Dask scheduler on loopback; yield what starts more of the cluster, which ends with the test."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    processes: list[subprocess.Popen[bytes]] = []

    def dask(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1]

    try:
        dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", tmp_path / "scheduler.json")
        wait_until((tmp_path / "scheduler.json").exists)
        yield dask
    finally:
        for process in processes:
            process.kill()
            process.wait()


def address(folder: Path) -> str:
    return str(json.loads((folder / "scheduler.json").read_text())["address"])


@pytest.mark.slow  # a scheduler, two workers and twelve kernels
def test_a_cluster_gives_the_same_results_and_survives_a_worker_that_dies(
    tmp_path: Path, cluster: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    values = ["-p", "seconds", "0.5", *(part for n in range(1, 7) for part in ("--subset-size", str(n)))]
    workers = [cluster("worker", address(tmp_path), "--nthreads", 1, "--no-nanny") for _ in range(2)]
    far = start(*command(tmp_path / "far", folder, *values, "--scheduler", address(tmp_path)))
    wait_until(lambda: far.poll() is not None or list((tmp_path / "far").glob("notebooks/*.ipynb")))
    workers[0].kill()  # in the middle of a notebook
    near = start(*command(tmp_path / "near", folder, *values, "--workers", "2"))
    for process in (far, near):
        _, log = process.communicate(timeout=180)
        assert process.returncode == 0, log
    assert len(list((tmp_path / "far").glob("notebooks/*.ipynb"))) == 6
    assert (tmp_path / "far" / "results.csv").read_bytes() == (tmp_path / "near" / "results.csv").read_bytes()


@pytest.mark.usefixtures("cluster")
def test_a_scheduler_without_workers_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused("the Dask scheduler", address(tmp_path)):
        next(run_jobs([], tmp_path, RunOptions(scheduler=address(tmp_path), timeout=1)))
    assert "waiting 1 s" in capsys.readouterr().err


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    import dask.distributed

    usual: Any = dask.distributed.Client
    monkeypatch.setattr(dask.distributed, "Client", lambda address, timeout: usual(address, timeout="0.2s"))
    with refused("no Dask scheduler", "tcp://127.0.0.1:1 "):
        next(run_jobs([], tmp_path, RunOptions(scheduler="tcp://127.0.0.1:1")))
