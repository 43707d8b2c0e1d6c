"""What operators ask for by `python server.py`, done by the server or by a command."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.webhooks import new_secret
from common.control import Operation
from common.settings import ServerSettings
from db import Database
from storage.engine import Engine
from storage.key_reader import shown
from storage.keys import Keys
from storage.move import move, rows_of
from storage.schema import dead_changes, gateways, webhooks


def operations(database: Database) -> Mapping[str, Operation]:
    """What an operator may ask for, by name; answers are JSON."""
    keys = Keys(database.engine)

    async def create_key(name: str, scopes: list[str], expires_at: str | None) -> dict[str, Any]:
        key, secret = await keys.create(name, scopes, (expires_at and datetime.fromisoformat(expires_at)) or None)
        return shown(**asdict(key)) | {"key": secret}

    async def list_keys() -> dict[str, Any]:
        return {"rows": [shown(**asdict(key)) for key in await keys.all()]}

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


# --- done by a command --------------------------------------------------------------------------------------------


async def done_here(settings: ServerSettings, operation: str, **arguments: Any) -> dict[str, Any]:
    """An operation on a database that no server of SQLite has open."""
    async with Database.open(settings) as database:
        return await operations(database)[operation](**arguments)


async def move_to(settings: ServerSettings, to: ServerSettings) -> None:
    """Copy a database to another, and compare, with bars on a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    async with Engine.open(settings) as source, Engine.open(to) as target:
        total = await rows_of(source)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            copied = progress.add_task("rows copied", total=total)
            compared = progress.add_task("rows compared", total=total)
            await move(source, target, partial(progress.advance, copied), partial(progress.advance, compared))
