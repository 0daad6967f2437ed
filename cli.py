"""The door: study files in, tables and pages out. It knows every room and decides nothing.

Answers go to stdout, everything else to stderr. Exit codes: 0 yes, 1 no, 2 misused, 130 interrupted.
Heavy rooms are imported inside the commands, so that `adamom --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from dashboards import Estimate, Summary
    from storage import Counts, Store, Trial

YES, NO, MISUSED, INTERRUPTED = 0, 1, 2, 130
REFRESH_SECONDS = 0.25
WIDE = 400  # columns: more than any table needs
RATE_WINDOW_SECONDS = 10.0  # trials per second are counted over this much of the past

app = typer.Typer(
    name="adamom",
    help="Measure how robust optimizers are to their hyperparameters.",
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
LanesOption = Annotated[
    int | None,
    typer.Option("--lanes", min=1, help="Trials trained as one program. Default: measured; 1 is a plain loop."),
]


@app.command()
def run(
    study: StudyArgument,
    store: StoreOption = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Default: one per GPU, or per core.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the report goes.")] = Path("."),
    device: DeviceOption = "auto",
    lanes: LanesOption = None,
) -> None:
    """Plan a study, train what is missing, and write the report.

    Ctrl-C stops cleanly; the same command goes on where it stopped.

    Example: adamom run digits --workers 2 --out results
    """
    with explained():
        page = writable(out) / "report.html"
        from studies import spec
        from studies.engines import Crew
        from studies.plan import plan as put

        asked = spec.load(study)
        devices = usable(device, workers)
        with opened(store, create=True, patient=True) as there:
            planned = put(there, asked)
            tell(f"{asked.name}: {planned.added} cells added, {planned.present} were there already.")
            if there.unfinished(asked.name):
                with Crew(store, asked.name, devices, lanes) as crew:
                    follow(there, asked.name, crew.alive)
            summary = reported(there, asked.name, page)
        print_table(summary)
        tell(f"Report: {page}")
    raise typer.Exit(verdict(summary.counts))


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
) -> None:
    """Be one worker, until nothing is left.

    Start as many as you like, on as many machines as you like. Ctrl-C and SIGTERM give back what was not finished.

    Example: adamom work digits --store postgresql://adamom@db/adamom --device cuda
    """
    with explained():
        name = name_of(study)
        from studies import engines

        finished = engines.work(store, name, usable(device, 1)[0], lanes, max_trials)
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
    study: StudyArgument,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Every metric as JSON on stdout; no page.")] = False,
) -> None:
    """Write the report of a study as one HTML page.

    A study still running gives a report of what is there; what is not there is called "not run".

    Example: adamom report digits --out digits.html
    """
    with explained():
        name = name_of(study)
        if not as_json:
            writable(out.parent)
        with opened(store) as there:
            summary = reported(there, name, None if as_json else out)
        if as_json:
            typer.echo(json.dumps(summary.as_dict(), indent=2, allow_nan=False))
        else:
            print_table(summary)
            tell(f"Report: {out}")


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
    """The console command."""
    logging.basicConfig(format="adamom: %(message)s", level=logging.WARNING, stream=sys.stderr)
    app()


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


def writable(folder: Path) -> Path:
    """The folder, made if need be. Raises MisuseError when nothing can be written there."""
    probe = folder / ".adamom-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MisuseError(f"--out {folder}: cannot write there ({error.strerror}). Try: --out another folder") from None
    return folder


def reported(store: Store, name: str, page: Path | None) -> Summary:
    """The study's numbers, and the page when one is wanted."""
    from dashboards import summarise, write_page

    trials = store.trials(name)
    summary = summarise(store.study(name), trials, store.curves(name))
    if page is not None:
        write_page(summary, page, command=shlex.join(["adamom", *sys.argv[1:]]), provenance=provenance(trials))
    return summary


def provenance(trials: Iterable[Trial]) -> dict[str, str]:
    """What the trials ran on: everything each of them said, once."""
    said: dict[str, dict[str, None]] = {}
    for trial in trials:
        for key, value in (trial.result.provenance if trial.result else {}).items():
            said.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(values) for key, values in said.items()}


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
    Console(width=WIDE).print(table)


if __name__ == "__main__":
    main()
