"""`python server.py …`: keys, webhooks, and the move to PostgreSQL.

A server on SQLite is the only one that may write its file, so it is asked to, on a Unix socket; where none runs, and on
PostgreSQL, the command does it itself.
"""

import asyncio
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

import check as findings_of
from cli import Group, environment
from control import NotRunning, Operation, RequestFailed, request
from db import Database
from engine import Engine
from keys import SCOPES, Key, Keys
from models import GatewayError
from move import move, rows_of
from schema import dead_changes, gateways, webhooks
from server_check import check as check_server
from settings import ServerSettings, SettingsError, load, without_password
from shell_completion import completion
from show import show
from webhooks import new_secret

REQUEST_TIMEOUT_S = 10.0
T = TypeVar("T")


# --- what is done, by the server or by a command ----------------------------------------------------------------


def operations(database: Database) -> Mapping[str, Operation]:
    """What an operator may ask for, by name; answers are JSON."""
    keys = Keys(database.engine)

    async def create_key(name: str, scopes: list[str], expires_at: str | None) -> dict[str, Any]:
        key, secret = await keys.create(name, scopes, (expires_at and datetime.fromisoformat(expires_at)) or None)
        return _shown(key) | {"key": secret}

    async def list_keys() -> dict[str, Any]:
        return {"rows": [_shown(key) for key in await keys.all()]}

    async def revoke_key(id: str) -> dict[str, Any]:
        return {"done": await keys.revoke(id)}

    async def posters() -> dict[str, Any]:
        """Who may post reports: whether there ever was a key, whose may, and which gateways were heard of in a day."""
        made, since = await keys.all(), datetime.now(UTC) - timedelta(days=1)
        may_post = [key.name for key in made if key.is_valid and key.may("series:write")]
        query = select(gateways.c.GatewayID).where(gateways.c.At > since).order_by(gateways.c.At.desc())
        heard = [row["GatewayID"] for row in await database.engine.read(query)]
        return {"made": bool(made), "may_post": may_post, "heard": heard}

    return {
        "create_key": create_key,
        "list_keys": list_keys,
        "revoke_key": revoke_key,
        "posters": posters,
        "add_webhook": partial(_add_webhook, database),
        "list_webhooks": partial(_list_webhooks, database),
        "remove_webhook": partial(_remove_webhook, database),
        "replay_webhook": partial(_replay_webhook, database),
    }


def _shown(key: Key) -> dict[str, Any]:
    times = {name: value and value.isoformat() for name, value in asdict(key).items() if name.endswith("_at")}
    return {"id": key.id, "name": key.name, "scopes": " ".join(sorted(key.scopes)), "valid": key.is_valid} | times


async def _add_webhook(database: Database, url: str, from_start: bool) -> dict[str, Any]:
    position = 0 if from_start else await database.last_change()
    secret = new_secret()
    row = {"Url": url, "Secret": secret, "CreatedAt": datetime.now(UTC), "Position": position, "Attempts": 0}

    async def add(connection: AsyncConnection) -> int:
        mine = select(webhooks.c.Id).where(webhooks.c.Secret == secret)
        before = (await connection.execute(mine)).scalar_one_or_none()  # of a try whose answer was lost
        if before is not None:
            return int(before)
        return int((await connection.execute(webhooks.insert().values(row).returning(webhooks.c.Id))).scalar_one())

    return {"id": await database.engine.write(add), "url": url, "position": position, "secret": secret}


async def _list_webhooks(database: Database) -> dict[str, Any]:
    dead = select(func.count()).where(dead_changes.c.Webhook == webhooks.c.Id).scalar_subquery().label("dead")
    columns = (webhooks.c.Id, webhooks.c.Url, webhooks.c.Position, webhooks.c.Attempts, webhooks.c.Problem, dead)
    rows = await database.engine.read(select(*columns).order_by(webhooks.c.Id))
    last = await database.last_change()
    return {"rows": [{k.lower(): v for k, v in row.items()} | {"behind": last - row["Position"]} for row in rows]}


async def _remove_webhook(database: Database, id: int) -> dict[str, Any]:
    async def remove(connection: AsyncConnection) -> int:
        await connection.execute(dead_changes.delete().where(dead_changes.c.Webhook == id))
        return (await connection.execute(webhooks.delete().where(webhooks.c.Id == id))).rowcount

    return {"done": await database.engine.write(remove) == 1}


async def _replay_webhook(database: Database, id: int) -> dict[str, Any]:
    """Go back to before the first change that was given up: what came after it is told again, too."""

    async def back(connection: AsyncConnection) -> int | None:
        first = select(func.min(dead_changes.c.Number)).where(dead_changes.c.Webhook == id)
        number: int | None = (await connection.execute(first)).scalar_one()
        if number is not None:
            again = {"Position": number - 1, "Owner": None, "NextAttemptAt": None, "FirstAttemptAt": None}
            await connection.execute(webhooks.update().where(webhooks.c.Id == id).values(again))
            await connection.execute(dead_changes.delete().where(dead_changes.c.Webhook == id))
        return number

    return {"from": await database.engine.write(back)}


