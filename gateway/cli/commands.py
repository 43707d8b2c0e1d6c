"""`python client.py …`: run the gateway, or a command of its operator. Commands work while the gateway runs or not.

Commands that only read open the journal read-only, beside the gateway that owns it. Commands that change it ask the
running gateway over its Unix socket; if none runs, the command takes the journal's lock and makes the change itself.

Modules that only some commands need are imported inside those commands, so that every command starts quickly.
"""

import json
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from common.control import NotRunning, RequestFailed, asked_or_done, request
from common.errors import SeriesGatewayError
from common.settings import GatewaySettings, SettingsError, load
from console.options import Group, flag
from console.shell_completion import NAMES, tab
from console.tables import show as show_
from gateway import journal_reader
from gateway.journal_reader import JournalUnusable

if TYPE_CHECKING:
    from gateway.cli.process import Run

T = TypeVar("T")
UNFINISHED = 3
"""Exit code if the gateway is not ready, or if something stays undelivered."""
REQUEST_TIMEOUT_S = 10.0
NOT_FLAGS = {"api_key"}  # every user of the machine can read a command line
POLL_S = 0.5  # how often `drain` updates its progress on a terminal
INIT = ("scp_host", "scp_port", "ae_title", "allowed_peers", "allow_any_peer", "pacs", "pacs_ca", "server_url", "id")
"""The settings that `init` asks for and takes as options. Any other flag, given before `init`, is written as well."""

SECTIONS = {
    "Listening": ("scp_host", "scp_port", "ae_title", "workers"),
    "Who may send": ("allowed_peers", "allow_any_peer"),
    "What is kept": ("extra_attributes",),
    "Limits": (
        "max_associations",
        "max_connections_per_peer",
        "associate_timeout_s",
        "pdu_timeout_s",
        "association_idle_timeout_s",
        "max_operations",
        "max_pdu_bytes",
        "max_command_bytes",
        "max_header_bytes",
        "inbox_size",
        "inbox_timeout_s",
    ),
    "TLS": ("tls_cert", "tls_key", "tls_ca", "tls_client_certs"),
    "Server and key": (
        "server_url",
        "server_ca",
        "proxy_from_env",
        "api_key_file",
        "id",
        "dispatch_concurrency",
        "request_timeout_s",
        "retry_max_s",
    ),
    "When a series is over": ("idle_policy", "idle_timeout_s", "idle_max_s", "missing_timeout_s", "max_open_s"),
    "Asking the PACS": ("pacs", "pacs_ca", "pacs_timeout_s", "fetch_missing"),
    "Journal and end": (
        "journal_path",
        "journal_max_bytes",
        "min_free_bytes",
        "max_pending_instances",
        "drain_timeout_s",
    ),
    "Telemetry": ("metrics_port", "metrics_host", "trace_path"),
}
"""The sections of --help, and the flags in each."""
NOTES = """\
Each flag is also an environment variable, or a line in .env; its name is in brackets: [GATEWAY_…].
A flag wins over the environment, and the environment over .env. Only the API key is not a flag;
set GATEWAY_API_KEY, or use --api-key-file.

Exit codes: 0 done; 1 failed, the error says how to fix it; 2 wrong flag, setting or argument;
3 status: not ready, drain: something stays undelivered, check: something failed.

Tab completion: source <(python client.py tab bash), or zsh; fish: … tab fish | source
Documentation: docs/index.md, docs/gateway.md"""


@dataclass(frozen=True)
class Context:
    """The settings that every command is given, and the function that runs the gateway."""

    settings: GatewaySettings
    run: "Run"

    @property
    def workers(self) -> list[GatewaySettings]:
        """Return the settings of each worker."""
        return [
            self.settings.model_copy(update={"journal_path": path, "workers": 1}) for path in self.settings.journals
        ]

    @property
    def only_worker(self) -> GatewaySettings:
        """Return the settings of the only worker: an id names one dead letter only if there is one journal."""
        if self.settings.workers > 1:
            raise click.UsageError("ids differ from worker to worker: add --workers 1 --journal-path with the journal")
        return self.settings


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
chosen = click.argument("ids", type=int, nargs=-1)
everyone = click.option("--all", "everyone", is_flag=True, help="Every dead letter.")


