"""Who is told of changes, how far each is, and which server process tells it: in the database, for all of them.

A claim stands for CLAIM_S from when it was last renewed; `keep` renews it, and says whether it was still ours.
"""

import base64
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, case, false, func, or_, select

from storage.ahead import is_far
from storage.connection import Connection
from storage.engine import Engine, insert
from storage.schema import changes, dead_changes, webhooks

CLAIM_S = 60.0
SECRETS = (webhooks.c.Secret, webhooks.c.OldSecret, webhooks.c.OldSecretUntil)
FOR_EVER = datetime(9999, 1, 1, tzinfo=UTC)  # the next attempt at one that wants no more


@dataclass
class Webhooks:
    """The webhooks of one database."""

    _engine: Engine

    # --- what an operator asks for ---

    async def add(
        self, url: str, position: int, filters: Mapping[str, Sequence[str]], *, link_local: bool = False
    ) -> tuple[int, str]:
        """Make one that knows the changes up to `position`; return its id, and the secret that bodies are signed with.

        `filters`: a change's field to the values that it is told for.
        """
        secret = new_secret()
        row = {"Url": url, "Secret": secret, "CreatedAt": datetime.now(UTC), "Position": position, "Attempts": 0}
        row |= {"Filters": filters, "LinkLocal": link_local}

        async def add(connection: Connection) -> int:
            mine = select(webhooks.c.Id).where(webhooks.c.Secret == secret)
            before = (await connection.execute(mine)).scalar_one_or_none()  # of a try whose answer was lost
            if before is not None:
                return int(before)
            return int((await connection.execute(webhooks.insert().values(row).returning(webhooks.c.Id))).scalar_one())

        return await self._engine.write(add), secret

    async def all(self) -> list[dict[str, Any]]:
        """Return each webhook: how far it is, its last problem, how many changes were given up; without its secret."""
        return await self._engine.read(select_all())

    async def remove(self, id: int) -> bool:
        """Remove a webhook; return whether there was such a one."""

        async def remove(connection: Connection) -> int:
            await connection.execute(dead_changes.delete().where(dead_changes.c.Webhook == id))
            return (await connection.execute(webhooks.delete().where(webhooks.c.Id == id))).rowcount

        return await self._engine.write(remove) == 1

    async def rotate(self, id: int, keep_old: timedelta) -> tuple[str | None, datetime | None]:
        """Give it another secret, and until when the one before signs, too. (None, None): there is no such webhook.

        (None, a time): two sign until then, of which the receiver may know either; so there is no third one, unless
        none is to be kept.
        """
        secret, now = new_secret(), datetime.now(UTC)
        this = (webhooks.c.Id == id) & (webhooks.c.Secret != secret)  # of a try whose answer was lost
        if keep_old:
            this &= or_(webhooks.c.OldSecretUntil.is_(None), webhooks.c.OldSecretUntil <= now)
        rotated = {"Secret": secret, "OldSecret": webhooks.c.Secret, "OldSecretUntil": now + keep_old}

        async def rotate(connection: Connection) -> tuple[str | None, datetime | None]:
            await connection.execute(webhooks.update().where(this).values(rotated))
            stored = select(webhooks.c.Secret, webhooks.c.OldSecretUntil).where(webhooks.c.Id == id)
            row = (await connection.execute(stored)).one_or_none()
            return (None, None) if row is None else (secret if row[0] == secret else None, row[1])

        return await self._engine.write(rotate)

    async def replay(self, id: int) -> int | None:
        """Go back to before the first change that was given up, and forget those; or go on where one was ended.

        Return the number that comes next; None if it is neither.
        """

        async def back(connection: Connection) -> int | None:
            first = select(func.min(dead_changes.c.Number)).where(dead_changes.c.Webhook == id)
            number: int | None = (await connection.execute(first)).scalar_one()
            ended = (webhooks.c.Id == id) & (webhooks.c.NextAttemptAt == FOR_EVER)
            position = (await connection.execute(select(webhooks.c.Position).where(ended))).scalar_one_or_none()
            if number is None and position is not None:
                number = position + 1
            if number is not None:
                again = {"Position": number - 1, "Owner": None, "NextAttemptAt": None, "FirstAttemptAt": None}
                again |= {"Problem": None, "Attempts": 0}
                await connection.execute(webhooks.update().where(webhooks.c.Id == id).values(again))
                await connection.execute(dead_changes.delete().where(dead_changes.c.Webhook == id))
            return number

        return await self._engine.write(back)

    async def failed(self, id: int, limit: int) -> list[dict[str, Any]]:
        """Return changes that were given up, the first first; what those are about that were not purged since."""
        of_series = case((changes.c.Subject == "series", changes.c.SeriesInstanceUID)).label("SeriesInstanceUID")
        about = (of_series, changes.c.StudyInstanceUID)
        query = select(dead_changes.c.Number, dead_changes.c.Problem, dead_changes.c.At, *about)
        query = query.outerjoin_from(dead_changes, changes, changes.c.Number == dead_changes.c.Number)
        query = query.where(dead_changes.c.Webhook == id).order_by(dead_changes.c.Number)
        return await self._engine.read(query.limit(limit))

    async def discard(self, id: int) -> int:
        """Forget the changes that were given up: nobody tells them again. Return how many these were."""
        done = 0

        async def forget(connection: Connection) -> None:
            nonlocal done
            of_webhook = dead_changes.c.Webhook == id
            done = max(done, (await connection.execute(dead_changes.delete().where(of_webhook))).rowcount)

        await self._engine.write(forget)
        return done

    # --- what tells them ---

    async def were_added(self) -> bool:
        """Return whether there is any webhook."""
        return bool(await self._engine.read(select(webhooks.c.Id).limit(1)))

    async def claim(self, owner: str, last: int, telling: Collection[int]) -> list[dict[str, Any]]:
        """Claim those, but for `telling`, that do not know change `last`, are due, and are told by no other process."""
        now = datetime.now(UTC)
        behind = (webhooks.c.Position < last) & webhooks.c.Id.not_in(telling)
        next_at, until = webhooks.c.NextAttemptAt, webhooks.c.OwnedUntil
        stuck = is_far(next_at, now) & (next_at < FOR_EVER)
        due = or_(next_at.is_(None), next_at <= now, stuck)
        is_over = or_(until < now, is_far(until, now, timedelta(seconds=CLAIM_S)))
        free = or_(webhooks.c.Owner == owner, webhooks.c.Owner.is_(None), is_over)
        wanted = select(webhooks.c.Id).where(behind & due & free)
        if not await self._engine.read(wanted):
            return []

        async def claim(connection: Connection) -> list[dict[str, Any]]:
            rows = await connection.execute(select(webhooks).where(behind & due & free).with_for_update())
            mine = [{**row} for row in rows.mappings()]
            ids = [row["Id"] for row in mine]
            await connection.execute(webhooks.update().where(webhooks.c.Id.in_(ids)).values(_claimed(owner)))
            return mine

        return await self._engine.write(claim)

    async def keep(self, id: int, owner: str, update: dict[str, Any]) -> dict[str, Any] | None:
        """Write down how far a webhook is; return its secrets as they are now, None if it is no longer this owner's."""

        async def change(connection: Connection) -> dict[str, Any] | None:
            mine = (webhooks.c.Id == id) & (webhooks.c.Owner == owner)
            done = webhooks.update().where(mine).values(_claimed(owner) | update)
            row = (await connection.execute(done.returning(*SECRETS))).mappings().one_or_none()
            return None if row is None else {**row}

        return await self._engine.write(change)

    async def bury(self, id: int, number: int, problem: str) -> None:
        """Keep a change that was given up, until it is replayed."""
        row = {"Webhook": id, "Number": number, "Problem": problem, "At": datetime.now(UTC)}

        async def add(connection: Connection) -> None:
            await insert(connection, dead_changes, row)

        await self._engine.write(add)


def select_all() -> Select[Any]:
    dead = select(func.count()).where(dead_changes.c.Webhook == webhooks.c.Id).scalar_subquery().label("Dead")
    ended = func.coalesce(webhooks.c.NextAttemptAt == FOR_EVER, false()).label("Ended")
    of_webhook = ("Id", "Url", "Filters", "Position", "Attempts", "Problem")
    return select(*(webhooks.c[name] for name in of_webhook), ended, dead).order_by(webhooks.c.Id)


def _claimed(owner: str) -> dict[str, Any]:
    return {"Owner": owner, "OwnedUntil": datetime.now(UTC) + timedelta(seconds=CLAIM_S)}


def new_secret() -> str:
    """Make a secret in the form of the Standard Webhooks specification."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
