"""The door: study files in, tables and pages out. It knows every room and decides nothing.

Answers go to stdout, everything else to stderr. Exit codes: 0 yes, 1 no, 2 misused, 130 interrupted.
Heavy rooms are imported inside the commands, so that `adamom --help` answers at once.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from dashboards import Archived, Estimate, Summary
    from storage import Counts, Store

YES, NO, MISUSED, INTERRUPTED = 0, 1, 2, 130
REFRESH_SECONDS = 0.25
WIDE = 400  # columns: more than any table needs
RATE_WINDOW_SECONDS = 10.0  # trials per second are counted over this much of the past

# Importing torch makes half a million objects that stay. Python's collector, walking them again and again, would take
# half a second of every command and of every worker that it starts.
gc.set_threshold(100_000, 50, 100)

app = typer.Typer(
    name="adamom",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study's name, or a study file (TOML).")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The database. Default: ADAMOM_STORE, else ./adamom.db."),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …; auto takes GPUs if there are any.")]
CheckpointsOption = Annotated[
    Path,
    typer.Option("--checkpoints", metavar="DIR", help="Where long trials leave what another worker can go on from."),
]
LanesOption = Annotated[
    int | None,
    typer.Option("--lanes", min=1, help="Trials trained as one program. Default: measured; 1 is a plain loop."),
]


def tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from studies.revision import commit

        typer.echo(f"adamom {version('adamom')} ({commit()})")
        raise typer.Exit


@app.callback()
def adamom(
    version: Annotated[
        bool,
        typer.Option("--version", callback=tell_version, is_eager=True, help="Say which release this is, and exit."),
    ] = False,
) -> None:
    """Measure how robust optimizers are to their hyperparameters."""


@app.command()
def run(
    study: StudyArgument,
    store: StoreOption = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Default: one per GPU, or per core.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes.")] = Path("."),
    device: DeviceOption = "auto",
    lanes: LanesOption = None,
    checkpoints: CheckpointsOption = Path("adamom-checkpoints"),
) -> None:
    """Plan a study, train what is missing, and write the report.

    Ctrl-C stops cleanly; the same command goes on where it stopped.

    Example: adamom run digits --workers 2 --out results
    """
    with explained():
        page = page_at(out / "report.html")
        from studies import spec
        from studies.engines import Crew, Job
        from studies.plan import plan as put

        asked = spec.load(study)
        devices = usable(device, workers)
        with opened(store, create=True, patient=True) as there:
            planned = put(there, asked)
            tell(f"{asked.name}: {planned.added} cells added, {planned.present} were there already.")
            if there.unfinished(asked.name):
                with Crew(Job(store, asked.name, lanes, checkpoints), devices) as crew:
                    follow(there, asked.name, crew.alive)
        told = measured(store, asked.name)
        publish(told, page)
        print_table(told.summary)
        tell(f"Report: {page}")
    raise typer.Exit(verdict(told.summary.counts))


@app.command()
def plan(
    study: StudyArgument,
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be added.")] = False,
) -> None:
    """Put the missing cells of a study into the store.

    Safe to repeat; a study file that has grown adds only what is new.

    Example: adamom plan my-study.toml --dry-run
    """
    with explained():
        from studies import spec
        from studies.plan import plan as put
        from studies.plan import would_plan

        asked = spec.load(study)
        if dry_run:
            planned = would_plan(store, asked)
        else:
            with opened(store, create=True) as there:
                planned = put(there, asked)
        verb = "would be added" if dry_run else "added"
        typer.echo(f"{asked.name}: {planned.added} cells {verb}, {planned.present} were there already.")


@app.command()
def work(
    study: StudyArgument,
    store: StoreOption = None,
    device: DeviceOption = "auto",
    max_trials: Annotated[int | None, typer.Option("--max-trials", min=1, help="Stop after so many.")] = None,
    lanes: LanesOption = None,
    checkpoints: CheckpointsOption = Path("adamom-checkpoints"),
) -> None:
    """Be one worker, until nothing is left.

    Start as many as you like, on as many machines as you like. Ctrl-C and SIGTERM give back what was not finished.

    Example: adamom work digits --store postgresql://adamom@db/adamom --device cuda
    """
    with explained():
        name = name_of(study)
        from studies.engines import Job
        from studies.engines import work as be_a_worker

        with opened(store) as there:
            there.study(name)  # a wrong address or name is said now; a database that goes away later is waited for
        logging.getLogger("studies").setLevel(logging.INFO)  # there is no progress bar to disturb
        finished = be_a_worker(Job(store, name, lanes, checkpoints), usable(device, 1)[0], max_trials)
        typer.echo(f"{name}: {finished} trials finished here.")


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="All studies, if left out.")] = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Counts per study and outcome, as JSON.")] = False,
) -> None:
    """Count the cells of each study by outcome.

    Example: adamom status digits --json
    """
    with explained():
        with opened(store) as there:
            counts = there.studies() if study is None else {(name := name_of(study)): there.counts(name)}
        if as_json:
            typer.echo(json.dumps({name: count.as_dict() for name, count in counts.items()}, indent=2))
        elif counts:
            print_counts(counts)
        else:
            tell("The store holds no study yet. Try: adamom run digits")


@app.command()
def report(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="A study of the store.")] = None,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    archive: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Write the page of a report.json again, without a store."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also each picture as SVG, PNG and PDF, and the table."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every metric as JSON on stdout; no page.")] = False,
) -> None:
    """Write the report of a study as one HTML page.

    Beside the page lies a .json of the same name with every cell, from which --from writes the page again. A study
    still running gives a report of what is there; what is not there is called "not run".

    Example: adamom report digits --out digits.html --figures figures
    """
    with explained():
        if (study is None) == (archive is None):
            raise MisuseError("Say which report: a STUDY of the store, or --from a report.json, not both.")
        if not as_json:
            page_at(out)
        if figures:
            writable(figures, "--figures")
        told = archived(archive) if archive else measured(store, name_of(study or ""))
        if as_json:
            typer.echo(json.dumps(told.summary.as_dict(), indent=2, allow_nan=False))
        else:
            publish(told, out)
            print_table(told.summary)
            tell(f"Report: {out}")
        if figures:
            draw(told.summary, figures)


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY…", help="Studies of the store, or report.json files.")],
    store: StoreOption = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="ARM", help="Compare every arm with it.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("comparison.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Every comparison as JSON on stdout; no page.")] = False,
) -> None:
    """Compare arms, within one study or across several, side by side.

    Example: adamom compare digits digits-cnn --baseline "sgd 0.9" --out both.html
    """
    with explained():
        if not as_json:
            page_at(out)
        from dashboards import compare as put_side_by_side
        from dashboards import write_comparison

        summaries = [
            (archived(Path(word)) if word.endswith(".json") else measured(store, name_of(word))).summary
            for word in studies
        ]
        try:
            comparison = put_side_by_side(summaries, baseline=baseline)
        except (KeyError, ValueError) as error:
            raise MisuseError(str(error.args[0])) from None
        if as_json:
            typer.echo(json.dumps(comparison.as_dict(), indent=2, allow_nan=False))
        else:
            write_comparison(comparison, out, command=command_line())
            for line in comparison.sentences:
                typer.echo(line)
            tell(f"Comparison: {out}")


@app.command()
def retry(
    study: StudyArgument,
    store: StoreOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Cells whose code raised.")] = False,
    oom: Annotated[bool, typer.Option("--oom", help="Cells that did not fit on the device.")] = False,
    pruned: Annotated[bool, typer.Option("--pruned", help="Cells that were stopped early.")] = False,
    lost: Annotated[
        bool, typer.Option("--lost", help="Cells whose worker is silent, and those that cost five workers their lives.")
    ] = False,
) -> None:
    """Queue finished cells again, by outcome; failed ones if nothing is said.

    A diverged run is a result and is not tried again.

    Example: adamom retry digits --failed --oom
    """
    with explained():
        from storage import Outcome

        wanted = {Outcome.FAILED: failed, Outcome.OOM: oom, Outcome.PRUNED: pruned, Outcome.LOST: lost}
        outcomes = [outcome for outcome, said in wanted.items() if said] or [Outcome.FAILED]
        name = name_of(study)
        with opened(store) as there:
            again = there.retry(name, outcomes)
        typer.echo(f"{name}: {again} cells are in the queue again. Try: adamom work {name}")


@app.command()
def export(
    study: StudyArgument,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="trials.parquet, .csv or .json: the suffix decides.")
    ],
    store: StoreOption = None,
) -> None:
    """Write a study, with every trial and curve, to one file.

    Example: adamom export digits --to digits.parquet
    """
    with explained():
        from storage import export_study

        name = name_of(study)
        target(to, "--to")
        with opened(store) as there:
            cells = export_study(there, name, to)
        typer.echo(f"{name}: {cells} cells are in {to}.")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `adamom export` wrote.")],
    store: StoreOption = None,
) -> None:
    """Bring an exported study into this store.

    What the store has already stays as it is.

    Example: adamom import digits.parquet --store postgresql://adamom@db/adamom
    """
    with explained():
        from storage import import_study

        with opened(store, create=True) as there:
            brought = import_study(there, file)
        typer.echo(f"{file}: {brought.planned.added} cells added, {brought.results} results brought.")


@app.command()
def doctor(store: StoreOption = None) -> None:
    """Check what the service stands on: the store, the devices, the software.

    Exit code 1 when something needs attention.

    Example: adamom doctor --store postgresql://adamom@db/adamom
    """
    with explained():
        from storage import doctor as examined
        from studies.engines import inventory

        checks = examined(store)
        for line in (*checks, *inventory()):
            typer.echo(str(line))
    raise typer.Exit(YES if all(check.ok for check in checks) else NO)


@app.command()
def studies() -> None:
    """List the shipped studies.

    Example: adamom studies
    """
    from studies.catalog import questions

    asked = questions()
    width = max(map(len, asked))
    for name, question in asked.items():
        typer.echo(f"{name:<{width}}  {question}")


def main() -> None:
    """The console command. A terminal that cannot write β or a study's ü shows its code instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="adamom: %(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        app()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        tell(
            f"adamom: {error.filename or 'the output'} cannot be written: {error.strerror}. Try: make room on its disk."
        )
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what Python still wants to write at its end
        sys.exit(NO)
    finally:
        if "triton" not in sys.modules:  # which counts what is left of it at the end, and tells
            gc.freeze()  # or the collector walks all of torch once more, which takes up to a second


