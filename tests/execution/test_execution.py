import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pytest

from analysis_helpers import __version__
from analysis_helpers.execution.engine import Execution, How, Job, package_digest, run_jobs
from analysis_helpers.execution.kernels import ForkedKernel
from analysis_helpers.execution.pages import collected_result, save_figures, write_page
from analysis_helpers.execution.sweep import find_notebooks, make_report, make_sweep, plan
from tests.conftest import REPOSITORY
from tests.sweeping import command, ended, printed, write_notebook, write_report

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")


def wait_until(seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def executed(source: Path, out: Path, **how: Any) -> Execution:
    """Run one notebook with its own parameters."""
    out.mkdir(exist_ok=True)
    [execution] = run_jobs([Job(source, {}, source.stem)], out, How(**how))
    return execution


def test_notebooks_are_found_beside_the_package_or_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_notebooks() == sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    for name in ("b", "a"):
        (tmp_path / f"{name}.ipynb").touch()
    assert find_notebooks(tmp_path) == [tmp_path / "a.ipynb", tmp_path / "b.ipynb"]
    with pytest.raises(ValueError, match=r"no notebooks \(\*\.ipynb\) in .*nothing"):
        find_notebooks(tmp_path / "nothing")


def test_a_notebook_that_needs_an_extra_is_skipped_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "from analysis_helpers.measure import sample")
    monkeypatch.setattr("analysis_helpers.execution.sweep.find_spec", lambda name: None)
    page, failed = make_report({}, tmp_path / "out", How(), folder=tmp_path)
    assert failed == 0
    assert "it needs PyTorch and transformers: pip install" in page.read_text(encoding="utf-8")
    jobs, skipped = plan([notebook], {"eta": ["1e-6"]})
    assert jobs == []
    assert 'pip install ".[measure]"' in skipped[0].skipped


