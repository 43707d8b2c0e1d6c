"""Tells others of changes: one POST a change, signed, in order, until it is answered 2xx (standardwebhooks.com).

A webhook's place in the changes is in the database. Of several server processes one tells it at a time, for as long as
it renews its claim; a process that dies loses it after CLAIM_S, and the next goes on where it was: at least once.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import math
import random
import secrets
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from api.follower import Follower
from db import Database
from models import Change
from storage.engine import DatabaseUnavailable, insert
from storage.schema import dead_changes, webhooks

CLAIM_S = 60.0
REQUEST_TIMEOUT_S = 10.0
LOOK_S = 1.0  # for webhooks that are due again, or were added
RETRY_BASE_S = 1.0
RETRY_MAX_S = 300.0
GIVE_UP_S = 86400.0
TRY_AGAIN = {408, 425, 429}  # besides 5xx; any other answer than 2xx is a refusal
AT_ONCE = 20

log = structlog.get_logger()


class Webhooks:
    """The webhooks of one database, told by this process as far as no other does."""

    def __init__(self, database: Database, follower: Follower, http: httpx.AsyncClient) -> None:
        self._database = database
        self._follower = follower
        self._http = http
        self._me = uuid.uuid4().hex
        self._telling: set[int] = set()

    async def run(self) -> None:
        """Tell every webhook what it does not know yet, until the follower's end."""
        async with asyncio.TaskGroup() as tasks:
            while not self._follower.ended:
                last: float = math.inf  # nothing to wait for, while there is no webhook
                with contextlib.suppress(DatabaseUnavailable):
                    if await self._database.engine.read(select(webhooks.c.Id).limit(1)):
                        last = number = await self._database.last_change()
                        for webhook in await self._claim(number):
                            self._telling.add(webhook["Id"])
                            tasks.create_task(self._tell(webhook), name=f"webhook {webhook['Id']}")
                await self._follower.beyond(last, LOOK_S)

    async def _claim(self, last: int) -> list[dict[str, Any]]:
        """The webhooks that are behind, due, and told by no other process."""
        now = datetime.now(UTC)
        behind = (webhooks.c.Position < last) & webhooks.c.Id.not_in(self._telling)
        due = or_(webhooks.c.NextAttemptAt.is_(None), webhooks.c.NextAttemptAt <= now)
        free = or_(webhooks.c.Owner == self._me, webhooks.c.Owner.is_(None), webhooks.c.OwnedUntil < now)
        wanted = select(webhooks.c.Id).where(behind & due & free)
        if not await self._database.engine.read(wanted):
            return []

        async def claim(connection: AsyncConnection) -> list[dict[str, Any]]:
            rows = await connection.execute(select(webhooks).where(behind & due & free).with_for_update())
            mine = [{**row} for row in rows.mappings()]
            ids = [row["Id"] for row in mine]
            await connection.execute(webhooks.update().where(webhooks.c.Id.in_(ids)).values(self._claimed()))
            return mine

        return await self._database.engine.write(claim)

    def _claimed(self) -> dict[str, Any]:
        return {"Owner": self._me, "OwnedUntil": datetime.now(UTC) + timedelta(seconds=CLAIM_S)}

    async def _tell(self, webhook: dict[str, Any]) -> None:
        """Tell one webhook all it does not know, or until it fails."""
        try:
            while changes := await self._database.changes(since=webhook["Position"], limit=AT_ONCE):
                for change in changes:
                    if self._follower.ended:
                        return
                    update = await self._told(webhook, change)
                    webhook |= update
                    if not await self._keep(webhook["Id"], update) or update["Problem"]:
                        return
        except DatabaseUnavailable as error:  # the claim stands; it is tried again
            log.warning("webhook.interrupted", webhook=webhook["Id"], reason=str(error))
        finally:
            self._telling.discard(webhook["Id"])

    async def _told(self, webhook: Mapping[str, Any], change: Change) -> dict[str, Any]:
        """One try of one change; what it changes of the webhook's row."""
        now = datetime.now(UTC)
        problem, final = await self._post(webhook, change)
        done = {
            "Position": change.Number,
            "Attempts": 0,
            "FirstAttemptAt": None,
            "NextAttemptAt": None,
            "Problem": None,
        }
        if problem is None:
            return done
        first = webhook["FirstAttemptAt"] or now
        if final or now - first > timedelta(seconds=GIVE_UP_S):
            log.error("webhook.rejected", webhook=webhook["Id"], change=change.Number, reason=problem)
            await self._bury(webhook["Id"], change, problem)
            return done
        attempts = webhook["Attempts"] + 1
        delay_s = random.uniform(0, min(RETRY_MAX_S, RETRY_BASE_S * 2.0 ** min(attempts, 20)))  # noqa: S311
        log.warning("webhook.delayed", webhook=webhook["Id"], change=change.Number, reason=problem)
        next_at = now + timedelta(seconds=delay_s)
        return {"Attempts": attempts, "FirstAttemptAt": first, "NextAttemptAt": next_at, "Problem": problem}

    async def _post(self, webhook: Mapping[str, Any], change: Change) -> tuple[str | None, bool]:
        """What went wrong, if anything, and whether it is of no use to try again."""
        try:
            body = change.model_dump_json().encode()
            headers = signed(webhook["Secret"], f"change-{change.Number}", datetime.now(UTC), body)
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),  # all of it: httpx's holds for each part
                self._http.stream("POST", webhook["Url"], content=body, headers=headers) as answer,
            ):
                status = answer.status_code  # its body is not read
        except Exception as error:  # the edge to a stranger's server, whatever its URL, secret or answer provokes
            return type(error).__name__, False
        if 200 <= status < 300:
            return None, False
        return f"HTTP {status}", status < 500 and status not in TRY_AGAIN

    async def _keep(self, id: int, update: dict[str, Any]) -> bool:
        """Write down how far a webhook is; whether it is still ours."""

        async def change(connection: AsyncConnection) -> int:
            mine = (webhooks.c.Id == id) & (webhooks.c.Owner == self._me)
            return (await connection.execute(webhooks.update().where(mine).values(self._claimed() | update))).rowcount

        return await self._database.engine.write(change) == 1

    async def _bury(self, id: int, change: Change, problem: str) -> None:
        row = {"Webhook": id, "Number": change.Number, "Problem": problem, "At": datetime.now(UTC)}

        async def add(connection: AsyncConnection) -> None:
            await insert(connection, dead_changes, row)

        await self._database.engine.write(add)


def new_secret() -> str:
    """A secret in the form of the Standard Webhooks specification."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def signed(secret: str, id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers that prove who sent a body, and when: HMAC-SHA256 over id, timestamp and body."""
    timestamp = str(int(at.timestamp()))
    content = f"{id}.{timestamp}.".encode() + body
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), content, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