def command_line(run: "Run") -> click.Group:
    """Return the group of all commands. Without a command it runs the gateway, by `run`.

    Every setting is also a flag, except the API key.
    """

    @click.pass_context
    def gateway(context: click.Context, /, **flags: str | bool | None) -> None:
        """Receive DICOM images, and report each series once it is over. Without a command the gateway runs."""
        if context.invoked_subcommand in NAMES:
            return
        given = {name: value for name, value in flags.items() if value is not None}
        if context.invoked_subcommand == "init":
            context.obj = given  # init must run even if .env is wrong: it may repair it
            return
        try:
            settings = load(GatewaySettings, given)
        except SettingsError as error:
            context.obj = error
            if context.invoked_subcommand == "check":
                return
            raise click.UsageError(str(error)) from None
        context.obj = Context(settings, run)
        if context.invoked_subcommand is None:
            from gateway.cli.process import run_gateway

            run_gateway(settings, run)

    return Group(
        "client.py",
        callback=gateway,
        help=gateway.__doc__,
        params=[flag(GatewaySettings, name) for name in GatewaySettings.model_fields if name not in NOT_FLAGS],
        commands=[_init(), status, sources, check, drain, dead_letters, *tab("client.py")],
        invoke_without_command=True,
        sections=SECTIONS,
        notes=NOTES,
    )


@click.command
@as_json
@click.pass_obj
def status(context: Context, as_json: bool) -> None:
    """Show what the gateway holds, and whether it is ready.

    Exit code 3 if it is not ready.
    """
    each = [_status(settings) for settings in context.workers]
    show_(each if len(each) > 1 else each[0], as_json)
    sys.exit(0 if all(one["ready"] for one in each) else UNFINISHED)


def _status(settings: GatewaySettings) -> dict[str, Any]:
    held = _read(settings, journal_reader.status)
    live: dict[str, Any] = {"running": False, "ready": False, "reason": "not running"}
    try:
        live = request(settings.journal_path, REQUEST_TIMEOUT_S, "status")
    except RequestFailed as error:
        live |= {"running": True, "reason": str(error)}
    except NotRunning:
        pass
    return live | held | {"journal": str(settings.journal_path)}


@click.command
@as_json
@click.pass_obj
def sources(context: Context, as_json: bool) -> None:
    """List who has sent to this gateway, when last, and how long it waits for the next image.

    Waits are in seconds. Only waits learnt from this sender are shown, one for each place where it pauses.
    docs/completion.md explains them.
    """
    from gateway.cli.sources import as_text, listed

    try:
        rows = listed(context.workers)
    except JournalUnusable as error:
        raise click.ClickException(context.settings.as_typed(str(error))) from None
    show_(rows if as_json else [as_text(row) for row in rows], as_json)


@click.command
@as_json
@click.pass_obj
def check(context: Context | SettingsError, as_json: bool) -> None:
    """Check that everything is well, and say how to fix what is not.

    Run it before the gateway starts or while it runs. It checks settings, ports, TLS, each PACS, the server and the
    key, clocks, disk and journal, and changes nothing. Exit code 3 if something failed.
    """
    sys.exit(_check(context if isinstance(context, SettingsError) else context.settings, as_json))


def _check(settings: GatewaySettings | SettingsError, as_json: bool) -> int:
    from console import findings as findings_of

    if isinstance(settings, SettingsError):
        findings = findings_of.of_settings(settings)
    else:
        from common.logs import configure_logging
        from gateway.cli.check import check as check_gateway
        from gateway.cli.process import run_main

        configure_logging(silent=True)  # the findings say the same
        findings = run_main(check_gateway(settings), settings)
    return findings_of.show(findings, as_json)


