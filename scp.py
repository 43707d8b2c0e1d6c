"""The C-STORE SCP on asyncio: it reads instances and awaits `handle_store` for each (PS3.4 Annex B, PS3.7 §9.1.1)."""

import asyncio
import contextlib
import itertools
import logging
import math
import signal
import socket
import ssl
import warnings
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, cast

import structlog
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from common import metrics
from common.settings import GatewaySettings
from dicom import header
from dicom.associate import Titles, escaped
from dicom.command_set import StoreStarted
from dicom.connection import Connection
from dicom.header import HeaderError, with_class_of_command
from dicom.listening import listen
from dicom.statuses import (
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    LOCAL_LIMIT_EXCEEDED,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    SUCCESS,
)
from dicom.tls import BadCertificate, load_certificates, tls_context
from dicom.upper_layer import (
    NEED_DATA,
    PAUSED,
    Aborted,
    Acceptor,
    AssociateRequested,
    EchoRequested,
    Event,
    InstanceFinished,
    Limits,
    OperationRefused,
    Released,
    State,
    Violation,
    pass_over,
)
from dicom.walk import Walk
from models import Association, Instance

ACCEPT_RETRY_S = 0.5  # pause if the process has no file descriptors left
GIVES_WAY_AFTER_S = 10.0  # an association without a PDU for this long may be ended if a limit is reached
READ_BYTES = 2**18  # of the buffer that sockets are read into
MAX_HEADERS_BYTES = 2**22  # of the headers that wait, beyond which an association has one operation in flight
STORED = metrics.store_responses.labels(f"0x{SUCCESS:04X}")  # kept here, since to look it up costs more than to count

HandleStore = Callable[[Instance], Awaitable[int]]
"""Keeps one instance and returns its C-STORE status, within a bounded time. A future is cheaper than a coroutine."""

log = structlog.get_logger()


class Arrival(NamedTuple):
    """A received instance that is not kept yet. `status` gets its C-STORE status."""

    instance: Instance
    status: asyncio.Future[int]


class Rejection(NamedTuple):
    """Why an association is rejected."""

    numbers: tuple[int, int, int]
    """Result, source and reason (PS3.8 table 9-21)."""
    kind: str
    """The label under which it is counted."""
    reason: str
    near: str | None = None
    """The entry of GATEWAY_ALLOWED_PEERS that was probably meant."""


def enqueue(inbox: asyncio.Queue[Any], timeout_s: float) -> HandleStore:
    """Return a `handle_store` that puts an Arrival on a bounded queue, and waits until its status is set.

    If that takes longer than `timeout_s`, the status is OUT_OF_RESOURCES. An arrival whose status is already set must
    not be kept.
    """
    loop = asyncio.get_running_loop()
    timeouts = _TimeOuts(loop, timeout_s)

    def handle_store(instance: Instance) -> asyncio.Future[int]:
        arrival = Arrival(instance, loop.create_future())
        timeouts.add(arrival.status, instance.sop_instance_uid)
        try:
            inbox.put_nowait(arrival)
        except asyncio.QueueFull:
            putting = loop.create_task(inbox.put(arrival), name="put")
            arrival.status.add_done_callback(lambda _: putting.cancel())
        return arrival.status

    return handle_store


