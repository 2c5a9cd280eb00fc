"""Command line: ``analysis-helpers inventory | verdict | report | sweep | simulate | measure``."""

from __future__ import annotations

import signal
import sys
import warnings
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import click

from . import RunError, __version__, inventory, load_runs, verdict, write_run, write_sample_data
from .report import readable
from .runs import RESULTS_FILE

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(0, min_open=True)
_PROBABILITY = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.group()
@click.version_option(__version__, prog_name="analysis_helpers")
def main() -> None:
    """Is the step linear, is the recorded change right, and is the batch large enough?"""


def _require_notebooks() -> None:
    if find_spec("papermill") is None:
        raise click.ClickException("this needs papermill: pip install 'entropy-batch-diagnostics[notebooks]'")


@main.command("inventory")
@click.argument("data_root", type=_PATH)
def inventory_command(data_root: Path) -> None:
    """List the runs below DATA_ROOT, what they record and what is wrong with them.

    Exits with status 1 if a run has a problem.
    """
    try:
        table = inventory(data_root)
    except RunError as error:
        raise click.ClickException(str(error)) from None
    click.echo(readable(table))
    if (table["problem"] != "").any():
        sys.exit(1)


@main.command("verdict")
@click.argument("data_root", type=click.Path(exists=True, file_okay=False))
@click.option("--large-batch", help="Batch folder to answer from [default: most sequences a run].")
@click.option("--small-batch", help="Batch folder of actual small runs [default: fewest].")
@click.option("--eta", "etas", multiple=True, help="Step size; may be repeated [default: the smallest shared].")
@click.option("-n", "--subset-size", help="Sequences of the batch in question [default: that of the small runs].")
@click.option("--tolerance", type=_POSITIVE, default=0.25, show_default=True, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, default=0.9, show_default=True, help="How often it must be met.")
def verdict_command(
    data_root: str,
    large_batch: str | None,
    small_batch: str | None,
    etas: tuple[str, ...],
    subset_size: str | None,
    tolerance: float,
    probability: float,
) -> None:
    """Answer from the runs below DATA_ROOT: is the step linear, is the recorded change right, is the batch enough?"""
    from .report import read_parameters

    parameters = {name: value for name, value in click.get_current_context().params.items() if name != "etas"}
    try:
        given = read_parameters({**parameters, **({"etas": etas} if etas else {"eta": None})})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            large, small = given.large_runs(), given.small_runs()
            limits = {"tolerance": given.tolerance, "probability": given.probability}
            found = [
                verdict(large, eta, given.subset_size, small_runs=small or None, **limits)
                for eta in (given.etas if etas else (given.eta,))
            ]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(readable(given.table()))
    for answer in found:
        click.echo(f"\n{answer}")
    for note in dict.fromkeys(str(warning.message) for warning in caught):
        click.echo(f"Note: {note}.", err=True)


