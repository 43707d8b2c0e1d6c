"""/changes and its stream, over real HTTP, on both databases."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.rig.processes import Process, server
from tests.rig.factories import SERIES, STUDY, make_report


@pytest.fixture
def running(tmp_path: Path, database_url: str) -> Iterator[tuple[Process, str]]:
    with server(tmp_path, DATABASE_URL=database_url) as found:
        yield found


def post(url: str, *sops: str, series: str = SERIES) -> None:
    report = make_report(*sops, series=series).model_dump(mode="json")
    assert httpx.post(f"{url}/series", json=report, trust_env=False).status_code < 300


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The stream's events as `id` and `data`."""
    event: dict[str, Any] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if not line and event:
            yield event
            event = {}
        elif name in ("id", "data", "event"):
            event[name] = json.loads(value) if name == "data" else value


def test_changes_are_read_page_by_page(running: tuple[Process, str]) -> None:
    _, url = running
    for n in range(5):
        post(url, "1", series=f"{STUDY}.{n}")
    pages = []
    page: dict[str, Any] = {"last": 0, "done": False}
    while not page["done"]:
        page = httpx.get(f"{url}/changes", params={"since": page["last"], "limit": 2}, trust_env=False).json()
        pages.append([change["SeriesInstanceUID"] for change in page["changes"]])
    assert pages == [[f"{STUDY}.{n}" for n in some] for some in ((0, 1), (2, 3), (4,))]
    after = httpx.get(f"{url}/changes", params={"since": page["last"]}, trust_env=False).json()
    assert after == {"changes": [], "last": page["last"], "done": True}


def test_the_stream_tells_what_was_and_what_comes_and_goes_on_where_it_was(running: tuple[Process, str]) -> None:
    _, url = running
    post(url, "1")
    with httpx.Client(trust_env=False, timeout=120) as http:
        with http.stream("GET", f"{url}/changes/stream") as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            stream = events(response)
            first = next(stream)
            assert (first["id"], first["event"], first["data"]["Revision"]) == ("1", "change", 1)
            post(url, "2")
            second = next(stream)
            assert second["data"]["NumInstances"] == 2
        post(url, "3")
        with http.stream("GET", f"{url}/changes/stream", headers={"Last-Event-ID": str(second["id"])}) as response:
            assert next(events(response))["data"]["NumInstances"] == 3


def test_now_is_the_end_of_what_is_known(running: tuple[Process, str]) -> None:
    _, url = running
    post(url, "1")
    page = httpx.get(f"{url}/changes", params={"since": "now"}, trust_env=False).json()
    assert page == {"changes": [], "last": page["last"], "done": True}
    with (
        httpx.Client(trust_env=False, timeout=120) as http,
        http.stream("GET", f"{url}/changes/stream", params={"since": "now"}) as response,
    ):
        post(url, "2")
        assert next(events(response))["data"]["Revision"] == 2
    assert httpx.get(f"{url}/changes", params={"since": "then"}, trust_env=False).status_code == 422


def test_an_open_stream_does_not_keep_the_server_from_stopping(running: tuple[Process, str]) -> None:
    process, url = running
    post(url, "1")
    with (
        httpx.Client(trust_env=False, timeout=120) as http,
        http.stream("GET", f"{url}/changes/stream") as response,
    ):
        stream = events(response)
        next(stream)
        process.stop(timeout_s=60)
        assert list(stream) == []
    assert process.events("server.stopped")
