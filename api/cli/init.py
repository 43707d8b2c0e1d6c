"""`python server.py init`: ask for the database and the server's address, write `.env`, and make a gateway's key."""

import re
import sys
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from common.kinds import http_url
from common.settings import ServerSettings, is_loopback, load
from console.machine import address_towards
from console.questions import NONE, Answers, Question, agreed, save
from storage.urls import user_without_password, with_password

DATABASE = Question(
    "database_url",
    "Where series are stored, sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/DATABASE",
    "postgresql+asyncpg://gateway@db.example/series",
)
ANYWHERE = "192.0.2.1"  # RFC 5737: nobody has this address, but it is routed as those of other machines are
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
GATEWAY = "gateway-1"
SCOPES = ["series:write", "series:read"]  # of a gateway's key

Do = Callable[..., dict[str, Any]]
"""Takes settings, operation and arguments; the running server or the command itself does it. Returns the answer."""
MakeKey = Callable[[ServerSettings, str, list[str], Path | None], dict[str, Any]]


def set_up(given: Mapping[str, Any], do: Do, make_key: MakeKey) -> tuple[ServerSettings, str, int]:
    """Set the server up; return the settings, host and port for `check`. Raises click.UsageError or SeriesGatewayError.

    1. Ask for everything that no flag says.
    2. Show what will change in `.env`, and ask if that is right.
    3. Open the database, which creates it. If that fails, nothing has been written.
    4. Write `.env`.
    5. Make the gateway's key, unless it has one, and show it.
    """
    interactive = sys.stdin.isatty()
    answers = Answers(ServerSettings, {k: v for k, v in given.items() if k == DATABASE.setting}, interactive)
    _ask_database(answers)
    host, port = _ask_address(given, interactive)
    changes = answers.changes()
    gateway = _ask_gateway(given.get("gateway"), interactive)
    agreed(changes, interactive=interactive)
    settings = load(ServerSettings, answers.wanted)
    posters = do(settings, "posters")  # creates the database
    save(changes)
    click.echo(f"\nStart the server:\n  {_uvicorn()} server:app --host {host} --port {port}")
    name = gateway or (None if posters["may_post"] else GATEWAY)
    if name in posters["may_post"]:
        click.echo(f"{name} has a key already; no other one was made.")
    elif name and name != NONE:
        _make(settings, name, given.get("save"), posters, make_key)
    click.echo(_for_the_gateway(host, port))
    return settings, host, port


def _ask_database(answers: Answers) -> None:
    given = answers.given.get(DATABASE.setting)
    if given is not None and _password(str(given)):
        raise click.UsageError(
            f"{DATABASE.flag}: other users of this machine can see a command's arguments. Leave the password out and "
            "type it when you are asked; without a terminal, put the whole URL into the environment variable "
            "DATABASE_URL."
        )
    before = answers.present(DATABASE.setting)
    answer = answers.ask(DATABASE, "sqlite+aiosqlite:///series.db")
    if not answer:
        raise click.UsageError(f"{DATABASE.flag}: this is needed, for example {DATABASE.example}")
    try:
        user = user_without_password(answer)
    except ValueError:
        raise click.UsageError(f"{DATABASE.flag}: the port is not a number. Example: {DATABASE.example}") from None
    if user is None:
        return
    if re.sub(r"(//[^:@/]*):[^@/]*@", r"\1@", before) == answer:
        answers.wanted[DATABASE.setting] = before  # it is the same URL; keep its password
    elif answers.interactive and user:
        text = f"Password of {user}, not shown (Enter: none, or the one in PGPASSFILE)"
        if password := click.prompt(text, default="", show_default=False, hide_input=True):
            answers.wanted[DATABASE.setting] = with_password(answer, password)


def _password(url: str) -> bool:
    """Tell if a URL, of whatever form, contains a password."""
    return ":" in url.partition("://")[2].rpartition("@")[0]


def _ask_address(given: Mapping[str, Any], interactive: bool) -> tuple[str, int]:
    host, port = given.get("host"), given.get("port")
    while host is None and interactive:
        own = address_towards(ANYWHERE)
        text = (
            f"Address of this machine that gateways and readers connect to (127.0.0.1: only this machine; it has {own})"
        )
        host = click.prompt(text, default="127.0.0.1").strip()
        if not _is_host(host):
            click.echo("  this is not an address or name; example: 10.0.0.9", err=True)
            host = None
    if port is None:
        port = click.prompt("Port", default=8000, type=click.IntRange(1, 65535)) if interactive else 8000
    host = host or "127.0.0.1"
    if not _is_host(host):
        raise click.UsageError(f"--host {host} is not an address or name. Example: --host 10.0.0.9")
    return host, port


def _is_host(host: str) -> bool:
    try:
        if re.search(r"(^|\.)\d+\.?$", host):  # a name never ends in a number; an incomplete address does
            return bool(ip_address(host))
        return http_url(f"http://[{host}]/" if ":" in host else f"http://{host}/").host == host.lower()
    except ValueError:
        return False


def _ask_gateway(name: str | None, interactive: bool) -> str | None:
    """Return the name of the gateway that gets a key; None for the default, used only if no gateway has one."""
    if name is None and interactive:
        text = f"Name of the gateway to make a key for, unless it has one ({NONE}: none)"
        return str(click.prompt(text, default=GATEWAY)).strip()
    return name


def _for_the_gateway(host: str, port: int) -> str:
    own = address_towards(ANYWHERE)
    if is_loopback(host):
        return f"Only this machine can reach the server there. For other machines add --host, for example {own}.\n"
    seen = own if host in EVERYWHERE else host
    shown = f"[{seen}]" if ":" in seen else seen
    return f"On the gateway's machine:\n  python client.py init --server-url http://{shown}:{port}\n"


def _make(
    settings: ServerSettings, name: str, path: Path | None, posters: Mapping[str, Any], make_key: MakeKey
) -> None:
    if path is not None and path.exists() and path.stat().st_size:
        raise click.ClickException(f"{path} exists, but {name} has no key: move the file away. No key was made.")
    made = make_key(settings, name, SCOPES, path)
    if "key" in made:
        click.echo(f"Key of {name}, shown only now; `python client.py init` there asks for it:\n  {made['key']}")
    else:
        click.echo(f"Key of {name}: in {path}")
    if posters["heard"]:
        click.echo(f"{', '.join(posters['heard'])} needs it as well, unless it has its own.")
    if not posters["made"]:
        click.echo("From now on everyone needs a key, on this machine as well. For people and programs that read:")
        click.echo("  python server.py keys create NAME --scope series:read")


def _uvicorn() -> str:
    """Return how uvicorn is typed in this folder."""
    path = Path(sys.executable).with_name("uvicorn")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) and path.exists() else "uvicorn"