@main.command("report")
@click.option(
    "--data-root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    help="Folder of batch folders [default: the notebooks' own].",
)
@click.option("--large-batch", help="Batch folder that subsets are drawn from.")
@click.option("--small-batch", help="Batch folder of actual runs.")
@click.option("--eta", type=_POSITIVE, multiple=True, help="Step size; repeated, the first fills eta, all fill etas.")
@click.option("--subset-size", type=click.IntRange(1), help="Sequences in a subset.")
@click.option("--tolerance", type=_POSITIVE, help="Tolerance on abs(err_rel).")
@click.option("--probability", type=_PROBABILITY, help="Probability to be within the tolerance.")
@click.option("--notebooks", type=_PATH, help="Folder of notebooks.")
@click.option("--out", type=_PATH, default=Path("reports"), show_default=True, help="Folder of the pages.")
def report_command(
    data_root: str | None,
    large_batch: str | None,
    small_batch: str | None,
    eta: tuple[float, ...],
    subset_size: int | None,
    tolerance: float | None,
    probability: float | None,
    notebooks: Path | None,
    out: Path,
) -> None:
    """Run the notebooks once and write a report; the last line is the path of its first page.

    Exits with status 1 if a notebook failed; the pages then say which and why.
    """
    _require_notebooks()
    from .report import find_notebooks, run_notebooks, write_report

    options = click.get_current_context().params
    given = {name: options[name] for name in options if name not in ("notebooks", "out")}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    executions = []
    try:
        paths = find_notebooks(notebooks)
        for execution in run_notebooks(paths, given, out / "notebooks", progress=sys.stderr.isatty()):
            executions.append(execution)
            click.echo(f"{execution.name}: {execution.error or execution.skipped or 'done'}", err=True)
        index = write_report(executions, out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(index)
    if any(execution.error for execution in executions):
        sys.exit(1)


@main.command("sweep")
@click.option("--data-root", type=click.Path(exists=True, file_okay=False), help="Folder of batch folders.")
@click.option("--eta", multiple=True, help="Step size; may be repeated. Fills eta, or etas as a list of one.")
@click.option("--subset-size", multiple=True, help="Sequences in a subset; may be repeated.")
@click.option("-p", "--parameter", "others", multiple=True, nargs=2, help="Name and value of another parameter.")
@click.option("--notebook", "names", multiple=True, help="Name of a notebook to rerun; may be repeated [default: all].")
@click.option("--notebooks", type=_PATH, help="Folder of notebooks.")
@click.option("--workers", type=click.IntRange(1), help="Notebooks at once [default: the number of cores].")
@click.option("--scheduler", help="Address of a Dask scheduler, as in tcp://host:8786, to run on its workers instead.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the sweep.")
def sweep_command(
    data_root: str | None,
    eta: tuple[str, ...],
    subset_size: tuple[str, ...],
    others: tuple[tuple[str, str], ...],
    names: tuple[str, ...],
    notebooks: Path | None,
    workers: int | None,
    scheduler: str | None,
    out: Path,
) -> None:
    """Rerun notebooks with every combination of parameters; the last line is the path of the page.

    The same command again resumes a sweep. Exits with status 1 if a notebook failed.
    """
    _require_notebooks()
    from .report import run_and_report

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as with Ctrl-C, so that no kernel is left behind
    options: dict[str, list[str]] = {}
    given = [("data_root", v) for v in (data_root,) if v] + [("eta", v) for v in eta]
    for name, value in [*given, *(("subset_size", v) for v in subset_size), *others]:
        options.setdefault(name, []).append(value)
    try:
        index, failed = run_and_report(
            options, out.resolve(), names=names, folder=notebooks, workers=workers, scheduler=scheduler
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"stopped; the same command resumes it: {out}", err=True)
        sys.exit(130)
    click.echo(index)
    if failed:
        sys.exit(1)


@main.command()
@click.argument("root", type=_PATH)
def simulate(root: Path) -> None:
    """Write the sample data, runs with a known true answer, to ROOT."""
    write_sample_data(root)
    click.echo(root)


@main.command("measure")
@click.option("--demo", type=click.Path(path_type=Path), help="Train a tiny model and measure it, into this folder.")
@click.option("--model", help="Name or folder of a causal language model: the policy that is sampled and measured.")
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False), help="File with a prompt a line, as JSON.")
@click.option("--before", help="Model before the step [default: --model].")
@click.option("--after", help="Model after the step: the update direction is (after - before) / lr.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate of that step.")
@click.option("--eta", "etas", type=click.FloatRange(0, min_open=True), multiple=True, help="Step size; repeat it.")
@click.option("--sequences", type=click.IntRange(2), default=2048, show_default=True, help="Sequences in the batch.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Longest response.")
@click.option("--microbatch", type=click.IntRange(1), default=16, show_default=True, help="Sequences at once.")
@click.option("--device", default="cpu", show_default=True, help="Where to measure, such as cuda.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the responses.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder that the batch folder goes into.")
def measure_command(
    demo: Path | None,
    model: str | None,
    prompts: str | None,
    before: str | None,
    after: str | None,
    lr: float | None,
    etas: tuple[float, ...],
    sequences: int,
    max_new_tokens: int,
    microbatch: int,
    device: str,
    seed: int,
    out: Path | None,
) -> None:
    """Measure a causal language model: sample responses, and write the run of the step between two of its states.

    The last line is the path of the run; with --demo, the verdict comes instead. Needs the extra "measure".
    """
    try:
        from . import measure

        if demo is not None:
            measure.write_demo(demo)
            large, small = load_runs(demo / "E_1024"), load_runs(demo / "E_128")
            click.echo(verdict(large, large["run_01"].etas[2], 128, small_runs=small))
            return
        if model is None or prompts is None or after is None or lr is None or not etas or out is None:
            raise click.UsageError("give --model, --prompts, --after, --lr, --eta and --out, or --demo")
        policy, rows, eos = measure.load_policy(model, prompts)
        old, new = (measure.load_policy(name, prompts)[0].state_dict() for name in (before or model, after))
        v = measure.difference(old, new, lr)
        batch = measure.sample(
            policy.to(device),
            measure.drawn_prompts(rows, sequences, seed),
            max_new_tokens=max_new_tokens,
            eos=eos,
            seed=seed,
            microbatch=microbatch,
        )
        run = measure.measure(policy, batch, v, etas, microbatch=microbatch)
        path = next(p for k in count(1) if not (p := out / f"E_{sequences}" / f"run_{k:02d}" / RESULTS_FILE).exists())
        write_run(path, run)
    except (ImportError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(path)


if __name__ == "__main__":
    main(prog_name="analysis-helpers")
