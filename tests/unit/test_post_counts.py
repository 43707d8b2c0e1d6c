"""The counts of a study on their way to the server."""

import json

import httpx
import pytest

from gateway.server_client import ServerUnavailable, post_counts
from models import CountsOfStudy
from tests.rig.factories import RECEIVED_AT, STUDY

COUNTS = CountsOfStudy(Series=3, Instances=120, At=RECEIVED_AT)


async def post(answer: httpx.Response | Exception, study: str = STUDY) -> tuple[str | None, list[httpx.Request]]:
    """Post COUNTS to a server that answers so; return the problem, and what it was asked."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(handle)) as http:
        return await post_counts(http, study, COUNTS, "gateway 1"), seen


@pytest.mark.parametrize("status", [200, 201, 204])
async def test_counts_are_posted_to_their_study_with_the_gateways_name(status: int) -> None:
    problem, (request,) = await post(httpx.Response(status))
    assert problem is None
    assert (request.method, request.url.path) == ("POST", f"/studies/{STUDY}/counts")
    body = json.loads(request.content)
    assert body.pop("GatewayID") == "gateway 1"
    assert CountsOfStudy.model_validate(body) == COUNTS


async def test_a_study_with_a_slash_is_one_part_of_the_path() -> None:
    _, (request,) = await post(httpx.Response(204), "1.2/3")
    assert request.url.raw_path == b"/studies/1.2%2F3/counts"


@pytest.mark.parametrize("status", [404, 405, 409, 422])
async def test_what_the_server_refuses_is_told_and_not_posted_again(status: int) -> None:
    problem, _ = await post(httpx.Response(status, text="a patient's name"))
    assert problem == f"the server refused the counts: HTTP {status}"


@pytest.mark.parametrize("answer", [httpx.Response(503), httpx.Response(429), httpx.ConnectError("refused")])
async def test_a_server_that_cannot_take_them_now_gets_them_later(answer: httpx.Response | Exception) -> None:
    with pytest.raises(ServerUnavailable) as caught:
        await post(answer)
    assert caught.value.retry_after_s == 0  # it does not say for how long