def _init() -> click.Command:
    """Return the command `init`. Its options are settings and the key's file, never the key itself."""
    key = click.Option(
        ["--api-key-file"],
        metavar="FILE",
        help="File with this gateway's key to the server; - reads the key from standard input and writes it into .env. "
        "On a terminal you are asked for the key instead, and it is not shown.",
    )

    @click.pass_context
    def init(context: click.Context, /, **own: str | bool | None) -> None:
        """Set the gateway up: write .env, and say what to enter in the PACS.

        On a terminal it asks for whatever no option says; elsewhere it names the options that are missing. Other lines
        of .env stay as they are. At the end it runs `check`: exit code 3 if something failed.
        """
        from gateway.cli.init import set_up

        try:
            set_up({**context.obj, **{name: value for name, value in own.items() if value is not None}})
        except SeriesGatewayError as error:
            raise click.ClickException(str(error)) from None
        try:
            settings: GatewaySettings | SettingsError = load(GatewaySettings)
        except SettingsError as error:
            settings = error
        sys.exit(_check(settings, as_json=False))

    params: list[click.Parameter] = [*(flag(GatewaySettings, name) for name in INIT), key]
    return click.Command("init", callback=init, help=init.__doc__, params=params)


@click.command
@click.option("--study", metavar="UID", help="Only the open series of this study; the gateway has to run.")
@as_json
@click.pass_obj
def drain(context: Context, study: str | None, as_json: bool) -> None:
    """Report all open series now, and deliver every waiting report.

    Open series are reported with the verdict `drained`. Exit code 3 if something stays undelivered.
    """
    with _progress(context.workers):
        each = [_drain(one, context.run) if study is None else _drain_study(one, study) for one in context.workers]
    if not any(one.get("known", True) for one in each):
        raise click.ClickException(
            f"nothing of study {study} is here: no series of it is open, and no report waits for the server. "
            "`python client.py status` counts what is"
        )
    result = {name: sum(one[name] for one in each) for name in ("reported", "undelivered")}
    show_(result, as_json)
    sys.exit(UNFINISHED if result["undelivered"] else 0)


def _drain_study(settings: GatewaySettings, study: str) -> dict[str, Any]:
    from models import is_uid

    if not is_uid(study):
        raise click.UsageError(f"--study {study!r} is not a UID: give the study's Study Instance UID")

    async def done() -> dict[str, Any]:
        from gateway.journal_file import exclusive

        with exclusive(settings.journal_path):
            raise click.ClickException(
                f"no gateway runs on {settings.journal_path}: start it, or use `drain` without --study, which reports "
                "all"
            )

    timeout_s = 2 * settings.drain_timeout_s + REQUEST_TIMEOUT_S
    return asked_or_done(partial(_asked, settings, timeout_s, "drain", study=study), done, partial(_run_main, settings))


def _drain(settings: GatewaySettings, run: "Run") -> dict[str, Any]:
    async def done() -> dict[str, Any]:
        from gateway.cli.process import drained

        held = _read(settings, journal_reader.status)
        return {"reported": held["open_series"], "undelivered": await drained(settings, run)}

    timeout_s = 2 * settings.drain_timeout_s + REQUEST_TIMEOUT_S
    return asked_or_done(partial(_asked, settings, timeout_s, "drain"), done, partial(_run_main, settings))


@click.group("dead-letters")
def dead_letters() -> None:
    """Manage dead letters: reports that the server refused for good."""


@dead_letters.command("list")
@as_json
@click.pass_obj
def list_(context: Context, as_json: bool) -> None:
    """List dead letters and why each was refused; no patient data is shown."""
    each = [(settings, _read(settings, journal_reader.dead_letters)) for settings in context.workers]
    show_([row | {"journal": str(settings.journal_path)} for settings, rows in each for row in rows], as_json)


@dead_letters.command
@click.argument("id", type=int)
@as_json
@click.pass_obj
def show(context: Context, id: int, as_json: bool) -> None:
    """Show one dead letter with its report as it was posted, patient data included."""
    letter = _read(context.only_worker, partial(journal_reader.dead_letter, id=id))
    if letter is None:
        raise click.ClickException(f"no dead letter {id}; `dead-letters list` shows them")
    show_(letter | {"report": _content(letter["report"])}, as_json)


