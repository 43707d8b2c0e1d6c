"""Changes that a webhook was not told: listed, told again, or given up for good."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, FastAPI, HTTPException, Path, Request
from fastapi.params import Depends as Dependency

from api.answers import DoAgain, DoneAgain, Untold, UntoldChange
from api.follower import Follower
from api.listing import IN_DIGITS, KNOWN_ONLY
from db import Database

MOST = 100  # of one webhook that one answer names
UNKNOWN = "no such webhook"
NOTHING = "nothing of this webhook was given up"
log = structlog.get_logger()

Id = Annotated[int, IN_DIGITS, Path(ge=1, lt=2**63, description="Of the webhook, as `webhooks list` shows it.")]
Responses = Mapping[int | str, dict[str, Any]]


def add_untold(app: FastAPI, *, responses: Responses, unknown: Responses, dependencies: Sequence[Dependency]) -> None:
    """Add /webhooks/{Id}/untold; `app.state` has database and follower."""
    described: dict[str, Any] = {"responses": {**responses, **unknown}, "tags": ["Webhooks"]}
    path = "/webhooks/{Id}/untold"
    app.get(path, dependencies=[*dependencies, KNOWN_ONLY], **described)(list_untold)
    app.post(path, dependencies=[*dependencies], **described)(do_again)


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


Db = Annotated[Database, Depends(_database)]


async def list_untold(Id: Id, database: Db) -> Untold:
    """What a webhook was not told within a day, the first first, 100 at most, and why. Of its URL only the host."""
    webhook = await _webhook(database, Id)
    changes = [UntoldChange.model_validate(row) for row in await database.webhooks.failed(Id, MOST)]
    host = urlsplit(webhook["Url"]).hostname
    return Untold(Host=host, Ended=webhook["Ended"], Problem=webhook["Problem"], Count=webhook["Dead"], changes=changes)


async def do_again(Id: Id, wanted: DoAgain, database: Db, request: Request) -> DoneAgain:
    """Tell a webhook again what was given up, and what came after it; or give that up for good.

    replay: also one that answered 410 goes on. Its receiver is told some changes twice.
    """
    await _webhook(database, Id)
    if wanted.Do == "replay":
        first = await database.webhooks.replay(Id)
        done = None if first is None else DoneAgain(Did=f"told again from change {first} on", From=first)
    else:
        count = await database.webhooks.discard(Id)
        done = DoneAgain(Did=f"{count} given up for good") if count else None
    if done is None:
        raise HTTPException(404, NOTHING)
    follower: Follower = request.app.state.follower
    follower.stored()
    request.state.done |= {"webhook": Id, "decision": wanted.Do}
    log.info("webhook.settled", webhook=Id, decision=wanted.Do)
    return done


async def _webhook(database: Database, id: int) -> dict[str, Any]:
    for row in await database.webhooks.all():
        if row["Id"] == id:
            return row
    raise HTTPException(404, UNKNOWN)
