"""`python server.py …`: the operator's commands of the server, such as keys, webhooks and the move to PostgreSQL.

Only one process may write a SQLite file. While a server runs on it, a command asks that server over its Unix socket to
make the change; otherwise, and on PostgreSQL, the command makes the change itself. Modules that only some commands need
are imported inside those commands, so that every command starts quickly.
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
from common.at_rest import name_for_good
from common.control import NotRunning, RequestFailed, asked_or_done, request
from common.errors import SeriesGatewayError
from common.kinds import http_url
from common.settings import ServerSettings, SettingsError, load, without_password
from console.options import Group, environment
from console.shell_completion import NAMES, tab
from console.tables import as_json, show
from storage import key_reader
from storage.key_reader import SCOPES

REQUEST_TIMEOUT_S = 10.0
CHANGE_KINDS = ("created", "revised", "verified", "declared", "contradicted", "conflict")  # models.ChangeKind
STUDY_KINDS = ("revised", "verified", "declared", "contradicted")  # those that a study has: study_rules.kinds
MAX_BECAUSE = 256  # characters of a declaration's reason, as in models.py
T = TypeVar("T")


# --- the command line -------------------------------------------------------------------------------------------


NOTES = f"""\
Settings, from the environment or .env:
{environment(ServerSettings)}

Exit codes: 0 done; 1 failed, the error says how to fix it; 2 wrong setting or argument;
3 check: something failed.

Tab completion: source <(python server.py tab bash), or zsh; fish: … tab fish | source
Documentation: docs/index.md, docs/server.md"""


def command_line() -> click.Group:
    """Return the group of all commands. The server itself runs as `uvicorn server:app`."""

    @click.pass_context
    def server(context: click.Context, /) -> None:
        """Administer the server: keys, webhooks, data and checks. The server itself runs as `uvicorn server:app`."""
        if context.invoked_subcommand in (*NAMES, "init"):  # init must run even if .env is wrong: it may repair it
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
@click.option("--url", help="URL of the running server, if it is not http://HOST:PORT, for example behind a proxy.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The --host that uvicorn is started with.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="The --port that uvicorn is started with.",
)
@as_json
@click.pass_obj
def check(settings: ServerSettings | SettingsError, url: str | None, host: str, port: int, as_json: bool) -> None:
    """Check that everything is well, and say how to fix what is not.

    Run it before the server starts or while it runs. It checks settings, database, schema, disk, keys, webhooks,
    conflicts and ports, and changes nothing. Exit code 3 if something failed.
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
    help="Where series are stored. Leave the password out, since other users see it here: you are asked for it on a "
    "terminal, or set the environment variable DATABASE_URL.",
)
@click.option("--host", help="Address of this machine that gateways and readers connect to; uvicorn's --host.")
@click.option("--port", type=click.IntRange(1, 65535), help="uvicorn's --port; default 8000.")
@click.option(
    "--gateway",
    metavar="NAME",
    help="Make a key for this gateway, unless it has one. Default: gateway-1, if no key may post reports yet; - makes "
    "no key.",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key to this file, readable by its owner only, instead of showing it.",
)
def init(**given: Any) -> None:
    """Set the server up: write .env, create the database, make the gateway's key.

    On a terminal it asks for whatever no option says: where series are stored, and which address gateways and readers
    connect to. Other lines of .env stay as they are. The key is shown once. At the end it runs `check`: exit code 3 if
    something failed.
    """
    from api.cli.check import check as check_server
    from api.cli.init import set_up
    from console import findings as findings_of

    try:
        settings, host, port = set_up({name: v for name, v in given.items() if v is not None}, _do, _make_key)
    except SeriesGatewayError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(findings_of.show(_run(check_server(settings, host, port, None)), as_json=False))


