"""The SCP's limits and time-outs, its allow-list and TLS, over real sockets."""

import asyncio
import gc
import os
import resource
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from structlog.testing import capture_logs

from bench.odd_associations import item, request
from bench.rig.senders import associate_rq, pure_scu
from common.metrics import store_responses, total
from common.settings import GatewaySettings, SettingsError, load
from dicom.tls import BadCertificate, tls_context
from models import Association
from scp import serve_scp
from tests.rig.associations import Kept, Raw, listening, unsaturated
from tests.rig.factories import encode, make_dataset
from tests.rig.pdus import ECHO, RELEASE_RQ, SOP_INSTANCE, command, element, p_data, pdv, store
from tests.rig.streams import with_window

ABORTED = b"\x07\x00\x00\x00\x00\x04"


async def echo(port: int, ae_title: str = "SCU", source: str = "127.0.0.1", **arguments: Any) -> bool | tuple[int, ...]:
    """A whole C-ECHO by stock pynetdicom: True, or the rejection's result, source and reason."""
    return await asyncio.to_thread(_echo, port, ae_title, source, arguments)


async def echo_or_rejection(port: int, ae_title: str = "SCU", source: str = "127.0.0.1") -> object:
    """As `echo`. Stock pynetdicom may lose a rejection whose connection has ended before it looks: it asks again."""
    outcome: object = ()
    for _ in range(5):
        if (outcome := await echo(port, ae_title, source)) != ():
            break
    return outcome


def _echo(port: int, ae_title: str, source: str, arguments: dict[str, Any]) -> bool | tuple[int, ...]:
    ae = AE(ae_title)
    ae.connection_timeout = ae.acse_timeout = 120
    contexts = [build_context(Verification)]
    assoc = pure_scu(ae.associate("127.0.0.1", port, contexts, bind_address=(source, 0), **arguments))
    if assoc.is_established:
        status = assoc.send_c_echo().Status
        assoc.release()
        return bool(status == 0)
    primitive = assoc.acceptor.primitive
    outcome = () if primitive is None else (primitive.result, primitive.result_source, primitive.diagnostic)
    for thread in (assoc, assoc.dul):
        if thread.is_alive():
            thread.join(10)
    del assoc, thread
    with warnings.catch_warnings():  # a stock SCU that is cut off leaves its socket to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return outcome  # type: ignore[return-value]


async def test_silent_connections_beyond_their_share_give_way_to_one_that_speaks() -> None:
    async with listening(max_connections_per_peer=5, associate_timeout_s=60) as (port, _):
        silent = [await Raw(port).__aenter__() for _ in range(20)]
        assert await echo(port) is True
        for raw in silent[:15]:
            assert await raw.end() == b""
        for raw in silent:
            await raw.__aexit__()


async def test_connections_of_one_address_do_not_count_against_another() -> None:
    async with listening(max_connections_per_peer=2) as (port, _):
        async with Raw(port) as one, Raw(port) as two:
            for raw in (one, two):
                await raw.say(associate_rq())
                await raw.pdu()
            assert await echo_or_rejection(port) == (2, 3, 2)
            assert await echo(port, source="127.0.0.2") is True
        while await echo(port) != True:  # noqa: E712 - a rejection is a tuple
            pass


