"""What routes say alike: the scope that a key needs, what is answered beside their own, and what their handlers get."""

from typing import Annotated, Any

from fastapi import Depends, Request, Security, params
from fastapi.security import HTTPBearer

from api.answers import Problem
from api.follower import Follower
from db import Database

Responses = dict[int | str, dict[str, Any]]


class NeedsKey(HTTPBearer):
    """The API key that a route needs. It only documents that: the guard reads `scope`, and checks it (access.py).

    `scope`: what the key must be allowed; None if any key will do.
    """

    def __init__(self, scope: str | None) -> None:
        about = "A key of `python server.py keys create`."
        super().__init__(scheme_name="HTTPBearer", description=about, auto_error=False)
        self.scope = scope


def needs(scope: str | None) -> params.Depends:
    """Declare on a route the scope that a key needs for it."""
    dependency: params.Depends = Security(NeedsKey(scope))
    return dependency


READS, WRITES, DECIDES = needs("series:read"), needs("series:write"), needs("admin")


def answers(*codes: int) -> Responses:
    """Return what a route answers beside its own: 400, 401, 403 and 429 of the guard, 503 of the database, `codes`."""
    return {code: {"model": Problem} for code in (*codes, 400, 401, 403, 429, 503)}


async def database_of(request: Request) -> Database:
    """Return the database of the process that answers."""
    database: Database = request.app.state.database
    return database


async def follower_of(request: Request) -> Follower:
    """Return what wakes those who wait for changes in the process that answers."""
    follower: Follower = request.app.state.follower
    return follower


Db = Annotated[Database, Depends(database_of)]
Changes = Annotated[Follower, Depends(follower_of)]