@contextmanager
def explained() -> Iterator[None]:
    """A user's mistake is one line on stderr and exit code 2; a mistake of ours keeps its traceback."""
    from storage import StoreError
    from studies.catalog import StudyFileError

    try:
        yield
    except (StoreError, StudyFileError, MisuseError) as error:
        tell(f"adamom: {error}")
        raise typer.Exit(MISUSED) from None
    except ChildProcessError as error:
        tell(f"adamom: {error}")
        raise typer.Exit(NO) from None
    except KeyboardInterrupt:
        tell("Stopped. What was measured is stored; the same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None


class MisuseError(Exception):
    """An option cannot be used as it was given."""


def tell(line: str) -> None:
    """Say something that is not the answer."""
    typer.echo(line, err=True)


def opened(url: str | None, *, create: bool = False, patient: bool = False) -> Store:
    """The store. patient: from now on it waits for a database that goes away, and says so."""
    from storage import Store
    from storage.connection import PATIENCE_SECONDS

    store = Store.open(url, create=create)
    if not patient:
        return store
    store.close()
    return Store.open(url, create=False, patience_seconds=PATIENCE_SECONDS)


def name_of(study: str) -> str:
    from studies import catalog

    return catalog.name_of(study)


def usable(device: str, workers: int | None) -> list[torch.device]:
    """One device per worker. Raises MisuseError when torch cannot use it."""
    from studies import engines

    try:
        return engines.devices(device, workers)
    except ValueError as error:
        raise MisuseError(str(error)) from None


def page_at(file: Path) -> Path:
    """Where a page goes, and beside it its .json. Raises MisuseError when either cannot be written, or is the other."""
    if file.suffix == ".json":
        raise MisuseError(f"--out {file}: a page cannot have its data's name. Try: --out {file.with_suffix('.html')}")
    return target(file, "--out")


def target(file: Path, option: str) -> Path:
    """A file that can be written, its folder made if need be. Raises MisuseError."""
    writable(file.parent, option)
    if file.is_dir():
        raise MisuseError(f"{option} {file}: is a folder. Try: {option} another file")
    return file


def writable(folder: Path, option: str) -> None:
    """Make the folder if need be. Raises MisuseError when nothing can be written there."""
    probe = folder / ".adamom-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MisuseError(
            f"{option} {folder}: cannot write there ({error.strerror}). Try: {option} another folder"
        ) from None


