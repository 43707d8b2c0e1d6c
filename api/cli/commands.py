"""`python server.py …`: keys, webhooks, what a person says of a series, and the move to PostgreSQL.

A server on SQLite is the only one that may write its file, so it is asked to, on a Unix socket; where none runs, and on
PostgreSQL, the command does it itself. What only some commands need is imported where they need it.
"""

import sqlite3
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from api.cli.readers import VERDICTS, export, moment, on_complete, sources
from common.control import NotRunning, RequestFailed, request
from common.errors import GatewayError
from common.kinds import http_url
from common.settings import ServerSettings, SettingsError, load, without_password
from console.options import Group, environment
from console.shell_completion import NAMES, tab
from console.tables import as_json, show
from storage import key_reader
from storage.key_reader import SCOPES

REQUEST_TIMEOUT_S = 10.0
CHANGE_KINDS = ("created", "revised", "verified", "declared", "contradicted", "conflict")  # as models.py has them
MAX_BECAUSE = 256  # characters, likewise
T = TypeVar("T")


# --- the command line -------------------------------------------------------------------------------------------


NOTES = f"""\
Settings, from the environment or .env:
{environment(ServerSettings)}

Exit codes: 0 done; 1 it could not be done, and the error says the cure; 2 wrong setting or argument;
3 check: something failed.

Tab completes: source <(python server.py tab bash), or zsh; fish: … tab fish | source
Docs: docs/index.md, docs/server.md"""


def command_line() -> click.Group:
    """The commands; the server itself is `uvicorn server:app`."""

    @click.pass_context
    def server(context: click.Context, /) -> None:
        """Keys, webhooks, a purge, the move to PostgreSQL, and a check. The server runs as `uvicorn server:app`."""
        if context.invoked_subcommand in (*NAMES, "init"):  # .env may be what init is to mend
            return
        try:
            context.obj = load(ServerSettings)
        except SettingsError as error:
            context.obj = error
            if context.invoked_subcommand != "check":
                raise click.UsageError(str(error)) from None

    commands = [init, check, keys, gateways_, webhooks_, declare, on_complete, export, sources, move_, purge]
    commands += tab("server.py")
    return Group(
        "server.py", callback=server, help=server.__doc__, commands=commands, no_args_is_help=True, notes=NOTES
    )