# --- the command line -------------------------------------------------------------------------------------------

as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


NOTES = f"""\
Settings, from the environment or .env:
{environment(ServerSettings)}

Exit codes: 0 done; 1 it could not be done, and the error says the cure; 2 wrong setting or argument;
3 check: something failed.

Tab completes: source <(python server.py completion bash), or zsh; fish: … completion fish | source
Docs: README.md, docs/server.md"""


def command_line() -> click.Group:
    """The commands; the server itself is `uvicorn server:app`."""

    @click.pass_context
    def server(context: click.Context, /) -> None:
        """Keys, webhooks, the move to PostgreSQL, and a check. The server itself runs as `uvicorn server:app`."""
        if context.invoked_subcommand in ("completion", "init"):  # .env may be what init is to mend
            return
        try:
            context.obj = load(ServerSettings)
        except SettingsError as error:
            context.obj = error
            if context.invoked_subcommand != "check":
                raise click.UsageError(str(error)) from None

    commands = [init, check, keys, webhooks_, move_, completion("server.py")]
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
    if isinstance(settings, SettingsError):
        findings = findings_of.of_settings(settings)
    else:
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
    from server_init import set_up  # noqa: PLC0415 - of this command only

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
    from first_key import GATEWAY_SCOPES, gateway_without  # noqa: PLC0415 - of this command only

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
    show(_do(settings, "list_keys")["rows"], as_json)


@keys.command
@click.argument("id")
@click.pass_obj
def revoke(settings: ServerSettings, id: str) -> None:
    """End a key at once."""
    if not _do(settings, "revoke_key", id=id)["done"]:
        raise click.ClickException(f"no key {id} that is not revoked; `keys list` shows them")


@click.group("webhooks")
def webhooks_() -> None:
    """Who is told of changes.

    One signed POST for each, in order, at least once.
    """


@webhooks_.command
@click.argument("url")
@click.option("--from-start", is_flag=True, help="Tell every change there ever was; by default those from now on.")
@as_json
@click.pass_obj
def add(settings: ServerSettings, url: str, from_start: bool, as_json: bool) -> None:
    """Tell URL of changes; shows the secret that bodies are signed with, once."""
    if not _is_http(url):
        raise click.UsageError(f"{url} is not an http or https URL")
    show(_do(settings, "add_webhook", url=url, from_start=from_start), as_json)


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
@as_json
@click.pass_obj
def replay(settings: ServerSettings, id: int, as_json: bool) -> None:
    """Tell again from the first change that was given up; what came after it is told twice."""
    done = _do(settings, "replay_webhook", id=id)
    if done["from"] is None:
        raise click.ClickException(f"webhook {id} has no change that was given up")
    show(done, as_json)


@click.command("move")
@click.argument("target", metavar="postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE", envvar="MOVE_TO")
@click.pass_obj
def move_(settings: ServerSettings, target: str) -> None:
    """Copy SQLite to an empty PostgreSQL, and compare.

    The server at the SQLite file of DATABASE_URL must be stopped; every row is compared afterwards. A move that was
    broken off goes on where it was. The target may also stand in the environment, as MOVE_TO: others on this machine
    see a command's arguments.
    """
    if sqlite_path(settings) is None:
        raise click.UsageError(f"DATABASE_URL={without_password(settings.database_url)} is not a SQLite file")
    try:
        to = ServerSettings(database_url=target, database_timeout_s=settings.database_timeout_s)
    except ValueError:
        raise click.UsageError(
            "the target must have the form postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    _run(_move(settings, to))
    click.echo(f"moved; now run the server with DATABASE_URL={without_password(target)}")


async def _move(settings: ServerSettings, to: ServerSettings) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    async with Engine.open(settings) as source, Engine.open(to) as target:
        total = await rows_of(source)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            copied = progress.add_task("rows copied", total=total)
            compared = progress.add_task("rows compared", total=total)
            await move(source, target, partial(progress.advance, copied), partial(progress.advance, compared))


# --- helpers ----------------------------------------------------------------------------------------------------


def _is_http(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 65536


def _new_file(path: Path) -> Path:
    """An empty file for its owner only."""
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}; no key was made") from error
    return path


def sqlite_path(settings: ServerSettings) -> Path | None:
    """The file of a SQLite database."""
    url = make_url(settings.database_url)
    return Path(url.database or "").resolve() if url.get_backend_name() == "sqlite" else None


def _do(settings: ServerSettings, operation: str, /, **arguments: Any) -> dict[str, Any]:
    """The answer of the server that runs on the SQLite file, else of an operation done here."""

    async def alone() -> dict[str, Any]:
        async with Database.open(settings) as database:
            return await operations(database)[operation](**arguments)

    path = sqlite_path(settings)
    try:
        if path is not None:
            return request(path, REQUEST_TIMEOUT_S, operation, **arguments)
    except NotRunning:
        pass
    except RequestFailed as error:
        raise click.ClickException(str(error)) from None
    return _run(alone())


def _run(main: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(main)
    except GatewayError as error:
        raise click.ClickException(str(error)) from None