def measured(url: str | None, name: str) -> Archived:
    """The numbers of a study of the store."""
    from dashboards import Archived, summarise

    with opened(url) as store:
        summary = summarise(store.study(name), store.trials(name), store.curves(name))
    return Archived(summary, command_line(), {})


def archived(file: Path) -> Archived:
    """The numbers of a report.json."""
    from dashboards import read_json

    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise MisuseError(str(error)) from None


def command_line() -> str:
    """What was typed, for the small print. A password has no business there."""
    return re.sub(r"(://[^:@/ ]*):[^@ ]*@", r"\1@", shlex.join(["adamom", *sys.argv[1:]]))


def publish(told: Archived, page: Path) -> None:
    """Write the page, and beside it the file it can be written from again."""
    from dashboards import write_json, write_page

    write_page(told.summary, page, command=told.command, provenance=told.provenance)
    write_json(told.summary, page.with_suffix(".json"), command=told.command, provenance=told.provenance)


def draw(summary: Summary, folder: Path) -> None:
    """Write every picture for a paper. Raises MisuseError where there is nothing to draw with."""
    from dashboards import FigureError, write_figures

    try:
        drawn = write_figures(summary, folder)
    except FigureError as error:
        raise MisuseError(f"--figures: {error}") from None
    tell(f"Figures: {len(drawn)} files in {folder}")