def test_a_report_tells_of_a_failure_and_does_not_replace_a_good_one(tmp_path: Path) -> None:
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    changing = write_notebook(folder / "a.ipynb", "print('before')", "import os", "print('after')")
    write_notebook(folder / "b.ipynb", "print(eta, etas, label)", figure=True)
    options: dict[str, list[object]] = {"eta": [5e-6], "label": ["given"]}
    how = How(formats=("png", "svg"))
    assert make_report(options, out, how, folder=folder) == (out / "index.html", 0)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'src="data:image/svg+xml;base64' in page
    assert "<table></table>" in page
    assert printed(out / "notebooks" / "b.ipynb").startswith("5e-06 [5e-06] given\n")  # eta fills etas
    assert (out / "b.html").is_file()
    assert (out / "figures" / "b-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "figures" / "b-1.svg").read_text(encoding="utf-8")

    write_notebook(changing, "print('before')", "raise ValueError('<too small>')", "print('after')")
    assert make_report(options, out, how, folder=folder) == (out / "failed" / "index.html", 1)
    assert (out / "index.html").read_text(encoding="utf-8") == page
    assert "ValueError: &lt;too small&gt;" in (out / "failed" / "index.html").read_text(encoding="utf-8")
    assert printed(out / "failed" / "notebooks" / "a.ipynb") == "before\n"
    assert printed(out / "notebooks" / "a.ipynb") == "before\nafter\n"

    write_notebook(changing, "1")
    assert make_report(options, out, how, folder=folder) == (out / "index.html", 0)
    assert not (out / "failed").exists()


def test_a_page_needs_neither_notebook_nor_result_nor_harmless_names(tmp_path: Path) -> None:
    odd = write_notebook(tmp_path / "a & b.ipynb", "1", title="# Is <script>alert(1)</script> safe?")
    whole = ended(write_notebook(tmp_path / "gone.ipynb", title="# Gone?"), error="DeadKernelError: <b>")
    gone = replace(whole, path=tmp_path / "not written.ipynb")
    page = write_report([gone, ended(odd)], tmp_path / "report").read_text(encoding="utf-8")
    assert "DeadKernelError: &lt;b&gt;" in page
    assert "gone.html" not in page
    assert write_page(gone, tmp_path, [])["title"] == "Gone?"
    assert "<script>" not in page
    assert 'href="a%20%26%20b.html"' in page
    notebook = nbformat.read(odd, as_version=4)
    assert collected_result(notebook) == {}
    assert save_figures(notebook, tmp_path / "figures", "a") == []


def test_every_job_is_yielded_once_with_its_own_notebook(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "tiny.ipynb", "print(subset_size)")
    jobs = [Job(source, {"subset_size": n}, f"out_{n}") for n in (1, 2)]
    for execution in run_jobs(jobs, tmp_path, How(workers=2)):
        jobs.remove(job := execution.job)
        assert (execution.path, execution.status) == (tmp_path / f"{job.name}.ipynb", "done")
        assert execution.seconds > 0
        assert execution.package == (__version__, package_digest())
        assert printed(execution.path) == f"{job.parameters['subset_size']}\n"
    assert jobs == []


# Leaves something behind in every place that a process has, and tells what it found there.
LEAVES = """%matplotlib inline
import builtins, json, os, random, signal, threading
import numpy as np
import matplotlib.pyplot as plt
import analysis_helpers, pandas
found = [hasattr(builtins, "left"), "LEFT" in os.environ, plt.rcParams["lines.linewidth"], hasattr(pandas, "left")]
found += [analysis_helpers.load_runs is None, os.path.basename(os.getcwd()), len(plt.get_fignums())]
builtins.left = pandas.left = True
os.environ["LEFT"] = "1"
analysis_helpers.load_runs = None
plt.rcParams["lines.linewidth"] = 9
plt.figure()
os.chdir("/")
handlers = [signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGCHLD) == 0]
numbers = [random.random(), np.random.random()]
print(json.dumps([found, os.environ["GIVEN"], numbers, os.getpid(), os.getsid(0), *handlers]))"""


@pytest.mark.parametrize("cold", [False, True])
def test_nothing_of_a_kernel_reaches_the_next_or_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    source = write_notebook(tmp_path / "there" / "leaving.ipynb", LEAVES)
    told = []
    for given in ("1", "2"):
        monkeypatch.setenv("GIVEN", given)
        assert executed(source, tmp_path / given, cold=cold).error == ""
        told.append(json.loads(printed(tmp_path / given / "leaving.ipynb")))
    fresh = [False, False, 1.5, False, False, "there", 0]
    for (found, environment, _, pid, session, *handlers), given in zip(told, ("1", "2"), strict=True):
        assert found == fresh
        assert environment == given
        assert session == pid != os.getpid()
        assert handlers == [True, True]
    assert not set(told[0][2]) & set(told[1][2])  # random numbers


def test_results_are_the_same_warm_and_cold(tmp_path: Path) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    for name, cold in (("warm", False), ("cold", True)):
        make_sweep({"eta": [1e-6, 2e-6], "subset_size": [4]}, tmp_path / name, How(cold=cold), folder=folder)
    assert (tmp_path / "warm" / "results.csv").read_bytes() == (tmp_path / "cold" / "results.csv").read_bytes()


@pytest.mark.parametrize("cold", [False, True])
def test_a_kernel_runs_this_interpreter_whatever_kernel_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    described = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(described))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = write_notebook(tmp_path / "tiny.ipynb", "import sys\nprint(sys.executable)")
    assert executed(source, tmp_path / "out", cold=cold).error == ""
    assert printed(tmp_path / "out" / "tiny.ipynb") == f"{sys.executable}\n"


def test_kernels_are_forks_of_one_process_of_one_thread(tmp_path: Path) -> None:
    tell = "import os, psutil\nparent = psutil.Process().parent()\nprint(parent.pid, parent.num_threads())"
    source = write_notebook(tmp_path / "tiny.ipynb", tell)
    told = []
    for name in ("a", "b"):
        assert executed(source, tmp_path / name).error == ""
        told.append(printed(tmp_path / name / "tiny.ipynb").split())
    assert told[0] == told[1] == [told[0][0], "1"]
    assert int(told[0][0]) != os.getpid()
    os.kill(int(told[0][0]), signal.SIGKILL)
    for name, parent in (("c", "usual"), ("d", "forked")):  # the next starts as usual, those after are forks again
        assert executed(source, tmp_path / name).error == ""
        pid = printed(tmp_path / name / "tiny.ipynb").split()[0]
        assert (int(pid) == os.getpid()) == (parent == "usual")


def test_a_kernelspec_can_name_the_provisioner_of_forks() -> None:
    [entry] = entry_points(group="jupyter_client.kernel_provisioners", name="analysis-helpers-forks")
    assert entry.load() is ForkedKernel


@pytest.mark.parametrize("cold", [False, True])
def test_a_notebook_that_takes_too_long_is_ended_and_named_with_what_it_did(tmp_path: Path, cold: bool) -> None:
    deaf = "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint(os.getpid(), flush=True)"
    source = write_notebook(tmp_path / "slow.ipynb", deaf, "time.sleep(60)")
    execution = executed(source, tmp_path / "out", cold=cold, timeout=5.0)
    assert execution.error == "stopped after 5 s (--timeout)"
    with pytest.raises(ProcessLookupError):
        os.kill(int(printed(execution.path)), 0)


