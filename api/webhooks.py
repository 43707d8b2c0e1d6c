"""Tells others of changes: one POST a change, signed, in order, until it is answered 2xx (standardwebhooks.com).

A webhook's place in the changes is in the database. Of several server processes one tells it at a time, for as long as
it renews its claim (storage/webhooks.py); a process that dies loses it, and the next goes on where it was: at least
once.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import math
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog

from api.follower import Follower
from api.told import modalities_of
from common.outgoing import LinkLocalAddress, backoff_s, refuse_link_local, retry_after_s
from db import Database
from models import Change
from storage.engine import DatabaseUnavailable
from storage.webhooks import FOR_EVER

REQUEST_TIMEOUT_S = 10.0
LOOK_S = 1.0  # for webhooks that are due again, or were added
RETRY_BASE_S = 1.0
RETRY_MAX_S = 300.0
GIVE_UP_S = 86400.0
GONE = 410  # it wants no more (RFC 9110 §15.5.11, Standard Webhooks)
AT_ONCE = 20
LINK_LOCAL = "its host is at a link-local address: add it again with --link-local, if that is meant"

log = structlog.get_logger()


class Teller:
    """Tells the webhooks of one database, as far as no other process does."""

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
                    if await self._database.webhooks.were_added():
                        last = number = await self._database.last_change()
                        for webhook in await self._database.webhooks.claim(self._me, number, self._telling):
                            self._telling.add(webhook["Id"])
                            tasks.create_task(self._tell(webhook, number), name=f"webhook {webhook['Id']}")
                await self._follower.beyond(last, LOOK_S)

    async def _tell(self, webhook: dict[str, Any], last: int) -> None:
        """Tell one webhook all it does not know, or until it fails. The change `last` was the last one before."""
        try:
            while changes := await self._database.changes(since=webhook["Position"], limit=AT_ONCE):
                for change in changes:
                    if self._follower.ended:
                        return
                    if wants(webhook, change):
                        update = await self._told(webhook, change)
                    elif change is changes[-1]:  # a place for all that it does not want
                        update = _behind(change.Number)
                    else:
                        continue
                    secrets = await self._database.webhooks.keep(webhook["Id"], self._me, update)
                    if secrets is None or update["Problem"]:
                        return
                    webhook |= update | secrets
            if webhook["Position"] < last:  # what came behind it has been purged
                await self._database.webhooks.keep(webhook["Id"], self._me, _behind(last))
        except DatabaseUnavailable as error:  # the claim stands; it is tried again
            log.warning("webhook.interrupted", webhook=webhook["Id"], reason=str(error))
        finally:
            self._telling.discard(webhook["Id"])

    async def _told(self, webhook: Mapping[str, Any], change: Change) -> dict[str, Any]:
        """Try to tell one change; return what that changes of the webhook's row."""
        now = datetime.now(UTC)
        problem, wait_s = await self._post(webhook, change)
        if problem is None:
            return _behind(change.Number)
        first, attempts = webhook["FirstAttemptAt"] or now, webhook["Attempts"] + 1
        if wait_s == math.inf:
            problem += f": it wants no more; `python server.py webhooks replay {webhook['Id']}` goes on with change "
            problem += str(change.Number)
            log.error("webhook.ended", webhook=webhook["Id"], change=change.Number, reason=problem)
            return {"Attempts": attempts, "FirstAttemptAt": first, "NextAttemptAt": FOR_EVER, "Problem": problem}
        if now - first > timedelta(seconds=GIVE_UP_S):
            log.error("webhook.rejected", webhook=webhook["Id"], change=change.Number, reason=problem)
            await self._database.webhooks.bury(webhook["Id"], change.Number, problem)
            return _behind(change.Number)
        delay_s = backoff_s(attempts, RETRY_MAX_S, RETRY_BASE_S)
        log.warning("webhook.delayed", webhook=webhook["Id"], change=change.Number, reason=problem)
        next_at = now + timedelta(seconds=max(delay_s, wait_s))
        return {"Attempts": attempts, "FirstAttemptAt": first, "NextAttemptAt": next_at, "Problem": problem}

    async def _post(self, webhook: Mapping[str, Any], change: Change) -> tuple[str | None, float]:
        """Post a change; return what went wrong, if anything, and how long the webhook wants to be left alone."""
        try:
            body = change.model_dump_json().encode()
            now = datetime.now(UTC)
            old = webhook["OldSecret"] if webhook["OldSecret"] and webhook["OldSecretUntil"] > now else None
            headers = signed(webhook["Secret"], f"change-{change.Number}", now, body, old)
            extensions = {} if webhook["LinkLocal"] else {"trace": refuse_link_local}
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),  # all of it: httpx's holds for each part
                self._http.stream(
                    "POST", webhook["Url"], content=body, headers=headers, extensions=extensions
                ) as answer,
            ):
                status, said = answer.status_code, answer.headers  # no body is read
                wait_s = retry_after_s(said.get("Retry-After"), said.get("Date"))
        except LinkLocalAddress:
            return LINK_LOCAL, 0.0
        except Exception as error:  # the edge to a stranger's server, whatever its URL, secret or answer provokes
            return type(error).__name__, 0.0
        if 200 <= status < 300:
            return None, 0.0
        return f"HTTP {status}", math.inf if status == GONE else wait_s


def wants(webhook: Mapping[str, Any], change: Change) -> bool:
    """Return whether a change has one of the values, in each field that the webhook filters by.

    One that was told nothing of studies is told of series alone; each modality of a study is looked for.
    """
    has: dict[str, list[Any]] = {name: [getattr(change, name)] for name in ("Subject", "Source", "Verdict")}
    has |= {"Kinds": change.Kinds, "Modality": modalities_of(change)}
    filters: Mapping[str, list[str]] = {"Subject": ["series"]} | (webhook["Filters"] or {})
    return all(any(value in has[name] for value in values) for name, values in filters.items())


def _behind(number: int) -> dict[str, Any]:
    """Return what changes of a webhook's row once it is done with the change of this number, and those before."""
    return {
        "Position": number,
        "Attempts": 0,
        "FirstAttemptAt": None,
        "NextAttemptAt": None,
        "Problem": None,
    }


def signed(secret: str, id: str, at: datetime, body: bytes, old_secret: str | None = None) -> dict[str, str]:
    """Return the headers that prove who sent a body, and when: HMAC-SHA256 over id, time and body, by each secret."""
    timestamp = str(int(at.timestamp()))
    content = f"{id}.{timestamp}.".encode() + body
    return {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(each, content) for each in (secret, old_secret) if each is not None),
    }


def _signature(secret: str, content: bytes) -> str:
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