def verdict(counts: Counts) -> int:
    """Yes, when every cell has a result."""
    return YES if counts.finished == counts.total and not counts.failed and not counts.oom else NO


def follow(store: Store, name: str, alive: Callable[[], bool]) -> None:
    """Show how far the study is until nobody works on it any more."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        counts = store.counts(name)
        bar = progress.add_task(name, total=counts.total, now="starting workers")
        seen = deque([(time.monotonic(), counts.finished)])
        while alive():
            time.sleep(REFRESH_SECONDS)
            counts = store.counts(name)
            seen.append((time.monotonic(), counts.finished))
            progress.update(bar, total=counts.total, completed=counts.finished, now=pace(counts, seen))
        counts = store.counts(name)
        progress.update(bar, total=counts.total, completed=counts.finished, now=tally(counts))


def pace(counts: Counts, seen: deque[tuple[float, int]]) -> str:
    """Where the cells stand, how fast they finish, and how long the rest will take."""
    while len(seen) > 2 and seen[-1][0] - seen[0][0] > RATE_WINDOW_SECONDS:
        seen.popleft()
    (began, first), (now, last) = seen[0], seen[-1]
    rate = (last - first) / (now - began) if now > began else 0.0
    left = f"{(counts.total - counts.finished) / rate:.0f} s left" if rate else "time left unknown"
    return f"{tally(counts)} · {rate:.1f} trials/s · {left}"


def tally(counts: Counts) -> str:
    """The outcomes worth saying while a study runs; diverged is a result and always said."""
    said = [f"{counts.running} running", f"{counts.diverged} diverged"]
    said += [f"{count} {name}" for name in ("lost", "oom", "failed") if (count := getattr(counts, name))]
    return " · ".join(said)


def print_table(summary: Summary) -> None:
    """The answer: a row for each arm, then what it comes to."""
    from dashboards.style import decades, number, percent

    rows = [
        (
            row.arm,
            shown(row.best_loss, number),
            shown(row.basin, decades),
            shown(row.largest_stable_lr, number),
            shown(row.sensitivity, number),
            shown(row.diverged, percent),
            f"{row.measured} of {row.planned}",
        )
        for row in summary.rows
    ]
    headings = ("arm", "best loss", "basin, decades", "largest stable lr", "lr sensitivity", "diverged", "trials")
    print_rows(headings, rows, title=summary.study.question)
    typer.echo(f"\n{summary.sentence}")


def shown(estimate: Estimate, form: Callable[[float], str]) -> str:
    """An estimate and its interval as a cell of a table."""
    if not estimate.known:
        return "none" if estimate.n else "not run"
    value = f"{estimate.bound} {form(estimate.value)}".strip()
    return value if math.isnan(estimate.low) else f"{value} [{form(estimate.low)}, {form(estimate.high)}]"


def print_counts(counts: dict[str, Counts]) -> None:
    """A row for each study, a column for each outcome."""
    headings = ("study", *next(iter(counts.values())).as_dict())
    print_rows(headings, [(name, *map(str, count.as_dict().values())) for name, count in counts.items()])


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table, never cut: a terminal that is too narrow wraps its lines, a pipe gets them whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title and Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=WIDE)
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


if __name__ == "__main__":
    main()