def test_stopping_early_kills_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    begin = "import pathlib, os, time\npathlib.Path(label).write_text(str(os.getpid()))\ntime.sleep(seconds)"
    source = write_notebook(tmp_path / "tiny.ipynb", begin)
    begun = [tmp_path / f"begun_{k}" for k in range(3)]
    quick, slow, never = (
        Job(source, {"label": str(path), "seconds": seconds}, path.name)
        for path, seconds in zip(begun, (0.0, 60.0, 0.0), strict=True)
    )
    running = run_jobs([quick, slow, never], tmp_path, How(workers=1))
    assert next(running).job == quick
    wait_until(lambda: begun[1].exists() and begun[1].read_text())
    start = time.monotonic()
    running.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30
    assert not begun[2].exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun[1].read_text()), 0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_report_shows_what_ran_and_leaves_no_kernel(tmp_path: Path, how: signal.Signals) -> None:
    import psutil

    folder, out = tmp_path / "notebooks", tmp_path / "out"
    begun = tmp_path / "begun"
    write_notebook(folder / "b.ipynb", "print('done')")
    write_notebook(folder / "a.ipynb", f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(60)")
    arguments = ["report", "--notebooks", str(folder), "--out", str(out), "--workers", "1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "analysis_helpers", *arguments], **pipes)
    wait_until(begun.exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert str(out / "failed" / "index.html") in told
    assert psutil.wait_procs(children, timeout=10)[1] == []
    page = (out / "failed" / "index.html").read_text(encoding="utf-8")
    assert 'href="b.html"' in page
    assert "stopped before it ended" in page
    assert not (out / "index.html").exists()


def quietly(arguments: list[str]) -> subprocess.Popen[bytes]:
    dask = [sys.executable, "-m", "dask"]
    return subprocess.Popen([*dask, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a Dask scheduler on loopback; yield its address and a list for workers, which are ended with it."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    described = tmp_path / "scheduler.json"
    scheduler = quietly(
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(described), "--no-dashboard"]
    )
    workers: list[subprocess.Popen[bytes]] = []
    try:
        wait_until(described.exists)
        yield str(json.loads(described.read_text())["address"]), workers
    finally:
        for process in (*workers, scheduler):
            process.send_signal(signal.SIGKILL)
            process.wait()


def sweep(out: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    sizes = [part for n in (4, 8, 2) for part in ("--subset-size", str(n))]
    arguments = command(out, folder, *sizes, "--eta", "1e-6", "--eta", "2e-6", "-p", "seconds", "0.5", *options)
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    return run([sys.executable, "-m", "analysis_helpers", *arguments])


@pytest.mark.slow  # a scheduler, two workers and twelve kernels
def test_a_cluster_gives_the_same_results_and_survives_a_worker_that_dies(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    worker = ["worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path)]
    workers += [quietly(worker) for _ in range(2)]
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended: list[subprocess.CompletedProcess[str]] = []
    thread = Thread(target=lambda: ended.append(sweep(tmp_path / "far", folder, "--scheduler", address)))
    thread.start()
    finished = tmp_path / "far" / "notebooks"
    wait_until(lambda: ended or (finished.is_dir() and any(finished.glob("*.ipynb"))))
    workers[0].kill()  # in the middle of a notebook
    thread.join(180)
    assert ended, "the sweep did not end"
    assert ended[0].returncode == 0, ended[0].stderr
    assert len(list(finished.glob("*.ipynb"))) == 6
    near = sweep(tmp_path / "near", folder, "--workers", "2")
    assert near.returncode == 0, near.stderr
    assert (tmp_path / "far" / "results.csv").read_bytes() == (tmp_path / "near" / "results.csv").read_bytes()


def test_a_scheduler_without_workers_is_waited_for_and_then_given_up(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    folder = write_notebook(tmp_path / "notebooks" / "tiny.ipynb").parent
    ended = sweep(tmp_path / "out", folder, "--scheduler", cluster[0], "--timeout", "1")
    assert ended.returncode == 1
    waiting, given_up = ended.stderr.splitlines()
    assert "waiting 1 s" in waiting
    assert given_up.startswith("Error: ")
    assert cluster[0] in given_up


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    import dask.distributed

    usual: Any = dask.distributed.Client
    monkeypatch.setattr(dask.distributed, "Client", lambda address, timeout: usual(address, timeout="0.2s"))
    with pytest.raises(ValueError, match=r"tcp://127\.0\.0\.1:1 \("):
        next(run_jobs([], tmp_path, How(scheduler="tcp://127.0.0.1:1")))
