"""Call the server: TLS, the API key, bounded answers, reports, and what the server has of a series.

Whatever answers may be a server, a proxy or a captive portal. `ask` bounds each answer in time and bytes, and turns
every error into NoAnswer.
"""

import asyncio
import json
import re
import ssl
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import httpx
import structlog
from pydantic import BaseModel, Field

from common.errors import SeriesGatewayError
from common.outgoing import http_client, retry_after_s
from common.settings import GatewaySettings, key_problem
from models import CountsOfStudy, SeriesKey, SeriesRecord, SeriesReport, Uid

PARTS = 4  # parts of a request (connect, send, wait, read), each of which may take the client's time-out
NO_TIMEOUT_S = 10.0  # used if a client has no time-out
MAX_ANSWER_BYTES = 2**24  # longest answer that is read; reports have the same limit, and records are smaller
MAX_STORED_BYTES = 2**25  # longest list of stored images that is read
MAX_STORED = 250_000  # most SOP Instance UIDs in it
MAX_WORDS = 200  # characters of the reason for a missing answer
RETRYABLE = {408, 425, 429}  # statuses to retry, besides 5xx: RFC 9110 §15.5.9, RFC 8470, RFC 6585
WHOLE_SERVER = {429, 502, 503, 504}  # statuses that other reports would get as well
KEY_PROBLEMS = {  # statuses that are not caused by the report
    401: "GATEWAY_API_KEY is missing, wrong, expired or revoked",
    403: "the key lacks the scope series:write",
}
ELSEWHERE = "GATEWAY_SERVER_URL or a proxy's routes lead to something else: correct them"
NOT_OF_THE_REPORT = {  # statuses that a proxy, or a server at another path, answers with (RFC 9110 §15.5)
    404: ELSEWHERE,
    405: ELSEWHERE,
    410: ELSEWHERE,
    413: "a proxy refuses a body of this size: raise its limit (nginx: client_max_body_size 16m)",
    421: "a proxy does not know the host name of GATEWAY_SERVER_URL: correct it, or the proxy's server names",
}
UNREADABLE = "There was an error parsing the body"  # FastAPI's answer to a body that cannot even be decoded
TOO_LARGE = re.compile(r"the body has more than [0-9]+ bytes: SERVER_MAX_BODY_BYTES ")
MAX_FIELDS = 10  # most fields that a refusal names
MAX_REFUSAL = 1000  # characters of a refusal
STATUS_PHRASES = {status.value: status.phrase for status in HTTPStatus}

log = structlog.get_logger()


class CannotCall(SeriesGatewayError):
    """The server cannot be called with these settings. The text names the setting, its problem and how to fix it."""


def server_client(settings: GatewaySettings) -> httpx.AsyncClient:
    """Return the HTTP client for all requests to the server. Raises CannotCall."""
    try:
        tls = ssl.create_default_context(cafile=settings.server_ca)
    except OSError as error:  # ssl.SSLError is one
        cure = "Give a readable PEM file of the certificates that the server's certificate is checked against."
        raise CannotCall(f"GATEWAY_SERVER_CA={settings.server_ca}: {error.strerror or error}. {cure}") from error
    if settings.exposes_key:
        log.warning("key.exposed", host=settings.server_url.host, cure="begin GATEWAY_SERVER_URL with https://")
    return http_client(
        base_url=str(settings.server_url),
        timeout=settings.request_timeout_s,
        verify=tls,
        trust_env=settings.proxy_from_env,
        auth=Bearer(settings.api_key.get_secret_value() if settings.api_key else None, settings.api_key_file),
    )