@pytest.mark.parametrize("limit", ["max_associations", "max_connections_per_peer"])
async def test_association_that_is_idle_longest_gives_way_to_one_beyond_a_limit(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp.GIVES_WAY_AFTER_S", 0.0)
    async with listening(**{limit: 2}) as (port, _), Raw(port) as newer, Raw(port) as older:
        for raw in (newer, older):
            await raw.say(associate_rq())
            await raw.pdu()
        heard_at = said_at = asyncio.get_running_loop().time()
        while said_at < heard_at + 0.01:  # the clock of uvloop has milliseconds
            said_at = asyncio.get_running_loop().time()
            await newer.say(ECHO)
            await newer.pdu()
        with capture_logs() as logs:
            assert await echo(port) is True
        assert (await older.end()).startswith(ABORTED)
        assert [entry["event"] for entry in logs][:1] == ["association.aborted"]
        await newer.say(ECHO)
        assert (await newer.pdu())[0] == 4


async def test_association_in_the_middle_of_an_instance_gives_way_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp.GIVES_WAY_AFTER_S", 0.0)
    async with listening(max_associations=1) as (port, _), Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        await raw.say(store()[:-1])
        await raw.say(b"")
        while await echo_or_rejection(port) != (2, 3, 2):
            pass


async def test_connections_without_an_association_are_bounded_over_all_addresses() -> None:
    limits = {"max_connections_per_peer": 3, "max_associations": 4, "associate_timeout_s": 60}
    async with listening(**limits) as (port, _):
        silent = [await Raw(port, f"127.0.0.{n % 3 + 2}").__aenter__() for n in range(6)]
        assert await echo(port) is True
        for raw in silent[:3]:
            assert await raw.end() == b""
        for raw in silent:
            await raw.__aexit__()


@pytest.mark.parametrize(
    "said",
    [associate_rq(), associate_rq() + RELEASE_RQ, b"\xff" * 10],
    ids=["A-ASSOCIATE-RJ", "A-RELEASE-RP", "A-ABORT"],
)
async def test_what_comes_after_the_last_answer_is_swallowed_until_the_peer_closes(said: bytes) -> None:
    allowed = "SOMEONE" if said == associate_rq() else ""
    async with listening(associate_timeout_s=60, allowed_peers=allowed) as (port, _), Raw(port) as raw:
        await raw.say(said)
        answers = await raw.end()  # our side is shut
        assert answers[-10:-6] in (b"\3\0\0\0", b"\6\0\0\0", b"\7\0\0\0")
        for _ in range(100):  # a reset would end this
            await raw.say(bytes(2**16))


async def test_peer_that_does_not_close_after_the_last_answer_is_closed_in_time() -> None:
    async with listening(associate_timeout_s=0.2) as (port, _), Raw(port) as raw:
        await raw.say(associate_rq() + RELEASE_RQ)
        await raw.end()
        with suppress(ConnectionError):
            async with asyncio.timeout(120):
                while True:
                    await raw.say(bytes(2**16))


async def test_association_beyond_max_associations_is_rejected_as_transient_until_one_ends() -> None:
    async with listening(max_associations=1) as (port, _):
        async with Raw(port) as raw:
            await raw.say(associate_rq())
            assert (await raw.pdu())[0] == 2
            assert await echo_or_rejection(port) == (2, 3, 2)
        while await echo(port) != True:  # noqa: E712
            pass


@pytest.mark.parametrize(
    "said", [b"", b"\x01\x00\x00\x00\x00", associate_rq()[:-1]], ids=["nothing", "5 bytes", "most"]
)
async def test_connection_without_a_whole_association_request_in_time_is_closed(said: bytes) -> None:
    async with listening(associate_timeout_s=0.2) as (port, _), Raw(port) as raw:
        await raw.say(said)
        assert await raw.end() == b""


async def test_bytes_that_trickle_do_not_extend_the_time_for_a_pdu() -> None:
    async with listening(pdu_timeout_s=0.3, association_idle_timeout_s=60) as (port, _), Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        trickle = asyncio.create_task(_trickle(raw, store()))
        assert (await raw.end()).startswith(ABORTED)
        trickle.cancel()


async def _trickle(raw: Raw, data: bytes) -> None:
    for n in range(len(data)):
        await raw.say(data[n : n + 1])
        await asyncio.sleep(0.02)


async def test_idle_association_is_aborted_in_time_and_one_that_is_used_is_not() -> None:
    async with listening(association_idle_timeout_s=0.5) as (port, _), Raw(port) as used, Raw(port) as idle:
        for raw in (used, idle):
            await raw.say(associate_rq())
            await raw.pdu()
        ended = asyncio.create_task(idle.end())
        while not ended.done():
            await used.say(ECHO)
            assert (await used.pdu())[0] == 4
            await asyncio.sleep(0.01)
        assert ended.result().startswith(ABORTED)


async def test_sender_that_pipelines_is_not_read_on_while_its_instance_waits() -> None:
    """Back-pressure reaches the sender by TCP: it can send no more than the buffers hold."""
    release = asyncio.Event()

    async def slow(_: object) -> int:
        await release.wait()
        return 0

    ds = make_dataset()
    ds.SOPInstanceUID = SOP_INSTANCE
    ds.PixelData = bytes(200_000)
    image = encode(ds)
    async with serve_scp(GatewaySettings(scp_port=0), slow, unsaturated) as port, Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        flood = asyncio.create_task(raw.say(store(image) * 200))
        done, _ = await asyncio.wait([flood], timeout=1)
        assert not done
        release.set()
        for _ in range(200):
            assert (await raw.pdu())[0] == 4
        await flood


def numbered(message_id: int) -> bytes:
    """A C-STORE of `encoded` with that message ID."""
    return p_data(pdv(1, 3, command(1, data_set=True, message_id=message_id))) + p_data(pdv(1, 2, encoded()))


async def test_instances_in_a_window_are_answered_as_they_are_kept() -> None:
    waiting: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()

    def keep(_: object) -> asyncio.Future[int]:
        waiting.put_nowait(asyncio.get_running_loop().create_future())
        return waiting._queue[-1]  # type: ignore[attr-defined, no-any-return]

    limits = GatewaySettings(scp_port=0, max_operations=3)
    async with serve_scp(limits, keep, unsaturated) as port, Raw(port) as raw:
        await raw.say(with_window(associate_rq(), 5))
        await raw.pdu()
        await raw.say(b"".join(map(numbered, range(1, 5))) + RELEASE_RQ)
        first, second, third = [await waiting.get() for _ in range(3)]
        second.set_result(0)
        assert element(0x0120, b"\2\0") in await raw.pdu()
        fourth = await waiting.get()
        for one, status, message_id in ((fourth, 0xA700, b"\4\0"), (first, 0, b"\1\0"), (third, 0, b"\3\0")):
            one.set_result(status)
            answer = await raw.pdu()
            assert element(0x0120, message_id) in answer
            assert element(0x0900, status.to_bytes(2, "little")) in answer
        assert (await raw.pdu())[0] == 6  # A-RELEASE-RP


@pytest.mark.parametrize("headers_bytes", [0, 2**22])
async def test_a_window_closes_while_headers_that_wait_are_too_many(
    headers_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp.MAX_HEADERS_BYTES", headers_bytes)
    in_flight: list[int] = [0]
    loop = asyncio.get_running_loop()

    def keep(_: object) -> asyncio.Future[int]:
        status = loop.create_future()
        in_flight.append(in_flight[-1] + 1)
        status.add_done_callback(lambda _: in_flight.append(in_flight[-1] - 1))
        loop.call_later(0.01, status.set_result, 0)
        return status

    async with serve_scp(GatewaySettings(scp_port=0), keep, unsaturated) as port, Raw(port) as raw:
        await raw.say(with_window(associate_rq(), 16))
        await raw.pdu()
        await raw.say(b"".join(map(numbered, range(20))))
        for _ in range(20):
            assert element(0x0900, b"\0\0") in await raw.pdu()
    assert (max(in_flight) > 1) is (headers_bytes > 0)
    assert in_flight[-1] == 0


async def test_an_association_says_when_bytes_of_an_unfinished_image_came_last() -> None:
    """Else a slow large image would look like silence, and its series would be taken for over."""
    associations: list[Association] = []
    limits = GatewaySettings(scp_port=0)
    async with serve_scp(limits, Kept(), unsaturated, associations.append) as port, Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        (association,) = associations
        assert (association.began_at, association.receiving_at) == (None, None)
        await raw.say(ECHO + store(encoded())[:-100])
        await raw.pdu()  # the answer to C-ECHO: what came with it has been read
        assert association.began_at is not None
        assert association.receiving_at is not None
        assert association.began_at <= association.receiving_at
        await raw.say(store(encoded())[-100:] + ECHO)
        for _ in range(2):
            assert (await raw.pdu())[0] == 4
        await raw.say(ECHO)
        await raw.pdu()
        assert association.receiving_at is None


async def test_an_image_that_begins_while_another_waits_ends_no_silence() -> None:
    """Else the time that the one before took to come would be learnt as silence before it."""
    associations: list[Association] = []
    waiting: asyncio.Queue[asyncio.Future[int]] = asyncio.Queue()

    def keep(_: object) -> asyncio.Future[int]:
        status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting.put_nowait(status)
        return status

    async with serve_scp(GatewaySettings(scp_port=0), keep, unsaturated, associations.append) as port, Raw(port) as raw:
        await raw.say(with_window(associate_rq(), 4))
        await raw.pdu()
        (association,) = associations
        await raw.say(ECHO + numbered(1)[:-100])
        await raw.pdu()
        first_at = association.began_at
        assert first_at is not None
        await raw.say(numbered(1)[-100:] + numbered(2))
        first, second = [await waiting.get() for _ in range(2)]
        assert association.began_at == first_at
        for status in (first, second):
            status.set_result(0)
            await raw.pdu()
        await raw.say(numbered(3))
        (await waiting.get()).set_result(0)
        await raw.pdu()
        assert association.began_at > first_at


async def test_what_is_kept_after_its_sender_has_gone_is_answered_to_nobody() -> None:
    handed_over, gone = asyncio.Event(), asyncio.Event()
    status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    before = total(store_responses)

    def keep(_: object) -> asyncio.Future[int]:
        handed_over.set()
        return status

    def observe(association: Association) -> None:
        if association.released_at is not None:
            gone.set()

    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    async with serve_scp(GatewaySettings(scp_port=0), keep, unsaturated, observe) as port:
        async with Raw(port) as raw:
            await raw.say(associate_rq())
            await raw.pdu()
            await raw.say(store(encoded()))
            await handed_over.wait()
        await gone.wait()
        status.set_result(0)
        await asyncio.sleep(0)
    assert total(store_responses) == before
    assert broken == []


async def test_an_association_that_waits_for_its_image_to_be_kept_is_not_late() -> None:
    async def slow(_: object) -> int:
        await asyncio.sleep(0.5)
        return 0

    settings = GatewaySettings(scp_port=0, pdu_timeout_s=0.1, association_idle_timeout_s=0.1)
    async with serve_scp(settings, slow, unsaturated) as port, Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        await raw.say(store(encoded()))
        assert (await raw.pdu())[0] == 4


def encoded() -> bytes:
    """An image that `store` may carry."""
    ds = make_dataset()
    ds.SOPInstanceUID = SOP_INSTANCE
    return encode(ds)


async def test_sender_that_does_not_fetch_its_answers_is_not_read_on() -> None:
    async with listening() as (port, _), Raw(port, buffer=1) as raw:
        raw.writer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.say(associate_rq())
        flood = asyncio.create_task(raw.say(ECHO * 300_000))
        done, _ = await asyncio.wait([flood], timeout=1)
        assert not done
        flood.cancel()


@pytest.mark.parametrize(
    ("allowed", "ae_title", "source", "outcome"),
    [
        ("CT1", "CT1", "127.0.0.1", True),
        ("CT1", "CT2", "127.0.0.1", (1, 1, 3)),
        ("127.0.0.2", "ANY", "127.0.0.2", True),
        ("127.0.0.2", "ANY", "127.0.0.1", ()),
        ("10.0.0.0/8, 127.0.0.0/8", "ANY", "127.0.0.1", True),
        ("CT1@127.0.0.2", "CT1", "127.0.0.2", True),
        ("CT1@127.0.0.2", "CT2", "127.0.0.2", (1, 1, 3)),
        ("CT1@127.0.0.2,CT2", "CT1", "127.0.0.1", (1, 1, 3)),
    ],
)
async def test_only_allowed_peers_associate(allowed: str, ae_title: str, source: str, outcome: object) -> None:
    async with listening(allowed_peers=allowed) as (port, _):
        assert await echo_or_rejection(port, ae_title, source) == outcome


@pytest.mark.parametrize(
    ("allowed", "called", "outcome"),
    [
        ("CT1=ARCHIVE", "ARCHIVE", True),
        ("CT1=ARCHIVE", "STORESCP", (1, 1, 7)),
        ("CT1=ARCHIVE, 127.0.0.1=STORESCP", "STORESCP", True),
        ("=ARCHIVE", "ARCHIVE", True),
        ("CT1@127.0.0.1=ARCHIVE", "ARCHIVE", True),
        ("CT2=ARCHIVE", "ARCHIVE", (1, 1, 3)),
    ],
)
async def test_peers_associate_only_by_the_called_ae_titles_they_may(
    allowed: str, called: str, outcome: object
) -> None:
    async with listening(allowed_peers=allowed) as (port, _), Raw(port) as raw:
        await raw.say(request(calling=b"CT1", called=called.encode()))
        answer = await raw.pdu()
        assert answer[0] == (2 if outcome is True else 3)
        assert outcome is True or tuple(answer[7:10]) == outcome


@pytest.mark.parametrize(
    ("allowed", "calling", "called", "near"),
    [
        ("MR1, CT1@127.0.0.1", b"ct1", b"STORESCP", "CT1@127.0.0.1"),
        ("CT 1", b"C T1", b"STORESCP", "CT 1"),
        ("CT1=ARCHIVE", b"CT1", b"archive", "CT1=ARCHIVE"),
        ("CT1@127.0.0.1, MR1@127.0.0.2", b"MR1\0", b"STORESCP", None),
        ("CT1", b"CT2", b"STORESCP", None),
    ],
)
async def test_rejection_names_who_asked_as_sent_and_who_may_have_been_meant(
    allowed: str, calling: bytes, called: bytes, near: str | None
) -> None:
    async with listening(allowed_peers=allowed) as (port, _), Raw(port) as raw:
        with capture_logs() as logs:
            await raw.say(request(calling=calling, called=called))
            assert (await raw.pdu())[0] == 3
        (rejected,) = [entry for entry in logs if entry["event"] == "association.rejected"]
    assert rejected["near"] == near
    assert rejected["as_sent"] == calling.replace(b"\0", b"\\x00").decode()
    assert rejected["called_ae_title"] == called.decode()


async def test_association_request_that_is_aborted_names_who_sent_it() -> None:
    async with listening() as (port, _), Raw(port) as raw:
        with capture_logs() as logs:
            await raw.say(request(item(0x20, b""), calling=b"CT1\0junk"))
            assert (await raw.pdu())[0] == 7
        (violated,) = [entry for entry in logs if entry["event"] == "association.violated"]
    assert (violated["calling_ae_title"], violated["as_sent"]) == ("CT1", r"CT1\x00junk")
    assert "presentation context" in violated["reason"]


async def test_store_without_a_data_set_is_answered() -> None:
    async with listening() as (port, kept), Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.pdu()
        await raw.say(p_data(pdv(1, 3, command(1, data_set=False))) + ECHO)
        assert element(0x0900, b"\x00\xc0") in await raw.pdu()
        assert element(0x0900, b"\0\0") in await raw.pdu()
    assert kept.instances == []


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"scp_host": "0.0.0.0"}, "can be reached from other machines. Name who may send in GATEWAY_ALLOWED_PEERS"),  # noqa: S104
        ({"allowed_peers": "CT1,,CT2"}, "empty entry"),
        ({"allowed_peers": "CT1@nowhere"}, "'CT1@nowhere' is not of the form AE@address"),
        ({"allowed_peers": "CT1="}, "'CT1=' has no name after the ="),
        ({"tls_key": "key.pem"}, "GATEWAY_TLS_CERT is missing"),
        ({"tls_cert": "c.pem", "tls_client_certs": "required"}, "needs GATEWAY_TLS_CA"),
    ],
)
def test_settings_that_do_not_fit_together_stop_the_start_with_the_cure(flags: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load(GatewaySettings, flags)


def test_open_address_is_accepted_where_it_is_wanted() -> None:
    assert load(GatewaySettings, {"scp_host": "0.0.0.0", "allow_any_peer": "true"}).may_associate("X", "10.0.0.1")  # noqa: S104
    assert not load(GatewaySettings, {"scp_host": "::", "allowed_peers": "::1"}).may_connect("10.0.0.1")


# --- TLS ------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority and what it signed, as files."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.cert = folder / "gateway.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.renew()

    def renew(self) -> None:
        self.authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(self.cert))

    def client(self, *, certified: bool = False, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if certified:
            self.authority.issue_cert("sender").configure_cert(context)
        if maximum is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = maximum
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def tls_echo(port: int, context: ssl.SSLContext) -> bool | tuple[int, ...]:
    return await echo(port, tls_args=(context, "localhost"))


async def test_tls_carries_associations_and_a_silent_client_holds_up_nobody(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert) as (port, _), Raw(port), Raw(port) as half:
        await half.say(b"\x16\x03\x01")  # the beginning of a ClientHello
        assert await tls_echo(port, certificates.client()) is True


async def test_silent_handshakes_count_against_their_address(certificates: Certificates) -> None:
    limits = {"max_connections_per_peer": 5, "associate_timeout_s": 60}
    async with listening(tls_cert=certificates.cert, **limits) as (port, _):
        silent = [await Raw(port).__aenter__() for _ in range(20)]
        for raw in silent[::2]:
            await raw.say(b"\x16\x03\x01")
        assert await tls_echo(port, certificates.client()) is True
        for raw in silent[:15]:
            assert await raw.end() == b""
        for raw in silent:
            await raw.__aexit__()


@pytest.fixture
def few_files() -> Iterator[None]:
    """At most 256 open files in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
async def test_listener_without_file_descriptors_goes_on_when_it_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scp.ACCEPT_RETRY_S", 0.01)
    async with listening() as (port, _):
        with socket.socket() as client, capture_logs() as logs, ExitStack() as stack:
            client.setblocking(False)
            with suppress(OSError):
                while True:
                    stack.callback(os.close, os.dup(0))
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            async with asyncio.timeout(120):
                while not logs:  # noqa: ASYNC110 - a log event is nothing to wait for
                    await asyncio.sleep(0.01)
        assert logs[0]["event"] == "connection.unaccepted"
        assert await echo(port) is True


async def test_handshake_that_does_not_end_in_time_is_closed(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert, associate_timeout_s=0.2) as (port, _), Raw(port) as raw:
        assert await raw.end() == b""


async def test_plain_dicom_on_a_tls_port_is_closed(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert) as (port, kept), Raw(port) as raw:
        await raw.say(associate_rq())
        await raw.end()
        assert await tls_echo(port, certificates.client()) is True
    assert kept.instances == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_below_1_2_is_refused(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert) as (port, _):
        assert await tls_echo(port, certificates.client(maximum=ssl.TLSVersion.TLSv1_1)) == ()
        assert await tls_echo(port, certificates.client(maximum=ssl.TLSVersion.TLSv1_2)) is True


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_only_cipher_suites_that_can_be_negotiated_are_offered(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert) as (port, _):
        for suites, agreed in (("ECDHE+AESGCM", True), ("ECDHE+CHACHA20", True), ("DHE+AESGCM", False)):
            context = certificates.client(maximum=ssl.TLSVersion.TLSv1_2)
            context.set_ciphers(suites)
            with nullcontext() if agreed else pytest.raises((ssl.SSLError, ConnectionError)):
                where = {"ssl": context, "server_hostname": "localhost"}
                _, writer = await asyncio.open_connection("127.0.0.1", port, **where)  # type: ignore[arg-type]
                writer.transport.abort()
    assert not [suite for suite in offered(certificates) if suite.startswith("DHE")]


def offered(certificates: Certificates) -> list[str]:
    context = tls_context(GatewaySettings(tls_cert=certificates.cert))
    assert context is not None
    return [str(suite["name"]) for suite in context.get_ciphers()]


@pytest.mark.parametrize(("wanted", "without"), [("none", True), ("optional", True), ("required", ())])
async def test_client_certificates(certificates: Certificates, wanted: str, without: object) -> None:
    settings = {"tls_cert": certificates.cert, "tls_ca": certificates.ca, "tls_client_certs": wanted}
    async with listening(**settings) as (port, _):
        assert await tls_echo(port, certificates.client(certified=True)) is True
        assert await tls_echo(port, certificates.client()) == without


async def test_sighup_loads_the_certificate_anew_and_keeps_the_old_one_where_it_is_bad(
    certificates: Certificates,
) -> None:
    async with listening(tls_cert=certificates.cert) as (port, _):
        before = await _serial(port)
        certificates.renew()
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        while await _serial(port) == before:
            pass
        renewed = await _serial(port)
        certificates.cert.write_text("nonsense")
        with capture_logs() as logs:
            os.kill(os.getpid(), signal.SIGHUP)
            while not logs:  # noqa: ASYNC110 - a signal handler sets no event
                await asyncio.sleep(0)
        assert logs[0]["event"] == "certificate.refused"
        assert await _serial(port) == renewed


async def _serial(port: int) -> bytes:
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    return pem.encode()


async def test_certificate_that_cannot_be_used_stops_the_start_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(BadCertificate, match="Give readable PEM files"):
        async with listening(tls_cert=tmp_path / "missing.pem"):
            pass


async def test_tls_stores_an_instance(certificates: Certificates) -> None:
    async with listening(tls_cert=certificates.cert) as (port, kept):

        def send() -> int:
            contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
            tls = (certificates.client(), "localhost")
            assoc = pure_scu(AE("SCU").associate("127.0.0.1", port, contexts, tls_args=tls))
            ds = make_dataset()
            ds.PixelData = bytes(10**6)
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            status = int(assoc.send_c_store(ds).Status)
            assoc.release()
            return status

        assert await asyncio.to_thread(send) == 0
        assert len(kept.instances) == 1