@click.command
@click.option("--url", help="Where it answers, if not at http://HOST:PORT; behind a proxy, say.")
@click.option("--host", default="127.0.0.1", show_default=True, help="As uvicorn is told.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="As uvicorn is told.")
@as_json
@click.pass_obj
def check(settings: ServerSettings | SettingsError, url: str | None, host: str, port: int, as_json: bool) -> None:
    """Look whether all is well, and what cures what is not.

    Before the start, or beside a running server: settings, database, schema, disk, keys, webhooks, conflicts, ports.
    Nothing is changed. Exit code 3 if something failed.
    """
    from console import findings as findings_of

    if isinstance(settings, SettingsError):
        findings = findings_of.of_settings(settings)
    else:
        from api.cli.check import check as check_server

        findings = _run(check_server(settings, host, port, url))
    sys.exit(findings_of.show(findings, as_json))


@click.command
@click.option(
    "--database-url",
    metavar="URL",
    help="Where series are stored; no password here, where others see it: a terminal asks, DATABASE_URL may hold it.",
)
@click.option("--host", help="Address of this machine where gateways and readers reach it, as uvicorn is told.")
@click.option("--port", type=click.IntRange(1, 65535), help="As uvicorn is told; by default 8000.")
@click.option(
    "--gateway",
    metavar="NAME",
    help="Make a key for this gateway, unless it has one; by default gateway-1, where none may post. - makes none.",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key to this file, for its owner only, instead of showing it.",
)
def init(**given: Any) -> None:
    """Ask what is needed, write .env, make the gateway's key.

    Where series are stored and who reaches the server; the database is made, where there is none. On a terminal it asks
    for what no flag says. Other lines of .env stay as they are. The key is shown once. Then it checks, as `check` does:
    exit code 3 where something failed.
    """
    from api.cli.check import check as check_server
    from api.cli.init import set_up
    from console import findings as findings_of

    try:
        settings, host, port = set_up({name: v for name, v in given.items() if v is not None}, _do, _make_key)
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(findings_of.show(_run(check_server(settings, host, port, None)), as_json=False))


@click.group
def keys() -> None:
    """Keys to the HTTP API. From the first one on, everyone needs one, gateways too."""


@keys.command
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(list(SCOPES)),
    help="; ".join(f"{name}: {meaning}" for name, meaning in SCOPES.items()) + ". May be given several times.",
)
@click.option("--expires-in", metavar="DAYS", type=click.FloatRange(0, 36500, min_open=True), help="By default never.")
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key to this file, for its owner only, instead of showing it; nothing is done where it exists.",
)
@click.option(
    "--with-gateway",
    metavar="NAME",
    help="Make this gateway's key, too, where none may post yet: the first key shuts out a gateway that has none.",
)
@click.option("--yes", is_flag=True, help="Make the first key although a gateway without one is then shut out.")
@as_json
@click.pass_obj
def create(  # noqa: PLR0913, PLR0917 - one parameter an option
    settings: ServerSettings,
    name: str,
    scopes: tuple[str, ...],
    expires_in: float | None,
    save: Path | None,
    with_gateway: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Make a key and show it, once.

    From the first key on everyone needs one. Where that would shut a gateway out, it says so before, and offers to make
    the gateway's as well.
    """
    from api.cli.first_key import GATEWAY_SCOPES, gateway_without

    if save is not None and save.exists() and save.stat().st_size:
        click.echo(f"{save} exists; no key was made")
        return
    gateway = gateway_without(_posters(settings), scopes, with_gateway, yes)
    gateways_key = gateway and _make_key(settings, gateway, GATEWAY_SCOPES)
    expires_at = (datetime.now(UTC) + timedelta(days=expires_in)).isoformat() if expires_in else None
    made = _make_key(settings, name, scopes, save, expires_at)
    if gateways_key and as_json:
        show(made | {"gateway": gateways_key}, as_json)
        return
    for one in (gateways_key, made):
        if one:
            show(one, as_json)


def _posters(settings: ServerSettings) -> dict[str, Any]:
    try:
        return _do(settings, "posters")
    except click.ClickException:  # a server of an earlier version runs: it makes keys, and does not know whom that hits
        return {"made": bool(_do(settings, "list_keys")["rows"]), "may_post": [], "heard": []}


def _make_key(
    settings: ServerSettings,
    name: str,
    scopes: Sequence[str],
    save: Path | None = None,
    expires_at: str | None = None,
) -> dict[str, Any]:
    """Make a key; what may be shown of it, and the key itself unless it was saved."""
    part = save and _new_file(save.with_name(f"{save.name}.new"))  # where it cannot be kept, none is made
    made = _do(settings, "create_key", name=name, scopes=list(scopes), expires_at=expires_at)
    if save is not None and part is not None:
        part.write_text(made.pop("key") + "\n")
        part.rename(save)
    return made


@keys.command("list")
@as_json
@click.pass_obj
def list_(settings: ServerSettings, as_json: bool) -> None:
    """Every key that was made; the keys themselves are not stored."""
    show(_keys(settings), as_json)


@keys.command
@click.argument("id")
@click.pass_obj
def revoke(settings: ServerSettings, id: str) -> None:
    """End a key at once."""
    if not _do(settings, "revoke_key", id=id)["done"]:
        raise click.ClickException(f"no key {id} that is not revoked; `keys list` shows them")
    from api.cli.first_key import warn_without_gateway

    with suppress(click.ClickException):  # a server of an earlier version runs: it ends keys, and cannot tell this
        warn_without_gateway(_do(settings, "posters"))


@click.group("webhooks")
def webhooks_() -> None:
    """Who is told of changes.

    One signed POST for each, in order, at least once.
    """


@webhooks_.command
@click.argument("url")
@click.option("--from-start", is_flag=True, help="Tell every change there ever was; by default those from now on.")
@click.option(
    "--link-local", is_flag=True, help="It may be in 169.254.0.0/16 or fe80::/10, where clouds keep machines' secrets."
)
@click.option("--modality", "Modality", multiple=True, help="Only of these. May be given several times, as the next.")
@click.option("--source", "Source", multiple=True, help="Only from these: calling AE title and modality, 'CT1 CT'.")
@click.option("--verdict", "Verdict", multiple=True, type=click.Choice(VERDICTS), help="Only with these.")
@click.option("--kind", "Kinds", multiple=True, type=click.Choice(CHANGE_KINDS), help="Only of these kinds.")
@as_json
@click.pass_obj
def add(
    settings: ServerSettings, /, url: str, from_start: bool, link_local: bool, as_json: bool, **only: tuple[str, ...]
) -> None:
    """Tell URL of changes; shows the secret that bodies are signed with, once.

    All changes, or those that have one of the values in each field that is given.
    """
    from common.outgoing import is_link_local

    try:
        host = http_url(url).host
    except ValueError:
        raise click.UsageError(f"{url} is not an http or https URL, such as https://ai.example/hook") from None
    if is_link_local(host) and not link_local:
        raise click.UsageError(f"{host} is a link-local address: add --link-local, if that is meant")
    filters = {name: [*values] for name, values in only.items() if values}
    asked = {"url": url, "from_start": from_start, "link_local": link_local, "filters": filters}
    show(_do(settings, "add_webhook", **asked), as_json)


@webhooks_.command("list")
@as_json
@click.pass_obj
def list_webhooks(settings: ServerSettings, as_json: bool) -> None:
    """Every webhook, how far it is behind, its last problem, and how many changes were given up."""
    show(_do(settings, "list_webhooks")["rows"], as_json)


@webhooks_.command
@click.argument("id", type=int)
@click.pass_obj
def remove(settings: ServerSettings, id: int) -> None:
    """Tell it no more."""
    if not _do(settings, "remove_webhook", id=id)["done"]:
        raise click.ClickException(f"no webhook {id}; `webhooks list` shows them")


@webhooks_.command
@click.argument("id", type=int)
@click.option(
    "--keep-old",
    "hours",
    metavar="HOURS",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0, 8760),
    help="How long bodies are signed with the secret before, too; 0 where it has leaked.",
)
@as_json
@click.pass_obj
def rotate(settings: ServerSettings, id: int, hours: float, as_json: bool) -> None:
    """Give a webhook another secret, shown once; it stays where it is in the changes.

    Until the receiver knows the new one, each body carries a signature by either. Meanwhile there is no third secret,
    except with --keep-old 0, which ends both.
    """
    done = _do(settings, "rotate_webhook", id=id, keep_old_s=3600 * hours)
    if done["secret"] is None and done["old_until"]:
        cure = "wait until then, or end both at once with --keep-old 0"
        raise click.ClickException(f"webhook {id} has two secrets that sign until {done['old_until']}; {cure}")
    if done["secret"] is None:
        raise click.ClickException(f"no webhook {id}; `webhooks list` shows them")
    show(done, as_json)


@webhooks_.command
@click.argument("id", type=int)
@as_json
@click.pass_obj
def replay(settings: ServerSettings, id: int, as_json: bool) -> None:
    """Tell again from the first change that was given up; what came after it is told twice."""
    done = _do(settings, "replay_webhook", id=id)
    if done["from"] is None:
        raise click.ClickException(f"webhook {id} has no change that was given up")
    show(done, as_json)


@webhooks_.command
@click.argument("id", type=int)
@as_json
@click.pass_obj
def discard(settings: ServerSettings, id: int, as_json: bool) -> None:
    """Forget the changes that were given up: nobody tells them again."""
    done = _do(settings, "discard_webhook", id=id)
    if not done["discarded"]:
        raise click.ClickException(f"webhook {id} has no change that was given up")
    show(done, as_json)


@click.group("gateways")
def gateways_() -> None:
    """Gateways that the server has heard of within a day."""


@gateways_.command("list")
@as_json
@click.pass_obj
def list_gateways(settings: ServerSettings, as_json: bool) -> None:
    """When each was heard of last, and why one is refused."""
    show(_do(settings, "list_gateways")["rows"], as_json)


@gateways_.command
@click.argument("name")
@click.pass_obj
def dismiss(settings: ServerSettings, name: str) -> None:
    """Forget a gateway that is gone: the live page no longer names it.

    Should it say something again, it is back. What it holds stays in its journal.
    """
    done = _do(settings, "dismiss_gateway", name=name)
    if not done["done"]:
        raise click.ClickException(done["problem"] or f"no gateway {name}; `gateways list` shows them")


@click.command
@click.argument("series", metavar="SERIES")
@click.argument("declared", type=click.Choice(["complete", "incomplete"]))
@click.option("--because", metavar="TEXT", required=True, help="Why: kept with the series, and shown to who reads it.")
@as_json
@click.pass_obj
def declare(settings: ServerSettings, series: str, declared: str, because: str, as_json: bool) -> None:
    """Say that a series is complete, or that it is not.

    SERIES is its Series Instance UID. complete: gateways that have it open report it within seconds, with the verdict
    `declared`. incomplete: its verdict is withdrawn until images come, or its PACS has just what is here. Who said it,
    and why, stands in its timeline.
    """
    if not because.strip() or len(because.strip()) > MAX_BECAUSE or not because.strip().isprintable():
        raise click.UsageError(f"--because is a line of 1 to {MAX_BECAUSE} characters")
    _need_database(settings)
    asked = {"series_instance_uid": series, "declared": declared, "because": because.strip(), "by": _operator()}
    done = _do(settings, "declare", **asked)
    if "unknown" in done:
        raise click.ClickException(done["unknown"])
    show(done, as_json)


def _operator() -> str:
    """Who types, by the name that this machine knows."""
    import getpass

    try:
        return f"{getpass.getuser()}, command line"
    except (KeyError, OSError):  # in a container a user may have no name
        return "command line"


@click.command("move")
@click.argument("target", metavar="postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE", envvar="MOVE_TO")
@click.pass_obj
def move_(settings: ServerSettings, target: str) -> None:
    """Copy SQLite to an empty PostgreSQL, and compare.

    The server at the SQLite file of DATABASE_URL must be stopped; every row is compared afterwards. A move that was
    broken off goes on where it was. The target may also stand in the environment, as MOVE_TO: others on this machine
    see a command's arguments.
    """
    if settings.sqlite_path is None:
        raise click.UsageError(f"DATABASE_URL={without_password(settings.database_url)} is not a SQLite file")
    try:
        ServerSettings(database_url=target)
    except SettingsError:
        raise click.UsageError(
            "the target must have the form postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    from api.cli.move import move_to

    _run(move_to(settings, settings.model_copy(update={"database_url": target})))
    click.echo(f"moved; now run the server with DATABASE_URL={without_password(target)}")


@click.command
@click.option("--before", "day", required=True, metavar="DAY", help="As export takes it: a day, a time, yesterday.")
@click.option("--dry-run", is_flag=True, help="Only count what would go and what would stay.")
@as_json
@click.pass_obj
def purge(settings: ServerSettings, day: str, dry_run: bool, as_json: bool) -> None:
    """Forget series that have not changed since a day.

    With their images, timelines and changes; and old changes of those that stay. Beside a running server or without
    one. A series stays that has an open conflict, or a change that a webhook was not told. Broken off, it goes on when
    it is run again. Should a series be sent once more, its timeline begins with when it was purged.
    """
    from api.cli.purge import purge as forget

    before = datetime.fromisoformat(moment(day))
    if before > datetime.now(UTC):
        raise click.UsageError(f"{day} is in the future")
    _need_database(settings)
    _run(forget(settings, before, dry=dry_run, as_json=as_json))


# --- helpers ----------------------------------------------------------------------------------------------------


def _need_database(settings: ServerSettings) -> None:
    """Refuse to make an empty SQLite file in the wrong folder, which would know of nothing."""
    path = settings.sqlite_path
    if path is not None and not path.exists():
        raise click.ClickException(f"{path} does not exist: name the server's database, as DATABASE_URL")


def _new_file(path: Path) -> Path:
    """An empty file for its owner only."""
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}; no key was made") from error
    return path


def _do(settings: ServerSettings, operation: str, /, **arguments: Any) -> dict[str, Any]:
    """The answer of the server that runs on the SQLite file, else of an operation done here."""

    if settings.sqlite_path is not None:
        with suppress(NotRunning):
            return _asked(settings.sqlite_path, operation, **arguments)
    from api.operations import done_here

    return _run(done_here(settings, operation, **arguments))


def _keys(settings: ServerSettings) -> list[dict[str, Any]]:
    """Every key; of a SQLite file that no server has open they are read without opening it as a server would."""
    path = settings.sqlite_path
    if path is not None:
        with suppress(NotRunning):
            return list(_asked(path, "list_keys")["rows"])
        with suppress(sqlite3.Error):  # of an earlier version, or no database: that is for who opens it
            return key_reader.listed(path)
    return list(_do(settings, "list_keys")["rows"])


def _asked(path: Path, operation: str, /, **arguments: Any) -> dict[str, Any]:
    """The answer of the server that runs on a SQLite file. Raises NotRunning."""
    try:
        return request(path, REQUEST_TIMEOUT_S, operation, **arguments)
    except RequestFailed as error:
        raise click.ClickException(str(error)) from None


def _run(main: Coroutine[Any, Any, T]) -> T:
    import asyncio

    try:
        return asyncio.run(main)
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
