"""What commands say where a server refuses what they ask."""

import httpx
import pytest

from api.answers import StudyPage
from api.cli.remote import Remote, Unreadable


async def refused(status: int, **body: object) -> str:
    """What is said of such an answer."""
    remote = Remote.__new__(Remote)
    answers = httpx.MockTransport(lambda _: httpx.Response(status, **body))  # type: ignore[arg-type]
    remote.http = httpx.AsyncClient(transport=answers, base_url="http://server")
    with pytest.raises(Unreadable) as raised:
        await remote.get("studies", StudyPage, StudyDate="2026")
    return str(raised.value)


async def test_a_value_that_the_server_refuses_is_named() -> None:
    detail = [{"loc": ["query", "StudyDate"], "msg": "is no day", "type": "value_error"}]
    assert await refused(422, json={"detail": detail}) == "HTTP 422: StudyDate is no day"


@pytest.mark.parametrize(
    "body",
    [
        {"json": {"detail": [{"loc": ["query", "X"], "msg": "is no parameter", "type": "unknown_parameter"}]}},
        {"json": {"detail": "no"}},
        {"json": {"detail": []}},
        {"json": []},
        {"content": b"\xff"},
    ],
    ids=repr,
)
async def test_one_that_it_does_not_know_or_does_not_name_may_be_of_an_earlier_version(body: dict[str, object]) -> None:
    assert "earlier version" in await refused(422, **body)
