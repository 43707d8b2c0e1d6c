"""Keys to the HTTP API: made, listed, revoked, recognized. The database holds a salted hash of each, never the key."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, exists, select

from storage.connection import Connection
from storage.engine import Engine, insert
from storage.schema import api_keys, ended_sessions

PREFIX = "sgk"  # of a key: prefix, id, secret, joined by "_"; scanners of leaked secrets can look for it
SESSION_S = 12 * 3600
SESSION = re.compile(r"([0-9a-f]+\.([0-9]{1,20})\.[0-9a-f]+)\.([0-9a-f]+)")  # claim: key, end, number; signature


BY_ID = select(api_keys).where(api_keys.c.Id == bindparam("id"))  # made once: each request asks for it


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key, and may be shown."""

    id: str
    name: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    @property
    def is_valid(self) -> bool:
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > datetime.now(UTC))

    def may(self, scope: str) -> bool:
        """Return whether the key has this scope; admin has every one."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass
class Keys:
    """The keys of one database."""

    _engine: Engine
    _seen: bool = field(default=False, init=False)

    async def create(self, name: str, scopes: Collection[str], expires_at: datetime | None = None) -> tuple[Key, str]:
        """Make a key; return what is stored of it, and the key itself, which nobody can show again."""
        key = Key(secrets.token_hex(6), name, frozenset(scopes), datetime.now(UTC), expires_at, None)
        secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
        row = {
            "Id": key.id,
            "Name": name,
            "Salt": salt,
            "Hash": _hash(salt, secret),
            "Scopes": " ".join(sorted(scopes)),
            "CreatedAt": key.created_at,
            "ExpiresAt": expires_at,
        }

        async def add(connection: Connection) -> None:
            await insert(connection, api_keys, row)

        await self._engine.write(add)
        return key, f"{PREFIX}_{key.id}_{secret}"

    async def all(self) -> list[Key]:
        """Return every key that was ever made, the oldest first."""
        return [key_of(row) for row in await self._engine.read(select(api_keys).order_by(api_keys.c.CreatedAt))]

    async def revoke(self, id: str) -> bool:
        """End a key at once; return whether there was such a key that was not revoked."""
        now = datetime.now(UTC)  # the same in every try: so a try knows what the one before it has done
        this = (api_keys.c.Id == id) & (api_keys.c.RevokedAt.is_(None) | (api_keys.c.RevokedAt == now))

        async def change(connection: Connection) -> int:
            return (await connection.execute(api_keys.update().where(this).values(RevokedAt=now))).rowcount

        return await self._engine.write(change) == 1

    async def recognize(self, presented: str) -> Key | None:
        """Return the key, if it is one of ours and valid."""
        prefix, _, rest = presented.partition("_")
        id, _, secret = rest.partition("_")
        found = await self._row(id)
        salt, stored = (found["Salt"], found["Hash"]) if found else ("", "")
        same = hmac.compare_digest(_hash(salt, secret), stored)  # takes as long where there is no such key
        key = key_of(found) if found and same and prefix == PREFIX else None
        return key if key and key.is_valid else None

    async def session(self, id: str) -> str | None:
        """Make what stands for a key in a browser for SESSION_S, and is not the key; None if there is no such key.

        It is signed with the stored hash: whatever ends the key ends it, on every server, and none has to remember it.
        """
        row = await self._row(id)
        claim = f"{id}.{int(time.time()) + SESSION_S}.{secrets.token_hex(8)}"
        return f"{claim}.{_signature(row, 'session', claim)}" if row else None

    async def recognize_session(self, presented: str) -> Key | None:
        """Return the key that a session stands for, if both are ours and valid."""
        row = await self._row_of_session(presented)
        return key_of(row) if row else None

    async def token(self, session: str) -> str | None:
        """Return what a page shows to act in a session, whose end is the token's; None if there is no such session."""
        row = await self._row_of_session(session)
        return _signature(row, "token", session.rpartition(".")[0]) if row else None

    async def end_session(self, presented: str) -> None:
        """End a session on every server, also for whoever has a copy of it."""
        if await self._row_of_session(presented) is None:
            return
        claim, _, _ = presented.rpartition(".")
        ends_at = datetime.fromtimestamp(int(claim.split(".")[1]), UTC)

        async def end(connection: Connection) -> None:
            await connection.execute(ended_sessions.delete().where(ended_sessions.c.EndsAt < datetime.now(UTC)))
            await insert(connection, ended_sessions, {"Session": claim, "EndsAt": ends_at})

        await self._engine.write(end)

    async def were_made(self) -> bool:
        """Return whether there ever was a key: from then on everyone needs one, also when all are revoked."""
        self._seen = self._seen or bool(await self._engine.read(select(api_keys.c.Id).limit(1)))
        return self._seen

    async def _row(self, id: str) -> dict[str, Any] | None:
        return next(iter(await self._engine.read(BY_ID, {"id": id})), None)

    async def _row_of_session(self, presented: str) -> dict[str, Any] | None:
        """Return the row of the key that a session stands for, if both are ours and valid."""
        parts = SESSION.fullmatch(presented)
        if parts is None:
            return None
        claim, ends_at, signature = parts.groups()
        ended = exists().where(ended_sessions.c.Session == claim).label("Ended")
        query = select(api_keys, ended).where(api_keys.c.Id == claim.partition(".")[0])
        row = next(iter(await self._engine.read(query)), None)
        if row is None or row["Ended"] or not hmac.compare_digest(_signature(row, "session", claim), signature):
            return None
        return row if key_of(row).is_valid and int(ends_at) > time.time() else None


def _hash(salt: str, secret: str) -> str:
    """Hash a secret: one SHA-256 is enough, since nobody guesses 256 random bits however fast the hash is."""
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _signature(row: Mapping[str, Any], what: str, claim: str) -> str:
    return hmac.new(row["Hash"].encode(), f"{what} {claim}".encode(), hashlib.sha256).hexdigest()


def key_of(row: Mapping[str, Any]) -> Key:
    scopes = frozenset(row["Scopes"].split())
    return Key(row["Id"], row["Name"], scopes, row["CreatedAt"], row["ExpiresAt"], row["RevokedAt"])