@click.group
def keys() -> None:
    """Manage API keys. Once there is one, every client needs a key, gateways too."""


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
@click.option(
    "--expires-in",
    metavar="DAYS",
    type=click.FloatRange(0, 36500, min_open=True),
    help="Days until the key expires; by default it never does.",
)
@click.option(
    "--save",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the key to this file, readable by its owner only, instead of showing it. If the file exists, no key is "
    "made.",
)
@click.option(
    "--with-gateway",
    metavar="NAME",
    help="Also make a key for this gateway, if no key may post reports yet: the first key shuts out every gateway that "
    "has none.",
)
@click.option("--yes", is_flag=True, help="Make the first key even if it shuts out a gateway that has no key.")
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
    """Make a key and show it once.

    Once there is a key, every client needs one. If that would shut out a gateway, the command says so first and offers
    to make the gateway's key as well.
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
    except click.ClickException:  # the running server is of an earlier version and cannot tell who may post
        return {"made": bool(_do(settings, "list_keys")["rows"]), "may_post": [], "heard": []}


def _make_key(
    settings: ServerSettings,
    name: str,
    scopes: Sequence[str],
    save: Path | None = None,
    expires_at: str | None = None,
) -> dict[str, Any]:
    """Make a key. Return what may be shown of it, including the key itself unless it was saved to a file."""
    part = save and _new_file(save.with_name(f"{save.name}.new"))  # first of all: if the file fails, no key is made
    made = _do(settings, "create_key", name=name, scopes=list(scopes), expires_at=expires_at)
    if save is not None and part is not None:
        part.write_text(made.pop("key") + "\n")
        name_for_good(part, save)
    return made


@keys.command("list")
@as_json
@click.pass_obj
def list_(settings: ServerSettings, as_json: bool) -> None:
    """List every key that was made; the keys themselves are not stored."""
    show(_keys(settings), as_json)


@keys.command
@click.argument("id")
@click.pass_obj
def revoke(settings: ServerSettings, id: str) -> None:
    """Revoke a key; it stops working at once."""
    if not _do(settings, "revoke_key", id=id)["done"]:
        raise click.ClickException(f"no key {id} that is not revoked; `keys list` shows them")
    from api.cli.first_key import warn_without_gateway

    with suppress(click.ClickException):  # the running server is of an earlier version and cannot tell who may post
        warn_without_gateway(_do(settings, "posters"))


@click.group("webhooks")
def webhooks_() -> None:
    """Manage webhooks: URLs that are told of each change.

    Each change is one signed POST. They come in order, each at least once.
    """


@webhooks_.command
@click.argument("url")
@click.option(
    "--subject",
    default="series",
    show_default=True,
    type=click.Choice(["series", "study", "any"]),
    help="Send the revisions of series, the verdicts of studies, or both.",
)
@click.option("--from-start", is_flag=True, help="Send all past changes, too; by default only those from now on.")
@click.option(
    "--link-local",
    is_flag=True,
    help="Allow an address in 169.254.0.0/16 or fe80::/10, where cloud providers serve machines' secrets.",
)
@click.option("--modality", "Modality", multiple=True, help="Only changes of this modality; repeatable.")
@click.option(
    "--source",
    "Source",
    multiple=True,
    help="Only changes from this source, just as `sources` names it: calling AE title, modality and, if it has one, "
    "station, such as 'CT1 CT SCANNER2'; repeatable.",
)
@click.option(
    "--verdict",
    "Verdict",
    multiple=True,
    type=click.Choice(VERDICTS),
    help="Only changes to this verdict; repeatable.",
)
@click.option(
    "--kind", "Kinds", multiple=True, type=click.Choice(CHANGE_KINDS), help="Only changes of this kind; repeatable."
)
@as_json
@click.pass_obj
def add(  # noqa: PLR0913, PLR0917 - one parameter an option
    settings: ServerSettings,
    /,
    url: str,
    subject: str,
    from_start: bool,
    link_local: bool,
    as_json: bool,
    **only: tuple[str, ...],
) -> None:
    """Add a webhook; show once the secret that its bodies are signed with.

    Without filters URL is sent every change of a series. With filters it is sent those that match one of the given
    values in every field that is given.
    """
    from common.outgoing import is_link_local

    try:
        host = http_url(url).host
    except ValueError:
        raise click.UsageError(f"{url} is not an http or https URL, such as https://ai.example/hook") from None
    if is_link_local(host) and not link_local:
        raise click.UsageError(f"{host} is a link-local address: add --link-local if you mean it")
    filters = {name: [*values] for name, values in only.items() if values}
    if subject == "study" and (never := [kind for kind in only["Kinds"] if kind not in STUDY_KINDS]):
        allowed = f"give --kind {', '.join(STUDY_KINDS)}, or --subject series"
        raise click.UsageError(f"--kind {never[0]} never happens to a study: {allowed}")
    if subject != "series":
        filters["Subject"] = ["series", "study"] if subject == "any" else [subject]
    asked = {"url": url, "from_start": from_start, "link_local": link_local, "filters": filters}
    show(_do(settings, "add_webhook", **asked), as_json)


@webhooks_.command("list")
@as_json
@click.pass_obj
def list_webhooks(settings: ServerSettings, as_json: bool) -> None:
    """List webhooks: how far each is behind, its last problem, and how many changes it gave up on."""
    show(_do(settings, "list_webhooks")["rows"], as_json)


@webhooks_.command
@click.argument("id", type=int)
@click.pass_obj
def remove(settings: ServerSettings, id: int) -> None:
    """Remove a webhook."""
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
    help="How long bodies are also signed with the old secret; 0 if it has leaked.",
)
@as_json
@click.pass_obj
def rotate(settings: ServerSettings, id: int, hours: float, as_json: bool) -> None:
    """Replace a webhook's secret; the new one is shown once.

    No change is skipped or repeated. For --keep-old hours each body carries two signatures, one by each secret, so that
    the receiver can switch in between. During that time the secret cannot be replaced again, except with --keep-old 0,
    which ends both at once.
    """
    done = _do(settings, "rotate_webhook", id=id, keep_old_s=3600 * hours)
    if done["secret"] is None and done["old_until"]:
        cure = "wait until then, or end both at once with --keep-old 0"
        raise click.ClickException(f"webhook {id} already has two secrets until {done['old_until']}; {cure}")
    if done["secret"] is None:
        raise click.ClickException(f"no webhook {id}; `webhooks list` shows them")
    show(done, as_json)


@webhooks_.command
@click.argument("id", type=int)
@as_json
@click.pass_obj
def replay(settings: ServerSettings, id: int, as_json: bool) -> None:
    """Send again from the first change that was given up; later ones are sent twice."""
    done = _do(settings, "replay_webhook", id=id)
    if done["from"] is None:
        raise click.ClickException(f"webhook {id} has given up no change")
    show(done, as_json)


@webhooks_.command
@click.argument("id", type=int)
@as_json
@click.pass_obj
def discard(settings: ServerSettings, id: int, as_json: bool) -> None:
    """Drop the changes that were given up; they are never sent again."""
    done = _do(settings, "discard_webhook", id=id)
    if not done["discarded"]:
        raise click.ClickException(f"webhook {id} has given up no change")
    show(done, as_json)


@click.group("gateways")
def gateways_() -> None:
    """Manage the gateways that the server heard from within a day."""


@gateways_.command("list")
@as_json
@click.pass_obj
def list_gateways(settings: ServerSettings, as_json: bool) -> None:
    """List gateways: when each was last heard from, and why one is refused."""
    show(_do(settings, "list_gateways")["rows"], as_json)


@gateways_.command
@click.argument("name")
@click.pass_obj
def dismiss(settings: ServerSettings, name: str) -> None:
    """Take a gateway that is gone off the live page.

    If it is heard from again, it is shown again. Nothing is deleted from its journal.
    """
    done = _do(settings, "dismiss_gateway", name=name)
    if not done["done"]:
        raise click.ClickException(done["problem"] or f"no gateway {name}; `gateways list` shows them")


@click.command
@click.argument("uid", metavar="UID")
@click.argument("declared", type=click.Choice(["complete", "incomplete"]))
@click.option("--study", is_flag=True, help="UID is that of a study; by default that of a series.")
@click.option("--because", metavar="TEXT", required=True, help="The reason; it is stored and shown with the series.")
@as_json
@click.pass_obj
def declare(  # noqa: PLR0913, PLR0917 - one parameter an option
    settings: ServerSettings, uid: str, declared: str, study: bool, because: str, as_json: bool
) -> None:
    """Declare a series or study complete, or incomplete.

    UID is the Series Instance UID, or with --study the Study Instance UID. complete: gateways that still have it open
    report it within seconds, with the verdict `declared`. incomplete: its verdict is withdrawn until more images come,
    or until its PACS confirms that the images here are all of them. Your name and reason are written into its timeline.
    """
    if not because.strip() or len(because.strip()) > MAX_BECAUSE or not because.strip().isprintable():
        raise click.UsageError(f"--because must be one line of 1 to {MAX_BECAUSE} characters")
    _need_database(settings)
    asked = {"declared": declared, "because": because.strip(), "by": _operator()}
    what, operation = ("study", "declare_study") if study else ("series", "declare")
    done = _do(settings, operation, **{f"{what}_instance_uid": uid}, **asked)
    if "unknown" in done:
        raise click.ClickException(done["unknown"])
    show(done, as_json)


def _operator() -> str:
    """Return who runs the command: the user's name on this machine."""
    import getpass

    try:
        return f"{getpass.getuser()}, command line"
    except (KeyError, OSError):  # in a container a user may have no name
        return "command line"


