"""Command line: ``analysis-helpers inventory | verdict | report | sweep | simulate | measure``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, cast

import click

from . import __version__, inventory, verdict, write_run, write_sample_data
from ._checks import notes_on_runs
from .notebook import read_parameters, readable
from .runs import RESULTS_FILE


class _Path(click.Path):
    """A path whose leading ~ is the home folder; shells leave it as it is in ``--data-root=~/runs``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(str(Path(value).expanduser()), param, ctx)


class _Commands(click.Group):
    """Commands that say in one sentence what is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click ends without a word
            raise
        except (ImportError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None


_PATH = _Path(path_type=Path)
_FILE = _Path(exists=True, dir_okay=False)
_DATA_ROOT = _Path(exists=True, file_okay=False, resolve_path=True)
_POSITIVE = click.FloatRange(0, min_open=True)
_SAMPLES = "../data_samples"  # beside the notebooks
_PROBABILITY = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="analysis_helpers")
def main() -> None:
    """Is the step linear, is the recorded change right, and is the batch large enough?"""


@main.command("inventory")
@click.argument("data_root", type=_PATH)
def inventory_command(data_root: Path) -> None:
    """List the runs below DATA_ROOT, what they record and what is wrong with them.

    Exits with status 1 if a run has a problem.
    """
    table = inventory(data_root)
    click.echo(readable(table))
    sys.exit(bool((table["problem"] != "").any()))


@main.command("verdict")
@click.argument("data_root", default=_SAMPLES)
@click.option("--large-batch", help="Batch folder to answer from [default: most sequences a run].")
@click.option("--small-batch", help="Batch folder of actual small runs [default: fewest].")
@click.option("--eta", "etas", type=_POSITIVE, multiple=True, help="Step size; repeatable [default: smallest shared].")
@click.option("-n", "--subset-size", help="Sequences of the batch in question [default: that of the small runs].")
@click.option("--tolerance", type=_POSITIVE, default=0.25, show_default=True, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, default=0.9, show_default=True, help="How often it must be met.")
def verdict_command(etas: tuple[float, ...], **parameters: Any) -> None:
    """Answer from the runs below DATA_ROOT [default: sample data]: is the step linear, is the recorded change right?"""
    given = read_parameters({**parameters, **({"etas": etas} if etas else {"eta": None})})
    with notes_on_runs() as notes:
        large, small = given.large_runs(), given.small_runs()
        limits = {"tolerance": given.tolerance, "probability": given.probability}
        found = [
            verdict(large, eta, given.subset_size, small_runs=small or None, **limits)
            for eta in given.etas or [given.eta]
        ]
    click.echo(readable(given.table()))
    for answer in found:
        click.echo(f"\n{answer}")
    for note in notes:
        click.echo(f"Note: {note}.", err=True)


def _running_options(command: Any) -> Any:
    """Add the options that a report and a sweep have in common; the command gets them as fields of `How`."""

    @click.option("--notebooks", type=_PATH, help="Folder of notebooks.")
    @click.option("--workers", type=click.IntRange(1), help="Notebooks at once [default: the number of cores].")
    @click.option("--timeout", type=_POSITIVE, default=3600, show_default=True, help="Seconds for a notebook.")
    @click.option("--cold", is_flag=True, help="Start each kernel anew, not as a fork of a warm process.")
    @wraps(command)
    def run_command(workers: int | None, timeout: float, cold: bool, **given: Any) -> None:
        command(how={"workers": workers, "timeout": timeout, "cold": cold}, **given)

    return run_command


@contextmanager
def _running(hint: str) -> Iterator[None]:
    """Check that notebooks can be run; stop at SIGTERM as with Ctrl-C, so that no kernel is left behind."""
    if find_spec("papermill") is None:
        raise click.ClickException('this needs papermill: pip install ".[notebooks]" in a checkout')
    # Papermill imports jsonschema, which would take most of a second to build a grammar that no notebook needs.
    cast(Any, sys.modules).setdefault("rfc3987_syntax", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"stopped; {hint}", err=True)
        sys.exit(130)


@main.command("report")
@click.option("--data-root", type=_DATA_ROOT, help="Folder of batch folders [default: the notebooks' own].")
@click.option("--large-batch", help="Batch folder that subsets are drawn from.")
@click.option("--small-batch", help="Batch folder of actual runs.")
@click.option("--eta", type=_POSITIVE, multiple=True, help="Step size; repeated, the first fills eta, all fill etas.")
@click.option("--subset-size", type=click.IntRange(1), help="Sequences in a subset.")
@click.option("--tolerance", type=_POSITIVE, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, help="Probability to be within the tolerance.")
@click.option("--out", type=_PATH, default=Path("reports"), show_default=True, help="Folder of the pages.")
@_running_options
def report_command(
    out: Path, notebooks: Path | None, how: dict[str, Any], eta: tuple[float, ...], **parameters: Any
) -> None:
    """Run the notebooks once and write a report; the last line is the path of its first page.

    Exits with status 1 if a notebook failed; the pages then say which and why, and are in the folder "failed" beside an
    earlier report.
    """
    options = {name: [value] for name, value in parameters.items() if value is not None}
    if eta:
        options |= {"eta": [eta[0]], "etas": [eta]} if eta[1:] else {"eta": [eta[0]]}
    with _running(f"what ran is in {out / 'failed' / 'index.html'}"):
        from .execution import How, make_report

        index, failed = make_report(options, out, How(**how, formats=("png", "svg")), folder=notebooks)
    click.echo(index)
    sys.exit(bool(failed))


@main.command("sweep")
@click.option("--data-root", type=_DATA_ROOT, multiple=True, help="Folder of batch folders; one for all.")
@click.option("--eta", multiple=True, help="Step size; may be repeated. Fills eta, or etas as a list of one.")
@click.option("--subset-size", multiple=True, help="Sequences in a subset; may be repeated.")
@click.option("-p", "--parameter", "others", multiple=True, nargs=2, help="Name and value of another parameter.")
@click.option("--notebook", "names", multiple=True, help="Name of a notebook to rerun; may be repeated [default: all].")
@click.option("--scheduler", help="Address of a Dask scheduler, as in tcp://host:8786, to run on its workers instead.")
@click.option("--out", type=_PATH, required=True, help="Folder of the sweep.")
@_running_options
def sweep_command(
    others: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    scheduler: str | None,
    out: Path,
    notebooks: Path | None,
    how: dict[str, Any],
    **given: tuple[str, ...],
) -> None:
    """Rerun notebooks with every combination of parameters; the last line is the path of the page.

    The same command again resumes a sweep. Exits with status 1 if a notebook failed.
    """
    options = {name: list(values) for name, values in given.items() if values}
    for name, value in others:
        options.setdefault(name, []).append(value)
    with _running(f"the same command resumes it: {out}"):
        from .execution import How, make_sweep

        where = How(**how, scheduler=scheduler)
        index, failed = make_sweep(options, out.resolve(), where, names=names, folder=notebooks)
    click.echo(index)
    sys.exit(bool(failed))


@main.command()
@click.argument("root", type=_PATH)
def simulate(root: Path) -> None:
    """Write the sample data, runs with a known true answer, to ROOT."""
    write_sample_data(root)
    click.echo(root)


@main.command("measure")
@click.option("--demo", type=_PATH, help="Train a tiny model and measure it, into this folder.")
@click.option("--model", help="Name or folder of a causal language model: the policy that is sampled and measured.")
@click.option("--prompts", type=_FILE, help="File with a prompt a line, as JSON.")
@click.option("--before", help="The model before the step [default: --model].")
@click.option("--after", help="The model after the step: the update direction is (after - before) / lr.")
@click.option("--lr", type=_POSITIVE, help="Learning rate of that step.")
@click.option("--eta", "etas", type=_POSITIVE, multiple=True, help="Step size; repeat it.")
@click.option("--sequences", type=click.IntRange(2), default=2048, show_default=True, help="Sequences in the batch.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest response.")
@click.option("--microbatch", type=click.IntRange(1), default=16, show_default=True, help="Sequences at once.")
@click.option("--device", default="cpu", show_default=True, help="Where to measure, such as cuda.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the responses.")
@click.option("--out", type=_PATH, help="Folder that the batch folder goes into.")
def measure_command(
    demo: Path | None,
    model: str | None,
    prompts: str | None,
    before: str | None,
    after: str | None,
    lr: float | None,
    etas: tuple[float, ...],
    sequences: int,
    device: str,
    seed: int,
    out: Path | None,
    **drawn: Any,
) -> None:
    """Measure a causal language model: sample responses, and write the run of the step between two of its states.

    The last line is the path of the run; with --demo, the verdict comes instead. Needs the extra "measure".
    """
    from . import measure

    if demo is not None:
        demo_etas, found = (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4), {}
        for n in (1024, 128):
            tiny, rows, eos = measure.load_policy()
            found[n] = measure.measured_steps(tiny, rows, demo_etas, n, max_new_tokens=32, eos=eos, microbatch=256)
            for name, run in found[n].items():
                write_run(demo / f"E_{n}" / name / RESULTS_FILE, run)
        click.echo(verdict(found[1024], demo_etas[2], 128, small_runs=found[128]))
        return
    if model is None or prompts is None or after is None or lr is None or not etas or out is None:
        raise click.UsageError("give --model, --prompts, --after, --lr, --eta and --out, or --demo")
    policy, rows, eos = measure.load_policy(model, prompts)
    old, new = (policy if name is None else measure.load_model(name) for name in (before, after))
    v = measure.difference(old.state_dict(), new.state_dict(), lr)
    chosen = measure.drawn_prompts(rows, sequences, seed)
    try:
        batch = measure.sample(policy.to(device), chosen, eos=eos, seed=seed, **drawn)
        with notes_on_runs() as notes:
            run = measure.measure(policy, batch, v, etas, microbatch=drawn["microbatch"])
    except (RuntimeError, AssertionError) as error:  # of PyTorch: there is no such device, or too little memory
        raise click.ClickException(str(error)) from None
    path = next(p for k in count(1) if not (p := out / f"E_{sequences}" / f"run_{k:02d}" / RESULTS_FILE).exists())
    write_run(path, run)
    for note in notes:
        click.echo(f"Note: {note}.", err=True)
    click.echo(path)


if __name__ == "__main__":
    main(prog_name="analysis-helpers")