class _TimeOuts:
    """Refuses instances that were not kept in time. All of them have the same time, so one timer serves them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[float, asyncio.Future[int], str]] = deque()  # and some that wait no more
        self._timer: asyncio.TimerHandle | None = None

    def add(self, status: asyncio.Future[int], sop_instance_uid: str) -> None:
        """Let an instance wait for its status for `timeout_s`."""
        self._forget()
        self._waiting.append((self._loop.time() + self._timeout_s, status, sop_instance_uid))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._sweep)

    def _forget(self) -> None:
        """Forget the oldest ones, as far as they have their status."""
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()

    def _sweep(self) -> None:
        """Refuse those whose time is over; set the timer for the next one that waits."""
        now = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now:
            _, status, sop_instance_uid = self._waiting.popleft()
            if not status.done():
                log.warning("instance.refused", sop_instance_uid=sop_instance_uid, reason="inbox_timeout_s passed")
                status.set_result(OUT_OF_RESOURCES)
        self._forget()
        self._timer = self._loop.call_at(self._waiting[0][0], self._sweep) if self._waiting else None


@asynccontextmanager
async def serve_scp(
    settings: GatewaySettings,
    handle_store: HandleStore,
    saturated: Callable[[], str | None],
    observe: Callable[[Association], None] = lambda _: None,
) -> AsyncIterator[int]:
    """Listen for associations; yield the port that is bound. Raises CannotListen.

    - While `saturated` returns a reason, new associations are rejected as transient, local limit exceeded (PS3.8 table
      9-21), and instances on open ones are answered with OUT_OF_RESOURCES.
    - `observe` is called with every association when it is established, and again when it has ended.
    - On exit it stops accepting, lets open associations end within `drain_timeout_s`, and aborts the others.
    """
    scp = _Scp(settings, handle_store, saturated, observe)
    with listen(settings) as listener:
        if scp.tls is not None:
            scp.loop.add_signal_handler(signal.SIGHUP, scp.reload_certificate)
        accepting = scp.loop.create_task(scp.accept(listener), name="accept")
        try:
            yield int(listener.getsockname()[1])
        finally:
            scp.loop.remove_signal_handler(signal.SIGHUP)
            accepting.cancel()
            await asyncio.wait([accepting])
    await scp.drain()


def _application_entity(settings: GatewaySettings) -> AE:
    """Return pynetdicom's AE, which holds our configuration: AE title, and contexts other than storage."""
    for name in ("pynetdicom", "pydicom"):  # we log problems with hostile bytes ourselves
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    ae = AE(ae_title=settings.ae_title)
    ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
    return ae


