"""Changes that a webhook was not told: listed, told again, or given up for good."""

from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import APIRouter, HTTPException, Path, Request

from api.answers import DoAgain, DoneAgain, Untold, UntoldChange
from api.parameters import IN_DIGITS, KNOWN_ONLY
from api.routing import DECIDES, READS, Changes, Db, answers
from db import Database

MOST = 100  # changes of one webhook that one answer names
UNKNOWN = "no such webhook"
NOTHING = "nothing of this webhook was given up"
Id = Annotated[int, IN_DIGITS, Path(ge=1, lt=2**63, description="Of the webhook, as `webhooks list` shows it.")]
PATH = "/webhooks/{Id}/untold"
log = structlog.get_logger()
router = APIRouter(tags=["Webhooks"], responses=answers(404, 408, 413))


@router.get(PATH, dependencies=[READS, KNOWN_ONLY])
async def list_untold(Id: Id, database: Db) -> Untold:
    """List what a webhook was not told within a day, the first first, 100 at most, and why. Of its URL: the host."""
    webhook = await _webhook(database, Id)
    changes = [UntoldChange.model_validate(row) for row in await database.webhooks.failed(Id, MOST)]
    host = urlsplit(webhook["Url"]).hostname
    return Untold(Host=host, Ended=webhook["Ended"], Problem=webhook["Problem"], Count=webhook["Dead"], changes=changes)


@router.post(PATH, dependencies=[DECIDES])
async def do_again(Id: Id, wanted: DoAgain, database: Db, follower: Changes, request: Request) -> DoneAgain:
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
    follower.stored()
    request.state.done |= {"webhook": Id, "decision": wanted.Do}
    log.info("webhook.settled", webhook=Id, decision=wanted.Do)
    return done


async def _webhook(database: Database, id: int) -> dict[str, Any]:
    """Return the row of a webhook. Raises HTTPException (404)."""
    for row in await database.webhooks.all():
        if row["Id"] == id:
            return row
    raise HTTPException(404, UNKNOWN)