@click.command("move")
@click.argument("target", metavar="postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE", envvar="MOVE_TO")
@click.pass_obj
def move_(settings: ServerSettings, target: str) -> None:
    """Copy the SQLite database to an empty PostgreSQL database, and compare.

    Stop the server first. The SQLite file is the one of DATABASE_URL. After the copy every row is compared. If the move
    is interrupted, run it again: it continues where it stopped. Other users can see a command's arguments, so you can
    give the target in the environment variable MOVE_TO instead.
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
@click.option(
    "--before",
    "day",
    required=True,
    metavar="DAY",
    help="Delete series last changed before then: 2026-01-31, a time, or yesterday.",
)
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted and what would stay.")
@as_json
@click.pass_obj
def purge(settings: ServerSettings, day: str, dry_run: bool, as_json: bool) -> None:
    """Delete the records of series that have not changed since a day.

    Their image lists, timelines and changes are deleted with them, and old changes of the series that stay. A series
    stays if it has an open conflict, or a change that a webhook was not sent yet. You can run it while the server runs
    or while it is stopped. If it is interrupted, run it again: it continues. If a deleted series is sent again, its
    timeline begins with the time of the purge.
    """
    from api.cli.purge import purge as forget

    before = datetime.fromisoformat(moment(day))
    if before > datetime.now(UTC):
        raise click.UsageError(f"{day} is in the future")
    _need_database(settings)
    forget(settings, before, _run, dry=dry_run, as_json=as_json)


# --- helpers ----------------------------------------------------------------------------------------------------


def _need_database(settings: ServerSettings) -> None:
    """Raise an error if there is no database yet: a wrong folder must not get a new, empty SQLite file."""
    path = settings.sqlite_path
    if path is not None and not path.exists():
        raise click.ClickException(f"{path} does not exist: set DATABASE_URL to the server's database")


def _new_file(path: Path) -> Path:
    """Create an empty file that only its owner can read."""
    try:
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}; no key was made") from error
    return path


def _do(settings: ServerSettings, operation: str, /, **arguments: Any) -> dict[str, Any]:
    """Have the server that runs on the SQLite file do an operation, or do it here; return the answer."""

    def ask() -> dict[str, Any]:
        if settings.sqlite_path is None:
            raise NotRunning
        return _asked(settings.sqlite_path, operation, **arguments)

    async def done() -> dict[str, Any]:
        from api.operations import done_here

        return await done_here(settings, operation, **arguments)

    return asked_or_done(ask, done, _run)


def _keys(settings: ServerSettings) -> list[dict[str, Any]]:
    """Return every key. If no server has the SQLite file open, it is read without migrating or locking it."""
    path = settings.sqlite_path
    if path is not None:
        with suppress(NotRunning):
            return list(_asked(path, "list_keys")["rows"])
        with suppress(sqlite3.Error):  # an older schema, or no database: opening it properly, below, deals with that
            return key_reader.listed(path)
    return list(_do(settings, "list_keys")["rows"])


def _asked(path: Path, operation: str, /, **arguments: Any) -> dict[str, Any]:
    """Ask the server that runs on a SQLite file to do an operation; return its answer. Raises NotRunning."""
    try:
        return request(path, REQUEST_TIMEOUT_S, operation, **arguments)
    except RequestFailed as error:
        raise click.ClickException(str(error)) from None


def _run(main: Coroutine[Any, Any, T]) -> T:
    import asyncio

    try:
        return asyncio.run(main)
    except SeriesGatewayError as error:
        raise click.ClickException(str(error)) from None