class _Scp:
    """Everything that the associations of one listener share: settings, and who is connected."""

    def __init__(
        self,
        settings: GatewaySettings,
        handle_store: HandleStore,
        saturated: Callable[[], str | None],
        observe: Callable[[Association], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.settings = settings
        self.ae = _application_entity(settings)
        self.limits = Limits(settings.max_pdu_bytes, settings.max_command_bytes, settings.max_operations)
        self.wanted = header.Wanted(settings.extras)
        self.tls = tls_context(settings)
        self.handle_store = handle_store
        self.saturated = saturated
        self.observe = observe
        self.numbers = itertools.count(1)
        self.header_bytes = 0  # of the instances that wait for their answers on associations with a window
        self.read_buffer = memoryview(bytearray(READ_BYTES))  # shared, since bytes are handled before the next read
        self.waiting: dict[_Association, None] = {}  # connections without an association, in the order they came
        self.established: dict[_Association, None] = {}
        self._empty = asyncio.Event()

    def reload_certificate(self) -> None:
        """Read the certificate files again, on SIGHUP, for new handshakes. If they are bad, nothing changes."""
        try:
            tls_context(self.settings)  # raises if a file is bad
            load_certificates(cast(ssl.SSLContext, self.tls), self.settings)
        except BadCertificate as error:
            log.error("certificate.refused", reason=str(error))
        else:
            log.info("certificate.reloaded")

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled. A connection counts towards limits even before its TLS handshake."""
        while True:
            try:
                sock, address = await self.loop.sock_accept(listener)
            except OSError as error:
                log.error("connection.unaccepted", reason=error.strerror)
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            connection = _Association(self, str(address[0]))
            if self.admit(connection):
                connection.open(sock, self.tls, self.settings.associate_timeout_s)
            else:
                sock.close()
            await asyncio.sleep(0)  # a peer that connects as fast as we accept must not block the others

    def admit(self, connection: "_Association") -> bool:
        """Decide if a connection may stay. Beyond a limit (of its address, of all) the oldest waiting one is closed."""
        settings, address = self.settings, connection.address
        if not settings.may_connect(address):
            _refused("address", address, "not in allowed_peers")
            return False
        self.waiting[connection] = None
        of_address = [other for other in self.waiting if other.address == address]
        if len(of_address) > settings.max_connections_per_peer:
            of_address[0].drop()
        elif len(self.waiting) > settings.max_waiting:
            next(iter(self.waiting)).drop()
        return True

    def establish(self, connection: "_Association") -> None:
        """Note that an association begins on a connection."""
        del self.waiting[connection]
        self.established[connection] = None
        metrics.associations_open.set(len(self.established))

    def end(self, connection: "_Association") -> None:
        """Note that an association has ended. Its connection may still be open."""
        del self.established[connection]
        self.waiting[connection] = None
        metrics.associations_open.set(len(self.established))
        if not self.established:
            self._empty.set()

    def rejection(self, titles: Titles, address: str) -> Rejection | None:
        """Decide if an association is rejected; return why, or None if it is accepted.

        1. Its AE titles and address must be allowed.
        2. The gateway must be able to keep images.
        3. There must be room for one more association.
        """
        for called, numbers, why in (
            (None, CALLING_AE_TITLE_NOT_RECOGNIZED, "not in allowed_peers"),
            (titles.called, CALLED_AE_TITLE_NOT_RECOGNIZED, "not with this called AE title in allowed_peers"),
        ):
            if not self.settings.may_associate(titles.calling, address, called):
                near = self.settings.near(titles.calling, address, titles.called)
                return Rejection(numbers, "ae_title", why, near)
        if reason := self.saturated():
            return Rejection(LOCAL_LIMIT_EXCEEDED, "saturated", reason)
        if limit := self._full(address):
            return Rejection(LOCAL_LIMIT_EXCEEDED, "limit", limit)
        return None

    def _full(self, address: str) -> str | None:
        """Return the limit that one more association would exceed. If possible, end the longest idle one instead."""
        of_address = [other for other in self.established if other.address == address]
        for name, some in (("max_connections_per_peer", of_address), ("max_associations", [*self.established])):
            if len(some) < getattr(self.settings, name):
                continue
            oldest = min(some, key=lambda other: other.idle_since)
            if self.loop.time() - oldest.idle_since < GIVES_WAY_AFTER_S:
                return name
            oldest.abort(f"idle, and ended to make room at {name}={len(some)}")
        return None

    async def drain(self) -> None:
        """Close connections without an association; let associations end, and abort them after `drain_timeout_s`."""
        for connection in [*self.waiting]:
            connection.drop()
        if self.established:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.drain_timeout_s):
                    await self._empty.wait()
        for connection in [*self.established]:
            connection.abort(f"drain exceeded drain_timeout_s={self.settings.drain_timeout_s:g}")
        for connection in [*self.waiting]:
            connection.close()


class _Association(Connection):
    """One connection. It passes bytes to and from its Acceptor, and instances to `handle_store`."""

    def __init__(self, scp: _Scp, address: str) -> None:
        super().__init__(address, scp.read_buffer)
        self._scp = scp
        self._acceptor = Acceptor(scp.ae.supported_contexts, scp.limits)
        self._store: StoreStarted
        self._walk: Walk
        self._unreadable = ""  # the kind of error that the walk raised
        self._storing = 0  # how many instances wait for their status
        self._association: Association | None = None  # set while it is established
        self._calling = self._called = ""  # its AE titles
        self._was_released = False  # true if the peer asked for it (PS3.8 §7.2); otherwise it was aborted
        self._instances = 0  # how many were kept
        self._pdus = 0

    @property
    def idle_since(self) -> float:
        """Return when the last PDU came, in loop time; infinity in the middle of a PDU or an instance."""
        busy = self._storing > 0 or self._acceptor.in_instance or self._acceptor.in_pdu
        return math.inf if busy else self.heard_at

    def on_connected(self) -> None:
        self.expect_within(self._scp.settings.associate_timeout_s)

    def on_bytes(self, data: memoryview) -> None:
        self._acceptor.receive_data(data)
        self._advance()
        if self._association is not None:
            self._association.receiving_at = self.heard_at if self._acceptor.in_instance else None
        self._acceptor.hold()

    def on_writable(self) -> None:
        self._advance()

    def on_handshake_failed(self, error: OSError) -> None:
        _refused("tls", self.address, f"TLS handshake: {type(error).__name__}")

    def on_gone(self) -> None:
        self._leave()
        self._scp.waiting.pop(self, None)

    def _leave(self) -> None:
        """Note that the association has ended, if there is one, for whatever reason."""
        association, self._association = self._association, None
        if association is None:
            return
        association.released_at = now = self.loop.time()
        association.aborted = not self._was_released
        self._scp.observe(association)
        self._scp.end(self)
        log.info(
            "association.ended",
            association=association.number,
            calling_ae_title=association.calling_ae_title,
            peer_address=self.address,
            instances=self._instances,
            seconds=round(now - association.opened_at, 3),
        )

    def abort(self, reason: str) -> None:
        """End the association with A-ABORT."""
        self._log("association.aborted", reason=reason)
        metrics.associations_aborted.inc()
        self._end(self._acceptor.abort())

    # --- the upper layer's side ---

    def _advance(self) -> None:
        """Handle events until we need more data, have to answer first, or the peer has to read first.

        A sender that goes on without waiting for answers has to wait: nothing is read while bytes wait to be handled.
        """
        while self.may_write:
            full = self._storing and self._scp.header_bytes > MAX_HEADERS_BYTES
            event = PAUSED if full else self._acceptor.next_event()
            if event is NEED_DATA:
                break
            if event is PAUSED:
                if self._acceptor.in_pdu:
                    self.pause()
                return
            self._handle(event)
        if self.resume():
            self._set_deadline()

    def _handle(self, event: Event) -> None:
        match event:
            case StoreStarted():
                self._store, self._unreadable = event, ""
                self._walk = self._scp.wanted.begin(event.transfer_syntax_uid, self._scp.settings.max_header_bytes)
                self._acceptor.data_set = self._go_on
                if self._association is not None and not self._storing:  # else there is no silence before it
                    self._association.began_at = self.heard_at
            case InstanceFinished(length):
                self._store_instance(length)
            case EchoRequested(response):
                self.write(response)
            case AssociateRequested():
                self._associate(self._acceptor.titles)
            case OperationRefused(command_field, response):
                self._log("operation.refused", command_field=f"0x{command_field:04X}")
                self.write(response)
            case Released(response):
                self._was_released = True
                self._end(response)
            case Violation(problem, response):
                as_sent = escaped(self._acceptor.titles.calling_as_sent)
                self._log("association.violated", as_sent=as_sent, reason=problem)
                metrics.associations_refused.labels("protocol").inc()
                self._end(response)
            case Aborted():
                self._end(b"")

    def _associate(self, titles: Titles) -> None:
        rejection = self._scp.rejection(titles, self.address)
        if rejection is not None:
            self._log(
                "association.rejected",
                as_sent=escaped(titles.calling_as_sent),
                called_ae_title=escaped(titles.called_as_sent),
                result_source_reason=rejection.numbers,
                reason=rejection.reason,
                near=rejection.near,
            )
            metrics.associations_refused.labels(rejection.kind).inc()
            self._end(self._acceptor.reject(*rejection.numbers))
            return
        number, now = next(self._scp.numbers), self.loop.time()
        self._calling, self._called = titles.calling, titles.called
        self._association = Association(number, self._calling, self.address, now)
        self._scp.establish(self)
        metrics.associations.inc()
        self._scp.observe(self._association)
        self.write(self._acceptor.accept())

    def _go_on(self, fragment: memoryview) -> None:
        """Feed a fragment of a data set to the walk."""
        try:
            self._walk.feed(fragment)
        except Exception as error:  # hostile bytes may raise anything; the error's text may hold patient data
            self._unreadable = type(error).__name__
            self._acceptor.data_set = pass_over

    def _store_instance(self, length: int) -> None:
        """Handle an instance that has come completely. The cases, in order:

        1. The gateway is saturated: refuse it with OUT_OF_RESOURCES.
        2. Its header cannot be read, or has no usable UIDs: refuse it with CANNOT_UNDERSTAND.
        3. Command and data set name different instances: refuse it with DATA_SET_MISMATCH.
        4. Otherwise hand it to `handle_store`, and answer with the status that this returns.
        """
        store, finished_at = self._store, self.loop.time()
        metrics.instances_received.inc()
        metrics.received_bytes.inc(length)
        if self._scp.saturated():
            self._respond(store, finished_at, OUT_OF_RESOURCES)
            return
        if self._unreadable:
            self._refuse(CANNOT_UNDERSTAND, f"header unreadable: {self._unreadable}")
            return
        try:
            instance = header.finish(
                self._walk,
                wanted=self._scp.wanted,
                transfer_syntax_uid=store.transfer_syntax_uid,
                calling_ae_title=self._calling,
                called_ae_title=self._called,
                peer_address=self.address,
                received_at=datetime.now(UTC),
                length=length,
                association=self._association,
            )
        except HeaderError as error:
            self._refuse(CANNOT_UNDERSTAND, str(error), error.tag)
        except Exception as error:  # hostile bytes may raise anything; the error's text may hold patient data
            self._refuse(CANNOT_UNDERSTAND, f"header unreadable: {type(error).__name__}")
        else:
            if instance.sop_instance_uid != _uid(store.sop_instance_uid):
                self._refuse(DATA_SET_MISMATCH, "SOPInstanceUID is not the command's", 0x00080018)
            else:
                instance = with_class_of_command(instance, _uid(store.sop_class_uid))
                size = self._walk.kept_bytes if self._acceptor.window > 1 else 0
                storing = asyncio.ensure_future(self._scp.handle_store(instance))
                self._count(1, size)
                storing.add_done_callback(partial(self._answer, store, finished_at, size))

    def _count(self, instances: int, header_bytes: int) -> None:
        """Count instances that begin to wait for their status, or with negative numbers that end."""
        self._storing += instances
        self._scp.header_bytes += header_bytes

    def _refuse(self, status: int, comment: str, offending: int | None = None) -> None:
        """Refuse an instance, with Error Comment and Offending Element (PS3.7 §C.4)."""
        self._log("instance.refused", status=f"0x{status:04X}", reason=comment)
        self._respond(self._store, self.loop.time(), status, comment, offending)

    def _respond(
        self, store: StoreStarted, finished_at: float, status: int, comment: str = "", offending: int | None = None
    ) -> None:
        self.write(self._acceptor.respond(status, comment, offending, store))
        (STORED if status == SUCCESS else metrics.store_responses.labels(f"0x{status:04X}")).inc()
        metrics.store_seconds.observe(self.loop.time() - finished_at)

    def _answer(self, store: StoreStarted, finished_at: float, size: int, storing: asyncio.Future[int]) -> None:
        """Answer with the status that `handle_store` returned, and continue."""
        self._count(-1, -size)
        if self._association is None or storing.cancelled():
            return
        if (error := storing.exception()) is not None:  # an image that was not kept is never answered with Success
            uid = _uid(store.sop_instance_uid)
            log.error("instance.refused", reason=type(error).__name__, sop_instance_uid=uid)
        status = PROCESSING_FAILURE if error else storing.result()
        self._instances += status == SUCCESS
        self._respond(store, finished_at, status)
        self._advance()

    def _end(self, response: bytes) -> None:
        """Write the last response. Ignore what still comes until the peer closes, or its time is over (PS3.8 Sta13)."""
        self._leave()
        self.finish(response)
        if response:
            self.expect_within(self._scp.settings.associate_timeout_s)

    def _log(self, event: str, **fields: object) -> None:
        number = {"association": self._association.number} if self._association else {}
        title = self._acceptor.titles.calling
        log.warning(event, calling_ae_title=title, peer_address=self.address, **number, **fields)

    # --- time ---

    def _set_deadline(self) -> None:
        """Set the deadline for the end of the current PDU or, between two PDUs, for the next one to begin."""
        settings = self._scp.settings
        if self._acceptor.state is not State.STA6:
            return  # the deadline for the A-ASSOCIATE-RQ stays
        if not self._acceptor.in_pdu:
            self._pdus = -1
            self.expect_within(settings.association_idle_timeout_s)
        elif self._acceptor.pdus != self._pdus:
            self._pdus = self._acceptor.pdus
            self.expect_within(settings.pdu_timeout_s)

    def on_timer(self) -> None:
        if self._storing:
            self.expect_within(self._scp.settings.pdu_timeout_s)  # the peer is waiting for us

    def on_late(self) -> None:
        if self._association is not None:
            self.abort("pdu_timeout_s passed" if self._acceptor.in_pdu else "association_idle_timeout_s passed")
        else:
            self.drop()


def _refused(kind: str, address: str, reason: str) -> None:
    """Log and count a connection that was closed before any association."""
    log.warning("connection.refused", peer_address=address, reason=reason)
    metrics.associations_refused.labels(kind).inc()


def _uid(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")
