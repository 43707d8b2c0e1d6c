"""Which key a request needs is said where its route is, and by nobody else."""

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from api.access import OPEN, Scopes
from api.routing import NeedsKey, needs
from server import app
from storage.key_reader import SCOPES

FOR_EVERYONE = {("GET", path) for path in OPEN} | {("DELETE", "/session")}


@pytest.fixture
def scopes() -> Scopes:
    router = APIRouter()
    for method, scope in (("GET", "metrics:read"), ("POST", "series:write"), ("DELETE", None)):
        router.add_api_route("/things/{name:path}", lambda: None, methods=[method], dependencies=[needs(scope)])
    app = FastAPI()
    app.include_router(router)
    return Scopes(app.routes)


@pytest.mark.parametrize(
    ("method", "scope"), [("GET", "metrics:read"), ("HEAD", "metrics:read"), ("POST", "series:write"), ("DELETE", None)]
)
def test_a_request_needs_what_its_route_declares(scopes: Scopes, method: str, scope: str | None) -> None:
    assert scopes.needed(method, "/things/a/b") == scope


@pytest.mark.parametrize(("method", "path"), [("PUT", "/things/a"), ("POST", "/thing"), ("DELETE", "/")])
def test_to_act_where_no_route_is_needs_the_highest_scope(scopes: Scopes, method: str, path: str) -> None:
    assert scopes.needed(method, path) == "admin"


def test_every_route_declares_a_scope_that_is_there_or_is_for_everyone() -> None:
    for route in iter_route_contexts(app.routes):
        if not getattr(route, "include_in_schema", False) or not hasattr(route, "dependencies"):
            continue
        declared = [each.dependency.scope for each in route.dependencies if isinstance(each.dependency, NeedsKey)]
        if {(method, route.path) for method in route.methods or ()} <= FOR_EVERYONE:
            assert declared == []
        else:
            assert len(declared) == 1, route.path
            assert declared[0] in {*SCOPES, None}
