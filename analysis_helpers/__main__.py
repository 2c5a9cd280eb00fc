"""Command line: ``analysis-helpers inventory | verdict | report | sweep | simulate | measure | merge``."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from . import __version__, inventory, load_runs, merge_runs, read_run, verdict, write_run, write_sample_data
from ._checks import RunWarning, notes_on_runs
from .notebook import read_parameters, readable, shown
from .runs import RESULTS_FILE


class _Path(click.Path):
    """A path whose leading ~ is the home folder; shells leave it as it is in ``--data-root=~/runs``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(Path(value).expanduser()), param, ctx)


class _Commands(click.Group):
    """Commands that report an error in one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click exits silently
            raise
        except (ImportError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None


_PATH = _Path(path_type=Path)
_FILE = _Path(exists=True, dir_okay=False)
_FOLDER = _Path(exists=True, file_okay=False)
_POSITIVE = click.FloatRange(0, min_open=True)
_MANY_ETAS = 8
_SAMPLES = "../data_samples"  # beside the notebooks
_PROBABILITY = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="analysis_helpers")
def main() -> None:
    """Is the step linear, is the recorded change right, and is the batch large enough?"""


def _data_root(command: Any) -> Any:
    """Add DATA_ROOT, as an argument or an option; the command gets None if it is not given."""

    @click.argument("data_root", type=_FOLDER, required=False)
    @click.option("--data-root", "options", type=_FOLDER, multiple=True, help="The same as DATA_ROOT.")
    @wraps(command)
    def data_root_command(data_root: str | None, options: tuple[str, ...], **others: Any) -> None:
        roots = [*filter(None, [data_root]), *options]
        if len(roots) > 1:
            raise click.UsageError(f"give one data root, not {', '.join(roots)}")
        command(data_root=roots[0] if roots else None, **others)

    return data_root_command


@main.command("inventory")
@_data_root
def inventory_command(data_root: str | None) -> None:
    """List the runs below DATA_ROOT [default: sample data], what they record and what is wrong with them.

    Exits with status 1 if a run has a problem.
    """
    table = inventory(read_parameters({"data_root": data_root or _SAMPLES}).root)
    width = shutil.get_terminal_size().columns
    for row in table.to_dict("records"):
        click.echo(fill(_of_run(row), width, subsequent_indent="    ", break_on_hyphens=False))
    sys.exit(bool((table["problem"] != "").any()))


def _of_run(row: dict[Hashable, Any]) -> str:
    """Return what the inventory says of a run."""
    etas = row["etas"]
    said = {
        "{} sequences": f"{row['sequences']:,}" if etas else "",
        "etas {}": shown(etas) if len(etas) <= _MANY_ETAS else f"{etas[0]:g} to {etas[-1]:g} ({len(etas)})",
        "records {}": row["supports"],
        "the same content as {}": row["same_as"],
        "PROBLEM: {}": row["problem"],
    }
    name = f"{row['batch']}/{row['run']}".lstrip("/")
    return f"{name}: {'; '.join(text.format(value) for text, value in said.items() if value)}"


@main.command("verdict")
@_data_root
@click.option("--large-batch", help="Batch folder of the large runs [default: most sequences per run].")
@click.option("--small-batch", help="Batch folder of actual small runs [default: fewest].")
@click.option("--eta", "etas", type=_POSITIVE, multiple=True, help="Step size; repeatable [default: smallest shared].")
@click.option("-n", "--subset-size", help="Batch size to answer for, in sequences [default: that of the small runs].")
@click.option("--tolerance", type=_POSITIVE, default=0.25, show_default=True, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, default=0.9, show_default=True, help="How often it must be met.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list with a verdict for each eta.")
def verdict_command(data_root: str | None, etas: tuple[float, ...], as_json: bool, **others: Any) -> None:
    """Answer from the runs below DATA_ROOT [default: sample data]: is the step linear, is the recorded change right?

    With --json a verdict has the fields of `Verdict` and `Answer`: doubts, notes, steps and unknown are codes with the
    runs and numbers that they concern; an unknown number is null.
    """
    step_sizes = {"etas": etas} if etas else {"eta": None}
    parameters = read_parameters({"data_root": data_root or _SAMPLES, **step_sizes, **others})
    with notes_on_runs() as notes:
        large, small = parameters.large_runs(), parameters.small_runs()
        limits: Any = {"tolerance": parameters.tolerance, "probability": parameters.probability}
        verdicts = [
            verdict(large, eta, parameters.subset_size, small_runs=small or None, **limits)
            for eta in (etas and parameters.etas) or [parameters.eta]
        ]
    if as_json:
        click.echo(json.dumps([each.record() for each in verdicts], indent=2))
    else:
        click.echo("\n\n".join(map(str, [readable(parameters.table()), *verdicts])))
    for note in notes:
        click.echo(f"Note: {note}.", err=True)


def _running_options(command: Any) -> Any:
    """Add the options that report and sweep share; the command returns kind and parameters, which are then run."""

    @_data_root
    @click.option("-p", "--parameter", "others", multiple=True, nargs=2, help="Name and value of any parameter.")
    @click.option("--notebooks", type=_PATH, help="Folder of notebooks.")
    @click.option("--workers", type=click.IntRange(1), help="Notebooks run in parallel [default: the number of cores].")
    @click.option("--timeout", type=_POSITIVE, default=3600, show_default=True, help="Seconds per notebook.")
    @click.option("--cold", is_flag=True, help="Start each kernel anew, not as a fork of a warm process.")
    @click.option("--scheduler", help="Address of a Dask scheduler to run on, such as tcp://host:8786.")
    @wraps(command)
    def run_command(
        data_root: str | None, others: Any, notebooks: Path | None, out: Path, names: Any = (), **options: Any
    ) -> None:
        running = {name: options.pop(name) for name in ("workers", "timeout", "cold", "scheduler")}
        kind, values = command(**options)
        for name, value in (*others, *([("data_root", data_root)] if data_root else [])):
            values.setdefault(name, []).append(value)
        if find_spec("papermill") is None:
            raise click.ClickException('this needs papermill: pip install ".[notebooks]" in a checkout')
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as with Ctrl-C, so that no kernel is left behind
        try:
            from .execution import RunOptions, find_notebooks, run_notebooks

            paths = find_notebooks(notebooks, names)
            index, failed = run_notebooks(kind, paths, values, out, RunOptions(**running))
        except KeyboardInterrupt:
            click.echo(f"stopped; finished notebooks are in {out}, repeat the command to run the others", err=True)
            sys.exit(130)
        click.echo(index)
        sys.exit(bool(failed))

    return run_command


@main.command("report")
@click.option("--large-batch", help="Batch folder that subsets are drawn from.")
@click.option("--small-batch", help="Batch folder of actual runs.")
@click.option("--eta", type=_POSITIVE, multiple=True, help="Step size; repeated, the first fills eta, all fill etas.")
@click.option("--subset-size", type=click.IntRange(1), help="Sequences in a subset.")
@click.option("--tolerance", type=_POSITIVE, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, help="Probability to be within the tolerance.")
@click.option("--out", type=_PATH, default=Path("reports"), show_default=True, help="Folder of the report.")
@_running_options
def report_command(eta: tuple[float, ...], **parameters: Any) -> tuple[str, dict[str, list[Any]]]:
    """Run the notebooks on DATA_ROOT [default: sample data]; the last line is the path of the first page.

    Repeating the command runs only what has changed. Exits with status 1 if a notebook failed; the first page says
    which and why, and keeps its page from an earlier run.
    """
    values = {name: [value] for name, value in parameters.items() if value is not None}
    if eta:
        values |= {"eta": [eta[0]], "etas": [eta]} if eta[1:] else {"eta": [eta[0]]}
    return "report", values


@main.command("sweep")
@click.option("--eta", multiple=True, help="Step size; may be repeated. Fills eta, or etas as a list of one.")
@click.option("--subset-size", multiple=True, help="Sequences in a subset; may be repeated.")
@click.option("--notebook", "names", multiple=True, help="Name of a notebook to run; may be repeated [default: all].")
@click.option("--out", type=_PATH, required=True, help="Folder of the sweep.")
@_running_options
def sweep_command(**parameters: tuple[str, ...]) -> tuple[str, dict[str, list[Any]]]:
    """Run notebooks with every combination of parameters; the last line is the path of the first page.

    Repeating the command resumes a sweep. Exits with status 1 if a notebook failed.
    """
    return "sweep", {name: list(values) for name, values in parameters.items() if values}


@main.command()
@click.argument("root", type=_PATH)
def simulate(root: Path) -> None:
    """Write the sample data, runs with a known true answer, to ROOT."""
    write_sample_data(root)
    click.echo(root)


@main.command("measure")
@click.option("--demo", type=_PATH, help="Train and measure a tiny model; write its runs to this folder.")
@click.option("--model", help="Name or folder of a causal language model: the policy that is sampled and measured.")
@click.option("--prompts", type=_FILE, help="File of prompts to sample responses to.")
@click.option("--responses", type=_FILE, help="File of responses of another sampler, instead.")
@click.option("--before", help="The model before the step [default: --model].")
@click.option("--after", help="The model after the step: the update direction is (after - before) / lr.")
@click.option("--lr", type=_POSITIVE, help="Learning rate of that step.")
@click.option("--eta", "etas", type=_POSITIVE, multiple=True, help="Step size; repeatable.")
@click.option("--sequences", type=click.IntRange(2), default=2048, show_default=True, help="Sequences in the batch.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Maximum tokens per response."
)
@click.option(
    "--temperature", type=_POSITIVE, default=1.0, show_default=True, help="The policy is softmax(logits / T)."
)
@click.option(
    "--sample-microbatch", type=click.IntRange(1), default=64, show_default=True, help="Responses sampled at once."
)
@click.option("--microbatch", type=click.IntRange(1), default=16, show_default=True, help="Responses measured at once.")
@click.option("--change", type=click.Choice(["midpoint", "difference"]), default="midpoint", help="How: see `measure`.")
@click.option("--device", default="cpu", show_default=True, help="Device to measure on, such as cuda.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the responses.")
@click.option(
    "--rank", type=click.IntRange(0), default=0, envvar="RANK", help="This process, of several [$RANK, or 0]."
)
@click.option(
    "--world-size", type=click.IntRange(1), default=1, envvar="WORLD_SIZE", help="Processes [$WORLD_SIZE, or 1]."
)
@click.option("--out", type=_PATH, help="Folder to create the batch folder in.")
def measure_command(demo: Path | None, out: Path | None, **options: Any) -> None:
    """Measure a causal language model: sample responses, and write the run of the step between two of its states.

    A line of --prompts is JSON: {"prompt": "text"}, or messages for the chat template, {"prompt": [{"role": "user",
    "content": "text"}]}, or token ids, {"prompt": [1, 15043]}. A line of --responses has token ids, and optionally the
    sampler's log-probability: {"prompt": [1, 15043], "response": [3186, 2], "sampler_logp": -4.25}.

    The last lines are the changes and the path of the run; with --demo, the verdict is printed instead. A command that
    was stopped goes on where it was if it is repeated. Started several times, with --rank or by torchrun, each process
    measures a slice, and the last one merges them. Needs the extra "measure".
    """
    from . import measure

    if demo is not None:
        click.echo(_demo(demo))
        return
    needed = ("model", "after", "lr", "etas")
    if (
        out is None
        or not all(options[name] for name in needed)
        or bool(options["prompts"]) == bool(options["responses"])
    ):
        rule = "--model, one of --prompts and --responses, --after, --lr, --eta and --out"
        raise click.UsageError(f"give {rule}, or --demo")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _notes_at_once():
            path = measure.Command(**options).run(out)
    except (RuntimeError, AssertionError) as error:  # of PyTorch: there is no such device, or too little memory
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"stopped; repeat the command to go on ({out})", err=True)
        sys.exit(130)
    if path is not None:
        click.echo(measure.summary(read_run(path)))
    click.echo(path or "this process is done; the last one of the others merges the run")


def _demo(root: Path) -> Any:
    from . import measure

    etas, runs = (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4), {}
    for n in (1024, 128):
        tiny, rows, eos = measure.load_policy()
        runs[n] = measure.measured_steps(tiny, rows, etas, n, max_new_tokens=32, eos=eos, microbatch=256)
        for name, run in runs[n].items():
            write_run(root / f"E_{n}" / name / RESULTS_FILE, run)
    return verdict(runs[1024], etas[2], 128, small_runs=runs[128])


@contextmanager
def _notes_at_once() -> Iterator[None]:
    """Print warnings about runs as they come, before what takes long."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", RunWarning)
        show = warnings.showwarning

        def note(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
            if issubclass(category, RunWarning):
                click.echo(f"Note: {message}.", err=True)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = note
        yield


@main.command("merge")
@click.argument("parts", type=_FOLDER)
@click.argument("run", type=_PATH)
def merge_command(parts: Path, run: Path) -> None:
    """Write the run whose sequences are those of the runs in PARTS, slices of one batch, to RUN/results.json."""
    merged = merge_runs(load_runs(parts))
    write_run(run / RESULTS_FILE, merged)
    click.echo(run / RESULTS_FILE)


if __name__ == "__main__":
    main(prog_name="analysis-helpers")