@dead_letters.command
@chosen
@everyone
@as_json
@click.pass_obj
def replay(context: Context, ids: tuple[int, ...], everyone: bool, as_json: bool) -> None:
    """Post dead letters again, once the cause of the refusal is fixed."""
    _change(context, as_json, "replay", ids=_choose(ids, everyone))


@dead_letters.command
@chosen
@everyone
@click.option("--reason", required=True, help="Why; it is kept in the journal's history.")
@as_json
@click.pass_obj
def discard(context: Context, ids: tuple[int, ...], everyone: bool, reason: str, as_json: bool) -> None:
    """Give up dead letters for good; they are not posted again."""
    _change(context, as_json, "discard", ids=_choose(ids, everyone), reason=reason)


def _content(report: Any) -> Any:
    """Parse a report's JSON; return it unchanged if it is not JSON."""
    try:
        return json.loads(report)
    except (ValueError, TypeError, RecursionError):
        return report


# --- helpers -------------------------------------------------------------------------------------------------


@contextmanager
def _progress(workers: list[GatewaySettings]) -> Iterator[None]:
    """Show on a terminal how many series and reports still wait."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    console = Console(stderr=True)
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_S):
            with suppress(JournalUnusable):
                held = [journal_reader.status(settings.journal_path) for settings in workers]
                waiting, series = (sum(one[name] for one in held) for name in ("waiting_reports", "open_series"))
                shown.update(f"draining: {series} series open, {waiting} reports to deliver")

    with console.status("draining") as shown:
        polling = threading.Thread(target=poll, name="progress")
        polling.start()
        try:
            yield
        finally:
            ended.set()
            polling.join()


def _read(settings: GatewaySettings, question: Callable[[Path], T]) -> T:
    """Ask a worker's journal a question of journal_reader.py; return the answer."""
    try:
        return question(settings.journal_path)
    except JournalUnusable as error:
        raise click.ClickException(settings.as_typed(str(error))) from None


def _asked(settings: GatewaySettings, timeout_s: float, do: str, **arguments: Any) -> dict[str, Any]:
    """Ask the running gateway to do an operation; return its answer. Raises NotRunning."""
    try:
        return request(settings.journal_path, timeout_s, do, **arguments)
    except RequestFailed as error:
        raise click.ClickException(str(error)) from None


def _choose(ids: tuple[int, ...], everyone: bool) -> list[int] | None:
    """Return the chosen ids, or None for --all. Raises click.UsageError unless exactly one of them was given."""
    if bool(ids) == everyone:
        raise click.UsageError("name dead letters by their id, or give --all")
    return None if everyone else list(ids)


def _change(context: Context, as_json: bool, do: str, ids: list[int] | None, **arguments: Any) -> None:
    """Change dead letters of one worker, or all dead letters of every worker."""
    workers = context.workers if ids is None else [context.only_worker]
    each = [_change_one(settings, do, ids=ids, **arguments) for settings in workers]
    ended = {
        name: [i for one in each for i in one.get(name, ())] for name in dict.fromkeys(n for one in each for n in one)
    }
    show_(ended, as_json)
    problems = []
    if missing := set(ids or ()) - {i for those in ended.values() for i in those}:
        problems.append(f"not dead letters: {', '.join(map(str, sorted(missing)))}")
    if unmade := ended.get("unmade"):
        names = ", ".join(map(str, unmade))
        problems.append(f"no report can be made from {names}; they stay dead letters: `dead-letters list` says why")
    if problems:
        raise click.ClickException("; ".join(problems))


def _change_one(settings: GatewaySettings, do: str, **arguments: Any) -> dict[str, Any]:
    async def done() -> dict[str, Any]:
        from gateway.cli.process import changed_dead_letters

        return await changed_dead_letters(settings, do, **arguments)

    _read(settings, journal_reader.status)  # raises if there is no journal
    return asked_or_done(
        partial(_asked, settings, REQUEST_TIMEOUT_S, do, **arguments), done, partial(_run_main, settings)
    )


def _run_main(settings: GatewaySettings, main: Coroutine[Any, Any, T]) -> T:
    from gateway.cli.process import run_main

    return run_main(main, settings)
