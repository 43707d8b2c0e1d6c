"""The commands that read a server over HTTP, on any machine; what they need is imported when they run."""

import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from common.errors import GatewayError
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
)  # as models.py has them, which takes long to import
FILE = click.Path(dir_okay=False, path_type=Path)


def _of_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the server is, and what lets one in."""
    for option in (
        click.option("--ca", envvar="SERIES_CA", type=FILE, help="Whose certificates to trust.  [SERIES_CA]"),
        click.option(
            "--key-file",
            envvar="SERIES_KEY_FILE",
            type=FILE,
            help="Holds a key of scope series:read, or SERIES_KEY in the environment does.  [SERIES_KEY_FILE]",
        ),
        click.option(
            "--url",
            envvar="SERIES_URL",
            default="http://127.0.0.1:8000",
            callback=_checked_url,
            help="Where the server answers.  [SERIES_URL; default http://127.0.0.1:8000]",
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
@click.option("--modality", "modalities", multiple=True, metavar="CT[,MR…]", help="Only for series of these.")
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    metavar="VERDICT[,…]",
    default=["verified,declared,expected,idle"],
    show_default=True,
    help=f"Only with these: {', '.join(VERDICTS)}.",
)
@click.option("--first-only", is_flag=True, help="Once a series; by default again for each later revision.")
@click.option(
    "--since", default="now", metavar="now|NUMBER", help="Where the first start begins; 0: all there ever was."
)
@click.option(
    "--state", default="on-complete.db", show_default=True, type=FILE, help="Keeps its place, and what is to do."
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1, 256), help="Scripts at a time.")
@click.option("--tries", default=8, show_default=True, type=click.IntRange(1, 1000), help="Before one is given up.")
@click.option(
    "--timeout",
    "timeout_s",
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="A script that takes longer is ended, and has failed.",
)
@click.option("--once", is_flag=True, help="Do what there is, and end: exit code 1 if a script was given up.")
@click.option("--failed", is_flag=True, help="List those that were given up.")
@click.option("--replay", is_flag=True, help="Let those that were given up be tried again.")
@as_json
def on_complete(url: str, key_file: Path | None, ca: Path | None, **given: Any) -> None:
    """Run a command for each series that is complete.

    On any machine that reaches the server, with a key of scope series:read. In order of each series, at least once;
    {SeriesInstanceUID} in the command is filled in, no shell is used. SIGTERM lets what runs end.

    python server.py on-complete --modality CT -- ./run.sh {SeriesInstanceUID}
    """
    from api.cli import on_complete as work
    from api.cli.remote import Remote
    from api.cli.runner import Order

    state: Path = given["state"]
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
                **{name: given[name] for name in ("first_only", "jobs", "tries", "timeout_s")},
            )
            sys.exit(work.follow(Remote(url, key_file, ca), state, order, once=given["once"]))
    except GatewayError as error:
        raise click.ClickException(str(error)) from None


def _runnable(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command:
        raise click.UsageError("a command is missing, such as -- ./run.sh {SeriesInstanceUID}")
    if "{" not in command[0] and shutil.which(command[0]) is None:
        cure = "is it there, and executable (chmod +x)?"
        raise click.UsageError(f"{command[0]} is no program that can be started: {cure}")
    return command


def _words(given: Sequence[str], known: Sequence[str] = ()) -> frozenset[str]:
    words = {word.strip() for text in given for word in text.split(",")} - {""}
    if unknown := known and sorted(words - {*known}):
        raise click.UsageError(f"{unknown[0]} is none of {', '.join(known)}")
    return frozenset(words)


def _place(since: str) -> int | str:
    if since != "now" and not since.isdecimal():
        raise click.UsageError(f"--since {since} is neither now nor a change's number")
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


@click.command
@_of_server
@click.option(
    "--format",
    "form",
    default="csv",
    show_default=True,
    type=click.Choice(["csv", "jsonl"]),
    help="A line of columns for each series, or its whole record.",
)
@click.option("--output", metavar="FILE", type=FILE, help="For its owner only; by default standard output.")
@click.option("--updated-since", metavar="DAY", help="Last changed then or later: yesterday, today, a day or a time.")
@click.option("--updated-until", metavar="DAY", help="Last changed before then.")
@click.option("--modality", help="Only of this one.")
@click.option("--verdict", type=click.Choice(VERDICTS), help="Only with this one.")
@click.option("--source", help="Only from this one: calling AE title and modality, 'CT1 CT'.")
@click.option("--study-date", metavar="DAYS", help="20260131, or 20260101-20260131.")
@click.option("--patient-id", help="Only of this patient.")
@click.option("--study", metavar="UID", help="Only of this study.")
@click.option("--incomplete", is_flag=True, help="Only those with images missing.")
@click.option("--conflicts", is_flag=True, help="Only those with open conflicts.")
@click.option("--doubtful", is_flag=True, help="Only those of which something breaks the standard.")
def export(url: str, key_file: Path | None, ca: Path | None, form: str, output: Path | None, **given: Any) -> None:
    """Write stored series as CSV or lines of JSON.

    On any machine that reaches the server, with a key of scope series:read. It holds patients' names.
    """
    from api.cli.export import export as write
    from api.cli.remote import Remote

    for name in ("updated_since", "updated_until"):
        given[name] = given[name] and moment(given[name])
    query = {FILTERS[name]: given[name] for name in FILTERS if given[name]}
    query |= {name: "true" for name in ("Incomplete", "Conflicts", "Doubtful") if given[name.lower()]}
    try:
        count = write(Remote(url, key_file, ca), query, form, output)
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot be written: {error.strerror}") from None
    click.echo(f"{count:,} series", err=True)


@click.command
@_of_server
@click.option("--unusual", is_flag=True, help="Only those that are unusually silent.")
@as_json
def sources(url: str, key_file: Path | None, ca: Path | None, unusual: bool, as_json: bool) -> None:
    """Who sends, when last, and who is unusually silent.

    On any machine that reaches the server, with a key of scope series:read. docs/jobs.md says what unusual is.
    """
    from api.cli.remote import Remote
    from api.cli.sources import as_row, listed

    try:
        found = listed(Remote(url, key_file, ca), {"Unusual": "true"} if unusual else {})
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
    show([one.model_dump(mode="json") if as_json else as_row(one) for one in found], as_json)


def moment(text: str) -> str:
    """A time in UTC: a day, today and yesterday begin at midnight here."""
    today = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    days = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return stamp((days.get(text) or datetime.fromisoformat(text)).astimezone())
    except (ValueError, OverflowError):  # the latter before the year 1
        raise click.UsageError(
            f"{text} is no day and no time, such as yesterday, 2026-01-31 or 2026-01-31T08:00"
        ) from None
