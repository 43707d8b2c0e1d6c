"""What commands say where a server refuses what they ask."""

from pathlib import Path

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


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout("late")], ids=repr)
async def test_a_server_that_does_not_answer_is_named_with_the_setting_of_its_url(error: httpx.HTTPError) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    remote = Remote("http://user:secret@server.example:8123", None, None)
    remote.http = httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url=remote.url)
    with pytest.raises(Unreadable) as raised:
        await remote.get("studies", StudyPage)
    told = str(raised.value)
    assert "server.example:8123" in told
    assert "--url" in told
    assert type(error).__name__ in told
    assert "secret" not in told
    await remote.http.aclose()


async def test_a_keys_file_that_cannot_be_read_is_named_with_its_option(tmp_path: Path) -> None:
    remote = Remote("http://server.example", tmp_path / "no.key", None)
    with pytest.raises(Unreadable) as raised:
        await remote.get("studies", StudyPage)
    assert str(tmp_path / "no.key") in str(raised.value)
    assert "--key-file" in str(raised.value)
    await remote.http.aclose()