class Bearer(httpx.Auth):
    """Sends the API key (RFC 6750 §2.1), if there is one. If it is in a file, the file is read again after a 401."""

    def __init__(self, key: str | None, file: Path | None) -> None:
        """Take the key, or read it from a file. Raises CannotCall."""
        self._file = file
        self._key = key if file is None else read_key(file)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        sent = self._key
        if sent is not None:
            request.headers["Authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code not in (401, 429) or self._file is None:  # 429: too many wrong keys from our address
            return
        await self._read_again(self._file)
        if self._key != sent:
            await _unread(response)
            request.headers["Authorization"] = f"Bearer {self._key}"
            yield request

    async def _read_again(self, file: Path) -> None:
        try:
            key = await asyncio.to_thread(read_key, file)
        except CannotCall as error:
            log.error("key.refused", reason=str(error))
            return
        if key != self._key:
            log.info("key.reloaded")
        self._key = key


def read_key(file: Path) -> str:
    """Read the key in a file. Raises CannotCall."""
    try:
        key = file.read_text("ascii", "replace").strip()
        problem = key_problem(key)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        raise CannotCall(f"GATEWAY_API_KEY_FILE={file}: {problem}. Give a readable file with nothing but the key.")
    return key


async def _unread(response: httpx.Response) -> None:
    """Drop the rest of an answer. httpx would read all of it, without a limit, before it repeats the request."""
    if isinstance(response.stream, httpx.AsyncByteStream):
        await response.stream.aclose()
    response.stream = httpx.ByteStream(b"")


# --- answers within bounds -----------------------------------------------------------------------------------


class NoAnswer(SeriesGatewayError):
    """The server could not be asked, or gave no complete HTTP answer in time. The text quotes nothing of the answer."""

    def __init__(self, reason: str, *, connecting: bool) -> None:
        super().__init__(reason)
        self.connecting = connecting
        """True if no connection was established."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the server."""

    status: int
    retry_after: str | None
    """The Retry-After header, as it came, and so is `date`."""
    date: str | None
    content: bytes
    """The body; empty if it was too long, or had a content coding that cannot be read."""


async def ask(  # noqa: PLR0913 - one parameter for each part of a request
    http: httpx.AsyncClient,
    method: str,
    path: str,
    *,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_bytes: int = MAX_ANSWER_BYTES,
) -> Answer:
    """Send a request and read its answer, in `timeout_s` altogether. (httpx's own time-outs are for each read.)

    Raises NoAnswer and nothing else, whatever is answered.
    """
    if timeout_s is None:
        timeout_s = PARTS * (http.timeout.read or NO_TIMEOUT_S)
    headers = {"Accept-Encoding": "identity", **(headers or {})}
    try:
        async with (
            asyncio.timeout(timeout_s),
            http.stream(method, path, content=content, headers=headers) as response,
        ):
            body = await _read(response, max_bytes)
            retry_after, date = (response.headers.get(name) for name in ("Retry-After", "Date"))
            return Answer(response.status_code, retry_after, date, body)
    except Exception as error:  # a strange answer can make httpx raise many kinds of errors
        connecting = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        raise NoAnswer(_failure(error), connecting=connecting) from error


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    content = bytearray()
    async for chunk in response.aiter_raw() if coding else response.aiter_bytes():  # httpx inflates without a bound
        content += chunk
        if len(content) > max_bytes:
            return b""
    return _decoded(bytes(content), coding, max_bytes)


def _decoded(content: bytes, coding: str, max_bytes: int) -> bytes:
    """Return a body without its content coding. None was asked for, but some proxies add one all the same."""
    if coding in ("", "identity"):
        return content
    if coding not in ("gzip", "x-gzip"):
        return b""
    gzip = zlib.decompressobj(wbits=31)
    try:
        plain = gzip.decompress(content, max_bytes)
    except zlib.error:
        return b""
    return plain if gzip.eof else b""


def _failure(error: Exception) -> str:
    """Return the kind of an error, and the text of a connection error, which is from the network or TLS.

    Other errors' texts may quote the server's answer, so they are not used.
    """
    kind = type(error).__name__
    return f"{kind}: {error}"[:MAX_WORDS] if isinstance(error, httpx.ConnectError) else kind


# --- what the server has -------------------------------------------------------------------------------------


class _Stored(BaseModel):
    SOPInstanceUIDs: Annotated[list[Uid], Field(fail_fast=True, max_length=MAX_STORED)]


async def stored_instances(http: httpx.AsyncClient, key: SeriesKey) -> list[str] | None:
    """Return the SOP Instance UIDs that the server has of a series; None if it cannot tell."""
    uid = key.series_instance_uid
    try:
        answer = await ask(http, "GET", f"series/{quote(uid, safe='')}/instances", max_bytes=MAX_STORED_BYTES)
        if answer.status == 403:
            reason = "the key lacks the scope series:read: other gateways' images are not seen"
            log.warning("key.refused", reason=reason)
        if answer.status == 404 and _is_unknown(uid, answer.content):
            return []
        return _Stored.model_validate_json(answer.content).SOPInstanceUIDs if answer.status == 200 else None
    except (NoAnswer, ValueError):  # ValueError: the answer is not such a list
        return None


def _is_unknown(uid: str, content: bytes) -> bool:
    """Tell if a 404 is our server's word that it has no such series, and not from a proxy or another path."""
    try:
        detail = json.loads(content)["detail"]
        return isinstance(detail, str) and uid in detail.split()
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


# --- reports -------------------------------------------------------------------------------------------------


class ServerUnavailable(SeriesGatewayError):
    """The server could not take a report now. Try again, but not before `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float = 0.0, *, whole_server: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.whole_server = whole_server
        """True if other reports would fail in the same way."""


class SeriesRejected(SeriesGatewayError):
    """The server refused a report, and trying again would not help."""


async def post_report(http: httpx.AsyncClient, report: str, headers: Mapping[str, str]) -> SeriesRecord:
    """Post a report once; return the stored record. Raises ServerUnavailable or SeriesRejected, without patient data.

    1. No answer, a problem with the key, 5xx and retryable statuses: ServerUnavailable.
    2. Another 4xx that is not our server's judgement of the report, but a proxy's, say: ServerUnavailable.
    3. Another 4xx of our server: SeriesRejected.
    4. 2xx with a record: success. Anything else: ServerUnavailable.
    """
    if not report:
        raise SeriesRejected("the journal has no content of it")
    answer = await _post(http, "series", report, headers)
    status, wait_s = answer.status, retry_after_s(answer.retry_after, answer.date)
    if 400 <= status < 500 and not _is_about_the_report(answer):
        cure = NOT_OF_THE_REPORT.get(status, "something in front of the server refuses it: correct that")
        problem = f"HTTP {status}, but not from our server: {cure}"
        raise ServerUnavailable(problem, wait_s, whole_server=status in NOT_OF_THE_REPORT.keys() - {413})
    if 400 <= status < 500:
        raise SeriesRejected(f"HTTP {status} {_problem(answer)}"[:MAX_REFUSAL])
    try:
        if 200 <= status < 300:
            return SeriesRecord.model_validate_json(answer.content)
    except ValueError:
        pass
    raise ServerUnavailable(f"HTTP {status} without a SeriesRecord: is GATEWAY_SERVER_URL right?")


async def _post(http: httpx.AsyncClient, path: str, body: str, headers: Mapping[str, str]) -> Answer:
    """Post JSON once; return the server's answer. Raises ServerUnavailable if trying again may help."""
    headers = {"Content-Type": "application/json", **headers}
    try:
        answer = await ask(http, "POST", path, content=body.encode(), headers=headers)
    except NoAnswer as error:
        raise ServerUnavailable(str(error), whole_server=error.connecting) from error
    status, wait_s = answer.status, retry_after_s(answer.retry_after, answer.date)
    if status in KEY_PROBLEMS:
        raise ServerUnavailable(f"HTTP {status}: {KEY_PROBLEMS[status]}", wait_s, whole_server=True)
    if status >= 500 or status in RETRYABLE:
        raise ServerUnavailable(f"HTTP {status}", wait_s, whole_server=status in WHOLE_SERVER)
    return answer


async def post_counts(
    http: httpx.AsyncClient, study_instance_uid: str, counts: CountsOfStudy, gateway_id: str
) -> str | None:
    """Post what a PACS has of a study; return why the server refused it, if so. Raises ServerUnavailable."""
    body = json.dumps(counts.model_dump(mode="json") | {"GatewayID": gateway_id})
    answer = await _post(http, f"studies/{quote(study_instance_uid, safe='')}/counts", body, {})
    return None if 200 <= answer.status < 300 else f"the server refused the counts: HTTP {answer.status}"


def _is_about_the_report(answer: Answer) -> bool:
    """Tell if our server has checked the report and refuses it, by the form of its answer. Others send JSON as well."""
    try:
        detail = json.loads(answer.content)["detail"]
        match answer.status:
            case 400:
                return bool(detail == UNREADABLE)
            case 413:
                return TOO_LARGE.match(detail) is not None
            case 422:
                return bool(detail) and all(isinstance(each["loc"], list) and "type" in each for each in detail)
    except Exception:  # noqa: S110 - a stranger's words, of any shape
        pass
    return False


def _problem(answer: Answer) -> str:
    """Return the fields that the server refused, from its 422 body, or the meaning of its status; none of its texts."""
    try:
        details = json.loads(answer.content)["detail"][:MAX_FIELDS]
        fields = [_field(detail["loc"], str(detail.get("type"))) for detail in details]
    except Exception:  # a stranger's JSON: of any shape, or too deep to be read
        fields = []
    return "; ".join(fields) or STATUS_PHRASES.get(answer.status, "")


def _field(loc: Sequence[str | int], kind: str) -> str:
    known = [str(part) for part in loc if isinstance(part, int) or part in SeriesReport.model_fields or part == "body"]
    return f"{'.'.join(known)}: {kind if re.fullmatch('[a-z_]{1,64}', kind) else 'refused'}"
