"""Keys to the HTTP API: made, listed, revoked, recognized. The database holds a salted hash of each, never the key."""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import Engine, insert
from schema import api_keys

SCOPES = {
    "series:write": "post series reports",
    "series:read": "read series, changes and DICOMweb",
    "admin": "everything, and resolve conflicts",
}
PREFIX = "sgk"  # of a key: prefix, id, secret, joined by "_"; scanners of leaked secrets can look for it


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
        return scope in self.scopes or "admin" in self.scopes


@dataclass
class Keys:
    """The keys of one database."""

    engine: Engine
    _seen: bool = field(default=False, init=False)

    async def create(self, name: str, scopes: Collection[str], expires_at: datetime | None = None) -> tuple[Key, str]:
        """Make a key; what is stored of it, and the key itself, which nobody can show again."""
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

        async def add(connection: AsyncConnection) -> None:
            await insert(connection, api_keys, row)

        await self.engine.write(add)
        return key, f"{PREFIX}_{key.id}_{secret}"

    async def all(self) -> list[Key]:
        """Every key that was ever made, the oldest first."""
        return [_key(row) for row in await self.engine.read(select(api_keys).order_by(api_keys.c.CreatedAt))]

    async def revoke(self, id: str) -> bool:
        """End a key at once; whether there was such a key that was not revoked."""
        now = datetime.now(UTC)  # the same in every try: so a try knows what the one before it has done
        this = (api_keys.c.Id == id) & (api_keys.c.RevokedAt.is_(None) | (api_keys.c.RevokedAt == now))

        async def change(connection: AsyncConnection) -> int:
            return (await connection.execute(api_keys.update().where(this).values(RevokedAt=now))).rowcount

        return await self.engine.write(change) == 1

    async def recognize(self, presented: str) -> Key | None:
        """The key, if it is one of ours and valid."""
        prefix, _, rest = presented.partition("_")
        id, _, secret = rest.partition("_")
        found = next(iter(await self.engine.read(select(api_keys).where(api_keys.c.Id == id))), None)
        salt, stored = (found["Salt"], found["Hash"]) if found else ("", "")
        same = hmac.compare_digest(_hash(salt, secret), stored)  # takes as long where there is no such key
        key = _key(found) if found and same and prefix == PREFIX else None
        return key if key and key.is_valid else None

    async def were_made(self) -> bool:
        """Whether there ever was a key: from then on everyone needs one, also when all are revoked."""
        self._seen = self._seen or bool(await self.engine.read(select(api_keys.c.Id).limit(1)))
        return self._seen


def _hash(salt: str, secret: str) -> str:
    """One SHA-256 is enough: the secret is 256 random bits, which nobody guesses however fast the hash is."""
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _key(row: Mapping[str, Any]) -> Key:
    scopes = frozenset(row["Scopes"].split())
    return Key(row["Id"], row["Name"], scopes, row["CreatedAt"], row["ExpiresAt"], row["RevokedAt"])
