"""The commands that read a server over HTTP, from any machine. What one needs is imported when it runs."""

import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import click

from common.errors import SeriesGatewayError
from common.kinds import http_url
from common.times import stamp
from console.tables import as_json, show

VERDICTS = (
    "verified",
    "declared",
    "expected",
    "idle",
    "capped",
    "drained",
)  # models.SeriesVerdict, repeated here because models.py takes long to import
FILE = click.Path(dir_okay=False, path_type=Path)


def _of_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --url, --key-file and --ca to a command."""
    for option in (
        click.option(
            "--ca",
            envvar="SERIES_CA",
            type=FILE,
            help="PEM file of the certificates to trust; by default the system's.  [SERIES_CA]",
        ),
        click.option(
            "--key-file",
            envvar="SERIES_KEY_FILE",
            type=FILE,
            help="File with a key of scope series:read; or put the key itself into the environment variable SERIES_KEY."
            "  [SERIES_KEY_FILE]",
        ),
        click.option(
            "--url",
            envvar="SERIES_URL",
            default="http://127.0.0.1:8000",
            callback=_checked_url,
            help="URL of the server.  [SERIES_URL; default http://127.0.0.1:8000]",
        ),
    ):
        command = option(command)
    return command


def _checked_url(_: click.Context, __: click.Parameter, url: str) -> str:
    try:
        http_url(url)
    except ValueError:
        raise click.BadParameter(f"{url} is not an http or https URL, such as http://127.0.0.1:8000") from None
    return url


@click.command("on-complete")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_of_server
@click.option("--study", is_flag=True, help="Run for each complete study; by default for each complete series.")
@click.option(
    "--modality",
    "modalities",
    multiple=True,
    metavar="CT[,MR…]",
    help="Only for series of these modalities, or studies with such a series.",
)
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    metavar="VERDICT[,…]",
    default=["verified,declared,expected,idle"],
    show_default=True,
    help=f"Only for these verdicts, among {', '.join(VERDICTS)}.",
)
@click.option(
    "--first-only",
    is_flag=True,
    help="Run once for each series or study; by default it runs again for each later revision.",
)
@click.option(
    "--since",
    default="now",
    metavar="now|NUMBER",
    help="The change to begin after at the very first start; 0 begins with the oldest. Default: now.",
)
@click.option(
    "--state",
    type=FILE,
    help="File that remembers which changes were read and which commands are still to run.  [default: "
    "on-complete.db; with --study on-complete-studies.db]",
)
@click.option(
    "--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Commands that run at the same time."
)
@click.option(
    "--tries",
    default=8,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Attempts for each change before it is given up.",
)
@click.option(
    "--timeout",
    "timeout_s",
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="A command that runs longer is stopped and counts as failed.",
)
@click.option(
    "--once", is_flag=True, help="Handle the changes there are now, then exit; exit code 1 if one was given up."
)
@click.option("--failed", is_flag=True, help="List the changes that were given up.")
@click.option("--replay", is_flag=True, help="Try the changes that were given up again.")
@as_json
def on_complete(url: str, key_file: Path | None, ca: Path | None, **given: Any) -> None:
    """Run a command of yours for each complete series, or study.

    It runs on any machine that reaches the server, with a key of scope series:read. The command runs at least once for
    each change of a series, in order. {SeriesInstanceUID} in the command is replaced; no shell is used. On SIGTERM
    commands that run are allowed to finish.

    python server.py on-complete --modality CT -- ./run.sh {SeriesInstanceUID}

    python server.py on-complete --study -- ./run.sh {StudyInstanceUID}
    """
    from api.cli import on_complete as work
    from api.cli.remote import Remote
    from api.cli.runner import Order

    subject: Literal["series", "study"] = "study" if given["study"] else "series"
    state: Path = given["state"] or Path("on-complete-studies.db" if given["study"] else "on-complete.db")
    try:
        if given["failed"]:
            work.list_failed(state, given["as_json"])
        elif given["replay"]:
            work.replay(state)
        else:
            order = Order(
                command=_runnable(given["command"]),
                modalities=_words(given["modalities"]),
                verdicts=_words(given["verdicts"], VERDICTS),
                since=_place(given["since"]),
                subject=subject,
                **{name: given[name] for name in ("first_only", "jobs", "tries", "timeout_s")},
            )
            sys.exit(work.follow(Remote(url, key_file, ca), state, order, once=given["once"]))
    except SeriesGatewayError as error:
        raise click.ClickException(str(error)) from None


def _runnable(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command:
        raise click.UsageError("a command is missing, such as -- ./run.sh {SeriesInstanceUID}")
    if "{" not in command[0] and shutil.which(command[0]) is None:
        cure = "is it there, and executable (chmod +x)?"
        raise click.UsageError(f"{command[0]} cannot be started: {cure}")
    return command


def _words(given: Sequence[str], known: Sequence[str] = ()) -> frozenset[str]:
    words = {word.strip() for text in given for word in text.split(",")} - {""}
    if unknown := known and sorted(words - {*known}):
        raise click.UsageError(f"{unknown[0]} is not one of {', '.join(known)}")
    return frozenset(words)


def _place(since: str) -> int | str:
    if since != "now" and not since.isdecimal():
        raise click.UsageError(f"--since {since} is neither 'now' nor the number of a change")
    return since if since == "now" else int(since)


FILTERS = {
    "modality": "Modality",
    "verdict": "Verdict",
    "source": "Source",
    "patient_id": "PatientID",
    "study": "StudyInstanceUID",
    "study_date": "StudyDate",
    "updated_since": "UpdatedSince",
    "updated_until": "UpdatedUntil",
}


OF_SERIES = ("conflicts", "doubtful")  # filters that studies have not


@click.command
@_of_server
@click.option("--studies", is_flag=True, help="Export a row for each study; by default one for each series.")
@click.option(
    "--format",
    "form",
    default="csv",
    show_default=True,
    type=click.Choice(["csv", "jsonl"]),
    help="csv: the main columns of each; jsonl: its whole record.",
)
@click.option(
    "--output",
    metavar="FILE",
    type=FILE,
    help="Write to this file, readable by its owner only; by default to standard output.",
)
@click.option(
    "--updated-since",
    metavar="DAY",
    help="Only what last changed then or later: 2026-01-31, a time, yesterday or today.",
)
@click.option("--updated-until", metavar="DAY", help="Only what last changed before then.")
@click.option("--modality", help="Only series of this modality, or studies with such a series.")
@click.option("--verdict", type=click.Choice([*VERDICTS, "null"]), help="Only what has this verdict; null: none.")
@click.option(
    "--source",
    help="Only what comes from this source, just as `sources` names it: calling AE title, modality and, if images have "
    "it, station, such as 'CT1 CT SCANNER2'.",
)
@click.option("--study-date", metavar="DAYS", help="Only studies of this day or range: 20260131, 20260101-20260131.")
@click.option("--patient-id", help="Only this patient's.")
@click.option("--study", metavar="UID", help="Only this study.")
@click.option(
    "--incomplete", is_flag=True, help="Only series with missing images, or studies that lack images or series."
)
@click.option("--conflicts", is_flag=True, help="Only series with open conflicts.")
@click.option("--doubtful", is_flag=True, help="Only series in which something breaks the DICOM standard.")
def export(url: str, key_file: Path | None, ca: Path | None, form: str, output: Path | None, **given: Any) -> None:
    """Export the stored series, or studies, as CSV or JSON Lines.

    It runs on any machine that reaches the server, with a key of scope series:read. The output holds patients' names.
    """
    from api.cli.export import SERIES, STUDIES
    from api.cli.export import export as write
    from api.cli.remote import Remote

    if given["studies"] and (wrong := [name for name in OF_SERIES if given[name]]):
        raise click.UsageError(f"--{wrong[0]} is for series: leave it out, or --studies")
    for name in ("updated_since", "updated_until"):
        given[name] = given[name] and moment(given[name])
    query = {FILTERS[name]: given[name] for name in FILTERS if given[name]}
    query |= {name: "true" for name in ("Incomplete", "Conflicts", "Doubtful") if given[name.lower()]}
    try:
        remote = Remote(url, key_file, ca)
        if given["studies"]:
            count = write(remote, STUDIES, query, form, output)
        else:
            count = write(remote, SERIES, query, form, output)
    except SeriesGatewayError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{output or 'the output'} cannot be written: {error.strerror}") from None
    click.echo(f"{count:,} {'studies' if given['studies'] else 'series'}", err=True)


@click.command
@_of_server
@click.option("--unusual", is_flag=True, help="Only sources that are unusually silent.")
@as_json
def sources(url: str, key_file: Path | None, ca: Path | None, unusual: bool, as_json: bool) -> None:
    """List the sources: when each last sent, and which are unusually silent.

    It runs on any machine that reaches the server, with a key of scope series:read. docs/jobs.md says when silence
    counts as unusual.
    """
    from api.cli.remote import Remote
    from api.cli.sources import as_row, listed

    try:
        found = listed(Remote(url, key_file, ca), {"Unusual": "true"} if unusual else {})
    except SeriesGatewayError as error:
        raise click.ClickException(str(error)) from None
    show([one.model_dump(mode="json") if as_json else as_row(one) for one in found], as_json)


def moment(text: str) -> str:
    """Return a time in UTC. A day, today and yesterday begin at midnight of this machine's time zone."""
    today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    days = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return stamp((days.get(text) or datetime.fromisoformat(text)).astimezone())
    except (ValueError, OverflowError):  # the latter before the year 1
        raise click.UsageError(
            f"{text} is not a day or time; give, for example, yesterday, 2026-01-31 or 2026-01-31T08:00"
        ) from None
