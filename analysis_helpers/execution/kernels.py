"""Kernel provisioner that forks a preloaded process: kernels start fast.

The process starts with the first kernel and ends with the program. It has one thread and no ZeroMQ context, so a fork
of it is an ordinary process, with its own working folder, environment, random numbers and signals.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import psutil
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets.config import Config

CAN_FORK = hasattr(os, "fork")  # Windows has none

# Kernels run side by side, and sums are the same whatever the number of cores.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_SERVE = f"import sys; sys.path[:] = filter(None, sys.path); from {__name__} import serve; serve()"
_IMPORTED = """
    ipykernel.kernelapp ipykernel.ipkernel ipykernel.debugger tornado.platform.asyncio
    IPython.core.completerlib IPython.core.debugger IPython.core.magics.execution IPython.core.magics.pylab
    IPython.core.oinspect IPython.extensions.storemagic matplotlib_inline.backend_inline
    matplotlib.backends.backend_agg matplotlib.backends.backend_svg PIL.JpegImagePlugin PIL.GifImagePlugin
    PIL.BmpImagePlugin PIL.PpmImagePlugin pandas.core.methods.to_dict pandas.io.formats.html
    pandas.io.formats.string scipy.special analysis_helpers.plots analysis_helpers.notebook.explorer
"""


class ForkedKernel(LocalProvisioner):
    """Starts a kernel as a fork of the process that `serve` runs in."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start the kernel that a command line asks for; it leads a session of its own, as other kernels do."""
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.pid = self.pgid = _fork({"arguments": arguments, "cwd": str(kwargs["cwd"]), "env": dict(kwargs["env"])})
        self.process = _Process(self.pid)  # type: ignore[assignment]
        return self.connection_info


class _Process(psutil.Process):
    """A process that is not a child of this one, with the interface of `subprocess.Popen`; its exit code is unknown."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return None if self.is_running() else 1

    def send_signal(self, sig: int) -> None:
        with suppress(psutil.NoSuchProcess):
            super().send_signal(sig)


async def run_cells(notebook: Any, folder: Path, *, forked: bool, svg: bool) -> None:
    """Run the cells of a notebook in its own kernel; outputs are stored in the notebook, up to any failing cell.

    Parameters
    ----------
    notebook
        Changed in place.
    folder
        Working folder of the kernel.
    forked
        Whether to fork the kernel, if the system can; else it is started as usual.
    svg
        Whether figures are made as SVG too, not only as PNG.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    RuntimeError
        If the kernel dies.
    """
    from nbclient import NotebookClient

    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    own_interpreter = KernelSpecManager(kernel_dirs=[])  # and no kernel that is installed
    manager: Any = AsyncKernelManager(kernel_spec_manager=own_interpreter, config=config)
    if forked and CAN_FORK:
        manager.provisioner = ForkedKernel(kernel_spec=manager.kernel_spec, parent=manager)
    client = NotebookClient(notebook, manager, store_widget_state=False)  # controls answer only to a kernel that runs
    with tempfile.TemporaryDirectory() as empty:  # in place of the settings of the user
        settings = [f"--ipython-dir={empty}", "--HistoryManager.enabled=False", "--Application.log_level=CRITICAL"]
        settings.append(f"--InlineBackend.figure_formats={ {'png', 'svg'} if svg else {'png'} }")
        try:
            await manager.start_kernel(cwd=folder, env=_ONE_THREAD | os.environ, extra_arguments=settings)
            client.kc = manager.client()
            client.kc.context.setsockopt(zmq.RECONNECT_IVL, 5)  # milliseconds: the kernel does not listen at once
            client.kc.start_channels(hb=False)
            await _ready(manager, client.kc)
            await client.async_execute()
        finally:
            if client.kc is not None:
                client.kc.stop_channels()
            if manager.has_kernel:  # there is nothing left in it to be saved
                await manager.provisioner.kill()
                manager.provisioner.process.wait()
            await manager.cleanup_resources()


async def _ready(manager: Any, client: Any) -> None:
    """Wait until the kernel replies and its published messages arrive."""
    while True:
        client.kernel_info()
        with suppress(Empty):
            await client.get_shell_msg(timeout=1)
            await client.get_iopub_msg(timeout=0.2)
            return
        if not await manager.is_alive():
            raise RuntimeError("the kernel died before its first reply")


# --- the process that is forked ---------------------------------------------------------------------------------------

_lock = threading.Lock()


def _fork(request: dict[str, Any]) -> int:
    """Return the process ID of a new kernel; the process to fork is started if there is none yet."""
    with _lock:
        server: Any = fork_server()
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=server.stdin, flush=True)
        reply = server.stdout.readline()
        if not reply:
            fork_server.cache_clear()
            raise RuntimeError("the process that kernels are forked from has ended")
    return int(reply)


@cache
def fork_server() -> subprocess.Popen[str]:
    """Start the process that kernels are forked from, once; it imports while this one continues."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = os.environ | _ONE_THREAD | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # the debugger would print a warning
    server = subprocess.Popen([sys.executable, "-c", _SERVE], env=env, start_new_session=True, **pipes)
    atexit.register(server.communicate)  # it ends with its input
    return server


def serve() -> None:
    """Fork a kernel for each line of standard input, and print its process ID."""
    for name in _IMPORTED.split():
        with suppress(ImportError):
            import_module(name)
    if threading.active_count() > 1:
        raise SystemExit("an import has started a thread, so no kernels can be forked")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps kernels that ended
    requests, replies = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    gc.freeze()  # pages of memory stay shared
    for line in requests:
        if (kernel := os.fork()) == 0:
            os.close(requests.fileno())
            os.close(replies)
            _become_kernel(**json.loads(line))
        os.write(replies, f"{kernel}\n".encode())


def _become_kernel(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    random.seed()
    np.random.seed()  # noqa: NPY002 (the state that all forks would share)
    sys.argv[1:] = arguments
    IPKernelApp.launch_instance(parent_handle=os.getppid(), matplotlib="inline")
    sys.exit()
